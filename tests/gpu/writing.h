// A text that a card writes: in rounds of its own, or a step at a time with the host to choose.
#pragma once

#include <memory>
#include <vector>

#include "runtime/gpu/card.h"
#include "runtime/gpu/decoder.h"
#include "runtime/host_runner.h"

#include "gpu/pair.h"

namespace tessera::test {

inline constexpr uint32_t kWritingContext = 96;

struct Writing {
    explicit Writing(const Pair& pair)
        : runner(gpu::make_runner(pair.target, &pair.drafter, kWritingContext)),
          decoder(*runner, kWritingContext, &pair.shape) {}

    // Eleven tokens; all but the last are read.
    std::vector<uint32_t> begin(gpu::Sequence& s) {
        std::vector<uint32_t> text;
        for (uint32_t i = 0; i < 11; ++i) text.push_back((i * 37 + 5) % 199);
        const gpu::Decoder::Reading reading{&s, std::span(text).first(text.size() - 1)};
        decoder.read(std::span(&reading, 1), 10);
        return text;
    }

    std::vector<uint32_t> in_steps(const RoundsAsk& ask, uint32_t tokens) {
        gpu::Sequence s = decoder.begin(false);
        std::vector<uint32_t> text = begin(s);
        for (const size_t end = text.size() + tokens; text.size() < end;) {
            const gpu::Decoder::Reading reading{&s, std::span(text).last(1)};
            decoder.read(std::span(&reading, 1), 0);
            const auto position = static_cast<uint32_t>(text.size());
            text.push_back(HostRunner::choose(ask, decoder.logits(0), position, nullptr));
        }
        return text;
    }

    // At least so many tokens, and the rounds that they came in.
    std::vector<uint32_t> in_rounds(const RoundsAsk& ask, uint32_t tokens,
                                    std::vector<Round>* rounds = nullptr) {
        gpu::Sequence s = decoder.begin(ask.drafts > 0);
        std::vector<uint32_t> text = begin(s);
        for (const size_t end = text.size() + tokens; text.size() < end;) {
            const Round round = decoder.round(s, text.back(), ask);
            text.insert(text.end(), round.tokens, round.tokens + round.count);
            if (rounds != nullptr) rounds->push_back(round);
        }
        return text;
    }

    std::unique_ptr<gpu::Runner> runner;
    gpu::Decoder decoder;
};

}  // namespace tessera::test
