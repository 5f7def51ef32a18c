// tessera bench activations: what int8 activations cost in quality, token by token, against the
// default and, where it is asked for, against the reference.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>

#include <fmt/format.h>

#include "base/error.h"
#include "base/threads.h"
#include "checkpoint/checkpoint.h"
#include "reference/reference.h"
#include "runtime/cpu.h"
#include "tessera/model.h"
#include "weights/pack.h"

#include "commands.h"
#include "report.h"

namespace tessera {
namespace {

struct ActivationOptions {
    std::string model, json;
    std::vector<std::string> files;
    uint32_t window = 512;          // tokens read from an empty cache
    uint32_t reference_tokens = 0;  // of which the reference reads too
};

// Natural logarithms of the probabilities of one row.
std::vector<double> log_softmax(std::span<const float> logits) {
    const double top = *std::ranges::max_element(logits);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - top);
    std::vector<double> logs(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) logs[i] = logits[i] - top - std::log(sum);
    return logs;
}

// How far a candidate's predictions are from a standard's, and how well both predict the text.
class Tally {
  public:
    void add(std::span<const float> standard, std::span<const float> candidate, uint32_t next) {
        const std::vector<double> p = log_softmax(standard), q = log_softmax(candidate);
        double kl = 0;
        for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
        kl_.push_back(kl);
        standard_nats_ -= p[next];
        candidate_nats_ -= q[next];
        same_ += std::ranges::max_element(standard) - standard.begin() ==
                 std::ranges::max_element(candidate) - candidate.begin();
    }

    nlohmann::json json() const {
        const auto n = static_cast<double>(kl_.size());
        std::vector<double> sorted = kl_;
        std::ranges::sort(sorted);
        return {{"tokens", kl_.size()},
                {"kl_mean", std::accumulate(kl_.begin(), kl_.end(), 0.0) / n},
                {"kl_median", sorted[sorted.size() / 2]},
                {"kl_p99", sorted[sorted.size() * 99 / 100]},
                {"top1_agreement", static_cast<double>(same_) / n},
                {"perplexity_standard", std::exp(standard_nats_ / n)},
                {"perplexity", std::exp(candidate_nats_ / n)}};
    }

    bool empty() const { return kl_.empty(); }

  private:
    std::vector<double> kl_;
    double standard_nats_ = 0, candidate_nats_ = 0;
    uint64_t same_ = 0;
};

std::vector<float> read_window(CpuMachine& machine, std::span<const uint32_t> tokens) {
    const uint32_t vocab = machine.weights().shape.vocab;
    const KvCache cache(machine.weights().shape, 1, machine.options().context);
    std::vector<float> logits(tokens.size() * vocab);
    for (uint32_t at = 0; at < tokens.size(); at += kStepRowsMax) {
        const auto piece = tokens.subspan(at, std::min<size_t>(kStepRowsMax, tokens.size() - at));
        std::vector<uint32_t> positions(piece.size());
        std::iota(positions.begin(), positions.end(), at);
        const std::vector<const KvCache*> caches(piece.size(), &cache);
        machine.step({piece, positions, caches, 0});
        for (uint32_t row = 0; row < piece.size(); ++row)
            machine.logits(row, std::span(logits).subspan((at + row) * size_t{vocab}, vocab));
    }
    return logits;
}

void bench_activations(const ActivationOptions& options) {
    const std::filesystem::path folder =
        options.model.empty() ? bundled_model() : std::filesystem::path(options.model);
    std::vector<uint32_t> tokens;
    uint64_t bytes = 0;
    {
        const Model model = Model::load(folder);
        for (const std::string& file : options.files) {
            const std::string text = read_text_file(file);
            bytes += text.size();
            const std::vector<Token> more = model.encode(text);
            tokens.insert(tokens.end(), more.begin(), more.end());
        }
    }
    if (tokens.size() < 2) fail("the files hold no text");
    const Checkpoint checkpoint = open_checkpoint(folder);
    const Weights weights =
        bind(checkpoint, parse_shape(checkpoint.config, (folder / "config.json").string()));
    PackOptions pack;
    pack.fp8 = Fp8::unpack_in_cache;
    pack.threads = available_threads();
    const PackedWeights packed = pack_weights(weights, pack);
    CpuOptions cpu;
    cpu.workers = available_threads();
    cpu.context = options.window;
    CpuMachine standard(packed, cpu);
    cpu.int8_activations = true;
    CpuMachine int8(packed, cpu);
    const Reference reference(weights, Rounding::bf16);

    Tally int8_against_default, default_against_reference, int8_against_reference;
    const uint32_t vocab = weights.shape.vocab;
    for (size_t at = 0; at + 1 < tokens.size(); at += options.window) {
        const auto window =
            std::span(tokens).subspan(at, std::min<size_t>(options.window, tokens.size() - 1 - at));
        const std::vector<float> a = read_window(standard, window), b = read_window(int8, window);
        std::vector<float> c;
        if (at < options.reference_tokens) {
            Reference::Cache cache;
            c = reference.logits(reference.forward(cache, window));
        }
        for (size_t row = 0; row < window.size(); ++row) {
            const auto of = [&](const std::vector<float>& all) {
                return std::span(all).subspan(row * vocab, vocab);
            };
            const uint32_t next = tokens[at + row + 1];
            int8_against_default.add(of(a), of(b), next);
            if (c.empty()) continue;
            default_against_reference.add(of(c), of(a), next);
            int8_against_reference.add(of(c), of(b), next);
        }
    }

    std::vector<std::vector<std::string>> table = {{"", "tokens", "mean KL", "median KL", "p99 KL",
                                                    "top-1 equal", "perplexity", "of standard"}};
    nlohmann::json found = {{"origin", origin()}, {"bytes", bytes}};
    const auto show = [&](const char* name, const Tally& tally) {
        if (tally.empty()) return;
        const nlohmann::json j = tally.json();
        found[name] = j;
        table.push_back({name, fmt::format("{}", j["tokens"].get<uint64_t>()),
                         fmt::format("{:.2e}", j["kl_mean"].get<double>()),
                         fmt::format("{:.2e}", j["kl_median"].get<double>()),
                         fmt::format("{:.2e}", j["kl_p99"].get<double>()),
                         fmt::format("{:.2f} %", 100 * j["top1_agreement"].get<double>()),
                         fmt::format("{:.4f}", j["perplexity"].get<double>()),
                         fmt::format("{:.4f}", j["perplexity_standard"].get<double>())});
    };
    show("int8 against default", int8_against_default);
    show("default against reference", default_against_reference);
    show("int8 against reference", int8_against_reference);
    print_table(table);
    if (!options.json.empty()) write_json(found, options.json);
}

}  // namespace

void add_bench_activations(CLI::App& bench) {
    auto options = std::make_shared<ActivationOptions>();
    CLI::App& command = *bench.add_subcommand(
        "activations", "What int8 activations cost: KL and perplexity on text files");
    command.add_option("files", options->files, "Texts that the model was not trained on")
        ->type_name("FILE")
        ->required();
    command.add_option("-m,--model", options->model, "Folder of a checkpoint (default: bundled)")
        ->type_name("FOLDER");
    command.add_option("--window", options->window, "Tokens read from an empty cache")
        ->check(CLI::Range(2, 1 << 20))
        ->capture_default_str();
    command.add_option("--reference-tokens", options->reference_tokens,
                       "So many of the first tokens are read by the reference too (slow)");
    command.add_option("--json", options->json, "Write all figures to this file")
        ->type_name("FILE");
    command.callback([options] { bench_activations(*options); });
}

}  // namespace tessera
