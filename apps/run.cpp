// tessera run: continue a text or answer a question, once or interactively. Generated text goes to
// stdout, everything else to stderr.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>

#include <fmt/format.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/progress.h"
#include "tessera/session.h"
#include "text/output.h"

#include "answer.h"
#include "commands.h"
#include "device.h"
#include "interrupt.h"
#include "line_editor.h"

namespace tessera {
namespace {

constexpr uint32_t kTokensMaxDefault = 256;
constexpr int kExitInterrupted = 130;

struct RunOptions {
    std::string prompt;
    std::string file;
    std::string model;
    std::string system;
    bool chat = false;
    bool think = false;
    Sampling sampling;
    Speculation speculation;
    std::string speculate = "auto";
    LoadOptions loading;
    std::string engine = "cpu", activations = "bf16";
    uint32_t tokens_max = kTokensMaxDefault;
    std::vector<std::string> stops;
    bool json = false;
    std::string json_schema;  // a file
    std::optional<Constraint> constraint;
};

void write_out(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

void write_aside(std::string_view text) {
    const bool dim = isatty(STDERR_FILENO) == 1 && !text.empty();
    fmt::print(stderr, "{}{}{}", dim ? "\x1b[2m" : "", text, dim ? "\x1b[0m" : "");
    std::fflush(stderr);
}

// ------------------------------------------------------------------ what to answer

// "\n", "\t" and "\\" spelt out become the character: shells make them hard to type.
std::string unescape(std::string_view spelt) {
    std::string text;
    for (size_t i = 0; i < spelt.size(); ++i) {
        const char next = spelt[i] == '\\' && i + 1 < spelt.size() ? spelt[i + 1] : '\0';
        const bool known = next == 'n' || next == 't' || next == '\\';
        text += !known ? spelt[i] : next == 'n' ? '\n' : next == 't' ? '\t' : '\\';
        if (known) ++i;
    }
    return text;
}

std::string read_all(std::istream& stream) {
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// The prompt of a single answer; none means an interactive session.
std::optional<std::string> given_prompt(const RunOptions& options) {
    if (!options.file.empty()) {
        std::ifstream file(options.file, std::ios::binary);
        if (!file || std::filesystem::is_directory(options.file))
            fail("{}: cannot be read", options.file);
        return read_all(file);
    }
    if (options.prompt == "-") return read_all(std::cin);
    if (!options.prompt.empty()) return options.prompt;
    if (isatty(STDIN_FILENO) == 1) return std::nullopt;
    return read_all(std::cin);
}

// What the answer has to be; none: anything.
std::optional<Constraint> wanted_constraint(const RunOptions& options) {
    if (!options.json && options.json_schema.empty()) return std::nullopt;
    OrderedJson schema = {{"type", "object"}};
    if (!options.json_schema.empty()) {
        std::ifstream file(options.json_schema, std::ios::binary);
        if (!file) fail("{}: cannot be read", options.json_schema);
        schema = parse_json_in_order(read_all(file), options.json_schema);
    }
    Constraint::OrProblem made = Constraint::json_schema(schema);
    if (const auto* problem = std::get_if<std::string>(&made))
        fail("{}: {}", options.json_schema, *problem);
    auto& constraint = std::get<Constraint>(made);
    constraint.after_reasoning = options.chat && options.think;
    return std::move(constraint);
}

Model load(const RunOptions& options) {
    const std::filesystem::path folder =
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model);
    Progress progress("loading");
    LoadOptions load_options = options.loading;
    load_options.engine = options.engine == "reference" ? Engine::kReference : Engine::kCpu;
    load_options.activations =
        options.activations == "int8" ? Activations::kInt8 : Activations::kBf16;
    if (spdlog::should_log(spdlog::level::info))
        load_options.progress = [&](uint64_t done, uint64_t total) { progress.show(done, total); };
    Model model = Model::load(folder, load_options);
    const std::string& drafter = model.info().drafter;
    spdlog::info("{}; context {} tokens; {}{}{}", model.info().summary, model.info().context_tokens,
                 drafter, drafter.empty() ? "" : "; ", model.info().machine);
    return model;
}

// ------------------------------------------------------------------ one dialogue

// What the model has read and written so far. A turn that continues it is read from where it
// stands; anything else starts over.
class Dialogue {
  public:
    Dialogue(const Model& model, const RunOptions& options) : model_(model), options_(options) {
        if (!options.system.empty()) turns_.push_back({Role::kSystem, options.system});
    }

    // Continues `prompt` as a text of its own.
    AnswerEnd continue_text(const std::string& prompt) {
        restart();
        read(model_.encode(prompt));
        return stream(ShowSpecials::kSkip, write_out);
    }

    // Answers `question` as the next turn of the conversation.
    AnswerEnd answer_turn(const std::string& question) {
        turns_.push_back({Role::kUser, question});
        RenderOptions render;
        render.enable_thinking = options_.think;
        read(model_.encode_chat(turns_, nullptr, render));
        OutputParser parser(options_.think ? Opening::kReasoningMayOpen : Opening::kReasoningClosed,
                            nullptr);
        Turn reply{Role::kAssistant, ""};
        const auto take = [&](const std::vector<OutputEvent>& events) {
            for (const OutputEvent& event : events) show(event, reply);
        };
        const AnswerEnd ended =
            stream(ShowSpecials::kShow, [&](std::string_view text) { take(parser.push(text)); });
        take(parser.finish());
        turns_.push_back(std::move(reply));
        return ended;
    }

    Stats stats() const { return session_ ? session_->stats() : Stats{}; }

  private:
    void restart() {
        session_.reset();
        known_.clear();
    }

    void read(const std::vector<Token>& tokens) {
        if (tokens.empty()) fail("the prompt is empty: give some text to continue");
        const bool continues = session_ && known_.size() < tokens.size() &&
                               std::equal(known_.begin(), known_.end(), tokens.begin());
        if (!continues) {
            restart();
            session_.emplace(model_, options_.sampling, options_.speculation);
        }
        const auto fresh = std::span(tokens).subspan(known_.size());
        if (fresh.size() >= session_->room()) {
            fail("the prompt is {} tokens, the model's context is {}: shorten it", tokens.size(),
                 model_.info().context_tokens);
        }
        if (!session_->append(fresh, [] { return !interrupted(); })) return restart();
        if (options_.constraint) session_->constrain(*options_.constraint);
        known_ = tokens;
    }

    AnswerEnd stream(ShowSpecials specials, const std::function<void(std::string_view)>& write) {
        if (!session_) return AnswerEnd::by_interrupt;
        const Answer answer = stream_answer(model_, *session_,
                                            {options_.tokens_max, options_.stops, specials}, write);
        known_.insert(known_.end(), answer.tokens.begin(), answer.tokens.end());
        return answer.ended;
    }

    static void show(const OutputEvent& event, Turn& reply) {
        switch (event.kind) {
            case OutputEvent::Kind::kReasoning:
                reply.reasoning = reply.reasoning.value_or("") + event.text;
                return write_aside(event.text);
            case OutputEvent::Kind::kContent:
                reply.content += event.text;
                return write_out(event.text);
            // No tools were offered; a call that comes all the same is shown, not run.
            case OutputEvent::Kind::kCallBegin:
                return write_aside("\n[call] " + event.text + " ");
            case OutputEvent::Kind::kArguments:
                return write_aside(event.text);
            case OutputEvent::Kind::kCallEnd:
                return write_aside("\n");
        }
    }

    const Model& model_;
    const RunOptions& options_;
    std::vector<Turn> turns_;
    std::optional<Session> session_;
    std::vector<Token> known_;  // what the session holds
};

// ------------------------------------------------------------------ once, or for long

int run_once(const Model& model, const RunOptions& options, const std::string& prompt) {
    Dialogue dialogue(model, options);
    const bool terminal = isatty(STDOUT_FILENO) == 1 && isatty(STDERR_FILENO) == 1;
    if (terminal && !options.chat) write_aside(prompt);
    const AnswerEnd ended =
        options.chat ? dialogue.answer_turn(prompt) : dialogue.continue_text(prompt);
    if (isatty(STDOUT_FILENO) == 1) std::fputc('\n', stderr);
    Stats stats = dialogue.stats();
    const bool measure =
        spdlog::should_log(spdlog::level::info) && ended != AnswerEnd::by_interrupt;
    if (measure) stats.read_bandwidth = model.read_bandwidth();
    spdlog::info("{}; {}", stats.line(), answer_end_text(ended));
    return ended == AnswerEnd::by_interrupt ? kExitInterrupted : 0;
}

// $XDG_STATE_HOME/tessera/history, made if it is not there; empty if there is no home.
std::string history_file() {
    const char* state = std::getenv("XDG_STATE_HOME");
    const char* home = std::getenv("HOME");
    if (state == nullptr && home == nullptr) return "";
    const auto base = state != nullptr ? std::filesystem::path(state)
                                       : std::filesystem::path(home) / ".local/state";
    std::error_code ignored;
    std::filesystem::create_directories(base / "tessera", ignored);
    return base / "tessera" / "history";
}

void run_interactive(const Model& model, const RunOptions& options) {
    write_aside(options.chat ? "Ask something. Ctrl-C stops an answer, Ctrl-D leaves.\n"
                             : "Each line is continued. Ctrl-C stops, Ctrl-D leaves; --chat holds "
                               "a conversation.\n");
    LineEditor editor("> ", history_file());
    std::optional<Dialogue> dialogue(std::in_place, model, options);
    while (const auto line = editor.read()) {
        if (line->empty()) continue;
        editor.remember(*line);
        try {
            const AnswerEnd ended =
                options.chat ? dialogue->answer_turn(*line) : dialogue->continue_text(*line);
            std::fputc('\n', stdout);
            write_aside(fmt::format("{}; {}\n", dialogue->stats().line(), answer_end_text(ended)));
        } catch (const Error& error) {
            write_aside(fmt::format("{}\n", error.what()));
            dialogue.emplace(model, options);  // the conversation outgrew the context: a new one
        }
    }
    std::fputc('\n', stderr);
}

constexpr const char* kExamples = R"(Examples:
  tessera run "def fibonacci(n):"                      continue a text
  tessera run "def fibonacci(n):" 2>/dev/null          the generated text alone
  tessera run --chat "Write a function that sorts."    ask, in the model's chat dialect
  git diff | tessera run --file - --max-tokens 64      a prompt from a pipe
  tessera run                                          an interactive session
  tessera run --model ~/models/MiMo-V2-Flash "Once"    another checkpoint
  tessera run --speculate off "def fibonacci(n):"      one token a step: the same text
  tessera run --json-schema order.json "An order:"     JSON that fits a schema
Exit code: 0, 2 for an error, 130 if interrupted.
)";

}  // namespace

std::pair<Speculation, std::string> parse_speculation(const std::string& given) {
    if (given == "auto") return {{Speculate::kAuto}, ""};
    if (given == "off") return {{Speculate::kOff}, ""};
    if (given.size() == 1 && given[0] >= '1' && given[0] <= '7')
        return {{Speculate::kFixed, static_cast<uint32_t>(given[0] - '0')}, ""};
    return {{}, "expected auto, off or 1 to 7, found " + given};
}

void add_run(CLI::App& program) {
    auto options = std::make_shared<RunOptions>();
    CLI::App& run = *program.add_subcommand("run", "Continue a text or answer a question");
    run.footer(kExamples);
    run.add_option("prompt", options->prompt,
                   "Text to continue; - reads stdin; without one: interactive");
    run.add_option("-f,--file", options->file, "Read the prompt from a file")->type_name("FILE");
    run.add_option("-m,--model", options->model,
                   "Folder of a checkpoint (default: the bundled model)")
        ->type_name("FOLDER");
    run.add_flag("--chat", options->chat, "Use the model's chat dialect: the prompt is a question");
    run.add_flag("--think", options->think,
                 "With --chat: let the model reason first (shown on stderr)");
    run.add_option("--system", options->system, "With --chat: the system turn");
    run.add_option("-n,--max-tokens", options->tokens_max, "Tokens to generate at most")
        ->capture_default_str();
    run.add_option("-t,--temperature", options->sampling.temperature,
                   "0 is greedy: the most likely token each time")
        ->capture_default_str();
    run.add_option("--top-p", options->sampling.top_p,
                   "Only tokens that together reach this probability")
        ->capture_default_str();
    run.add_option("--top-k", options->sampling.top_k, "Only the k most likely tokens; 0: all")
        ->capture_default_str();
    run.add_option("--min-p", options->sampling.min_p,
                   "Only tokens this times as likely as the most likely one")
        ->capture_default_str();
    run.add_option("--seed", options->sampling.seed, "Same seed, same text")->capture_default_str();
    run.add_option("--stop", options->stops,
                   R"(End before this text (repeatable; \n and \t are understood))")
        ->allow_extra_args(false);
    run.add_flag("--json", options->json, "The answer is a JSON object");
    run.add_option("--json-schema", options->json_schema,
                   "The answer is JSON that fits the schema in this file");
    run.add_option("--context", options->loading.context,
                   "Tokens of prompt and answer at most (default: the model's, up to 32768)");
    run.add_option("--threads", options->loading.threads, "Workers (default: all cores allowed)")
        ->check(CLI::Range(1, 1024));
    run.add_option("--ranks", options->loading.ranks,
                   "Groups of workers with weights of their own: 1, 2, 4 or 8")
        ->capture_default_str();
    add_device_option(run, options->loading.device);
    run.add_option("--isa", options->loading.isa, "Instructions (default: the fastest here)")
        ->type_name("{portable,avx2,avx512,avx512-vnni}");
    run.add_option("--speculate", options->speculate,
                   "auto: draft what pays; off; or 1 to 7: draft so many tokens each time. The "
                   "text is the same")
        ->check([](const std::string& given) { return parse_speculation(given).second; })
        ->capture_default_str();
    run.add_option("--activations", options->activations,
                   "What experts multiply with: bf16, or int8, faster and less exact")
        ->check(CLI::IsMember({"bf16", "int8"}))
        ->capture_default_str();
    run.add_option("--engine", options->engine, "cpu, or reference: the slow twin")
        ->check(CLI::IsMember({"cpu", "reference"}))
        ->capture_default_str();
    run.callback([options] {
        if (const auto problem = options->sampling.problem()) fail("--{}", *problem);
        options->speculation = parse_speculation(options->speculate).first;
        options->loading.drafter = options->speculation.mode != Speculate::kOff;
        for (std::string& stop : options->stops) stop = unescape(stop);
        if (options->file == "-") {
            options->file.clear();
            options->prompt = "-";
        }
        const std::optional<std::string> prompt = given_prompt(*options);
        if (prompt && prompt->empty()) fail("the prompt is empty: give some text to continue");
        options->constraint = wanted_constraint(*options);
        catch_interrupts();
        const Model model = load(*options);
        if (options->constraint && !model.info().constrains)
            fail("--json: not every byte is a token of this model, so it cannot be held to a form");
        if (!prompt) return run_interactive(model, *options);
        if (const int code = run_once(model, *options, *prompt)) throw CLI::RuntimeError(code);
    });
}

}  // namespace tessera
