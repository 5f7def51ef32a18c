// What each route of the server does: from a request's body to a job or an answer.
#include <array>
#include <ctime>
#include <iterator>
#include <random>

#include <fmt/format.h>

#include "server/anthropic.h"
#include "server/page.h"
#include "server/server.h"

namespace tessera {
namespace {

uint64_t random_seed() {
    thread_local std::random_device device;
    return uint64_t{device()} << 32 | device();
}

ApiProblem queue_full() {
    return {.status = 429,
            .message = "too many requests are waiting: try again later",
            .code = "queue_full",
            .retry_after_ms = 1000};
}

ApiProblem no_model(std::string_view id) {
    constexpr size_t kIdShown = 100;
    return {.status = 404,
            .message = fmt::format("there is no model \"{}\"; GET /v1/models lists them",
                                   id.substr(0, kIdShown)),
            .param = "model",
            .code = "model_not_found"};
}

}  // namespace

std::optional<Mode> Server::mode_of_model(std::string_view id) const {
    if (id == base_id_) return Mode::kBase;
    if (id == ultraspeed_id_) return Mode::kUltraspeed;
    return std::nullopt;
}

// ------------------------------------------------------------------ generation

std::optional<OrderedJson> Server::body_of(const std::shared_ptr<Exchange>& exchange) const {
    const HttpRequest& request = exchange->request();
    if (jobs_->full()) {  // before any work is done for it
        exchange->reply(refusal(request, queue_full()));
        return std::nullopt;
    }
    auto body = parse_body(request.body);
    if (auto* json = std::get_if<OrderedJson>(&body)) return std::move(*json);
    exchange->reply(refusal(request, std::get<ApiProblem>(body)));
    return std::nullopt;
}

void Server::answer_chat(const std::shared_ptr<Exchange>& exchange) {
    const auto body = body_of(exchange);
    if (!body) return;
    generate(exchange, openai::parse_chat(*body, model_->info().recommended), openai::chat_format);
}

void Server::answer_completion(const std::shared_ptr<Exchange>& exchange) {
    const auto body = body_of(exchange);
    if (!body) return;
    generate(exchange, openai::parse_completion(*body, model_->info().recommended),
             openai::completion_format);
}

void Server::answer_messages(const std::shared_ptr<Exchange>& exchange) {
    const auto body = body_of(exchange);
    if (!body) return;
    generate(exchange, anthropic::parse_message(*body, model_->info().recommended),
             [](const openai::ReplyHead& head) {
                 return anthropic::message_format(head.id, head.model);
             });
}

void Server::answer_count(const std::shared_ptr<Exchange>& exchange) {
    const auto refuse = [&](const ApiProblem& problem) {
        exchange->reply(refusal(exchange->request(), problem));
    };
    const auto body = parse_body(exchange->request().body);
    if (const auto* problem = std::get_if<ApiProblem>(&body)) return refuse(*problem);
    const auto asked =
        anthropic::parse_message(std::get<OrderedJson>(body), {}, anthropic::Purpose::kCount);
    if (const auto* problem = std::get_if<ApiProblem>(&asked)) return refuse(*problem);
    const Ask& ask = std::get<Ask>(asked);
    if (!mode_of_model(ask.model)) return refuse(no_model(ask.model));
    const auto tokens = tokens_of(ask);
    if (const auto* problem = std::get_if<ApiProblem>(&tokens)) return refuse(*problem);
    exchange->reply({200, fmt::format(R"({{"input_tokens":{}}})",
                                      std::get<std::vector<Token>>(tokens).size())});
}

OrProblem<std::vector<Token>> Server::tokens_of(const Ask& ask) const {
    std::vector<Token> tokens;
    if (const auto* conversation = std::get_if<Conversation>(&ask.prompt)) {
        if (!has_chat_)
            return ApiProblem{.status = 501,
                              .message = "this model has no conversations: use /v1/completions",
                              .code = "unsupported"};
        RenderOptions render;
        render.enable_thinking = conversation->thinking;
        render.reply_begins = conversation->reply_begins;
        if (conversation->constraint && !model_->info().constrains)
            return ApiProblem{.status = 501,
                              .message = "this model's tokens cannot be held to a schema",
                              .code = "unsupported"};
        tokens = model_->encode_chat(conversation->turns, conversation->tools, render);
    } else if (const auto* text = std::get_if<std::string>(&ask.prompt)) {
        tokens = model_->encode(*text);
    } else {
        tokens = std::get<std::vector<Token>>(ask.prompt);
        for (const Token token : tokens) {
            if (model_->token_bytes(token).empty())
                return ApiProblem{.message = fmt::format("prompt: {} is not a token", token),
                                  .param = "prompt",
                                  .code = "invalid_value"};
        }
    }
    if (tokens.empty())
        return ApiProblem{
            .message = "the prompt is empty", .param = "prompt", .code = "invalid_value"};
    const uint32_t context = model_->info().context_tokens;
    if (tokens.size() >= context)
        return ApiProblem{
            .message = fmt::format("the prompt has {} tokens, this model's context is {}: one at "
                                   "least must be left for the answer",
                                   tokens.size(), context),
            .param = std::holds_alternative<Conversation>(ask.prompt) ? "messages" : "prompt",
            .code = "context_length_exceeded"};
    return tokens;
}

void Server::generate(const std::shared_ptr<Exchange>& exchange, OrProblem<Ask> asked,
                      const MakeFormat& format) {
    const HttpRequest& request = exchange->request();
    const auto refuse = [&](const ApiProblem& problem) {
        exchange->reply(refusal(request, problem));
    };
    if (const auto* problem = std::get_if<ApiProblem>(&asked)) return refuse(*problem);
    Ask& ask = std::get<Ask>(asked);
    const auto mode = mode_of_model(ask.model);
    if (!mode) return refuse(no_model(ask.model));
    auto prompt = tokens_of(ask);
    if (const auto* problem = std::get_if<ApiProblem>(&prompt)) return refuse(*problem);

    auto observer = accounting_.open(
        request, *mode, static_cast<uint32_t>(std::get<std::vector<Token>>(prompt).size()));
    if (const auto* problem = std::get_if<ApiProblem>(&observer)) return refuse(*problem);

    JobSpec spec;
    spec.prompt = std::move(std::get<std::vector<Token>>(prompt));
    spec.mode = *mode;
    spec.sampling = ask.sampling;
    spec.sampling.seed = ask.seed ? *ask.seed : random_seed();
    spec.speculation.mode = Speculate::kOff;
    if (*mode == Mode::kUltraspeed && ask.max_draft != 0u) {
        spec.speculation.mode = Speculate::kAuto;
        if (ask.max_draft) spec.speculation.max_draft = *ask.max_draft;
    }
    spec.tokens_max = ask.tokens_max.value_or(config_.completion_default);
    spec.likelihood_top = ask.likelihood_top;

    const openai::ReplyHead head{request.id,
                                 ask.model,
                                 std::time(nullptr),
                                 ask.include_usage,
                                 ask.likelihood_top.has_value(),
                                 ask.include_rounds};
    ReplyPlan plan;
    plan.format = format(head);
    plan.stream = ask.stream;
    plan.rounds = ask.include_rounds;
    plan.one_call = ask.one_call;
    plan.stops = std::move(ask.stops);
    if (const auto* conversation = std::get_if<Conversation>(&ask.prompt)) {
        plan.parser.emplace(
            conversation->thinking ? Opening::kReasoningMayOpen : Opening::kReasoningClosed,
            conversation->tools, conversation->tools.is_null() ? Calls::kAsText : Calls::kParse);
        plan.begins = conversation->reply_begins;
        spec.constraint = conversation->constraint;
        if (spec.constraint) spec.constraint->after_reasoning = conversation->thinking;
    }
    const auto reply =
        std::make_shared<Reply>(std::move(spec), std::move(plan), *model_, exchange,
                                std::move(std::get<std::unique_ptr<ReplyObserver>>(observer)));
    exchange->on_gone([job = std::weak_ptr<Job>(reply)] {
        if (const auto alive = job.lock()) alive->cancel();
    });
    switch (jobs_->submit(reply)) {
        case Jobs::Submitted::kYes:
            return;
        case Jobs::Submitted::kFull:
            return refuse(queue_full());
        case Jobs::Submitted::kDraining:
            return refuse(*not_ready());
    }
}

// ------------------------------------------------------------------ the rest

void Server::answer_models(const std::shared_ptr<Exchange>& exchange) {
    const uint32_t context = model_->info().context_tokens;
    const std::array models = {openai::ModelShown{base_id_, context},
                               openai::ModelShown{ultraspeed_id_, context}};
    exchange->reply({200, openai::model_list(models, created_)});
}

void Server::answer_model(const std::shared_ptr<Exchange>& exchange) {
    const std::string& path = exchange->request().path;
    const std::string id = path.substr(path.rfind('/') + 1);
    if (!mode_of_model(id)) return exchange->reply(refusal(exchange->request(), no_model(id)));
    exchange->reply({200, openai::model_object({id, model_->info().context_tokens}, created_)});
}

void Server::answer_tokenize(const std::shared_ptr<Exchange>& exchange) {
    const auto refuse = [&](const ApiProblem& problem) {
        exchange->reply(refusal(exchange->request(), problem));
    };
    const auto body = parse_body(exchange->request().body);
    if (const auto* problem = std::get_if<ApiProblem>(&body)) return refuse(*problem);
    Fields fields(std::get<OrderedJson>(body));
    Ask ask;
    if (fields.any("messages") != nullptr) {
        Conversation conversation;
        openai::read_conversation(fields, conversation);
        ask.prompt = std::move(conversation);
    } else {
        const auto text = fields.text("prompt");
        if (!text) fields.refuse("prompt", "expected a string, or messages");
        ask.prompt = text.value_or("");
    }
    if (fields.problem()) return refuse(*fields.problem());
    std::vector<Token> tokens;
    if (const auto* text = std::get_if<std::string>(&ask.prompt)) {
        tokens = model_->encode(*text);
    } else {
        auto rendered = tokens_of(ask);
        if (const auto* problem = std::get_if<ApiProblem>(&rendered)) return refuse(*problem);
        tokens = std::move(std::get<std::vector<Token>>(rendered));
    }
    std::string out = fmt::format(R"({{"count":{},"max_model_len":{},"tokens":[)", tokens.size(),
                                  model_->info().context_tokens);
    for (size_t i = 0; i < tokens.size(); ++i)
        fmt::format_to(std::back_inserter(out), "{}{}", i > 0 ? "," : "", tokens[i]);
    exchange->reply({200, out + "]}"});
}

void Server::answer_detokenize(const std::shared_ptr<Exchange>& exchange) {
    const auto refuse = [&](const ApiProblem& problem) {
        exchange->reply(refusal(exchange->request(), problem));
    };
    const auto body = parse_body(exchange->request().body);
    if (const auto* problem = std::get_if<ApiProblem>(&body)) return refuse(*problem);
    Fields fields(std::get<OrderedJson>(body));
    const OrderedJson* const tokens = fields.list("tokens");
    if (tokens == nullptr) fields.refuse("tokens", "expected a list of tokens");
    Detokenizer detokenizer = model_->detokenizer(ShowSpecials::kShow);
    std::string text;
    for (size_t i = 0; tokens != nullptr && i < tokens->size() && !fields.problem(); ++i) {
        const OrderedJson& one = (*tokens)[i];
        const bool known = one.is_number_unsigned() && one.get<uint64_t>() <= UINT32_MAX &&
                           !model_->token_bytes(one.get<Token>()).empty();
        if (!known) {
            fields.refuse(fmt::format("tokens.{}", i), "is not a token: " + described(one));
        } else {
            text += detokenizer.push(one.get<Token>());
        }
    }
    if (fields.problem()) return refuse(*fields.problem());
    text += detokenizer.finish();
    std::string out = R"({"prompt":)";
    put_string(out, text);
    exchange->reply({200, out + "}"});
}

void Server::answer_page(const std::shared_ptr<Exchange>& exchange) {
    exchange->reply(page_reply(exchange->request()));
}

void Server::answer_health(const std::shared_ptr<Exchange>& exchange) {
    const Stage stage = stage_;
    if (stage == Stage::kReady) return exchange->reply({200, R"({"status":"ok"})"});
    const std::string_view name = stage == Stage::kLoading   ? "loading"
                                  : stage == Stage::kWarming ? "warming"
                                                             : "draining";
    const std::string percent =
        stage == Stage::kLoading ? fmt::format(R"(,"percent":{})", percent_.load()) : "";
    HttpReply reply{503, fmt::format(R"({{"status":"{}"{}}})", name, percent)};
    reply.headers.emplace_back("Retry-After", "1");
    exchange->reply(std::move(reply));
}

void Server::answer_metrics(const std::shared_ptr<Exchange>& exchange) {
    HttpReply reply{200, accounting_.metrics().text()};
    reply.content_type = Metrics::kContentType;
    exchange->reply(std::move(reply));
}

}  // namespace tessera
