// The CPU machine in a card's place: it runs the steps of the card's decoder, and looks whether
// they are such as a card takes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/course.h"
#include "runtime/cpu.h"
#include "runtime/gpu/runner.h"
#include "runtime/kv_cache.h"
#include "tiles/noise.h"

namespace tessera::test {

// A sequence's memory as the CPU has it: where a step names a cache, it is the KvCache itself.
class HostMemory : public gpu::SequenceMemory {
  public:
    HostMemory(const CpuMachine& machine, bool drafts)
        : cache_(machine.weights().shape, 1, machine.options().context) {
        for (auto& mark : marks_) mark.resize(cache_.ring_bytes());
        cache = reinterpret_cast<std::byte*>(&cache_);
        if (!drafts) return;
        const DrafterShape& shape = *machine.drafter()->drafter;
        draft_cache_.emplace_back(machine.drafter()->shape, 1,
                                  machine.options().context + shape.block);
        taps_.resize(size_t{taps_ring(shape)} * shape.taps.size() * shape.hidden);
        draft_cache = reinterpret_cast<std::byte*>(&draft_cache_.front());
        taps = &taps_.front().bits;
    }

    void save_rings(uint32_t mark) override { cache_.save_rings(marks_[mark].data()); }
    void load_rings(uint32_t mark) override { cache_.load_rings(marks_[mark].data()); }

  private:
    KvCache cache_;
    std::vector<KvCache> draft_cache_;
    std::vector<bf16> taps_;
    std::array<std::vector<std::byte>, kMarks> marks_;
};

class HostRunner : public gpu::Runner {
  public:
    // Of one rank; it outlives the runner.
    explicit HostRunner(CpuMachine& machine)
        : machine_(machine), logits_(size_t{kStepRowsMax} * machine.weights().shape.vocab, NAN) {}

    std::unique_ptr<gpu::SequenceMemory> take_memory(bool drafts) override {
        return std::make_unique<HostMemory>(machine_, drafts);
    }

    void run(gpu::Pass pass, const gpu::Step& step, uint32_t first) override {
        ++runs[static_cast<uint32_t>(pass)];
        expect_sound(pass, step);
        StepInput input;
        std::vector<const KvCache*> caches;
        std::vector<bf16*> taps;
        for (uint32_t i = 0; i < step.runs; ++i)
            caches.insert(caches.end(), step.run[i].rows, cache_of(step.run[i].cache));
        for (uint16_t* const to : std::span(step.taps).first(step.rows))
            taps.push_back(reinterpret_cast<bf16*>(to));
        input.tokens = std::span(step.tokens).first(step.rows);
        input.positions = std::span(step.positions).first(step.rows);
        input.caches = caches;
        input.logits_from = step.logits_from;
        std::vector<const bf16*> context;
        if (pass == gpu::Pass::target) {
            input.taps = taps;
            machine_.step(input);
        } else {
            for (const uint16_t* const row : std::span(step.context_taps).first(step.context_rows))
                context.push_back(reinterpret_cast<const bf16*>(row));
            input.context = {cache_of(step.run[0].cache), step.context_position, context,
                             step.run[0].seen_from};
            machine_.draft(input);
        }
        for (uint32_t row = step.logits_from; row < step.rows; ++row) {
            const std::span<float> to = memory_of(first + row);
            const auto found = pass == gpu::Pass::target ? machine_.logits_at(row, to)
                                                         : machine_.draft_logits_at(row, to);
            if (found.data() != to.data()) std::ranges::copy(found, to.begin());
            ++copied;
        }
    }

    std::span<const float> logits(uint32_t row) const override {
        const uint32_t vocab = machine_.weights().shape.vocab;
        return std::span(logits_).subspan(size_t{row} * vocab, vocab);
    }
    uint32_t live_experts() const override { return machine_.live_experts(); }

    // ---- rounds, as the card makes them: slowly, by steps; how far ahead of who asks, by turns

    void start_rounds(const gpu::RoundsInput& input) override {
        EXPECT_FALSE(rounds_) << "rounds are under way";
        rounds_ = input;
        standing_ = input.from;
        goes_on_ = true;
    }
    std::optional<Round> next_round() override {
        for (uint32_t more = ++asked_ % 4; goes_on_ && made_.size() <= more;) make_round();
        if (made_.empty()) {
            rounds_.reset();
            return std::nullopt;
        }
        const Round round = made_.front();
        made_.pop_front();
        return round;
    }
    void stop_rounds() override {
        if (!goes_on_) return;
        if (made_.empty() || ++asked_ % 2 > 0) make_round();
        made_.back().last = 1;
        goes_on_ = false;
    }

    // What the masks leave: sorted, and summed up.
    static float lowest_kept(const RoundsAsk& ask, std::span<const float> logits) {
        std::vector<float> sorted(logits.begin(), logits.end());
        std::ranges::sort(sorted, std::greater<>());
        const auto weight = [&](float logit) {
            return std::exp((double{logit} - sorted[0]) / ask.temperature);
        };
        double all = 0, sum = 0;
        for (const float logit : sorted) all += weight(logit);
        float lowest = sorted[0];
        for (const float logit : sorted) {
            if (ask.top_p < 1 && sum >= ask.top_p * all) break;
            if (weight(logit) < ask.min_p) break;
            lowest = logit;
            sum += weight(logit);
        }
        return lowest;
    }

    // The plain rule; with a token's probability, if that is asked for.
    static uint32_t choose(const RoundsAsk& ask, std::span<const float> logits, uint32_t position,
                           float* confidence) {
        const float top = *std::ranges::max_element(logits);
        const NoiseSource noise(ask.seed, position);
        const float lowest = ask.temperature > 0 ? lowest_kept(ask, logits) : -INFINITY;
        uint32_t best = 0;
        float best_score = -INFINITY;
        for (uint32_t token = 0; token < logits.size(); ++token) {
            const float score = ask.temperature > 0 ? (logits[token] - top) / ask.temperature +
                                                          NoiseSource::noise(noise.hash(token))
                                                    : logits[token];
            if (logits[token] >= lowest && score > best_score) best_score = score, best = token;
        }
        if (confidence == nullptr) return best;
        const double temperature = ask.temperature > 0 ? ask.temperature : 1;
        double sum = 0;
        for (const float logit : logits)
            sum += std::exp((double{logit} - logits[best]) / temperature);
        *confidence = static_cast<float>(1 / sum);
        return best;
    }

    uint32_t runs[3] = {};  // by Pass
    uint32_t copied = 0;    // rows of logits

  private:
    static KvCache* cache_of(std::byte* cache) { return reinterpret_cast<KvCache*>(cache); }
    std::span<float> memory_of(uint32_t row) {
        const uint32_t vocab = machine_.weights().shape.vocab;
        return std::span(logits_).subspan(size_t{row} * vocab, vocab);
    }

    void make_round() {
        const gpu::RoundsInput& in = *rounds_;
        const RoundsAsk& ask = in.ask;
        const Standing at = standing_;
        const auto taps_at = [&](uint32_t position) {
            return in.taps + size_t{position % in.taps_ring} * in.tap_columns;
        };
        Round round{};
        round.drafted = drafts_of(ask, at);
        uint32_t rows[kDepthRows] = {at.anchor};
        if (round.drafted > 0) {
            gpu::Step step{};
            step.context_rows = at.length - at.drafted;
            step.context_position = at.drafted;
            for (uint32_t i = 0; i < step.context_rows; ++i)
                step.context_taps[i] = taps_at(at.drafted + i);
            step.rows = in.block;
            step.logits_from = 1;
            step.runs = 1;
            step.run[0] = {0, in.block, at.length, in.seen_from, in.draft_cache};
            step.tokens[0] = at.anchor;
            for (uint32_t i = 0; i < in.block; ++i) step.positions[i] = at.length + i;
            run(gpu::Pass::block, step, 0);
            for (uint32_t i = 0; i < round.drafted; ++i)
                rows[i + 1] = choose(ask, logits(i + 1), at.length + 1 + i, &round.confidence[i]);
        }
        round.verified = depth_of(ask, at, round.confidence, round.drafted);
        gpu::Step step{};
        step.rows = round.verified + 1;
        step.runs = 1;
        step.run[0] = {0, step.rows, at.length, 0, in.cache};
        for (uint32_t i = 0; i < step.rows; ++i) {
            step.tokens[i] = rows[i];
            step.positions[i] = at.length + i;
            if (ask.drafts > 0) step.taps[i] = taps_at(at.length + i);
        }
        run(gpu::Pass::target, step, 0);
        for (uint32_t i = 0; i < step.rows; ++i)
            round.tokens[i] = choose(ask, logits(i), at.length + 1 + i, nullptr);
        round.count = tokens_of(rows, round.tokens, round.verified);
        round.live_experts = live_experts();
        goes_on_ = move_on(ask, round, standing_);
        round.last = !goes_on_;
        made_.push_back(round);
    }

    // What the kernel relies on (runtime/gpu/model.h).
    static void expect_sound(gpu::Pass pass, const gpu::Step& step) {
        EXPECT_LE(step.rows, gpu::kRowsMax);
        EXPECT_LE(step.context_rows, gpu::kRowsMax);
        uint32_t rows = 0;
        for (uint32_t i = 0; i < step.runs; ++i) {
            const gpu::Run& run = step.run[i];
            EXPECT_EQ(run.first, rows);
            EXPECT_GT(run.rows, 0u);
            for (uint32_t row = 0; row < run.rows; ++row)
                EXPECT_EQ(step.positions[rows + row], run.position + row);
            rows += run.rows;
            for (uint32_t other = 0; other < i; ++other)
                EXPECT_NE(step.run[other].cache, run.cache) << "a sequence is one run of a step";
        }
        EXPECT_EQ(rows, step.rows);
        EXPECT_TRUE(pass != gpu::Pass::context || step.rows == 0);
        EXPECT_TRUE(pass != gpu::Pass::target || step.context_rows == 0);
    }

    CpuMachine& machine_;
    std::vector<float> logits_;  // kStepRowsMax, vocab

    std::optional<gpu::RoundsInput> rounds_;  // under way
    Standing standing_{};
    bool goes_on_ = false;
    std::deque<Round> made_;
    uint32_t asked_ = 0;
};

}  // namespace tessera::test
