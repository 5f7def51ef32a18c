// A toy target with its drafter on the CPU machine, and what its texts say when each is read alone.
#pragma once

#include "runtime/sequence.h"
#include "runtime/support.h"

namespace tessera::test {

struct Target {
    Target()
        : toy(test::toy_shape()),
          shape(test::toy_drafter_shape()),
          made(test::seeded_checkpoint(shape, 5)),
          weights(bind_drafter(made.checkpoint, shape, test::seeded_mask(shape, 5))),
          packed(toy.pack()),
          drafter(pack_drafter(
              weights, packed,
              {.ranks = 1, .threads = 1, .progress = {}, .drop = {}, .fp8 = Fp8::keep})),
          machine(packed, options(), &drafter),
          decoder(machine) {}

    static CpuOptions options() {
        CpuOptions o;
        o.workers = 2;
        o.context = test::kContext;
        o.pin = false;
        return o;
    }

    // The logits of every token read.
    std::vector<float> read(Sequence& sequence, std::span<const uint32_t> tokens) {
        const Decoder::Reading reading{&sequence, tokens};
        decoder.read(std::span(&reading, 1));
        std::vector<float> all;
        for (uint32_t row = 0; row < tokens.size(); ++row) append(all, row);
        return all;
    }
    void append(std::vector<float>& to, uint32_t row) {
        const std::span<const float> logits = decoder.logits(row);
        to.insert(to.end(), logits.begin(), logits.end());
    }

    // What every token of a text says, read alone, one at a time.
    std::vector<float> alone(std::span<const uint32_t> tokens) {
        Sequence sequence(machine, false);
        std::vector<float> all;
        for (const uint32_t& token : tokens) {
            const std::vector<float> one = read(sequence, std::span(&token, 1));
            all.insert(all.end(), one.begin(), one.end());
        }
        return all;
    }
    std::span<const float> of_token(std::span<const float> all, size_t first, size_t count) const {
        return all.subspan(first * packed.shape.vocab, count * packed.shape.vocab);
    }

    Toy toy;
    DrafterShape shape;
    test::SeededCheckpoint made;
    DrafterWeights weights;
    PackedWeights packed, drafter;
    CpuMachine machine;
    Decoder decoder;
};

}  // namespace tessera::test
