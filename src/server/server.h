// The server: one model behind HTTP. Owns the routes, what happens at start and at the end, and
// which part is told what.
//
//     loading    it listens; /health says how far the model is
//     warming    a first answer, so that nobody pays for what happens once
//     ready
//     draining   nothing new; what is under way finishes, up to drain_s
#pragma once

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/accounting.h"
#include "server/ask.h"
#include "server/config.h"
#include "server/http.h"
#include "server/jobs.h"
#include "server/openai.h"
#include "server/reply.h"
#include "server/watchdog.h"

namespace tessera {

class Server : private HttpHandler {
  public:
    // Opens the store, if there is one. Throws Error. `folder`: of the checkpoint. `expired`: a
    // step of the model hangs; it does not return to a server that works.
    Server(const ServerConfig& config, std::filesystem::path folder,
           std::function<void(double seconds)> expired);
    ~Server();

    // Listens and answers /health. Throws Error. Returns the port.
    uint16_t listen();

    // Loads the model and begins to serve. Throws Error. Takes as long as it takes.
    void load(LoadOptions options);

    // ---- the end

    void drain();
    bool drained() const;  // no request is under way
    // Cuts what is left, and closes everything.
    void stop();

    // "http://127.0.0.1:8080"
    std::string address() const;
    // The ids that clients may ask for: the base mode's, and the one with speculation.
    std::vector<std::string> model_ids() const;

  private:
    enum class Stage : uint8_t { kLoading, kWarming, kReady, kDraining };
    using Handle = void (Server::*)(const std::shared_ptr<Exchange>&);
    // Of a route: it needs a key where there are keys; it answers 503 until the model is ready; it
    // counts against its key's limits.
    static constexpr uint8_t kOpen = 0, kNeedsKey = 1, kNeedsModel = 2, kGenerates = 4;
    struct Route {
        std::string_view method, path;  // a path that ends with "/" has one more part
        Handle handle;
        uint8_t what;
    };
    static std::span<const Route> routes();

    std::optional<HttpReply> admit(HttpRequest& head) override;
    void handle(std::shared_ptr<Exchange> exchange) override;
    HttpReply problem(uint32_t status, std::string_view message,
                      const HttpRequest& request) override;
    void finished(const HttpRequest& request, const HttpOutcome& outcome) override;

    // As the API of the request's path says it.
    HttpReply refusal(const HttpRequest& request, const ApiProblem& problem) const;
    std::optional<ApiProblem> not_ready() const;
    static const Route* find(const HttpRequest& request, bool& path_known);
    void warm_up();
    void watch_gauges();

    // The JSON of a request that generates; none if it was refused.
    std::optional<OrderedJson> body_of(const std::shared_ptr<Exchange>& exchange) const;
    void answer_page(const std::shared_ptr<Exchange>& exchange);
    void answer_chat(const std::shared_ptr<Exchange>& exchange);
    void answer_completion(const std::shared_ptr<Exchange>& exchange);
    void answer_messages(const std::shared_ptr<Exchange>& exchange);
    void answer_count(const std::shared_ptr<Exchange>& exchange);
    void answer_models(const std::shared_ptr<Exchange>& exchange);
    void answer_model(const std::shared_ptr<Exchange>& exchange);
    void answer_tokenize(const std::shared_ptr<Exchange>& exchange);
    void answer_detokenize(const std::shared_ptr<Exchange>& exchange);
    void answer_health(const std::shared_ptr<Exchange>& exchange);
    void answer_metrics(const std::shared_ptr<Exchange>& exchange);

    using MakeFormat = std::function<std::unique_ptr<ReplyFormat>(const openai::ReplyHead&)>;
    // The rest of every route that generates.
    void generate(const std::shared_ptr<Exchange>& exchange, OrProblem<Ask> asked,
                  const MakeFormat& format);
    OrProblem<std::vector<Token>> tokens_of(const Ask& ask) const;
    std::optional<Mode> mode_of_model(std::string_view id) const;

    const ServerConfig config_;
    const std::filesystem::path folder_;
    const std::string base_id_, ultraspeed_id_;
    uint16_t port_ = 0;
    int64_t created_ = 0;  // seconds since 1970
    std::atomic<Stage> stage_ = Stage::kLoading;
    std::atomic<uint32_t> percent_ = 0;

    // Written before the stage is kReady.
    std::unique_ptr<Model> model_;
    bool has_chat_ = false;

    Accounting accounting_;
    Watchdog watchdog_;
    std::unique_ptr<Jobs> jobs_;
    std::unique_ptr<HttpServer> http_;
};

}  // namespace tessera
