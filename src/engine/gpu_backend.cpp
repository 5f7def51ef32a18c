#include <algorithm>
#include <array>
#include <optional>

#include "base/cards.h"
#include "base/check.h"
#include "base/error.h"
#include "model/traffic.h"
#include "runtime/gpu/decoder.h"

#include "engine/gpu.h"

namespace tessera {
namespace {

class GpuBackend : public Backend {
  public:
    GpuBackend(std::unique_ptr<gpu::Runner> runner, const Shape& shape, const DrafterShape* drafter,
               uint32_t context)
        : drafter_(drafter != nullptr ? std::optional(*drafter) : std::nullopt),
          step_bytes_(shape, 1),
          expert_layers_(static_cast<uint32_t>(std::ranges::count(shape.is_moe, true))),
          runner_(std::move(runner)),
          decoder_(*runner_, context, drafter_ ? &*drafter_ : nullptr) {
        if (drafter_)
            draft_bytes_ = drafter_bytes(*drafter_) + step_traffic(shape, {.rows = 1}).head;
    }

    std::unique_ptr<Text> begin(bool drafts) override {
        return std::make_unique<OnCard>(decoder_.begin(drafts && has_drafter()));
    }

    void read(std::span<const Reading> readings, uint32_t logits_from) override {
        std::array<gpu::Decoder::Reading, kStepRowsMax> all;
        CHECK(readings.size() <= all.size());
        std::ranges::transform(readings, all.begin(), [](const Reading& r) {
            return gpu::Decoder::Reading{&static_cast<OnCard*>(r.text)->sequence, r.tokens,
                                         r.keeps_taps};
        });
        decoder_.read(std::span(all).first(readings.size()), logits_from);
        const double steps = std::max(1u, decoder_.steps());
        experts_ = expert_layers_ > 0 ? decoder_.live_experts() / steps / expert_layers_ : 0;
        // Weights once a step, and every text's own cache, as if it had been in one of them.
        bytes_ = steps * step_bytes_(0, experts_);
        for (const Reading& r : readings)
            bytes_ += step_bytes_(r.text->length(), 0) - step_bytes_(0, 0);
    }

    std::span<const float> logits(uint32_t row) override { return decoder_.logits(row); }

    bool has_drafter() const override { return drafter_.has_value(); }
    uint32_t draft_window() const override {
        if (!has_drafter()) return 0;
        const uint32_t window = drafter_->attention.window;
        return window > 0 ? window : UINT32_MAX;
    }
    uint32_t draft_block() const override { return has_drafter() ? drafter_->block : 0; }
    void catch_up(Text& text) override { decoder_.catch_up(static_cast<OnCard&>(text).sequence); }
    void draft(Text& text, Token anchor) override {
        decoder_.draft(static_cast<OnCard&>(text).sequence, anchor);
    }
    std::span<const float> draft_logits(uint32_t slot) override {
        return decoder_.draft_logits(slot);
    }

    bool makes_rounds() const override { return true; }
    Round round(Text& text, Token anchor, const RoundsAsk& ask) override {
        const Round round = decoder_.round(static_cast<OnCard&>(text).sequence, anchor, ask);
        experts_ =
            expert_layers_ > 0 ? static_cast<double>(round.live_experts) / expert_layers_ : 0;
        bytes_ = step_bytes_(text.length(), experts_);
        return round;
    }
    bool runs_ahead(const Text& text) const override {
        return decoder_.runs_ahead(static_cast<const OnCard&>(text).sequence);
    }
    void stop_rounds() override { decoder_.stop_rounds(); }

    double bytes() const override { return bytes_; }
    double experts() const override { return experts_; }
    double draft_bytes() const override { return draft_bytes_; }

  private:
    struct OnCard : Text {
        explicit OnCard(gpu::Sequence taken) : sequence(std::move(taken)) {}

        uint32_t length() const override { return sequence.length(); }
        bool drafts() const override { return sequence.drafts(); }
        void mark() override { sequence.mark(); }
        uint32_t rewind(uint32_t length) override { return sequence.rewind(length); }

        gpu::Sequence sequence;
    };

    std::optional<DrafterShape> drafter_;
    StepBytes step_bytes_;
    uint32_t expert_layers_;
    std::unique_ptr<gpu::Runner> runner_;
    gpu::Decoder decoder_;
    double bytes_ = 0, experts_ = 0, draft_bytes_ = 0;
};

// What the system tells of cards and their driver, without CUDA.
std::string what_is_here() {
    const CardsSeen seen = all_cards();
    const std::string driver =
        seen.driver.empty() ? "no NVIDIA driver is loaded" : "driver " + seen.driver;
    if (seen.cards.empty()) return "no NVIDIA card is on the bus, " + driver;
    const CardSeen& first = seen.cards.front();
    return fmt::format(
        "{} card{}, the first is {}, {}", seen.cards.size(), seen.cards.size() > 1 ? "s" : "",
        first.name.empty() ? "an NVIDIA card at " + first.address : first.name, driver);
}

}  // namespace

gpu::Card wanted_card() {
    if (kGpuCode == nullptr) {
        fail(
            "--device gpu: this build has no GPU code, since there was no nvcc where it was made: "
            "build it where CUDA 13 is installed, or decode without --device gpu");
    }
    if (const std::string why = kGpuCode->no_card(); !why.empty()) {
        fail(
            "--device gpu: no card to decode on ({}; CUDA says: {}): it takes a card of compute "
            "capability 9.0 or 10.0 and a driver for CUDA 13; or decode without --device gpu",
            what_is_here(), why);
    }
    return kGpuCode->find_card();
}

std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<gpu::Runner> runner, const Shape& shape,
                                          const DrafterShape* drafter, uint32_t context) {
    return std::make_unique<GpuBackend>(std::move(runner), shape, drafter, context);
}

std::unique_ptr<Backend> make_gpu_backend(std::unique_ptr<CpuWeights> weights, uint32_t context) {
    const PackedWeights* const drafter = weights->drafter.get();
    return make_gpu_backend(kGpuCode->make_runner(weights->target, drafter, context),
                            weights->target.shape, drafter ? &*drafter->drafter : nullptr, context);
}

}  // namespace tessera
