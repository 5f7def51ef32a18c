// tessera eval: how well a model foresees texts and answers tasks, and how far it is from another
// folder on the same tokens.
#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "base/progress.h"
#include "tessera/session.h"

#include "answer.h"
#include "commands.h"
#include "eval_report.h"
#include "judge/suite.h"
#include "report.h"
#include "suites.h"

namespace tessera {
namespace {

constexpr uint32_t kPieceTokens = 64;  // whose logits are held at once
constexpr uint32_t kRunTokens = 128;   // neighbours that the bootstrap draws together
constexpr size_t kWorstMax = 24;
constexpr size_t kContextTokens = 24;  // around a worst token

struct EvalOptions {
    std::string model, against, json, page, engine = "cpu", activations = "bf16";
    std::vector<std::string> suites;
    uint32_t window = 512;    // tokens read from an empty cache
    uint64_t tokens_max = 0;  // of each suite; 0: all
    uint32_t threads = 0;
};

// ------------------------------------------------------------------ what is read

std::string read_file(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream || is_directory(file)) fail("{}: cannot be read", file.string());
    return {std::istreambuf_iterator<char>(stream), {}};
}

// A file, or the name of a suite that comes with the sources.
JudgedSuite read_suite(const std::string& given) {
    std::filesystem::path file = given;
    if (!exists(file) && given.find('/') == given.npos && !file.has_extension()) {
        const std::filesystem::path own = own_suites() / (given + ".jsonl");
        if (!exists(own)) fail("{}: neither a file nor a suite of bench/suites", given);
        file = own;
    }
    const std::string text = read_file(file);
    const std::string name = file.stem().string();
    if (file.extension() == ".jsonl") return parse_judged_suite(text, name, file.string());
    if (text.empty()) fail("{}: is empty", file.string());
    return {name, {{file.filename().string(), text}}, {}};
}

// ------------------------------------------------------------------ texts

std::string text_of(const Model& model, std::span<const Token> tokens) {
    Detokenizer words = model.detokenizer(ShowSpecials::kShow);
    std::string text;
    for (const Token token : tokens) text += words.push(token);
    return text + words.finish();
}

// Reads texts with one model or two, window by window, and keeps what it saw.
class Reader {
  public:
    Reader(const Model& model, const Model* against, uint32_t window)
        : model_(model), against_(against), window_(window), vocab_(model.info().vocab) {}

    // At most `tokens_max` tokens of it.
    void read(const JudgedText& text, uint64_t tokens_max, TextsFound& found) {
        std::vector<Token> tokens = model_.encode(text.text);
        if (against_ != nullptr && against_->encode(text.text) != tokens)
            fail("{}: the two folders cut it into different tokens; KL needs the same", text.name);
        if (tokens.size() > tokens_max + 1) tokens.resize(tokens_max + 1);
        const std::vector<uint32_t> bytes = bytes_of(tokens);
        Sums run;
        // Each token but the first is foreseen from those of its window before it.
        for (size_t at = 0; at + 1 < tokens.size(); at += window_) {
            const size_t count = std::min<size_t>(window_, tokens.size() - 1 - at);
            Session session(model_, {}, off());
            std::optional<Session> standard;
            if (against_ != nullptr) standard.emplace(*against_, Sampling{}, off());
            for (size_t piece = 0; piece < count; piece += kPieceTokens) {
                const auto rows = std::span(tokens).subspan(
                    at + piece, std::min<size_t>(kPieceTokens, count - piece));
                logits_.resize(rows.size() * vocab_);
                if (standard)
                    standard->append(rows, {}, [&](uint32_t row, std::span<const float> logits) {
                        std::ranges::copy(logits, logits_.begin() + row * vocab_);
                    });
                session.append(rows, {}, [&](uint32_t row, std::span<const float> logits) {
                    const size_t next = at + piece + row + 1;
                    add(text, tokens, next, static_cast<uint32_t>(piece + row), logits, run, found);
                    run.bytes += bytes[next];
                    if (run.tokens < kRunTokens) return;
                    found.runs.push_back(run);
                    run = {};
                });
            }
        }
        if (run.tokens > 0) found.runs.push_back(run);
    }

    std::vector<WorstToken> take_worst() {
        std::ranges::sort(worst_, std::greater(), &WorstToken::kl);
        return std::move(worst_);
    }

  private:
    static Speculation off() { return {Speculate::kOff}; }

    // Of the text that each token adds; a character cut over tokens counts where it ends.
    std::vector<uint32_t> bytes_of(std::span<const Token> tokens) const {
        Detokenizer words = model_.detokenizer(ShowSpecials::kShow);
        std::vector<uint32_t> bytes;
        for (const Token token : tokens)
            bytes.push_back(static_cast<uint32_t>(words.push(token).size()));
        return bytes;
    }

    void add(const JudgedText& text, std::span<const Token> tokens, size_t next, uint32_t place,
             std::span<const float> logits, Sums& run, TextsFound& found) {
        run.tokens += 1;
        if (against_ == nullptr) {
            run.candidate += surprise(logits, tokens[next]);
            return;
        }
        const size_t row = place % kPieceTokens;
        const RowDifference d =
            compare_rows(std::span(logits_).subspan(row * vocab_, vocab_), logits, tokens[next]);
        run.candidate += d.candidate;
        run.standard += d.standard;
        run.kl += d.kl;
        run.agreed += d.standard_top == d.candidate_top;
        found.kl.push_back(static_cast<float>(d.kl));
        found.places.push_back(place);
        found.gap = std::max(found.gap, d.gap);
        keep_if_worst(text, tokens, next, d);
    }

    void keep_if_worst(const JudgedText& text, std::span<const Token> tokens, size_t next,
                       const RowDifference& d) {
        if (worst_.size() == kWorstMax) {
            const auto least = std::ranges::min_element(worst_, {}, &WorstToken::kl);
            if (least->kl >= d.kl) return;
            worst_.erase(least);
        }
        const size_t begin = next - std::min(next, kContextTokens);
        const size_t end = std::min(tokens.size(), next + 1 + kContextTokens / 2);
        worst_.push_back({fmt::format("{}, token {}", text.name, next),
                          text_of(model_, tokens.subspan(begin, next - begin)),
                          text_of(model_, tokens.subspan(next, 1)),
                          text_of(model_, tokens.subspan(next + 1, end - next - 1)),
                          text_of(model_, std::span(&d.standard_top, 1)),
                          text_of(model_, std::span(&d.candidate_top, 1)), d.kl});
    }

    const Model& model_;
    const Model* against_;
    uint32_t window_, vocab_;
    std::vector<float> logits_;  // of the other model, a piece
    std::vector<WorstToken> worst_;
};

// ------------------------------------------------------------------ tasks

// Greedy; as long as the expected answer could need.
std::string answer_of(const Model& model, const JudgedTask& task) {
    const std::vector<Token> prompt = model.encode(task.prompt);
    const auto expected = static_cast<uint32_t>(model.encode(task.expected).size());
    const uint32_t tokens = 2 * expected + 16;
    if (prompt.size() + tokens > model.info().context_tokens)
        fail("{}: {} tokens of prompt and {} of answer do not fit the context of {}", task.name,
             prompt.size(), tokens, model.info().context_tokens);
    Session session(model, {}, {Speculate::kOff});
    session.append(prompt);
    std::string answer;
    stream_answer(model, session, {tokens, task.stops},
                  [&](std::string_view text) { answer += text; });
    return answer;
}

TasksFound judge_tasks(const JudgedSuite& suite, const Model& model, const Model* against) {
    TasksFound found{suite.name, {}};
    for (const JudgedTask& task : suite.tasks) {
        const std::string answer = answer_of(model, task);
        found.tasks.push_back({task.name, task.expected, answer, is_right(task, answer),
                               against != nullptr && is_right(task, answer_of(*against, task))});
    }
    return found;
}

// ------------------------------------------------------------------ all of it

Model load(const std::filesystem::path& folder, const EvalOptions& options, bool has_tasks) {
    LoadOptions loading;
    loading.engine = options.engine == "reference" ? Engine::kReference : Engine::kCpu;
    loading.activations = options.activations == "int8" ? Activations::kInt8 : Activations::kBf16;
    loading.threads = options.threads;
    loading.drafter = false;
    if (!has_tasks) loading.context = options.window;
    Progress bar("loading");
    if (spdlog::should_log(spdlog::level::info))
        loading.progress = [&](uint64_t done, uint64_t total) { bar.show(done, total); };
    return Model::load(folder, loading);
}

std::string name_of(const std::filesystem::path& folder) {
    return canonical(folder).filename().string();
}

void eval(const EvalOptions& options) {
    std::vector<JudgedSuite> suites;
    for (const std::string& given : options.suites) suites.push_back(read_suite(given));
    const bool has_tasks =
        std::ranges::any_of(suites, [](const JudgedSuite& s) { return !s.tasks.empty(); });
    const Model model = load(options.model, options, has_tasks);
    std::optional<Model> other;
    if (!options.against.empty()) other = load(options.against, options, has_tasks);
    const Model* const against = other ? &*other : nullptr;
    if (against != nullptr && against->info().vocab != model.info().vocab)
        fail("{} has a vocabulary of {}, {} of {}: they cannot be compared", options.model,
             model.info().vocab, options.against, against->info().vocab);
    if (options.window > model.info().context_tokens)
        fail("--window {}: the model's context is {}", options.window, model.info().context_tokens);

    EvalReport report;
    report.model = name_of(options.model);
    report.model_summary = model.info().summary;
    report.machine = model.info().machine;
    report.window = options.window;
    if (against != nullptr) {
        report.against = name_of(options.against);
        report.against_summary = against->info().summary;
        if (report.against == report.model) {
            report.model = options.model;
            report.against = options.against;
        }
    }
    Reader reader(model, against, options.window);
    uint64_t bytes = 0, done = 0;
    for (const JudgedSuite& suite : suites)
        for (const JudgedText& text : suite.texts) bytes += text.text.size();
    Progress bar("reading");
    for (const JudgedSuite& suite : suites) {
        if (!suite.tasks.empty()) report.tasks.push_back(judge_tasks(suite, model, against));
        if (suite.texts.empty()) continue;
        TextsFound found{suite.name, {}, {}, {}, 0};
        uint64_t left = options.tokens_max > 0 ? options.tokens_max : UINT64_MAX - 1;
        for (const JudgedText& text : suite.texts) {
            const size_t before = found.runs.size();
            if (left > 0) reader.read(text, left, found);
            for (size_t i = before; i < found.runs.size() && options.tokens_max > 0; ++i)
                left -= static_cast<uint64_t>(found.runs[i].tokens);
            done += text.text.size();
            if (spdlog::should_log(spdlog::level::info)) bar.show(done, bytes);
        }
        if (found.runs.empty()) fail("{}: a text of one token foresees nothing", suite.name);
        report.texts.push_back(std::move(found));
    }
    if (report.texts.size() > 1) {
        TextsFound all{"all", {}, {}, {}, 0};
        for (const TextsFound& one : report.texts) all.add(one);
        report.texts.push_back(std::move(all));
    }
    report.worst = reader.take_worst();
    print_report(report);
    if (!options.json.empty()) write_json(report_json(report), options.json);
    if (!options.page.empty()) write_page(report, options.page);
}

constexpr const char* kExamples =
    R"(A suite is a text file; a file of JSON lines, each {"text": …} or
{"prompt": …, "expected": …, "stop": …}, which is answered greedily and compared exactly; or the name
of a suite of bench/suites.
Examples:
  tessera eval models/tessera-mini code prose
  tessera eval MiMo-FP4 --against MiMo-FP8 book.txt src.txt --html cost.html
  tessera eval MiMo-FP4 tasks.jsonl --json found.json
)";

}  // namespace

void add_eval(CLI::App& program) {
    auto options = std::make_shared<EvalOptions>();
    CLI::App& command = *program.add_subcommand(
        "eval", "Judge a model by texts and tasks, alone or against another folder");
    command.footer(kExamples);
    command.add_option("model", options->model, "Folder of a checkpoint")
        ->type_name("FOLDER")
        ->required();
    command.add_option("suites", options->suites, "Texts, tasks, or names of bench/suites")
        ->type_name("FILE")
        ->required();
    command
        .add_option("--against", options->against,
                    "Folder to compare with on the same tokens: the original")
        ->type_name("FOLDER");
    command.add_option("--window", options->window, "Tokens read from an empty cache")
        ->check(CLI::Range(2, 1 << 20))
        ->capture_default_str();
    command.add_option("--tokens", options->tokens_max,
                       "So many tokens of each suite at most (default: all)");
    command.add_option("--json", options->json, "Write all figures to this file")
        ->type_name("FILE");
    command.add_option("--html", options->page, "Write a page to this file")->type_name("FILE");
    command.add_option("--threads", options->threads, "Workers (default: all cores allowed)")
        ->check(CLI::Range(1, 1024));
    command.add_option("--activations", options->activations, "What MXFP4 experts multiply with")
        ->check(CLI::IsMember({"bf16", "int8"}))
        ->capture_default_str();
    command.add_option("--engine", options->engine, "cpu, or reference: the slow twin")
        ->check(CLI::IsMember({"cpu", "reference"}))
        ->capture_default_str();
    command.callback([options] { eval(*options); });
}

}  // namespace tessera
