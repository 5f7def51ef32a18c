// tessera serve: the model behind HTTP, for OpenAI's and Anthropic's clients. Ctrl-C or SIGTERM
// drains; the second one exits at once.
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <memory>
#include <thread>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "server/config.h"
#include "server/notify.h"
#include "server/server.h"

#include "commands.h"
#include "device.h"

namespace tessera {
namespace {

constexpr double kSecondsOfWaiting = 3600;  // until looking again, where nothing else wakes
constexpr int kExitHung = 70;               // EX_SOFTWARE of sysexits.h

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

    enum class Came : uint8_t { kNothing, kEnd };
    // Waits for a signal, at most `seconds`.
    Came wait(double seconds) const {
        timespec time{};
        time.tv_sec = static_cast<time_t>(seconds);
        time.tv_nsec = static_cast<long>(1e9 * (seconds - std::floor(seconds)));
        const int signal = sigtimedwait(&set_, nullptr, &time);
        return signal == SIGTERM || signal == SIGINT ? Came::kEnd : Came::kNothing;
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

void load(Server& server, const ServerConfig& config, Device device) {
    LoadOptions options;
    options.device = device;
    options.threads = config.threads;
    options.ranks = config.ranks;
    options.context = config.context;
    options.isa = config.isa;
    options.activations = config.activations == "int8" ? Activations::kInt8 : Activations::kBf16;
    Progress progress("loading");
    // A bar is for people; machines ask /health.
    if (config.log == "plain" && spdlog::should_log(spdlog::level::info))
        options.progress = [&](uint64_t done, uint64_t total) { progress.show(done, total); };
    server.load(options);
}

// Loads beside the main thread, which waits for signals meanwhile.
class Loader {
  public:
    Loader(Server& server, const ServerConfig& config, Device device)
        : thread_([this, &server, &config, device] {
              try {
                  load(server, config, device);
              } catch (...) {
                  broken_ = std::current_exception();
              }
              over_ = true;
              EndSignals::wake();
          }) {}
    ~Loader() {
        if (thread_.joinable()) thread_.join();
    }

    bool over() const { return over_; }
    // Waits for the end; throws what went wrong.
    void finish() {
        thread_.join();
        if (broken_) std::rethrow_exception(broken_);
    }

  private:
    std::exception_ptr broken_;
    std::atomic<bool> over_ = false;
    std::thread thread_;
};

[[noreturn]] void leave_at_once(int code) {
    spdlog::default_logger()->flush();
    _exit(code);
}

// Until a signal says that it is the end.
void wait_for_end(const EndSignals& signals, const Notifier& notifier) {
    const double alive_s = notifier.alive_every_s();
    while (signals.wait(alive_s > 0 ? alive_s : kSecondsOfWaiting) != EndSignals::Came::kEnd)
        if (alive_s > 0) notifier.alive();
}

void drain(Server& server, const EndSignals& signals, double seconds) {
    constexpr double kMoment = 0.02;
    server.drain();
    spdlog::info("draining; a second signal exits at once");  // when it is so, no sooner
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (!server.drained() && std::chrono::steady_clock::now() < until) {
        if (signals.wait(kMoment) != EndSignals::Came::kEnd) continue;
        spdlog::info("exiting at once");
        leave_at_once(0);
    }
    server.stop();
}

void serve(const ServerConfig& config, Device device) {
    log_to_stderr(spdlog::default_logger()->level(),
                  config.log == "json" ? LogFormat::kJson : LogFormat::kPlain);
    const EndSignals signals;
    allow_many_files();
    const Notifier notifier = Notifier::from_environment();
    Server server(
        config, config.model.empty() ? bundled_model() : std::filesystem::path(config.model),
        [](double seconds) {
            spdlog::critical("a step of the model has not ended for {:.0f} s: giving up", seconds);
            leave_at_once(kExitHung);
        });
    server.listen();
    spdlog::info("listening on {}", server.address());

    Loader loader(server, config, device);
    while (!loader.over()) {
        if (signals.wait(kSecondsOfWaiting) != EndSignals::Came::kEnd) continue;
        spdlog::info("stopped while loading");
        leave_at_once(0);
    }
    loader.finish();
    const auto ids = server.model_ids();
    spdlog::info("ready: {} and {} at {}/v1; a page at {}/", ids[0], ids[1], server.address(),
                 server.address());
    notifier.ready();
    wait_for_end(signals, notifier);
    notifier.stopping();
    drain(server, signals, config.drain_s);
    spdlog::info("stopped");
}

// What --help says may stand behind the setting's flag.
std::string operand_of(const Setting& setting) {
    if (!setting.choices.empty()) return fmt::format("{{{}}}", fmt::join(setting.choices, ","));
    if (setting.key == "model") return "FOLDER";
    if (setting.key == "store") return "FILE";
    return std::holds_alternative<std::string ServerConfig::*>(setting.field) ? "TEXT" : "NUMBER";
}

constexpr const char* kExamples = R"(Examples:
  tessera serve                                 the bundled model at http://127.0.0.1:8080/v1
  tessera serve ~/models/MiMo-V2-Flash --host 0.0.0.0 --store tessera.db
  tessera serve --config server.toml            settings from a file
Every flag has a twin in the environment: --queue-max is TESSERA_QUEUE_MAX. docs/SERVING.md has
routes, settings, keys and prices.
)";

}  // namespace

void add_serve(CLI::App& program) {
    struct Options {
        std::string config, model;
        Given given;
        Device device = Device::kCpu;
    };
    auto options = std::make_shared<Options>();
    CLI::App& command = *program.add_subcommand("serve", "Serve OpenAI's and Anthropic's APIs");
    command.footer(kExamples);
    command
        .add_option("path", options->model, "Folder of a checkpoint (default: the bundled model)")
        ->type_name("FOLDER");
    command.add_option("--config", options->config, "Settings from this TOML file")
        ->type_name("FILE")
        ->envname("TESSERA_CONFIG");
    add_device_option(command, options->device)->envname("TESSERA_DEVICE");
    for (const Setting& setting : settings()) {
        const std::string key(setting.key), help(setting.help);
        const auto keep = [options, key](const std::string& text) { options->given[key] = text; };
        if (std::holds_alternative<bool ServerConfig::*>(setting.field)) {
            command.add_flag_function(
                setting.flag(), [keep](int64_t count) { keep(count > 0 ? "true" : "false"); },
                help);
        } else {
            command.add_option_function<std::string>(setting.flag(), keep, help)
                ->type_name(operand_of(setting));
        }
    }
    command.callback([options] {
        if (!options->model.empty()) options->given["model"] = options->model;
        const ConfigFile file =
            options->config.empty() ? ConfigFile() : ConfigFile::read(options->config);
        serve(resolve(options->given, std::getenv, file), options->device);
    });
}

}  // namespace tessera
