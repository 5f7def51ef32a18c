#include "server/format.h"

#include <iterator>

#include <fmt/format.h>

namespace tessera {

void ReplyFormat::origins(std::span<const Round>, std::span<const TextSpan>) {}

void put_measurements(const ReplySummary& summary, std::string& out) {
    const Stats& s = summary.stats;
    const auto into = std::back_inserter(out);
    const uint32_t read = summary.prompt_tokens - summary.cached_tokens;
    fmt::format_to(into,
                   R"("timings":{{"prompt_n":{},"prompt_ms":{:.3f},"predicted_n":{},)"
                   R"("predicted_ms":{:.3f},"predicted_per_second":{:.3f}}})",
                   read, 1e3 * summary.prompt_s, summary.completion_tokens,
                   1e3 * summary.predicted_s,
                   summary.predicted_s > 0 ? summary.completion_tokens / summary.predicted_s : 0);
    uint32_t drafted = 0, accepted = 0;
    for (const uint32_t count : s.verified) drafted += count;
    for (const uint32_t count : s.accepted) accepted += count;
    // Steps by how many drafts stood: all steps, and the first slot's, second's, … successes.
    fmt::format_to(into,
                   R"(,"metrics":{{"speculative_decoding":{{"mean_acceptance_length":{:.4f},)"
                   R"("acceptance_histogram":[)",
                   s.tokens_per_step());
    uint32_t at_least = s.steps;
    for (size_t slot = 0; slot <= s.accepted.size(); ++slot) {
        const uint32_t more = slot < s.accepted.size() ? s.accepted[slot] : 0;
        fmt::format_to(into, "{}{}", slot > 0 ? "," : "", at_least - more);
        at_least = more;
    }
    fmt::format_to(
        into, R"(],"num_spec_steps":{},"num_draft_tokens":{},"num_accepted_draft_tokens":{}}}}})",
        s.drafted + s.copied, drafted, accepted);
}

}  // namespace tessera
