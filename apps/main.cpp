// tessera COMMAND …: prints errors as one line, exit code 2; everything else is the commands'.
#include <cstdio>

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"

#include "commands.h"

namespace tessera {

std::filesystem::path bundled_model() {
    const std::filesystem::path program =
        std::filesystem::read_symlink("/proc/self/exe").parent_path();
    // In this order: where this is /usr/bin, a folder /models is not ours.
    for (const char* where :
         {"../share/tessera/models/tessera-mini", "../../models/tessera-mini"}) {
        const std::filesystem::path folder = (program / where).lexically_normal();
        if (exists(folder / "config.json")) return folder;
    }
    fail("the bundled model is not where it was installed (looked beside {}): pass --model PATH",
         program.string());
}

}  // namespace tessera

constexpr const char* kWelcome =
    R"(Tessera {} runs and serves mixture-of-experts language models on this machine, and measures,
explains, rounds and judges them. A small model comes with it. Worth trying:

  tessera run "def fibonacci(n):"   continue a text; --chat asks a question
  tessera serve                     OpenAI's and Anthropic's APIs at http://127.0.0.1:8080
  tessera doctor                    what this machine can do, and what it lacks

--model FOLDER takes another checkpoint; tessera --help lists all commands.
)";

int main(int argc, char** argv) {
    CLI::App program(
        "Tessera decodes mixture-of-experts language models at the latency limit of the machine.",
        "tessera");
    program.set_version_flag("--version", "tessera " TESSERA_VERSION);
    program.require_subcommand(1);
    bool quiet = false;
    program.add_flag("-q,--quiet", quiet, "Say nothing but warnings and errors on stderr");
    program.parse_complete_callback(
        [&] { tessera::log_to_stderr(quiet ? spdlog::level::warn : spdlog::level::info); });
    tessera::add_run(program);
    tessera::add_serve(program);
    tessera::add_inspect(program);
    tessera::add_bench(program);
    tessera::add_explain(program);
    tessera::add_compare(program);
    tessera::add_keys(program);
    tessera::add_usage(program);
    tessera::add_quantize(program);
    tessera::add_eval(program);
    tessera::add_doctor(program);
    tessera::add_completion(program);
    tessera::add_man(program);
    if (argc == 1) {
        fmt::print(kWelcome, TESSERA_VERSION);
        return 0;
    }
    try {
        program.parse(argc, argv);
    } catch (const CLI::Success& asked) {  // --help, --version
        return program.exit(asked);
    } catch (const CLI::RuntimeError& ended) {  // a command's own exit code
        return ended.get_exit_code();
    } catch (const CLI::ParseError& usage) {
        fmt::print(stderr, "tessera: {}; --help says how\n", usage.what());
        return 2;
    } catch (const tessera::Error& error) {
        fmt::print(stderr, "tessera: {}\n", error.what());
        return 2;
    } catch (const std::bad_alloc&) {
        fmt::print(stderr, "tessera: out of memory\n");
        return 2;
    } catch (const std::filesystem::filesystem_error& error) {
        fmt::print(stderr, "tessera: {}\n", error.what());
        return 2;
    }
    return 0;
}
