#include "server/metrics.h"

#include <mutex>
#include <utility>
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "base/check.h"

namespace tessera {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;
using prometheus::Registry;

constexpr size_t kModeCount = kModes.size();
constexpr size_t kDraftMax = 7;  // include/tessera/speculation.h
constexpr std::array kEndeds = {Ended::kStop,      Ended::kLength, Ended::kToolCalls,
                                Ended::kCancelled, Ended::kCut,    Ended::kError};
// Statuses of their own; the rest counts as "other", so that no client can make new series.
constexpr std::array kStatuses = {400u, 401u, 403u, 404u, 405u, 408u, 413u,
                                  415u, 429u, 431u, 500u, 501u, 503u};

constexpr std::array kLatencyBuckets = {0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008,
                                        0.012,   0.016,  0.025, 0.05,  0.1,   0.25,  0.5,   1.0,
                                        2.5,     5.0,    10.0,  30.0,  60.0,  120.0, 300.0};
constexpr std::array kRowBuckets = {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0};

template <size_t n>
Histogram::BucketBoundaries boundaries(const std::array<double, n>& buckets) {
    return {buckets.begin(), buckets.end()};
}

}  // namespace

std::span<const double> latency_buckets() {
    return kLatencyBuckets;
}

// Every series is made at the start: a counter that appears with its first event loses that event
// in a rate, and making one takes a lock and memory.
struct Metrics::Families {
    template <typename T>
    using ByMode = std::array<T*, kModeCount>;

    Registry registry;
    std::array<std::string, kModeCount> ids;

    ByMode<Counter> started, prompt_tokens, cached_tokens, generation_tokens;
    ByMode<Counter> cache_queries, cache_hits;
    std::array<std::array<Counter*, kEndeds.size()>, kModeCount> ended;
    ByMode<Histogram> first_token, between, queue, prefill, decode, whole;
    std::array<Counter*, kStatuses.size()> refused;
    Counter* refused_other;
    Counter *drafts, *draft_tokens, *accepted_tokens;
    std::array<Counter*, kDraftMax> accepted_at;
    Histogram *step_seconds, *step_rows;

    std::mutex watching;
    // The gauges that were asked for, and where their numbers come from.
    std::vector<std::pair<std::function<double()>, Gauge*>> watched;
    // A counter elsewhere, of which the part that was not added yet is added at text().
    std::function<double()> ledger_failures;
    Counter* ledger_failures_counter = nullptr;

    Labels model(size_t mode) const { return {{"model_name", ids[mode]}}; }

    Counter& counter(const char* name, const char* help, const Labels& labels = {}) {
        return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
    }
    Histogram& histogram(const char* name, const char* help, const Labels& labels = {}) {
        return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(
            labels, boundaries(kLatencyBuckets));
    }

    void make_of_mode(size_t m) {
        const Labels labels = model(m);
        started[m] = &counter("tessera_request_started_total", "Requests taken on", labels);
        prompt_tokens[m] =
            &counter("tessera_prompt_tokens_total", "Tokens of prompts, cached ones too", labels);
        generation_tokens[m] =
            &counter("tessera_generation_tokens_total", "Tokens generated", labels);
        cache_queries[m] = &counter("tessera_prefix_cache_queries_total",
                                    "Prompt tokens looked for in the cache", labels);
        cache_hits[m] =
            &counter("tessera_prefix_cache_hits_total", "Prompt tokens found in the cache", labels);
        for (size_t e = 0; e < kEndeds.size(); ++e) {
            Labels with_reason = labels;
            with_reason["finished_reason"] = ended_name(kEndeds[e]);
            ended[m][e] = &counter("tessera_request_success_total", "Requests that ended, by how",
                                   with_reason);
        }
        first_token[m] = &histogram("tessera_time_to_first_token_seconds",
                                    "From the whole request to its first token", labels);
        between[m] =
            &histogram("tessera_inter_token_latency_seconds",
                       "Between two tokens; of tokens that come together, the mean", labels);
        queue[m] = &histogram("tessera_request_queue_time_seconds",
                              "From the whole request to the first step for it", labels);
        prefill[m] = &histogram("tessera_request_prefill_time_seconds",
                                "From the first step to the first token", labels);
        decode[m] = &histogram("tessera_request_decode_time_seconds",
                               "From the first token to the last", labels);
        whole[m] = &histogram("tessera_e2e_request_latency_seconds",
                              "From the whole request to the end of its reply", labels);
    }

    Families(std::string_view base_id, std::string_view ultraspeed_id)
        : ids{std::string(base_id), std::string(ultraspeed_id)} {
        for (size_t m = 0; m < kModeCount; ++m) make_of_mode(m);
        constexpr const char* kRefused = "tessera_request_refused_total";
        constexpr const char* kRefusedHelp = "Requests answered with an error, by HTTP status";
        for (size_t s = 0; s < kStatuses.size(); ++s)
            refused[s] =
                &counter(kRefused, kRefusedHelp, {{"status", std::to_string(kStatuses[s])}});
        refused_other = &counter(kRefused, kRefusedHelp, {{"status", "other"}});
        drafts = &counter("tessera_spec_decode_num_drafts_total", "Blocks drafted and verified");
        draft_tokens =
            &counter("tessera_spec_decode_num_draft_tokens_total", "Tokens of drafted blocks");
        accepted_tokens =
            &counter("tessera_spec_decode_num_accepted_tokens_total", "Drafted tokens that stood");
        for (size_t at = 0; at < kDraftMax; ++at)
            accepted_at[at] = &counter("tessera_spec_decode_num_accepted_tokens_per_pos_total",
                                       "Drafted tokens that stood, by place in their block",
                                       {{"position", std::to_string(at)}});
        step_seconds = &histogram("tessera_step_seconds", "One step of the model, of all rows");
        step_rows = &prometheus::BuildHistogram()
                         .Name("tessera_step_rows")
                         .Help("Rows of one step, of all sequences together")
                         .Register(registry)
                         .Add({}, boundaries(kRowBuckets));
    }

    void watch(const char* name, const char* help, std::function<double()> value) {
        if (!value) return;
        Gauge& gauge =
            prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add(Labels{});
        watched.emplace_back(std::move(value), &gauge);
    }
};

Metrics::Metrics(std::string_view base_id, std::string_view ultraspeed_id)
    : families_(std::make_unique<Families>(base_id, ultraspeed_id)) {}

Metrics::~Metrics() = default;

void Metrics::request_started(Mode mode, uint32_t prompt_tokens, uint32_t cached_tokens) {
    CHECK(cached_tokens <= prompt_tokens);
    const auto m = static_cast<size_t>(mode);
    families_->started[m]->Increment();
    families_->prompt_tokens[m]->Increment(prompt_tokens);
    families_->cache_queries[m]->Increment(prompt_tokens);
    families_->cache_hits[m]->Increment(cached_tokens);
}

void Metrics::first_token(Mode mode, double seconds) {
    families_->first_token[static_cast<size_t>(mode)]->Observe(seconds);
}

void Metrics::tokens_between(Mode mode, double seconds, uint32_t tokens) {
    Histogram& between = *families_->between[static_cast<size_t>(mode)];
    for (uint32_t i = 0; i < tokens; ++i) between.Observe(seconds / tokens);
}

void Metrics::tokens_generated(Mode mode, uint32_t tokens) {
    families_->generation_tokens[static_cast<size_t>(mode)]->Increment(tokens);
}

void Metrics::request_ended(Mode mode, Ended ended, const RequestSeconds& seconds) {
    const auto m = static_cast<size_t>(mode);
    for (size_t e = 0; e < kEndeds.size(); ++e)
        if (kEndeds[e] == ended) families_->ended[m][e]->Increment();
    families_->queue[m]->Observe(seconds.queue);
    families_->prefill[m]->Observe(seconds.prefill);
    families_->decode[m]->Observe(seconds.decode);
    families_->whole[m]->Observe(seconds.whole);
}

void Metrics::refused(uint32_t status) {
    for (size_t s = 0; s < kStatuses.size(); ++s)
        if (kStatuses[s] == status) return families_->refused[s]->Increment();
    families_->refused_other->Increment();
}

void Metrics::draft_round(uint32_t drafted, uint32_t accepted) {
    CHECK(accepted <= drafted && drafted <= kDraftMax);
    families_->drafts->Increment();
    families_->draft_tokens->Increment(drafted);
    families_->accepted_tokens->Increment(accepted);
    for (uint32_t at = 0; at < accepted; ++at) families_->accepted_at[at]->Increment();
}

void Metrics::step(double seconds, uint32_t rows) {
    families_->step_seconds->Observe(seconds);
    families_->step_rows->Observe(rows);
}

void Metrics::watch(Gauges gauges) {
    Families& f = *families_;
    const std::lock_guard lock(f.watching);
    f.watched.clear();
    f.watch("tessera_num_requests_running", "Requests in the model's steps",
            std::move(gauges.running));
    f.watch("tessera_num_requests_waiting", "Requests in the queue", std::move(gauges.waiting));
    f.watch("tessera_kv_cache_usage_perc", "Token places of the cache in use, 0 to 1",
            std::move(gauges.cache_used));
    f.watch("tessera_connections", "Open sockets", std::move(gauges.connections));
    f.watch("tessera_ledger_rows_waiting", "Rows of the ledger that are not on disk yet",
            std::move(gauges.ledger_waiting));
    f.ledger_failures = std::move(gauges.ledger_failures);
    if (f.ledger_failures)
        f.ledger_failures_counter = &f.counter("tessera_ledger_failures_total",
                                               "Transactions of the ledger that were tried again");
}

std::string Metrics::text() {
    Families& f = *families_;
    const std::lock_guard lock(f.watching);
    for (const auto& [value, gauge] : f.watched) gauge->Set(value());
    if (f.ledger_failures) {
        const double more = f.ledger_failures() - f.ledger_failures_counter->Value();
        if (more > 0) f.ledger_failures_counter->Increment(more);
    }
    return prometheus::TextSerializer().Serialize(f.registry.Collect());
}

}  // namespace tessera
