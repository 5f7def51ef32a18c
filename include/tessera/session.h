// One text being written: what the model has read and what it says next.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "tessera/model.h"
#include "tessera/sampling.h"
#include "tessera/stats.h"

namespace tessera {

class Session {
  public:
    // `sampling` has no problem().
    Session(Model model, const Sampling& sampling);
    Session(Session&&) noexcept;
    Session& operator=(Session&&) noexcept;
    ~Session();

    // Reads a prompt or the next turn, at most room() tokens of it. `go_on` is asked between pieces
    // of a long one; when it says no, the rest is left unread and the answer is false.
    bool append(std::span<const Token> tokens, const std::function<bool()>& go_on = {});

    // The next token, chosen and kept. Something was appended before, and room() is not 0.
    Token next();

    uint32_t room() const;  // tokens that still fit the context
    const Stats& stats() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace tessera
