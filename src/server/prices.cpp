#include "server/prices.h"

#include <cmath>

#include <fmt/format.h>

#include "base/check.h"

namespace tessera {
namespace {

PicoUsd token_price(double usd_per_million, double factor) {
    CHECK(usd_per_million >= 0 && usd_per_million <= kUsdPerMillionMax);
    CHECK(factor >= 0 && factor <= kUltraspeedFactorMax);
    return std::llround(usd_per_million * factor * kPicoUsdPerTokenOfUsdPerMillion);
}

}  // namespace

TokenPrices token_prices(const ModelPrices& prices, Mode mode) {
    const double factor = mode == Mode::kUltraspeed ? prices.ultraspeed_factor : 1;
    return {token_price(prices.cached, factor), token_price(prices.input, factor),
            token_price(prices.output, factor)};
}

PicoUsd cost_of(const TokenCounts& tokens, const TokenPrices& prices) {
    CHECK(tokens.prompt <= kTokensChargedMax && tokens.completion <= kTokensChargedMax);
    CHECK(tokens.cached <= tokens.prompt);
    return tokens.cached * prices.cached + (tokens.prompt - tokens.cached) * prices.input +
           tokens.completion * prices.output;
}

std::string usd_text(PicoUsd amount) {
    constexpr PicoUsd kOneUsd = 1'000'000'000'000;
    CHECK(amount >= 0);
    std::string text = fmt::format("{}.{:012}", amount / kOneUsd, amount % kOneUsd);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
}

}  // namespace tessera
