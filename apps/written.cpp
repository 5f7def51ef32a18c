#include "written.h"

#include <chrono>
#include <numeric>

#include "base/check.h"

namespace tessera {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
}

uint32_t sum(const std::array<uint32_t, 7>& counts) {
    return std::accumulate(counts.begin(), counts.end(), 0u);
}

// The one step between two states of a session's sums.
WrittenStep step_between(const Stats& a, const Stats& b, double seconds) {
    CHECK(b.steps == a.steps + 1);
    return {b.drafted > a.drafted ? Drafts::block
            : b.copied > a.copied ? Drafts::copied
                                  : Drafts::none,
            sum(b.verified) - sum(a.verified),
            sum(b.accepted) - sum(a.accepted),
            1e3 * seconds,
            1e3 * (b.draft_seconds - a.draft_seconds),
            b.experts * b.steps - a.experts * a.steps};
}

}  // namespace

Written write_text(const Model& model, const Sampling& sampling, const Speculation& speculation,
                   std::span<const Token> prompt, uint32_t tokens) {
    CHECK(tokens >= 2);
    Session session(model, sampling, speculation);
    session.append(prompt);
    Written written;
    written.prompt_seconds = session.stats().prompt_seconds;
    written.tokens.reserve(tokens);
    written.steps.reserve(tokens);
    // The prompt's last row has chosen the first token: no step did.
    written.tokens.push_back(session.next());
    while (written.tokens.size() < tokens) {
        if (session.ready() > 0) {
            written.tokens.push_back(session.next());
            continue;
        }
        const Stats before = session.stats();
        const auto begun = Clock::now();
        written.tokens.push_back(session.next());
        const double seconds = seconds_since(begun);
        written.seconds += seconds;
        written.steps.push_back(step_between(before, session.stats(), seconds));
    }
    written.hash = session.stats().hash;
    // The last step's tokens beyond the end were as much its work as the others.
    written.chosen = static_cast<uint32_t>(written.tokens.size()) - 1 + session.ready();
    return written;
}

}  // namespace tessera
