// How an API spells a reply. Owns strings; has not heard of sockets, threads or sessions.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/problem.h"
#include "server/provenance.h"
#include "tessera/likelihood.h"
#include "tessera/reply.h"
#include "tessera/stats.h"

namespace tessera {

// One token with its likelihood, for APIs that show them. Bytes may be part of a character.
struct TokenShown {
    std::string_view bytes;
    Likelihood likelihood;
    std::vector<std::string_view> top_bytes;  // of likelihood.top
};

enum class ReplyEnd : uint8_t { kStop, kStopString, kLength, kToolCalls };

// What is known once a reply is over.
struct ReplySummary {
    ReplyEnd end = ReplyEnd::kStop;
    std::string stop_string;  // of kStopString
    uint32_t prompt_tokens = 0, cached_tokens = 0;
    uint32_t completion_tokens = 0, reasoning_tokens = 0;  // reasoning is part of completion
    Stats stats;
    double prompt_s = 0, predicted_s = 0;
};

// One reply. What it appends to `out` is sent as it is. A stream is open(), piece() as often as
// something comes, then close() or fail(); a whole reply collects pieces and is whole().
class ReplyFormat {
  public:
    virtual ~ReplyFormat() = default;

    virtual std::string_view ping() const = 0;
    virtual void open(std::string& out) = 0;
    // What one step brought. The events are those of one parser, in order.
    virtual void piece(std::span<const OutputEvent> events, std::span<const TokenShown> tokens,
                       std::string& out) = 0;
    // Before a piece: the step's round, and the spans of the piece's reasoning and content, in
    // order. Not every API can say it.
    virtual void origins(std::span<const Round> rounds, std::span<const TextSpan> spans);
    virtual void close(const ReplySummary& summary, std::string& out) = 0;
    virtual void fail(const ApiProblem& problem, std::string& out) = 0;

    virtual void collect(std::span<const OutputEvent> events,
                         std::span<const TokenShown> tokens) = 0;
    virtual std::string whole(const ReplySummary& summary) = 0;

    // Before open(): some streams begin with it.
    void set_prompt(uint32_t tokens) { prompt_tokens_ = tokens; }

    // The body of a reply that is nothing but a problem.
    virtual std::string problem(const ApiProblem& problem) const = 0;

  protected:
    uint32_t prompt_tokens_ = 0;
};

// "timings": {…}, "metrics": {…}: what the engine measured, the same in every API.
void put_measurements(const ReplySummary& summary, std::string& out);

}  // namespace tessera
