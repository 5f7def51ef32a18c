// Ten megabytes of text through the tokenizer and back: plain source code, and what makes naive
// tokenizers quadratic. `x_plain` is the time over that of plain code, measured in the same run.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "text/detokenizer.h"
#include "text/output.h"
#include "text/tokenizer.h"

namespace tessera {
namespace {

inline constexpr size_t kTextBytes = 10'000'000;

const Tokenizer& tokenizer() {
    static const Tokenizer loaded = Tokenizer::load(TESSERA_MODEL "/tokenizer.json");
    return loaded;
}

std::string repeated(const std::string& unit) {
    std::string text;
    while (text.size() < kTextBytes) text += unit;
    text.resize(kTextBytes);
    return text;
}

// The project's own sources in a fixed order, over again until there is enough.
std::string plain_code() {
    namespace fs = std::filesystem;
    std::vector<fs::path> paths;
    for (const char* folder : {"src", "tests", "train"}) {
        for (const auto& entry :
             fs::recursive_directory_iterator(fs::path(TESSERA_SOURCE) / folder)) {
            const std::string kind = entry.path().extension();
            if (kind == ".cpp" || kind == ".h" || kind == ".py") paths.push_back(entry.path());
        }
    }
    std::sort(paths.begin(), paths.end());
    std::string code;
    for (const fs::path& path : paths) {
        std::ifstream file(path, std::ios::binary);
        code.append(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return repeated(code);
}

std::string random_text(uint32_t first, uint32_t last) {
    std::mt19937 draw(7);
    std::uniform_int_distribution<uint32_t> byte(first, last);
    std::string text(kTextBytes, ' ');
    for (char& c : text) c = static_cast<char>(byte(draw));
    return text;
}

struct Text {
    const char* name;
    std::string (*make)();
};

constexpr Text kTexts[] = {
    {"plain", plain_code},
    {"letter", [] { return repeated("a"); }},
    {"spaces", [] { return repeated(" "); }},
    {"random_bytes", [] { return random_text(0, 255); }},
    {"random_letters", [] { return random_text('a', 'z'); }},
    {"newlines", [] { return repeated("\n"); }},
    {"digits", [] { return repeated("7"); }},
    {"punctuation", [] { return repeated("<"); }},
    {"marks", [] { return repeated("\u0301\u0316"); }},
    {"chinese", [] { return repeated("你好，世界。今天天气很好"); }},
    {"broken_markers", [] { return repeated("<|im_start"); }},
};

double seconds_of(const std::function<void()>& work) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    work();
    return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Runs `work` over and over and reports bytes a second and the ratio to `plain_seconds`, which the
// plain text, being first, sets.
void measure(benchmark::State& state, bool is_plain, double& plain_seconds,
             const std::function<void()>& work) {
    double best = 1e9;
    for (auto _ : state) best = std::min(best, seconds_of(work));
    if (is_plain) plain_seconds = best;
    state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * kTextBytes));
    state.counters["x_plain"] = plain_seconds > 0 ? best / plain_seconds : 0;
}

void encode(benchmark::State& state, const Text& text) {
    static double plain_seconds = 0;
    const std::string bytes = text.make();
    size_t tokens = 0;
    measure(state, text.make == plain_code, plain_seconds, [&] {
        tokens = tokenizer().encode(bytes, Specials::kParse).size();
        benchmark::DoNotOptimize(tokens);
    });
    state.counters["tokens"] = static_cast<double>(tokens);
}

void decode(benchmark::State& state, const Text& text) {
    static double plain_seconds = 0;
    const std::vector<uint32_t> ids = tokenizer().encode(text.make(), Specials::kParse);
    measure(state, text.make == plain_code, plain_seconds, [&] {
        Detokenizer detokenizer(tokenizer(), ShowSpecials::kShow);
        size_t bytes = 0;
        for (const uint32_t id : ids) bytes += detokenizer.push(id).size();
        benchmark::DoNotOptimize(bytes);
    });
}

// A reply that is one long call, pushed in pieces of a token's length.
void parse_reply(benchmark::State& state) {
    const std::string reply = "<think>Why.</think><tool_call>\n<function=f>\n<parameter=text>" +
                              plain_code() + "</parameter>\n</function>\n</tool_call>";
    for (auto _ : state) {
        OutputParser parser(Opening::kReasoningMayOpen, nullptr);
        size_t events = 0;
        for (size_t at = 0; at < reply.size(); at += 4) {
            events += parser.push(std::string_view(reply).substr(at, 4)).size();
        }
        benchmark::DoNotOptimize(events + parser.finish().size());
    }
    state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * reply.size()));
}

const bool registered = [] {
    const auto add = [](std::string name, const Text& text, auto* bench) {
        name += std::string("/") + text.name;
        benchmark::RegisterBenchmark(name.c_str(), bench, text)->Unit(benchmark::kMillisecond);
    };
    for (const Text& text : kTexts) add("encode", text, &encode);
    for (const Text& text : kTexts) add("decode", text, &decode);
    benchmark::RegisterBenchmark("parse_reply", parse_reply)->Unit(benchmark::kMillisecond);
    return true;
}();

}  // namespace
}  // namespace tessera
