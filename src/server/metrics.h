// Prometheus metrics under the names that a vLLM dashboard knows, with our prefix: tessera_….
// Counters, not ratios: a rate, a mean acceptance length or a hit rate is a query over two of them.
// Every method may be called from any thread, allocates nothing and costs a lock at most.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "server/ledger.h"
#include "server/mode.h"

namespace tessera {

// Where one request spent its time, known at its end. Seconds.
struct RequestSeconds {
    double queue = 0;    // from the whole request to the first step for it
    double prefill = 0;  // from there to the first token
    double decode = 0;   // from there to the last
    double whole = 0;    // from the whole request to the end of the reply
};

class Metrics {
  public:
    // The label model_name is the id that clients ask for: one a mode.
    Metrics(std::string_view base_id, std::string_view ultraspeed_id);
    ~Metrics();
    Metrics(const Metrics&) = delete;
    Metrics& operator=(const Metrics&) = delete;

    // ---- a request, in the order of its life

    void request_started(Mode mode, uint32_t prompt_tokens, uint32_t cached_tokens);
    void first_token(Mode mode, double seconds);  // since the whole request was there
    // `tokens` came together, `seconds` after the ones before: each counts as a gap of their mean.
    // The first token of a request has no gap.
    void tokens_between(Mode mode, double seconds, uint32_t tokens);
    void tokens_generated(Mode mode, uint32_t tokens);  // all of them, the first too
    void request_ended(Mode mode, Ended ended, const RequestSeconds& seconds);
    void refused(uint32_t status);  // 401, 403, 413, 429, 503, …: anything but served

    // ---- a step

    // One verified block: `drafted` tokens, of which the first `accepted` stood.
    void draft_round(uint32_t drafted, uint32_t accepted);
    // One step of the model for `rows` tokens of all sequences together.
    void step(double seconds, uint32_t rows);

    // ---- what is asked for at every text(): from its thread, so cheap and thread-safe

    struct Gauges {
        std::function<double()> running, waiting;  // requests in steps; in the queue
        std::function<double()> cache_used;        // 0 to 1: of the cache's token places
        std::function<double()> connections;       // open sockets
        std::function<double()> ledger_waiting;    // rows that are not on disk yet
        std::function<double()> ledger_failures;   // a counter: transactions tried again
    };
    // Those that are left empty are not shown. Called once; what it asks outlives this object.
    void watch(Gauges gauges);

    // The exposition, in Prometheus' text format 0.0.4.
    std::string text();
    static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

  private:
    struct Families;
    std::unique_ptr<Families> families_;
};

// Upper ends of the latency buckets, seconds. From 0.25 ms: a step takes a few milliseconds.
std::span<const double> latency_buckets();

}  // namespace tessera
