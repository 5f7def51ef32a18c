// One text being written: what its model has read, what is drafted of it, and what the model agreed
// to. Here lives the rule that speculation changes no token: drafter and model choose with the same
// noise, a draft stands if the model chose it too, and what follows the last one that stands is the
// model's own choice. Knows no strings, and of models only logits.
//
// A step of the text, by whoever owns the model:
//
//     const Controller::Plan plan = stream.plan(rows_max);
//     if (plan.source == DraftSource::block) { … draft … stream.draft(logits of the slots); }
//     … the model reads stream.rows() …
//     stream.accept(logits of the rows);
//     stream.settle(seconds);
//     while (stream.ready() > 0) … stream.take() …
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "decode/controller.h"
#include "decode/guide.h"
#include "decode/sample.h"
#include "decode/suffix.h"
#include "tessera/likelihood.h"
#include "tessera/stats.h"

namespace tessera {

// The probability [0, 1] of a token at a temperature (0: at 1); of one that is not the most likely,
// more than it has, as if those more likely were as likely as it.
float probability(std::span<const float> logits, uint32_t token, float temperature);

// What is known of `token`, with the `top` most likely ones.
Likelihood likelihood_of(std::span<const float> logits, uint32_t token, uint32_t top);

class Stream {
  public:
    // Logits [vocab] of a row of the model, or of a slot of the drafter's.
    using Logits = std::function<std::span<const float>(uint32_t row)>;

    // Of at most `context` tokens. Allocates here and never again. `costs` outlives the stream.
    // `before`: see Controller.
    Stream(const Sampling& sampling, const ControllerOptions& options, const Costs& costs,
           uint32_t context, uint32_t vocab, const Experience* before = nullptr);

    // ---- the text

    // What was appended and what was taken.
    std::span<const uint32_t> text() const { return std::span(tokens_).first(taken_); }
    uint32_t room() const { return context_ - taken_; }

    // The text, and what is chosen of it and was not taken yet.
    std::span<const uint32_t> tokens() const { return tokens_; }

    // Chosen, and not taken yet.
    uint32_t ready() const { return static_cast<uint32_t>(tokens_.size()) - taken_; }
    uint32_t take();

    // From here on likelihood() of the token that was taken last is known; until the next step.
    void watch_likelihood(uint32_t top);
    const Likelihood& likelihood() const;

    // From here on only what the guide allows is chosen; until the text is appended to or cut. It
    // outlives that.
    void follow(Guide* guide);

    // Both drop what is ready: nobody has seen it.
    void append(std::span<const uint32_t> tokens);
    void truncate(uint32_t length);

    // ---- a step: nothing is ready, and the text is not empty

    // The model has read all of the text, and these are its logits: the next token.
    void choose(std::span<const float> logits);

    // What to draft with, where at most `rows_max` rows can be read. The model has read all but the
    // newest token.
    Controller::Plan plan(uint32_t rows_max);

    // The block was drafted: logits of slots 1 to the plan's count. Chooses as the model will, and
    // how many of the choices are worth verifying.
    void draft(const Logits& slots);

    // What the model reads: the newest token, and the drafts to verify.
    std::span<const uint32_t> rows() const { return std::span(rows_).first(row_count_); }

    // Keeps what the model agrees to and its next choice: these are ready then. Returns how many
    // drafts stood.
    uint32_t accept(const Logits& rows);

    // ---- or a step that the model's owner makes by itself, choosing as this stream would

    // Whether it can: nothing but top-p and min-p masks the logits, and nobody wants to see them.
    bool plain() const {
        return sampler_.sorts_nothing() && guide_ == nullptr && counts_.empty() && !watching_;
    }
    // Whether the text's own end stood in it before: then plan() may know better than a block.
    bool repeats_itself();
    // Instead of draft() and accept(), with or without a plan(): `tokens` are the drafts that stood
    // and the model's choice behind them; `confidence` the drafter's in its block, empty where none
    // was drafted, of which `verified` were read.
    void keep(std::span<const uint32_t> tokens, uint32_t verified,
              std::span<const float> confidence);

    // What the step took. `seconds`: of its passes, from which the controller learns; `beside`:
    // what was caught up before them.
    void settle(double seconds, double beside = 0);

    const Controller& controller() const { return controller_; }
    uint32_t depth_to_explore(uint32_t count) { return controller_.depth_to_explore(count); }
    const Stats& stats() const { return stats_; }
    Stats& stats() { return stats_; }

  private:
    void push(uint32_t token);
    void choose_and_push(std::span<const float> logits);
    std::span<const float> penalized(std::span<const float> logits);
    std::span<const float> guided(std::span<const float> logits);
    uint32_t allowed_drafts();

    Sampler sampler_;
    float temperature_;
    Controller controller_;
    SuffixMatcher suffix_;
    uint32_t context_;
    std::vector<uint32_t> tokens_;  // context: the text, and what is ready
    uint32_t taken_ = 0;

    // Penalties: how often each token stands in the answer, and which do. Empty without them.
    float presence_penalty_, frequency_penalty_;
    std::vector<uint32_t> counts_, counted_;
    std::vector<float> penalized_;

    Guide* guide_ = nullptr;
    std::vector<float> guided_;  // logits, without those that are not allowed

    bool watching_ = false;
    uint32_t top_ = 0;
    std::array<Likelihood, kRowsMax> likelihoods_{};  // of the last tokens, by place % kRowsMax

    Controller::Plan plan_{};
    std::array<uint32_t, kRowsMax> rows_{};
    uint32_t row_count_ = 0;
    uint32_t accepted_ = 0;
    std::array<float, kRowsMax - 1> confidence_{};
    uint32_t confidences_ = 0;
    Stats stats_;
};

}  // namespace tessera
