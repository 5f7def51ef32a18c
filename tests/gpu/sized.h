// How much a card's tests do: an emulated card takes a hundred times as long for the same.
#pragma once

#include <cstdint>

namespace tessera::test {

#ifdef TESSERA_EMULATED_CARD
constexpr uint32_t sized(uint32_t, uint32_t emulated) {
    return emulated;
}
#else
constexpr uint32_t sized(uint32_t card, uint32_t) {
    return card;
}
#endif

}  // namespace tessera::test
