// What tokens cost. Money is counted in whole picodollars (1e-12 dollars): published prices,
// dollars for a million tokens, are whole numbers of them for one token, so that sums are exact.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "server/mode.h"

namespace tessera {

using PicoUsd = int64_t;  // up to 9.2 million dollars

// 1 dollar for a million tokens is a millionth of a dollar, a million picodollars, for one.
inline constexpr double kPicoUsdPerTokenOfUsdPerMillion = 1e6;

// Limits that keep the cost of any request (2^25 tokens at most) far inside PicoUsd.
inline constexpr double kUsdPerMillionMax = 1000;
inline constexpr double kUltraspeedFactorMax = 100;
inline constexpr uint32_t kTokensChargedMax = 1u << 24;  // of prompt, and of completion

// Dollars for a million tokens, as price lists have it. Defaults: MiMo-V2.5-Pro's list, and the
// factor of its UltraSpeed mode (June 2026).
struct ModelPrices {
    double cached = 0.0036;        // prompt tokens that were still in the cache
    double input = 0.435;          // the other prompt tokens
    double output = 0.87;          // completion tokens, reasoning among them
    double ultraspeed_factor = 3;  // times all three in ultraspeed mode
};

// What one token of a request costs: the prices that its ledger row keeps.
struct TokenPrices {
    PicoUsd cached = 0, input = 0, output = 0;  // a token
};

// Rounded to whole picodollars once, here.
TokenPrices token_prices(const ModelPrices& prices, Mode mode);

struct TokenCounts {
    uint32_t prompt = 0;  // cached ones among them
    uint32_t cached = 0;  // at most prompt
    uint32_t completion = 0;
};

// Each count at most kTokensChargedMax.
PicoUsd cost_of(const TokenCounts& tokens, const TokenPrices& prices);

// "0.000123456" dollars, exact, without trailing zeros.
std::string usd_text(PicoUsd amount);

}  // namespace tessera
