#include <algorithm>
#include <array>

#include "base/check.h"
#include "model/traffic.h"

#include "engine/backend.h"

namespace tessera {
namespace {

class CpuBackend : public Backend {
  public:
    CpuBackend(std::unique_ptr<CpuWeights> weights, const CpuOptions& options)
        : weights_(std::move(weights)),
          step_bytes_(shape(), 1),
          expert_layers_(static_cast<uint32_t>(std::ranges::count(shape().is_moe, true))),
          machine_(weights_->target, options, weights_->drafter.get()),
          decoder_(machine_) {
        if (has_drafter()) {
            const Traffic one = step_traffic(shape(), {.rows = 1});
            draft_bytes_ = drafter_bytes(*weights_->drafter->drafter) + one.head;
        }
    }

    std::unique_ptr<Text> begin(bool drafts) override {
        return std::make_unique<Fast>(machine_, drafts && has_drafter());
    }

    void read(std::span<const Reading> readings, uint32_t logits_from) override {
        std::array<Decoder::Reading, kStepRowsMax> all;
        CHECK(readings.size() <= all.size());
        std::ranges::transform(readings, all.begin(), [](const Reading& r) {
            return Decoder::Reading{&static_cast<Fast*>(r.text)->sequence, r.tokens, r.keeps_taps};
        });
        decoder_.read(std::span(all).first(readings.size()), logits_from);
        experts_ = expert_layers_ > 0 ? 1.0 * machine_.live_experts() / expert_layers_ : 0;
        // Weights once for all, every text's own cache.
        bytes_ = step_bytes_(0, experts_);
        for (const Reading& r : readings)
            bytes_ += step_bytes_(r.text->length(), 0) - step_bytes_(0, 0);
    }

    std::span<const float> logits(uint32_t row) override { return decoder_.logits(row); }

    bool has_drafter() const override { return weights_->drafter != nullptr; }
    uint32_t draft_window() const override {
        if (!has_drafter()) return 0;
        const uint32_t window = weights_->drafter->drafter->attention.window;
        return window > 0 ? window : UINT32_MAX;
    }
    uint32_t draft_block() const override {
        return has_drafter() ? weights_->drafter->drafter->block : 0;
    }
    void catch_up(Text& text) override { decoder_.catch_up(static_cast<Fast&>(text).sequence); }
    void draft(Text& text, Token anchor) override {
        decoder_.draft(static_cast<Fast&>(text).sequence, anchor);
    }
    std::span<const float> draft_logits(uint32_t slot) override {
        return decoder_.draft_logits(slot);
    }

    double bytes() const override { return bytes_; }
    double experts() const override { return experts_; }
    double draft_bytes() const override { return draft_bytes_; }
    double read_bandwidth() override {
        constexpr double kSeconds = 0.1;
        return machine_.read_bandwidth(kSeconds);
    }

  private:
    struct Fast : Text {
        Fast(const CpuMachine& machine, bool drafts) : sequence(machine, drafts) {}

        uint32_t length() const override { return sequence.length(); }
        bool drafts() const override { return sequence.drafts(); }
        void mark() override { sequence.mark(); }
        uint32_t rewind(uint32_t length) override { return sequence.rewind(length); }

        Sequence sequence;
    };

    const Shape& shape() const { return weights_->target.shape; }

    std::unique_ptr<CpuWeights> weights_;
    StepBytes step_bytes_;
    uint32_t expert_layers_;
    CpuMachine machine_;
    Decoder decoder_;
    double bytes_ = 0, experts_ = 0, draft_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(std::unique_ptr<CpuWeights> weights,
                                          const CpuOptions& options) {
    return std::make_unique<CpuBackend>(std::move(weights), options);
}

}  // namespace tessera
