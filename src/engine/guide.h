// A constraint on its way through an answer of one model: grammar/matcher.h as decode/guide.h wants
// it, and the reasoning that may stand before. Where several bytes have to come, only the token
// with which the tokenizer itself would spell them is allowed: the model has learnt no other
// spelling, and a draft of it always stands.
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

    std::optional<uint32_t> only_token();
    std::span<const uint64_t> answer();

    const size_t words_;  // of a mask
    grammar::Matcher matcher_;
    const Tokenizer& tokenizer_;
    std::optional<uint32_t> reasoning_begin_, reasoning_end_;
    std::vector<Phase> phases_;  // before each of the last tokens, and now
    grammar::Bits bits_;
};

// The tokens of a model as grammars use them: no added token is text.
std::shared_ptr<const grammar::Vocabulary> grammar_vocabulary(const Tokenizer& tokenizer,
                                                              std::span<const uint32_t> ends,
                                                              uint32_t vocab);

// Whether a constraint can hold: each byte is a token, so that no text gets stuck.
bool has_every_byte(const Tokenizer& tokenizer);

}  // namespace tessera
