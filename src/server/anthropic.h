// Anthropic's API: its requests into an Ask, replies into its events and messages. Has not heard of
// sockets.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "server/ask.h"
#include "server/format.h"

namespace tessera::anthropic {

enum class Purpose : uint8_t { kAnswer, kCount };

// `recommended`: the sampling of fields that are not given. kCount: max_tokens may be missing.
OrProblem<Ask> parse_message(const OrderedJson& body, const Sampling& recommended,
                             Purpose purpose = Purpose::kAnswer);

// `id` without a prefix.
std::unique_ptr<ReplyFormat> message_format(std::string_view id, std::string_view model);

// {"type": "error", "error": {…}, "request_id"}: Anthropic's keys, and OpenAI's beside them.
std::string error_body(const ApiProblem& problem, std::string_view request_id);

}  // namespace tessera::anthropic
