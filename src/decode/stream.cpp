#include "decode/stream.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "tiles/kernels.h"

namespace tessera {

float probability(std::span<const float> logits, uint32_t token, float temperature) {
    const float scale = 1.0f / (temperature > 0 ? temperature : 1.0f);
    const float sum = best_kernels().exp_sum(logits.data(), static_cast<uint32_t>(logits.size()),
                                             scale, logits[token]);
    return 1.0f / std::max(sum, 1.0f);
}

Likelihood likelihood_of(std::span<const float> logits, uint32_t token, uint32_t top) {
    CHECK(token < logits.size() && top <= Likelihood::kTopMax);
    const float highest = *std::ranges::max_element(logits);
    const float sum =
        best_kernels().exp_sum(logits.data(), static_cast<uint32_t>(logits.size()), 1.0f, highest);
    const float all = highest + std::log(sum);
    Likelihood likelihood;
    likelihood.log_probability = logits[token] - all;
    for (uint32_t id = 0; id < logits.size() && top > 0; ++id) {
        const float value = logits[id] - all;
        uint32_t& count = likelihood.top_count;
        if (count == top && !(value > likelihood.top[count - 1].log_probability)) continue;
        uint32_t at = count < top ? count++ : count - 1;
        for (; at > 0 && value > likelihood.top[at - 1].log_probability; --at)
            likelihood.top[at] = likelihood.top[at - 1];
        likelihood.top[at] = {id, value};
    }
    return likelihood;
}

Stream::Stream(const Sampling& sampling, const ControllerOptions& options, const Costs& costs,
               uint32_t context, uint32_t vocab, const Experience* before)
    : sampler_(sampling, vocab),
      temperature_(sampling.temperature),
      controller_(options, costs, before),
      suffix_(context),
      context_(context),
      presence_penalty_(sampling.presence_penalty),
      frequency_penalty_(sampling.frequency_penalty) {
    tokens_.reserve(context);
    if (presence_penalty_ == 0 && frequency_penalty_ == 0) return;
    counts_.resize(vocab);
    penalized_.resize(vocab);
    counted_.reserve(vocab);
}

// ------------------------------------------------------------------ the text

uint32_t Stream::take() {
    CHECK(ready() > 0);
    const uint32_t token = tokens_[taken_++];
    ++stats_.tokens;
    for (uint32_t shift = 0; shift < 32; shift += 8)
        stats_.hash = (stats_.hash ^ (token >> shift & 255)) * 0x100000001b3u;
    return token;
}

void Stream::push(uint32_t token) {
    CHECK(tokens_.size() < context_);
    tokens_.push_back(token);
    suffix_.append(std::span(&token, 1));
}

void Stream::append(std::span<const uint32_t> tokens) {
    truncate(taken_);
    // Penalties are for what an answer repeats of itself.
    for (const uint32_t token : counted_) counts_[token] = 0;
    counted_.clear();
    for (const uint32_t token : tokens) push(token);
    taken_ = static_cast<uint32_t>(tokens_.size());
}

void Stream::truncate(uint32_t length) {
    CHECK(length <= taken_);
    guide_ = nullptr;
    tokens_.resize(length);
    suffix_.truncate(length);
    taken_ = length;
}

// ------------------------------------------------------------------ a step

void Stream::choose(std::span<const float> logits) {
    CHECK(ready() == 0);
    choose_and_push(logits);
}

void Stream::choose_and_push(std::span<const float> logits) {
    const uint32_t token = sampler_.choose(guided(penalized(logits)), tokens_.size());
    if (guide_ != nullptr) guide_->push(token);
    if (watching_) likelihoods_[tokens_.size() % kRowsMax] = likelihood_of(logits, token, top_);
    if (!counts_.empty() && counts_[token]++ == 0) counted_.push_back(token);
    push(token);
}

std::span<const float> Stream::penalized(std::span<const float> logits) {
    if (counted_.empty()) return logits;
    std::ranges::copy(logits, penalized_.begin());
    for (const uint32_t token : counted_)
        penalized_[token] -=
            presence_penalty_ + frequency_penalty_ * static_cast<float>(counts_[token]);
    return penalized_;
}

void Stream::follow(Guide* guide) {
    CHECK(ready() == 0);
    guide_ = guide;
    guided_.resize(sampler_.vocab());
}

// Logits of what is not allowed are -infinity: no noise and no mask of the sampler brings them
// back.
std::span<const float> Stream::guided(std::span<const float> logits) {
    if (guide_ == nullptr) return logits;
    const std::span<const uint64_t> allowed = guide_->allowed();
    if (allowed.empty()) return logits;
    constexpr size_t kBits = 64;
    CHECK(allowed.size() * kBits >= logits.size());
    std::ranges::fill(guided_, -std::numeric_limits<float>::infinity());
    for (size_t word = 0; word * kBits < logits.size(); ++word) {
        const size_t begin = word * kBits, count = std::min(kBits, logits.size() - begin);
        if (allowed[word] == ~uint64_t{0}) {
            std::ranges::copy(logits.subspan(begin, count), guided_.begin() + begin);
            continue;
        }
        for (uint64_t bits = allowed[word]; bits != 0; bits &= bits - 1) {
            const size_t token = begin + static_cast<size_t>(std::countr_zero(bits));
            if (token < logits.size()) guided_[token] = logits[token];
        }
    }
    return guided_;
}

// How many of the rows' drafts are allowed, one after the other.
uint32_t Stream::allowed_drafts() {
    uint32_t count = 0;
    for (; count + 1 < row_count_; ++count) {
        const uint32_t token = rows_[count + 1];
        const std::span<const uint64_t> allowed = guide_->allowed();
        if (!allowed.empty() && (allowed[token / 64] >> token % 64 & 1) == 0) break;
        guide_->push(token);
    }
    guide_->pop(count);
    return count;
}

void Stream::watch_likelihood(uint32_t top) {
    watching_ = true;
    top_ = top;
}

const Likelihood& Stream::likelihood() const {
    CHECK(watching_ && taken_ > 0);
    return likelihoods_[(taken_ - 1) % kRowsMax];
}

Controller::Plan Stream::plan(uint32_t rows_max) {
    CHECK(ready() == 0 && !tokens_.empty() && room() > 0 && rows_max > 0);
    // Every draft that stands is a token, and so is the model's choice behind the last.
    const uint32_t drafts_max = std::min({rows_max - 1, room() - 1, kRowsMax - 1});
    rows_[0] = tokens_.back();
    row_count_ = 1;
    confidences_ = 0;
    if (guide_ != nullptr) {
        const uint32_t most = std::min(drafts_max, controller_.drafts_max());
        const uint32_t forced = guide_->forced(std::span(rows_).subspan(1, most));
        row_count_ += forced;
        if (forced > 0) return plan_ = {DraftSource::forced, forced};
    }
    const SuffixMatcher::Match match = suffix_.find(std::span(rows_).subspan(1, drafts_max));
    plan_ = controller_.plan(match.length, drafts_max);
    if (plan_.source == DraftSource::suffix) row_count_ += plan_.count;
    if (guide_ != nullptr) row_count_ = 1 + allowed_drafts();
    return plan_;
}

void Stream::draft(const Logits& slots) {
    CHECK(plan_.source == DraftSource::block);
    for (uint32_t i = 0; i < plan_.count; ++i) {
        // Without the penalties of the block's own drafts: they cost agreement, never a token.
        const std::span<const float> logits = guided(penalized(slots(i + 1)));
        rows_[i + 1] = sampler_.choose(logits, tokens_.size() + i);
        confidence_[i] = probability(logits, rows_[i + 1], temperature_);
        if (guide_ != nullptr) guide_->push(rows_[i + 1]);
    }
    if (guide_ != nullptr) guide_->pop(plan_.count);
    confidences_ = plan_.count;
    row_count_ = 1 + controller_.depth(std::span(confidence_).first(confidences_));
}

uint32_t Stream::accept(const Logits& rows) {
    accepted_ = 0;
    for (uint32_t row = 0;; ++row) {
        choose_and_push(rows(row));
        const uint32_t token = tokens_.back();
        if (row + 1 == row_count_ || rows_[row + 1] != token) break;
        ++accepted_;
    }
    return accepted_;
}

bool Stream::repeats_itself() {
    std::array<uint32_t, kRowsMax - 1> copied;
    return controller_.drafts_max() > 0 && suffix_.find(copied).length > 0;
}

void Stream::keep(std::span<const uint32_t> tokens, uint32_t verified,
                  std::span<const float> confidence) {
    CHECK(ready() == 0 && !tokens.empty() && tokens.size() <= verified + 1 &&
          verified <= confidence.size() && confidence.size() < kRowsMax && plain());
    for (const uint32_t token : tokens) push(token);
    const auto drafts = static_cast<uint32_t>(confidence.size());
    plan_ = {drafts > 0 ? DraftSource::block : DraftSource::none, drafts};
    row_count_ = verified + 1;
    accepted_ = static_cast<uint32_t>(tokens.size()) - 1;
    confidences_ = drafts;
    std::ranges::copy(confidence, confidence_.begin());
}

void Stream::settle(double seconds, double beside) {
    const uint32_t verified = row_count_ - 1;
    ++stats_.steps;
    stats_.seconds += seconds + beside;
    stats_.drafted += confidences_ > 0 ? 1 : 0;
    stats_.copied += plan_.source == DraftSource::suffix ? 1 : 0;
    stats_.forced += plan_.source == DraftSource::forced ? 1 : 0;
    for (uint32_t i = 0; i < verified; ++i) ++stats_.verified[i];
    for (uint32_t i = 0; i < accepted_; ++i) ++stats_.accepted[i];
    if (plan_.source == DraftSource::forced) return;
    controller_.observe({plan_.source, verified, accepted_, seconds},
                        std::span(confidence_).first(confidences_));
}

}  // namespace tessera
