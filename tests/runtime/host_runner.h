// The CPU machine in a card's place: it runs the steps of the card's decoder, and looks whether
// they are such as a card takes.
#pragma once

#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/course.h"
#include "runtime/cpu.h"
#include "runtime/gpu/runner.h"
#include "runtime/kv_cache.h"

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

    uint32_t runs[3] = {};  // by Pass
    uint32_t copied = 0;    // rows of logits

  private:
    static KvCache* cache_of(std::byte* cache) { return reinterpret_cast<KvCache*>(cache); }
    std::span<float> memory_of(uint32_t row) {
        const uint32_t vocab = machine_.weights().shape.vocab;
        return std::span(logits_).subspan(size_t{row} * vocab, vocab);
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
};

}  // namespace tessera::test
