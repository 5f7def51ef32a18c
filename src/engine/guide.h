// A constraint on its way through an answer of one model: grammar/matcher.h as decode/guide.h wants
// it, the reasoning that may stand before, and how the model would spell what has to come.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "decode/guide.h"
#include "tessera/constraint.h"
#include "text/tokenizer.h"

#include "grammar/matcher.h"

namespace tessera {

class GrammarGuide : public Guide {
  public:
    // `tokenizer` outlives this.
    GrammarGuide(std::shared_ptr<grammar::LocalMasks> masks, const Tokenizer& tokenizer,
                 const Constraint& constraint);

    std::span<const uint64_t> allowed() override;
    void push(uint32_t token) override;
    void pop(uint32_t count) override;
    uint32_t forced(std::span<uint32_t> tokens) override;

  private:
    enum class Phase : uint8_t {
        kOpening,    // reasoning may begin, or the answer
        kReasoning,  // free
        kAnswer,
    };

    grammar::Matcher matcher_;
    const Tokenizer& tokenizer_;
    std::optional<uint32_t> reasoning_begin_, reasoning_end_;
    std::vector<Phase> phases_;  // before each of the last tokens, and now
    grammar::Bits opening_;
};

// The tokens of a model as grammars use them: no added token is text.
std::shared_ptr<const grammar::Vocabulary> grammar_vocabulary(const Tokenizer& tokenizer,
                                                              std::span<const uint32_t> ends,
                                                              uint32_t vocab);

// Whether a constraint can hold: each byte is a token, so that no text gets stuck.
bool has_every_byte(const Tokenizer& tokenizer);

}  // namespace tessera
