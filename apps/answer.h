// One answer, streamed: tokens from a session become text, until something ends it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/session.h"

namespace tessera {

struct AnswerLimits {
    uint32_t tokens_max = 0;
    std::vector<std::string> stops;
    ShowSpecials specials = ShowSpecials::kSkip;
};

enum class AnswerEnd : uint8_t { by_model, at_stop, at_limit, at_context, by_interrupt };
std::string_view answer_end_text(AnswerEnd ended);

struct Answer {
    AnswerEnd ended;
    std::vector<Token> tokens;  // chosen, the end token included
};

// Writes each piece of text as soon as it is certain. Asks interrupted() between tokens.
Answer stream_answer(const Model& model, Session& session, const AnswerLimits& limits,
                     const std::function<void(std::string_view)>& write);

}  // namespace tessera
