// How many rows a step verifies, and who drafts them: the rule that speculation never makes a text
// slower. One per session. Sees lengths, confidences, counts and seconds; knows neither tokens nor
// a clock. The same calls give the same answers: counters decide when something is tried again.
//
// A step is worth its expected tokens minus rate * its seconds, where rate is what the session
// achieves anyway (tokens per second): of all choices the one with the highest worth maximises
// tokens over time in the long run.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "decode/costs.h"
#include "tiles/depth.h"

namespace tessera {

enum class DraftMode : uint8_t {
    off,        // no speculation
    automatic,  // as deep as pays, not at all where nothing does
    fixed,      // always the drafter's whole block; for measurements
};

// `forced`: a grammar knows what follows; nobody's estimate is asked for or learns from it.
enum class DraftSource : uint8_t { none, block, suffix, forced };

struct ControllerOptions {
    DraftMode mode = DraftMode::automatic;
    uint32_t max_draft = kRowsMax - 1;  // drafts verified in a step, 1 to kRowsMax - 1
    bool has_drafter = true;
};

// Sums of the past, each step weighing a little less than the one after it.
struct RecentRate {
    double steps = 0;
    double tokens = 0;
    double seconds = 0;

    void add(uint32_t step_tokens, double step_seconds);
    void fade(double kept);  // 0 to 1
    double per_second() const { return seconds > 0 ? tokens / seconds : 0; }
};

// How often drafts were accepted, recently; `prior` counts as a few observations that never fade.
struct Acceptance {
    double accepted = 0;
    double verified = 0;

    double probability(double prior) const;
    void observe(bool was_accepted);
    void fade(double kept);  // 0 to 1: the part of past observations that still counts
};

// What a drafter's confidence is worth: the share of drafts of about this confidence that were
// accepted, given that all before them were. Starts by taking the drafter's word.
class Calibration {
  public:
    double probability(float confidence) const;
    double of_bin(uint32_t bin) const;  // confidence_bin's
    // The first `accepted` of `verified` drafts were accepted and the next was not; those beyond
    // were never reached and say nothing.
    void observe(std::span<const float> confidence, uint32_t verified, uint32_t accepted);
    void fade(double kept);

    static constexpr uint32_t kBins = kConfidenceEdges.size();

  private:
    std::array<Acceptance, kBins> bins_;
};

inline constexpr uint32_t kSuffixClasses = 3;

// What a session learnt that the next one of its kind may begin with.
struct Experience {
    Calibration calibration;
    std::array<Acceptance, kSuffixClasses> suffix;
    RecentRate block;
    bool paused = false;
    uint32_t wait = 0;  // plans until the next probe
    uint32_t next_wait = 0;
};

class Controller {
  public:
    // Keeps a reference to `costs`; what guards them is held during plan(), depth() and observe().
    // `before`: of an earlier session of the same model and temperature, or null. It counts for
    // less than what this text shows, but a short text has no time to learn that nothing pays.
    Controller(const ControllerOptions& options, const Costs& costs,
               const Experience* before = nullptr);

    // `source` drafts this step; `count` is how many tokens to draft (block) or to verify of those
    // that followed the match (suffix).
    struct Plan {
        DraftSource source;
        uint32_t count;

        friend bool operator==(const Plan&, const Plan&) = default;
    };

    // Drafts that a step may verify, whoever makes them.
    uint32_t drafts_max() const { return options_.mode == DraftMode::off ? 0 : options_.max_draft; }

    // Before anything is drafted. `suffix_length`: tokens of the text's own end found earlier, 0 if
    // none; `room`: drafts that still fit the context and the wanted length. Each plan is followed
    // by one observe().
    Plan plan(uint32_t suffix_length, uint32_t room);

    // How many of a block's drafts to verify, 0 to confidence.size(). `confidence`: the probability
    // that the drafter gave to each of its tokens, after the sampling's temperature.
    uint32_t depth(std::span<const float> confidence);
    // The same for who decides elsewhere, as of now; but for depths that are tried for their price.
    DepthPolicy depth_policy() const;
    // A depth to try for its price in the next block of `count` drafts, or 0.
    uint32_t depth_to_explore(uint32_t count) {
        return options_.mode == DraftMode::automatic ? unmeasured_depth(count) : 0;
    }

    struct Outcome {
        DraftSource source;
        uint32_t verified;  // drafts
        uint32_t accepted;  // of them, from the first on
        double seconds;     // the whole step, drafting included
    };

    // What came of the step. `confidence`: of the block, empty for other sources. The step's passes
    // are in `costs` by now.
    void observe(const Outcome& outcome, std::span<const float> confidence);

    // While paused no block is drafted, for at least plans_until_probe() further plans: what only
    // feeds the drafter may rest until then.
    bool paused() const { return paused_; }
    uint32_t plans_until_probe() const { return paused_ ? wait_ : 0; }

    Experience experience() const {
        return {calibration_, suffix_, block_, paused_, wait_, next_wait_};
    }

    struct Counters {
        uint64_t steps = 0;           // observed
        uint64_t block_steps = 0;     // of them, with a drafted block
        uint64_t suffix_steps = 0;    // of them, with drafts of the text's own
        uint64_t baseline_steps = 0;  // planned without drafts to learn what one row costs
        uint64_t explored_steps = 0;  // of a depth chosen to learn its cost
        uint64_t pauses = 0;          // drafting stopped: it was slower than none
        uint64_t probes = 0;          // drafting tried again

        friend bool operator==(const Counters&, const Counters&) = default;
    };
    const Counters& counters() const { return counters_; }

  private:
    struct Choice {
        uint32_t count;
        double worth;  // tokens
    };

    double baseline() const { return 1 / costs_.step_seconds(1); }
    double rate() const;
    double worth(double tokens, double seconds) const { return tokens - rate() * seconds; }
    bool wants_baseline();
    bool may_draft();
    Choice best_suffix(uint32_t match_class, uint32_t room) const;
    double block_worth() const;
    uint32_t unmeasured_depth(uint32_t depth_max);
    double typical(const Outcome& outcome) const;
    void observe_block(uint32_t tokens, double seconds);
    void pause();

    ControllerOptions options_;
    const Costs& costs_;
    Counters counters_;

    RecentRate all_;    // of every step
    RecentRate block_;  // of steps with a drafted block, since the current trial began
    Calibration calibration_;
    std::array<Acceptance, kSuffixClasses> suffix_;
    uint32_t planned_class_ = 0;  // of the match last planned with
    uint32_t since_single_ = 0;   // plans since a one-row step
    uint32_t since_explored_ = 0;

    // A trial is a run of drafted steps that ends in a pause; the first few after a pause are its
    // probe.
    bool paused_ = false;
    bool probing_ = false;
    uint32_t trial_steps_ = 0;
    uint32_t wait_ = 0;       // plans until the next probe
    uint32_t next_wait_ = 0;  // of the next pause
};

}  // namespace tessera
