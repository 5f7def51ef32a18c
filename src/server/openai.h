// OpenAI's API: its requests into an Ask, replies into its chunks and objects. Has not heard of
// sockets.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "server/ask.h"
#include "server/format.h"

namespace tessera::openai {

// `recommended`: the sampling of fields that are not given.
OrProblem<Ask> parse_chat(const OrderedJson& body, const Sampling& recommended);
OrProblem<Ask> parse_completion(const OrderedJson& body, const Sampling& recommended);

// The turns and tools of a conversation; also what /tokenize takes.
void read_conversation(Fields& fields, Conversation& conversation);

struct ReplyHead {
    std::string id;  // without a prefix
    std::string model;
    int64_t created = 0;  // seconds since 1970
    bool include_usage = false;
    bool likelihoods = false;
    bool include_rounds = false;
};
std::unique_ptr<ReplyFormat> chat_format(const ReplyHead& head);
std::unique_ptr<ReplyFormat> completion_format(const ReplyHead& head);

// {"error": {"message", "type", "param", "code"}}
std::string error_body(const ApiProblem& problem);

// The list of models, or one of them.
struct ModelShown {
    std::string id;
    uint32_t context_tokens = 0;
};
std::string model_list(std::span<const ModelShown> models, int64_t created);
std::string model_object(const ModelShown& model, int64_t created);

}  // namespace tessera::openai
