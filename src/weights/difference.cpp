#include "weights/difference.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>
#include <vector>

#include "base/error.h"
#include "base/threads.h"

namespace tessera {
namespace {

void add_element(Difference& sum, float a, float b) {
    const double error = double{a} - b;
    ++sum.elements;
    sum.changed += a != b;
    sum.largest = std::max(sum.largest, std::abs(error));
    sum.squares += double{a} * a;
    sum.error += error * error;
}

// Two matrices, or two vectors, of one name.
struct Pair {
    std::string name;
    Part part;
    const Matrix *a = nullptr, *b = nullptr;
    const std::vector<float>*a_vector = nullptr, *b_vector = nullptr;

    Difference compare() const {
        Difference sum;
        if (a == nullptr) {
            for (size_t i = 0; i < a_vector->size(); ++i)
                add_element(sum, (*a_vector)[i], (*b_vector)[i]);
            return sum;
        }
        std::vector<float> x(a->columns), y(a->columns);
        for (uint32_t row = 0; row < a->rows; ++row) {
            dequantize_row(*a, row, x);
            dequantize_row(*b, row, y);
            for (size_t i = 0; i < x.size(); ++i) add_element(sum, x[i], y[i]);
        }
        return sum;
    }
};

class Pairs {
  public:
    Pairs(const Weights& a, const Weights& b) {
        add("model.embed_tokens", Part::embedding, a.embedding, b.embedding);
        add("lm_head", Part::head, a.head, b.head);
        add("model.norm", Part::norms, a.norm, b.norm);
        if (a.layers.size() != b.layers.size())
            fail("one has {} layers, the other {}: these are two networks", a.layers.size(),
                 b.layers.size());
        for (size_t i = 0; i < a.layers.size(); ++i)
            add_layer(fmt::format("model.layers.{}.", i), a.layers[i], b.layers[i]);
    }

    std::vector<Pair> pairs;

  private:
    void add(const std::string& name, Part part, const Matrix& a, const Matrix& b) {
        if (a.rows != b.rows || a.columns != b.columns)
            fail("{}: one is {} x {}, the other {} x {}: these are two networks", name, a.rows,
                 a.columns, b.rows, b.columns);
        pairs.push_back({name, part, &a, &b, nullptr, nullptr});
    }

    void add(const std::string& name, Part part, const std::vector<float>& a,
             const std::vector<float>& b) {
        if (a.size() != b.size())
            fail("{}: one has {} elements, the other {}: these are two networks", name, a.size(),
                 b.size());
        pairs.push_back({name, part, nullptr, nullptr, &a, &b});
    }

    void add_feed_forward(const std::string& at, Part part, const FeedForward& a,
                          const FeedForward& b) {
        add(at + "gate_proj", part, a.gate, b.gate);
        add(at + "up_proj", part, a.up, b.up);
        add(at + "down_proj", part, a.down, b.down);
    }

    void add_layer(const std::string& at, const LayerWeights& a, const LayerWeights& b) {
        add(at + "input_layernorm", Part::norms, a.input_norm, b.input_norm);
        add(at + "post_attention_layernorm", Part::norms, a.post_norm, b.post_norm);
        add(at + "self_attn q", Part::qkv, a.q, b.q);
        add(at + "self_attn k", Part::qkv, a.k, b.k);
        add(at + "self_attn v", Part::qkv, a.v, b.v);
        add(at + "self_attn sinks", Part::qkv, a.sink, b.sink);
        add(at + "self_attn.o_proj", Part::o_proj, a.o, b.o);
        if (a.experts.size() != b.experts.size())
            fail("{}mlp: one has {} experts, the other {}: these are two networks", at,
                 a.experts.size(), b.experts.size());
        if (a.experts.empty()) return add_feed_forward(at + "mlp.", Part::dense, a.dense, b.dense);
        add(at + "mlp.gate", Part::router, a.router, b.router);
        add(at + "mlp.gate bias", Part::router, a.correction_bias, b.correction_bias);
        for (size_t e = 0; e < a.experts.size(); ++e)
            add_feed_forward(fmt::format("{}mlp.experts.{}.", at, e), Part::experts, a.experts[e],
                             b.experts[e]);
    }
};

}  // namespace

Difference& Difference::operator+=(const Difference& other) {
    elements += other.elements;
    changed += other.changed;
    largest = std::max(largest, other.largest);
    squares += other.squares;
    error += other.error;
    return *this;
}

double Difference::relative() const {
    return error > 0 ? std::sqrt(error / squares) : 0;
}

double Difference::snr_db() const {
    return error > 0 ? 10 * std::log10(squares / error) : std::numeric_limits<double>::infinity();
}

Differences compare_weights(const Weights& a, const Weights& b, uint32_t threads,
                            const std::function<void(uint64_t, uint64_t)>& progress) {
    const Pairs all(a, b);
    std::vector<Difference> found(all.pairs.size());
    std::atomic<uint64_t> done = 0;
    std::mutex drawing;
    parallel_for(found.size(), threads, [&](size_t i) {
        found[i] = all.pairs[i].compare();
        const uint64_t now = ++done;
        const std::unique_lock lock(drawing, std::try_to_lock);
        if (progress && lock) progress(now, found.size());
    });
    Differences differences;
    for (size_t i = 0; i < found.size(); ++i) {
        differences.parts[all.pairs[i].part] += found[i];
        if (found[i].relative() > differences.worst.found.relative())
            differences.worst = {all.pairs[i].name, found[i]};
    }
    return differences;
}

std::vector<std::string> other_differences(const Checkpoint& a, const Checkpoint& b) {
    namespace fs = std::filesystem;
    std::vector<std::string> found;
    for (const auto& [name, tensor] : a.tensors) {
        if (!is_skipped(name)) continue;
        const auto same = b.tensors.find(name);
        if (same == b.tensors.end()) {
            found.push_back(fmt::format("tensor {} is missing", name));
        } else if (tensor.dtype != same->second.dtype || tensor.shape != same->second.shape ||
                   !std::ranges::equal(tensor.bytes, same->second.bytes)) {
            found.push_back(fmt::format("tensor {}", name));
        }
    }
    for (auto at = fs::recursive_directory_iterator(a.folder);
         at != fs::recursive_directory_iterator(); ++at) {
        const fs::path name = at->path().lexically_relative(a.folder);
        if (name.filename().string().starts_with('.')) {
            if (at->is_directory()) at.disable_recursion_pending();
            continue;
        }
        // Compared above, or changed by every rounding.
        const bool is_weights = !name.has_parent_path() &&
                                (name.extension() == ".safetensors" || name == "config.json" ||
                                 name == "model.safetensors.index.json");
        if (is_weights || !at->is_regular_file()) continue;
        if (!fs::is_regular_file(b.folder / name)) {
            found.push_back(fmt::format("file {} is missing", name.string()));
        } else if (!std::ranges::equal(MappedFile(at->path()).bytes(),
                                       MappedFile(b.folder / name).bytes())) {
            found.push_back(fmt::format("file {}", name.string()));
        }
    }
    return found;
}

}  // namespace tessera
