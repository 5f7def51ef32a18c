#include "server/server.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <iterator>

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"

namespace tessera {
namespace {

constexpr std::string_view kUltraspeedSuffix = "-ultraspeed";
constexpr std::string_view kAnthropicPrefix = "/anthropic";
constexpr uint32_t kWarmUpTokens = 8;

HttpLimits http_limits(const ServerConfig& config) {
    HttpLimits limits;
    limits.connections_max = config.connections_max;
    limits.header_bytes_max = config.header_bytes_max;
    limits.body_bytes_max = config.body_bytes_max;
    limits.bodies_bytes_max = std::max(limits.bodies_bytes_max, 4 * config.body_bytes_max);
    limits.unread_bytes_max = config.unread_bytes_max;
    limits.header_s = config.header_s;
    limits.body_s = config.body_s;
    limits.idle_s = config.idle_s;
    limits.write_s = config.write_s;
    limits.ping_s = config.ping_s;
    return limits;
}

}  // namespace

Server::Server(const ServerConfig& config, std::function<void(double)> expired)
    : config_(config),
      created_(std::time(nullptr)),
      watchdog_(config.watchdog_s, std::move(expired)),
      http_(std::make_unique<HttpServer>(http_limits(config), static_cast<HttpHandler&>(*this))) {}

Server::~Server() {
    stop();
}

// ------------------------------------------------------------------ the beginning

uint16_t Server::listen() {
    port_ = http_->listen(config_.host, static_cast<uint16_t>(config_.port));
    http_->start();
    return port_;
}

std::string Server::address() const {
    const bool v6 = config_.host.find(':') != std::string::npos;
    return fmt::format("http://{}{}{}:{}", v6 ? "[" : "", config_.host, v6 ? "]" : "", port_);
}

std::vector<std::string> Server::model_ids() const {
    return {base_id_, ultraspeed_id_};
}

void Server::load(const std::filesystem::path& folder, LoadOptions options) {
    options.progress = [this, told = options.progress](uint64_t done, uint64_t total) {
        percent_ = total > 0 ? static_cast<uint32_t>(100 * done / total) : 0;
        if (told) told(done, total);
    };
    model_ = std::make_unique<Model>(Model::load(folder, options));
    base_id_ = !config_.model_id.empty() ? config_.model_id
                                         : std::filesystem::canonical(folder).filename().string();
    ultraspeed_id_ = base_id_ + std::string(kUltraspeedSuffix);
    try {
        const std::vector<Turn> turns = {{Role::kUser, "Hello"}};
        has_chat_ = !model_->encode_chat(turns).empty();
    } catch (const Error& error) {
        spdlog::warn("no conversations, only /v1/completions: {}", error.what());
    }
    stage_ = Stage::kWarming;
    warm_up();
    const JobLimits limits{config_.sequences_max, config_.queue_max, config_.cache_tokens};
    jobs_ = std::make_unique<Jobs>(*model_, limits, watchdog_, nullptr);
    Stage warming = Stage::kWarming;
    stage_.compare_exchange_strong(warming, Stage::kReady);
}

void Server::warm_up() {
    Session session(*model_, {});
    const std::vector<Token> prompt = model_->encode("The quick brown fox");
    const Watchdog::Work work(watchdog_);
    session.append(std::span(prompt).first(
        std::min<size_t>(prompt.size(), model_->info().context_tokens - 1)));
    for (uint32_t i = 0; i < kWarmUpTokens && session.room() > 0; ++i) session.next();
}

// ------------------------------------------------------------------ the end

void Server::drain() {
    if (stage_ == Stage::kReady) jobs_->drain();
    stage_ = Stage::kDraining;
}

bool Server::drained() const {
    if (!jobs_) return true;
    const Jobs::Load load = jobs_->load();
    return load.running + load.waiting == 0;
}

void Server::stop() {
    constexpr double kGoodbyeSeconds = 2;  // for the last bytes of replies
    if (jobs_) {
        jobs_->cut();
        jobs_->wait_done(kGoodbyeSeconds);
    }
    http_->drain();
    http_->wait_closed(kGoodbyeSeconds);
    http_->stop();
}

// ------------------------------------------------------------------ routes

std::span<const Server::Route> Server::routes() {
    static constexpr std::array kRoutes = {
        Route{"POST", "/v1/chat/completions", &Server::answer_chat, false, true},
        Route{"POST", "/v1/completions", &Server::answer_completion, false, true},
        Route{"GET", "/v1/models", &Server::answer_models, false, true},
        Route{"GET", "/v1/models/", &Server::answer_model, false, true},
        Route{"POST", "/tokenize", &Server::answer_tokenize, false, true},
        Route{"POST", "/detokenize", &Server::answer_detokenize, false, true},
        Route{"GET", "/health", &Server::answer_health, true, false},
        Route{"GET", "/metrics", &Server::answer_metrics, false, false},
    };
    return kRoutes;
}

const Server::Route* Server::find(const HttpRequest& request, bool& path_known) const {
    path_known = false;
    for (const Route& route : routes()) {
        const bool parts = route.path.ends_with('/');
        const bool fits =
            parts ? request.path.starts_with(route.path) && request.path.size() > route.path.size()
                  : request.path == route.path;
        if (!fits) continue;
        path_known = true;
        const bool head = route.method == "GET" && request.method == "HEAD";
        if (request.method == route.method || head) return &route;
    }
    return nullptr;
}

Server::Dialect Server::dialect_of(std::string_view path) {
    const bool anthropic = path.starts_with(kAnthropicPrefix) || path.starts_with("/v1/messages");
    return anthropic ? Dialect::kAnthropic : Dialect::kOpenAi;
}

HttpReply Server::problem_for(std::string_view path, const ApiProblem& problem) const {
    (void)dialect_of(path);
    return problem_reply(problem, openai::error_body(problem));
}

HttpReply Server::problem(uint32_t status, std::string_view message, std::string_view path) {
    ApiProblem problem{.status = status, .message = std::string(message)};
    if (status == 503) problem.retry_after_ms = 1000;
    return problem_for(path, problem);
}

std::optional<ApiProblem> Server::not_ready() const {
    const Stage stage = stage_;
    if (stage == Stage::kReady) return std::nullopt;
    if (stage == Stage::kDraining)
        return ApiProblem{.status = 503,
                          .message = "the server is shutting down",
                          .code = "shutting_down",
                          .retry_after_ms = 5000};
    return ApiProblem{.status = 503,
                      .message = stage == Stage::kLoading
                                     ? fmt::format("the model is loading: {} %", percent_.load())
                                     : "the model is warming up",
                      .code = "loading",
                      .retry_after_ms = 2000};
}

std::optional<HttpReply> Server::admit(HttpRequest& head) {
    bool path_known = false;
    const Route* const route = find(head, path_known);
    const auto refuse = [&](const ApiProblem& problem) { return problem_for(head.path, problem); };
    if (!path_known) {
        constexpr size_t kPathShown = 100;
        return refuse({.status = 404,
                       .message = fmt::format("there is no {}; the routes are in docs/SERVING.md",
                                              repair_utf8(head.path.substr(0, kPathShown))),
                       .code = "unknown_route"});
    }
    if (route == nullptr)
        return refuse({.status = 405,
                       .message = fmt::format("{} does not take {}", head.path, head.method),
                       .code = "method_not_allowed"});
    if (route->needs_model) {
        if (const auto problem = not_ready()) return refuse(*problem);
    }
    if (route->method == "POST") {
        const std::string_view type = head.header("content-type");
        if (!type.starts_with("application/json"))
            return refuse({.status = 415,
                           .message = "expected the header Content-Type: application/json",
                           .code = "unsupported_media_type"});
    }
    return std::nullopt;
}

void Server::handle(std::shared_ptr<Exchange> exchange) {
    bool path_known = false;
    const Route* const route = find(exchange->request(), path_known);
    try {
        (this->*route->handle)(exchange);
    } catch (const std::exception& error) {
        // Only memory can run out here; what was half done is undone by its owners.
        spdlog::error("{}: {}", exchange->request().id, error.what());
        exchange->reply(problem(500, "something broke on our side", exchange->request().path));
    }
}

void Server::finished(const HttpRequest& request, const HttpOutcome& outcome) {
    if (request.path == "/health" || request.path == "/metrics") return;
    spdlog::info("{} {} {} {} {:.1f} ms {} bytes{} {}", request.peer, request.method, request.path,
                 outcome.status, 1e3 * outcome.seconds, outcome.bytes_sent,
                 outcome.whole ? "" : " cut", request.id);
}

}  // namespace tessera
