#include "engine/guide.h"

#include <algorithm>

#include "base/check.h"
#include "text/chat.h"

namespace tessera {

GrammarGuide::GrammarGuide(std::shared_ptr<grammar::LocalMasks> masks, const Tokenizer& tokenizer,
                           const Constraint& constraint)
    : words_(masks->vocabulary().words()),
      matcher_(std::move(masks)),
      tokenizer_(tokenizer),
      reasoning_begin_(tokenizer.added_id_of(marker_text(Marker::kReasoningBegin))),
      reasoning_end_(tokenizer.added_id_of(marker_text(Marker::kReasoningEnd))) {
    const bool may_reason = constraint.after_reasoning && reasoning_begin_ && reasoning_end_;
    phases_.push_back(may_reason ? Phase::kOpening : Phase::kAnswer);
    matcher_.skip(constraint.begins);
}

// The token that has to come; none if there is a choice. The last token of what is forced is none:
// with the bytes behind it the tokenizer might have made a longer one.
std::optional<uint32_t> GrammarGuide::only_token() {
    constexpr size_t kAhead = 48;  // bytes: a few tokens
    const grammar::Matcher::Forced forced = matcher_.forced(kAhead);
    if (forced.token) return forced.token;
    if (forced.bytes.size() < 2) return std::nullopt;
    const std::vector<uint32_t> spelt = tokenizer_.encode(forced.bytes, Specials::kAsText);
    // encode() repairs a character that is cut: what it then says is not what has to come.
    if (spelt.size() < 2 || !forced.bytes.starts_with(tokenizer_.token_bytes(spelt[0])))
        return std::nullopt;
    return spelt[0];
}

std::span<const uint64_t> GrammarGuide::answer() {
    const std::optional<uint32_t> only = only_token();
    if (!only) return matcher_.allowed();
    bits_.assign(words_, 0);
    grammar::set_bit(bits_, *only);
    return bits_;
}

std::span<const uint64_t> GrammarGuide::allowed() {
    if (phases_.back() == Phase::kReasoning) return {};
    const std::span<const uint64_t> answer = this->answer();
    if (phases_.back() == Phase::kAnswer) return answer;
    if (answer.data() != bits_.data()) bits_.assign(answer.begin(), answer.end());
    grammar::set_bit(bits_, *reasoning_begin_);
    return bits_;
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
    if (phases_.back() != Phase::kAnswer) return 0;
    uint32_t count = 0;
    while (count < tokens.size()) {
        const std::optional<uint32_t> only = only_token();
        if (!only) break;
        tokens[count++] = *only;
        matcher_.push(*only);
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
