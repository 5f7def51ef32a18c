// One text being written: what the model has read and what it says next.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "tessera/constraint.h"
#include "tessera/likelihood.h"
#include "tessera/model.h"
#include "tessera/sampling.h"
#include "tessera/speculation.h"
#include "tessera/stats.h"

namespace tessera {

class Session {
  public:
    // `sampling` has no problem(). Without a drafter only text that repeats itself is drafted.
    Session(Model model, const Sampling& sampling, const Speculation& speculation = {});
    Session(Session&&) noexcept;
    Session& operator=(Session&&) noexcept;
    ~Session();

    // ---- the text

    // Reads a prompt or the next turn, at most room() tokens of it. `go_on` is asked between pieces
    // of a long one; when it says no, the rest is left unread and the answer is false. `see` is
    // shown what the model expects after each token, logits [vocab] valid during the call, with the
    // token's place in `tokens`, and must not call this model; without it only the last token's
    // are computed.
    using Expectation = std::function<void(uint32_t place, std::span<const float> logits)>;
    bool append(std::span<const Token> tokens, const std::function<bool()>& go_on = {},
                const Expectation& see = {});

    // The same in pieces, so that others can step in between: begin() reads nothing yet, each
    // read_on() one piece, at most a step's rows; true once all is read. Until then no token can
    // be asked for.
    void begin(std::span<const Token> tokens);
    bool read_on();

    // All that was appended and given, in order; valid until the next call.
    std::span<const Token> text() const;
    uint32_t room() const;  // tokens that still fit the context

    // Keeps of the text what it has in common with `wanted`, as far as it can go back, and drops
    // the rest: the text is then a prefix of `wanted`, whose remainder is for append(). Goes back
    // to where append() was called or returned, and a step's tokens before the end; else further.
    // Returns the length kept, less than wanted.size(): at least one token must be read again.
    uint32_t reuse(std::span<const Token> wanted);

    // Another answer on the same memory: what was read of the text stays, sampling, speculation and
    // stats() start over. A session that was made with kOff has no memory for a drafter and stays
    // without one.
    void restart(const Sampling& sampling, const Speculation& speculation);

    // From here on likelihood() is known, with the `top` most likely tokens; at most kTopMax.
    void watch_likelihood(uint32_t top);

    // The answer to what was appended has to be this; until the next append() or begin(). Only
    // where ModelInfo::constrains.
    void constrain(const Constraint& constraint);

    // ---- the answer

    // The next token, chosen and kept. Something was appended before, and room() is not 0.
    Token next();

    // Of the token that next() gave last, after watch_likelihood(); valid until the next call.
    const Likelihood& likelihood() const;

    // Tokens that next() has at hand without a step of the model.
    uint32_t ready() const;

    // One step of the model for all of them together, each of which then has at least one token
    // ready; they are sessions of one model, something was appended to each, and none is without
    // room. At most step_sessions_max() of them. A session's tokens do not depend on the others.
    static void step(std::span<Session* const> sessions);
    static uint32_t step_sessions_max();

    const Stats& stats() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace tessera
