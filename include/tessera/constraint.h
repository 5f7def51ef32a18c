// What an answer has to be: JSON that fits a schema, or a call of a tool. It holds token for token,
// whatever the model would rather say, and changes nothing of how tokens are chosen among those
// that fit; with speculation and without, the text is the same.
#pragma once

#include <memory>
#include <string>
#include <variant>

#include "text/python_json.h"

namespace tessera {

namespace grammar {
struct Program;
struct Refusal;
}  // namespace grammar

class Constraint {
  public:
    // Or why there is none, in a sentence with the place in the schema. What is understood, and how
    // JSON is spelt: grammar/schema.h.
    using OrProblem = std::variant<Constraint, std::string>;
    static OrProblem json_schema(const OrderedJson& schema);

    // What follows "<tool_call>", which the prompt ends with (RenderOptions::reply_begins): a call
    // of one of `tools`, in OpenAI's form, whole.
    static OrProblem tool_call(const OrderedJson& tools);

    // The answer may begin with reasoning, which is free: "<think>" to "</think>".
    bool after_reasoning = false;

    // The bytes of it that the prompt has already.
    std::string begins;

  private:
    friend class Session;
    static OrProblem made(std::variant<grammar::Program, grammar::Refusal>&& from);

    std::shared_ptr<const grammar::Program> program_;
};

}  // namespace tessera
