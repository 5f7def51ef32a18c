// tessera serve: the model behind HTTP, for OpenAI's and Anthropic's clients. Ctrl-C or SIGTERM
// drains; the second one exits at once.
#include <csignal>
#include <ctime>
#include <exception>
#include <memory>
#include <thread>

#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "server/server.h"

#include "commands.h"

namespace tessera {
namespace {

constexpr int kExitHung = 70;  // EX_SOFTWARE of sysexits.h

// Signals that end the server, taken one at a time by the main thread; every other thread is
// started after this and inherits that it does not get them.
class EndSignals {
  public:
    EndSignals() {
        sigemptyset(&set_);
        for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaddset(&set_, signal);
        pthread_sigmask(SIG_BLOCK, &set_, nullptr);
        std::signal(SIGPIPE, SIG_IGN);
    }

    int wait() const {
        int signal = 0;
        sigwait(&set_, &signal);
        return signal;
    }
    // Whether one came within a moment.
    bool came() const {
        constexpr timespec kMoment{0, 20'000'000};
        const int signal = sigtimedwait(&set_, nullptr, &kMoment);
        return signal == SIGTERM || signal == SIGINT;
    }
    // Wakes wait() for another reason.
    static void wake() { kill(getpid(), SIGUSR1); }

  private:
    sigset_t set_;
};

// A socket is a file, and there may be thousands.
void allow_many_files() {
    rlimit limit{};
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

void load(Server& server, const ServerConfig& config) {
    LoadOptions options;
    options.threads = config.threads;
    options.ranks = config.ranks;
    options.context = config.context;
    options.isa = config.isa;
    options.activations = config.activations == "int8" ? Activations::kInt8 : Activations::kBf16;
    Progress progress("loading");
    if (spdlog::should_log(spdlog::level::info))
        options.progress = [&](uint64_t done, uint64_t total) { progress.show(done, total); };
    server.load(config.model.empty() ? bundled_model() : std::filesystem::path(config.model),
                options);
    const auto ids = server.model_ids();
    spdlog::info("ready: {} and {} on {}/v1", ids[0], ids[1], server.address());
}

void serve(const ServerConfig& config) {
    const EndSignals signals;
    allow_many_files();
    Server server(config, [](double seconds) {
        spdlog::critical("a step of the model has not ended for {:.0f} s: giving up", seconds);
        spdlog::shutdown();
        _exit(kExitHung);
    });
    server.listen();
    spdlog::info("listening on {}", server.address());

    std::exception_ptr broken;
    std::atomic<bool> loaded = false;
    std::thread loader([&] {
        try {
            load(server, config);
        } catch (...) {
            broken = std::current_exception();
            EndSignals::wake();
        }
        loaded = true;
    });
    const int signal = signals.wait();
    if (signal != SIGUSR1 && !loaded) {
        spdlog::info("stopped while loading");
        spdlog::shutdown();
        _exit(0);
    }
    loader.join();
    if (broken) std::rethrow_exception(broken);
    if (signal != SIGUSR1) spdlog::info("draining: a second signal exits at once");
    server.drain();
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(config.drain_s);
    while (!server.drained() && std::chrono::steady_clock::now() < until) {
        if (!signals.came()) continue;
        spdlog::info("exiting at once");
        spdlog::shutdown();
        _exit(0);
    }
    server.stop();
    spdlog::info("stopped");
}

}  // namespace

void add_serve(CLI::App& program) {
    auto config = std::make_shared<ServerConfig>();
    CLI::App& command = *program.add_subcommand("serve", "Serve OpenAI's and Anthropic's APIs");
    command.add_option("model", config->model,
                       "Folder of a checkpoint (default: the bundled model)");
    command.add_option("--host", config->host, "Address to listen on")
        ->envname("TESSERA_HOST")
        ->capture_default_str();
    command.add_option("--port", config->port, "Port; 0: any free one")
        ->envname("TESSERA_PORT")
        ->capture_default_str();
    command.callback([config] { serve(*config); });
}

}  // namespace tessera
