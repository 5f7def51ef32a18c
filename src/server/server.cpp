#include "server/server.h"

#include <algorithm>
#include <array>
#include <ctime>

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "server/anthropic.h"

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

Server::Server(const ServerConfig& config, std::filesystem::path folder,
               std::function<void(double)> expired)
    : config_(config),
      folder_(std::filesystem::weakly_canonical(folder)),
      base_id_(!config.model_id.empty() ? config.model_id : folder_.filename().string()),
      ultraspeed_id_(base_id_ + std::string(kUltraspeedSuffix)),
      created_(std::time(nullptr)),
      accounting_(config, base_id_, ultraspeed_id_),
      watchdog_(config.watchdog_s, std::move(expired)),
      http_(std::make_unique<HttpServer>(http_limits(config), static_cast<HttpHandler&>(*this))) {
    if (config.sequences_max > Session::step_sessions_max())
        fail("--sequences-max {}: at most {} can advance in one step", config.sequences_max,
             Session::step_sessions_max());
}

Server::~Server() {
    stop();
    // Replies hold exchanges, which must not outlive the sockets' thread.
    jobs_.reset();
    http_.reset();
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

void Server::load(LoadOptions options) {
    options.progress = [this, told = options.progress](uint64_t done, uint64_t total) {
        percent_ = total > 0 ? static_cast<uint32_t>(100 * done / total) : 0;
        if (told) told(done, total);
    };
    model_ = std::make_unique<Model>(Model::load(folder_, options));
    try {
        const std::vector<Turn> turns = {{Role::kUser, "Hello"}};
        has_chat_ = !model_->encode_chat(turns).empty();
    } catch (const Error& error) {
        spdlog::warn("no conversations, only /v1/completions: {}", error.what());
    }
    stage_ = Stage::kWarming;
    if (model_->info().constrains) model_->prepare_constraints();
    warm_up();
    const JobLimits limits{config_.sequences_max, config_.queue_max, config_.prefill_chunk,
                           config_.cache_tokens};
    jobs_ = std::make_unique<Jobs>(*model_, limits, watchdog_, &accounting_);
    watch_gauges();
    Stage warming = Stage::kWarming;
    stage_.compare_exchange_strong(warming, Stage::kReady);
}

void Server::watch_gauges() {
    Metrics::Gauges gauges;
    gauges.running = [this] { return 1.0 * jobs_->load().running; };
    gauges.waiting = [this] { return 1.0 * jobs_->load().waiting; };
    // Of the places that running and kept texts may take together.
    const double places =
        1.0 * config_.cache_tokens + 1.0 * config_.sequences_max * model_->info().context_tokens;
    gauges.cache_used = [this, places] {
        return static_cast<double>(jobs_->load().tokens) / places;
    };
    gauges.connections = [this] { return 1.0 * http_->connections(); };
    if (accounting_.ledger_state()) {
        gauges.ledger_waiting = [this] { return 1.0 * accounting_.ledger_state()->rows_waiting; };
        gauges.ledger_failures = [this] {
            return static_cast<double>(accounting_.ledger_state()->failures);
        };
    }
    accounting_.metrics().watch(std::move(gauges));
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
    constexpr double kGoodbyeSeconds = 10;  // for a step under way and the last bytes
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
        Route{"POST", "/v1/chat/completions", &Server::answer_chat,
              kNeedsKey | kNeedsModel | kGenerates},
        Route{"POST", "/v1/completions", &Server::answer_completion,
              kNeedsKey | kNeedsModel | kGenerates},
        Route{"POST", "/v1/messages", &Server::answer_messages,
              kNeedsKey | kNeedsModel | kGenerates},
        Route{"POST", "/v1/messages/count_tokens", &Server::answer_count, kNeedsKey | kNeedsModel},
        Route{"GET", "/v1/models", &Server::answer_models, kNeedsKey | kNeedsModel},
        Route{"GET", "/v1/models/", &Server::answer_model, kNeedsKey | kNeedsModel},
        Route{"POST", "/tokenize", &Server::answer_tokenize, kNeedsKey | kNeedsModel},
        Route{"POST", "/detokenize", &Server::answer_detokenize, kNeedsKey | kNeedsModel},
        Route{"GET", "/health", &Server::answer_health, kOpen},
        Route{"GET", "/metrics", &Server::answer_metrics, kNeedsKey},
        Route{"GET", "/", &Server::answer_page, kOpen},
    };
    return kRoutes;
}

const Server::Route* Server::find(const HttpRequest& request, bool& path_known) {
    path_known = false;
    std::string_view path = request.path;
    if (path.starts_with(kAnthropicPrefix)) path.remove_prefix(kAnthropicPrefix.size());
    for (const Route& route : routes()) {
        const size_t length = route.path.size();
        const bool parts = length > 1 && route.path.ends_with('/');
        const bool one_more_part = path.starts_with(route.path) && path.size() > length &&
                                   path.find('/', length) == path.npos;
        const bool fits = parts ? one_more_part : path == route.path;
        if (!fits) continue;
        path_known = true;
        const bool head = route.method == "GET" && request.method == "HEAD";
        if (request.method == route.method || head) return &route;
    }
    return nullptr;
}

// Anthropic's clients are known by the path, or by the version that they must send.
HttpReply Server::refusal(const HttpRequest& request, const ApiProblem& problem) const {
    const bool anthropic = request.path.starts_with(kAnthropicPrefix) ||
                           request.path.starts_with("/v1/messages") ||
                           !request.header("anthropic-version").empty();
    return problem_reply(problem, anthropic ? anthropic::error_body(problem, request.id)
                                            : openai::error_body(problem));
}

HttpReply Server::problem(uint32_t status, std::string_view message, const HttpRequest& request) {
    ApiProblem problem{.status = status, .message = std::string(message)};
    if (status == 503) problem.retry_after_ms = 1000;
    return refusal(request, problem);
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
    const auto refuse = [&](const ApiProblem& problem) { return refusal(head, problem); };
    bool path_known = false;
    const Route* const route = find(head, path_known);
    // Without a key nobody learns which routes there are.
    const bool open = route != nullptr && ((route->what & kNeedsKey) == 0 ||
                                           (route->path == "/metrics" && config_.metrics_public));
    const auto unready = not_ready();
    if (!open) {
        // What cannot be served anyway does not count against a limit.
        const bool generates = route != nullptr && (route->what & kGenerates) != 0 && !unready;
        auto guest = accounting_.welcome(head, generates);
        if (const auto* problem = std::get_if<ApiProblem>(&guest)) return refuse(*problem);
        head.guest = std::get<std::shared_ptr<Guest>>(guest);
    }
    if (!path_known) {
        constexpr size_t kPathShown = 100;
        return refuse({.status = 404,
                       .message = fmt::format("there is no {}; docs/SERVING.md has the routes",
                                              head.path.substr(0, kPathShown)),
                       .code = "unknown_route"});
    }
    if (route == nullptr) {
        HttpReply reply =
            refuse({.status = 405,
                    .message = fmt::format("{} does not take {}", head.path, head.method),
                    .code = "method_not_allowed"});
        HttpRequest get;
        get.method = "GET";
        get.path = head.path;
        const bool readable = find(get, path_known) != nullptr;
        reply.headers.emplace_back("Allow", readable ? "GET, HEAD" : "POST");
        return reply;
    }
    if ((route->what & kNeedsModel) != 0 && unready) return refuse(*unready);
    if (route->method == "POST" && !head.header("content-type").starts_with("application/json"))
        return refuse({.status = 415,
                       .message = "expected the header Content-Type: application/json",
                       .code = "unsupported_media_type"});
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
        exchange->reply(problem(500, "something broke on our side", exchange->request()));
    }
}

void Server::finished(const HttpRequest& request, const HttpOutcome& outcome) {
    accounting_.finished(request, outcome);
}

}  // namespace tessera
