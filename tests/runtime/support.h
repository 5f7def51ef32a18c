// A seeded toy as the runtime needs it, and its reference.
#pragma once

#include <cmath>
#include <numeric>
#include <vector>

#include "reference/reference.h"
#include "runtime/cpu.h"
#include "runtime/single.h"
#include "weights/pack.h"

#include "support/seeded.h"
#include "support/toys.h"

namespace tessera::test {

inline constexpr uint32_t kContext = 1200;  // three chunks of keys

struct Toy {
    explicit Toy(const Shape& shape, uint64_t seed = 5)
        : made(seeded_checkpoint(shape, seed)), weights(bind(made.checkpoint, shape)) {}

    PackedWeights pack(uint32_t ranks = 1) const {
        return pack_weights(
            weights, {.ranks = ranks, .threads = 1, .progress = {}, .drop = {}, .fp8 = Fp8::keep});
    }

    SeededCheckpoint made;
    Weights weights;
};

inline std::vector<uint32_t> seeded_tokens(size_t count, uint32_t vocab, uint64_t seed = 3) {
    std::vector<uint32_t> tokens;
    for (uint64_t i = 0; i < count; ++i)
        tokens.push_back(static_cast<uint32_t>(splitmix64(seed, i) % vocab));
    return tokens;
}

// One sequence read by a machine, in steps of given sizes.
class Reader {
  public:
    Reader(CpuMachine& machine, uint32_t context = kContext)
        : machine_(machine), cache_(machine.weights().shape, machine.options().ranks, context) {}

    // The logits of every token, row by row.
    std::vector<float> read(std::span<const uint32_t> tokens) {
        std::vector<uint32_t> positions(tokens.size());
        std::iota(positions.begin(), positions.end(), length_);
        const std::vector<const KvCache*> caches(tokens.size(), &cache_);
        machine_.step({tokens, positions, caches, 0});
        length_ += static_cast<uint32_t>(tokens.size());
        const uint32_t vocab = machine_.weights().shape.vocab;
        std::vector<float> logits(tokens.size() * vocab);
        for (uint32_t row = 0; row < tokens.size(); ++row)
            machine_.logits(row, std::span(logits).subspan(size_t{row} * vocab, vocab));
        return logits;
    }

    // The same in pieces of `rows` tokens.
    std::vector<float> read_all(std::span<const uint32_t> tokens, size_t rows) {
        std::vector<float> all;
        for (size_t at = 0; at < tokens.size(); at += rows) {
            const auto piece = read(tokens.subspan(at, std::min(rows, tokens.size() - at)));
            all.insert(all.end(), piece.begin(), piece.end());
        }
        return all;
    }

    const KvCache& cache() const { return cache_; }
    uint32_t length() const { return length_; }
    void rewind(uint32_t length) { length_ = length; }

  private:
    CpuMachine& machine_;
    KvCache cache_;
    uint32_t length_ = 0;
};

inline double relative_difference(std::span<const float> a, std::span<const float> b) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += std::pow(double{a[i]} - b[i], 2);
        norm += std::pow(double{b[i]}, 2);
    }
    return std::sqrt(difference / norm);
}

}  // namespace tessera::test
