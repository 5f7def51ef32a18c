#include "decode/controller.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace tessera {
namespace {

// A step counts 2 % less with each one after it: about the last fifty count.
constexpr double kStepKept = 0.98;

// Calibration looks further back: a bin may see a draft only now and then.
constexpr double kObservationKept = 0.99;
constexpr double kPriorObservations = 2;
constexpr double kSuffixKept = 0.85;

// A suffix that was found but not worth verifying regains trust with every step that it is passed
// over, or a stretch that misled would be the last one looked at.
constexpr double kSuffixUnusedKept = 0.998;
constexpr std::array<double, 3> kSuffixPrior = {0.7, 0.8, 0.95};  // matches from 8, 16, 32 tokens

// Drafting is judged after this many steps, and after fewer when it is tried again.
constexpr uint32_t kTrialSteps = 16;
constexpr uint32_t kProbeSteps = 2;
// After so many steps that paid, the next pause is short again.
constexpr uint32_t kProvenSteps = 32;
constexpr uint32_t kWaitMin = 8;
constexpr uint32_t kWaitMax = 512;
// Of what was learnt about confidence, at each probe: the text may have changed since.
constexpr double kProbeKept = 0.7;

// What an earlier session learnt counts for this part, and as so many steps at most.
constexpr double kInheritedKept = 0.5;
constexpr double kInheritedSteps = 8;

// One-row steps for the baseline: soon while it is unmeasured, rarely afterwards, since prices
// change with the context and with the machine's other work.
constexpr uint32_t kBaselineSamples = 3;
constexpr uint32_t kBaselineSoon = 4;
constexpr uint32_t kBaselineRefresh = 128;

// Depths whose cost was never measured are tried now and then: a guessed price that is too high
// would otherwise never be corrected.
constexpr uint32_t kExploredSamples = 3;
constexpr uint32_t kExploreEvery = 8;

// Against a suffix a block is held with this many steps of a prior: two drafts verified, each
// likely accepted. Each step that a suffix is preferred, the block's own record weighs less.
constexpr double kBlockPriorSteps = 4;
constexpr uint32_t kBlockPriorDrafts = 2;
constexpr double kBlockPriorTokens = 1 + 0.8 + 0.8 * 0.8;
constexpr double kBlockUnusedKept = 0.98;

double middle(uint32_t bin) {
    return (kConfidenceEdges[bin] + (bin > 0 ? double{kConfidenceEdges[bin - 1]} : 0)) / 2;
}

uint32_t match_class(uint32_t suffix_length) {
    return suffix_length >= 32 ? 2 : suffix_length >= 16 ? 1 : 0;
}

}  // namespace

// ------------------------------------------------------------------------------ running estimates

void RecentRate::add(uint32_t step_tokens, double step_seconds) {
    fade(kStepKept);
    steps += 1;
    tokens += step_tokens;
    seconds += step_seconds;
}

void RecentRate::fade(double kept) {
    steps *= kept;
    tokens *= kept;
    seconds *= kept;
}

double Acceptance::probability(double prior) const {
    return (accepted + kPriorObservations * prior) / (verified + kPriorObservations);
}

void Acceptance::observe(bool was_accepted) {
    accepted += was_accepted;
    verified += 1;
}

void Acceptance::fade(double kept) {
    accepted *= kept;
    verified *= kept;
}

double Calibration::of_bin(uint32_t bin) const {
    return bins_[bin].probability(middle(bin));
}

double Calibration::probability(float confidence) const {
    return of_bin(confidence_bin(confidence));
}

void Calibration::observe(std::span<const float> confidence, uint32_t verified, uint32_t accepted) {
    CHECK(accepted <= verified && verified <= confidence.size());
    fade(kObservationKept);
    for (uint32_t slot = 0; slot < verified && slot <= accepted; ++slot) {
        bins_[confidence_bin(confidence[slot])].observe(slot < accepted);
    }
}

void Calibration::fade(double kept) {
    for (Acceptance& bin : bins_) bin.fade(kept);
}

// ---------------------------------------------------------------------------- before a step: plan

Controller::Controller(const ControllerOptions& options, const Costs& costs,
                       const Experience* before)
    : options_(options), costs_(costs), next_wait_(kWaitMin) {
    CHECK(options.max_draft >= 1 && options.max_draft < kRowsMax);
    if (before == nullptr) return;
    calibration_ = before->calibration;
    calibration_.fade(kInheritedKept);
    suffix_ = before->suffix;
    for (Acceptance& one : suffix_) one.fade(kInheritedKept);
    if (!before->paused) {
        // Already on trial, with a record to weigh its first steps with.
        block_ = before->block;
        if (block_.steps > kInheritedSteps) block_.fade(kInheritedSteps / block_.steps);
        trial_steps_ = kTrialSteps - kProbeSteps;
        return;
    }
    // Goes on waiting where the other left off: texts may be shorter than the wait, and a probe in
    // each would cost more than it can find.
    paused_ = true;
    wait_ = before->wait;
    next_wait_ = before->next_wait;
}

Controller::Plan Controller::plan(uint32_t suffix_length, uint32_t room) {
    constexpr Plan kNone = {DraftSource::none, 0};
    room = std::min(room, options_.max_draft);
    if (room == 0 || options_.mode == DraftMode::off) return kNone;
    if (options_.mode == DraftMode::fixed) {
        return options_.has_drafter ? Plan{DraftSource::block, room} : kNone;
    }
    if (wants_baseline()) return kNone;

    Plan best = kNone;
    double best_worth = worth(1, costs_.step_seconds(1));
    if (options_.has_drafter && may_draft()) {
        best = {DraftSource::block, room};
        best_worth = block_worth();
    }
    if (suffix_length > 0) {
        planned_class_ = match_class(suffix_length);
        const Choice suffix = best_suffix(planned_class_, room);
        if (suffix.count > 0 && suffix.worth > best_worth) {
            block_.fade(kBlockUnusedKept);
            return {DraftSource::suffix, suffix.count};
        }
        suffix_[planned_class_].fade(kSuffixUnusedKept);
    }
    return best;
}

bool Controller::wants_baseline() {
    const bool measured = costs_.samples(1) >= kBaselineSamples;
    if (++since_single_ < (measured ? kBaselineRefresh : kBaselineSoon)) return false;
    since_single_ = 0;
    ++counters_.baseline_steps;
    return true;
}

// Counts a pause down and ends it with a probe.
bool Controller::may_draft() {
    if (!paused_) return true;
    if (wait_ > 0) {
        --wait_;
        return false;
    }
    paused_ = false;
    probing_ = true;
    trial_steps_ = 0;
    block_ = {};
    calibration_.fade(kProbeKept);
    ++counters_.probes;
    return true;
}

// Tokens per second of the session, lately; never less than without speculation.
double Controller::rate() const {
    return std::max(baseline(), all_.per_second());
}

Controller::Choice Controller::best_suffix(uint32_t match_class, uint32_t room) const {
    const double probability = suffix_[match_class].probability(kSuffixPrior[match_class]);
    Choice best = {0, worth(1, costs_.step_seconds(1))};
    double reached = 1;
    double tokens = 1;
    for (uint32_t count = 1; count <= room; ++count) {
        reached *= probability;
        tokens += reached;
        const double count_worth = worth(tokens, costs_.step_seconds(count + 1));
        if (count_worth > best.worth) best = {count, count_worth};
    }
    return best;
}

// Of a step that drafts a block, by what such steps brought lately.
double Controller::block_worth() const {
    const double prior_seconds =
        costs_.draft_seconds() + costs_.step_seconds(kBlockPriorDrafts + 1);
    const double steps = block_.steps + kBlockPriorSteps;
    return worth((block_.tokens + kBlockPriorSteps * kBlockPriorTokens) / steps,
                 (block_.seconds + kBlockPriorSteps * prior_seconds) / steps);
}

// ------------------------------------------------------------------------ once drafted: how deep

// Drafting is paid by now.
uint32_t Controller::depth(std::span<const float> confidence) {
    CHECK(confidence.size() < kRowsMax);
    const auto size = static_cast<uint32_t>(confidence.size());
    if (options_.mode != DraftMode::automatic) return size;
    if (const uint32_t unmeasured = unmeasured_depth(size); unmeasured > 0) return unmeasured;
    return depth_of(depth_policy(), confidence.data(), size);
}

DepthPolicy Controller::depth_policy() const {
    DepthPolicy policy;
    policy.whole = options_.mode != DraftMode::automatic;
    policy.least = probing_ ? 1 : 0;  // a probe that verifies nothing would learn nothing
    policy.rate = rate();
    for (uint32_t drafts = 0; drafts < kRowsMax; ++drafts)
        policy.seconds[drafts] = costs_.step_seconds(drafts + 1);
    for (uint32_t bin = 0; bin < Calibration::kBins; ++bin)
        policy.stands[bin] = calibration_.of_bin(bin);
    return policy;
}

// A depth to try for the sake of its price, or 0. Not in a probe, whose steps are few.
uint32_t Controller::unmeasured_depth(uint32_t depth_max) {
    if (probing_ || ++since_explored_ < kExploreEvery) return 0;
    uint32_t least = 0;
    uint32_t least_samples = kExploredSamples;
    for (uint32_t count = 1; count <= depth_max; ++count) {
        if (costs_.samples(count + 1) >= least_samples) continue;
        least = count;
        least_samples = costs_.samples(count + 1);
    }
    if (least == 0) return 0;
    since_explored_ = 0;
    ++counters_.explored_steps;
    return least;
}

// -------------------------------------------------------------------------------- after a step

void Controller::observe(const Outcome& outcome, std::span<const float> confidence) {
    CHECK(outcome.accepted <= outcome.verified && outcome.verified < kRowsMax);
    ++counters_.steps;
    if (outcome.verified == 0) since_single_ = 0;
    const uint32_t tokens = outcome.accepted + 1;
    const double seconds = typical(outcome);
    all_.add(tokens, seconds);
    switch (outcome.source) {
        case DraftSource::none:
            CHECK(outcome.verified == 0);
            break;
        case DraftSource::suffix: {
            ++counters_.suffix_steps;
            Acceptance& suffix = suffix_[planned_class_];
            suffix.fade(kSuffixKept);
            for (uint32_t slot = 0; slot < outcome.verified && slot <= outcome.accepted; ++slot) {
                suffix.observe(slot < outcome.accepted);
            }
            break;
        }
        case DraftSource::block:
            ++counters_.block_steps;
            calibration_.observe(confidence, outcome.verified, outcome.accepted);
            observe_block(tokens, seconds);
            break;
        case DraftSource::forced:
            CHECK(false);
    }
}

// What such a step takes by the prices, which are medians: a mean of the seconds of drafted steps,
// held against a median of one-row steps, would stop drafting on any machine that others use too.
double Controller::typical(const Outcome& outcome) const {
    const uint32_t rows = outcome.verified + 1;
    if (costs_.samples(rows) == 0 && outcome.seconds > 0) return outcome.seconds;
    return costs_.step_seconds(rows) +
           (outcome.source == DraftSource::block ? costs_.draft_seconds() : 0);
}

void Controller::observe_block(uint32_t tokens, double seconds) {
    block_.add(tokens, seconds);
    ++trial_steps_;
    if (options_.mode != DraftMode::automatic || costs_.samples(1) == 0) return;
    const bool pays = block_.per_second() >= baseline();
    if (probing_) {
        if (trial_steps_ < kProbeSteps) return;
        probing_ = false;
        if (!pays) pause();
    } else if (trial_steps_ >= kTrialSteps && !pays) {
        pause();
    } else if (trial_steps_ >= kProvenSteps && pays) {
        next_wait_ = kWaitMin;
    }
}

void Controller::pause() {
    paused_ = true;
    wait_ = next_wait_;
    next_wait_ = std::min(2 * next_wait_, kWaitMax);
    ++counters_.pauses;
}

}  // namespace tessera
