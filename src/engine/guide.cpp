#include "engine/guide.h"

#include <algorithm>

#include "base/check.h"
#include "text/chat.h"

namespace tessera {

GrammarGuide::GrammarGuide(std::shared_ptr<grammar::LocalMasks> masks, const Tokenizer& tokenizer,
                           const Constraint& constraint)
    : matcher_(std::move(masks)),
      tokenizer_(tokenizer),
      reasoning_begin_(tokenizer.added_id_of(marker_text(Marker::kReasoningBegin))),
      reasoning_end_(tokenizer.added_id_of(marker_text(Marker::kReasoningEnd))) {
    const bool may_reason = constraint.after_reasoning && reasoning_begin_ && reasoning_end_;
    phases_.push_back(may_reason ? Phase::kOpening : Phase::kAnswer);
    matcher_.skip(constraint.begins);
}

std::span<const uint64_t> GrammarGuide::allowed() {
    if (phases_.back() == Phase::kReasoning) return {};
    if (phases_.back() == Phase::kAnswer) return matcher_.allowed();
    const std::span<const uint64_t> answer = matcher_.allowed();
    opening_.assign(answer.begin(), answer.end());
    grammar::set_bit(opening_, *reasoning_begin_);
    return opening_;
}

void GrammarGuide::push(uint32_t token) {
    Phase next = phases_.back();
    if (next == Phase::kReasoning) {
        if (token == *reasoning_end_) next = Phase::kAnswer;
    } else if (next == Phase::kOpening && token == *reasoning_begin_) {
        next = Phase::kReasoning;
    } else {
        next = Phase::kAnswer;
        matcher_.push(token);
    }
    if (phases_.size() > grammar::Matcher::kBack) phases_.erase(phases_.begin());
    phases_.push_back(next);
}

void GrammarGuide::pop(uint32_t count) {
    CHECK(count < phases_.size());
    for (; count > 0; --count) {
        const Phase after = phases_.back();
        phases_.pop_back();
        const bool reasoned = after == Phase::kReasoning || phases_.back() == Phase::kReasoning;
        if (!reasoned) matcher_.pop(1);
    }
}

uint32_t GrammarGuide::forced(std::span<uint32_t> tokens) {
    if (phases_.back() != Phase::kAnswer || tokens.empty()) return 0;
    constexpr size_t kBytesEach = 16;  // more than a token of text has on average
    const grammar::Matcher::Forced forced = matcher_.forced(kBytesEach * tokens.size());
    if (forced.token) {
        tokens[0] = *forced.token;
        return 1;
    }
    if (forced.bytes.empty()) return 0;
    const std::vector<uint32_t> spelt = tokenizer_.encode(forced.bytes, Specials::kAsText);
    // A part of a character at the end was repaired by encode(), and is no draft.
    uint32_t count = 0;
    for (; count < tokens.size() && count < spelt.size(); ++count) {
        if (!matcher_.allows(spelt[count])) break;
        matcher_.push(spelt[count]);
        tokens[count] = spelt[count];
    }
    matcher_.pop(count);
    return count;
}

std::shared_ptr<const grammar::Vocabulary> grammar_vocabulary(const Tokenizer& tokenizer,
                                                              std::span<const uint32_t> ends,
                                                              uint32_t vocab) {
    std::vector<std::string_view> texts(tokenizer.vocab_size());
    std::vector<grammar::Vocabulary::Marker> markers;
    for (uint32_t id = 0; id < texts.size(); ++id) {
        const std::string_view bytes = tokenizer.token_bytes(id);
        const bool added = tokenizer.added_id_of(bytes) == id;
        if (added) markers.push_back({std::string(bytes), id});
        if (!added && !tokenizer.is_special(id)) texts[id] = bytes;
    }
    for (const uint32_t end : ends)
        if (end < texts.size()) texts[end] = {};
    return std::make_shared<const grammar::Vocabulary>(
        std::move(texts), std::vector<uint32_t>(ends.begin(), ends.end()), std::move(markers),
        vocab);
}

bool has_every_byte(const Tokenizer& tokenizer) {
    for (int byte = 0; byte < 256; ++byte) {
        const char one = static_cast<char>(byte);
        const auto id = tokenizer.id_of(std::string_view(&one, 1));
        if (!id || tokenizer.is_special(*id)) return false;
    }
    return true;
}

}  // namespace tessera
