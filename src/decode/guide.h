// What a text may become, as a stream of tokens sees it: who knows the rules stands behind this.
#pragma once

#include <cstdint>
#include <span>

namespace tessera {

class Guide {
  public:
    virtual ~Guide() = default;

    // The tokens that may come next, bit t % 64 of word t / 64 for token t; at least one. Empty:
    // all. Valid until the next call.
    virtual std::span<const uint64_t> allowed() = 0;

    // The text goes on with a token that is allowed.
    virtual void push(uint32_t token) = 0;

    // Takes back the last tokens, at most as many as a step has rows.
    virtual void pop(uint32_t count) = 0;

    // The tokens that will most likely follow since their bytes must: as many as `tokens` holds, or
    // fewer. Returns how many.
    virtual uint32_t forced(std::span<uint32_t> tokens) = 0;
};

}  // namespace tessera
