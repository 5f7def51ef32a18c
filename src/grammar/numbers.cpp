// Decimal numbers between bounds, as digits.
#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "base/error.h"

#include "grammar/compiler.h"

namespace tessera::grammar {
namespace {

constexpr uint32_t kDigitsMax = 15;  // a double holds every whole number of so many
constexpr int64_t kMost = 999'999'999'999'999;

const ByteSet kDigit = ByteSet::range('0', '9');

// Numbers of one length between two of that length, digit by digit: a place for each number of
// digits that are left and each bound that still holds.
class SameLength {
  public:
    SameLength(Builder& builder, std::string low, std::string high, Place next)
        : builder_(builder), low_(std::move(low)), high_(std::move(high)), next_(next) {}

    Place place(size_t at, bool by_low, bool by_high) {
        if (at == low_.size()) return next_;
        const auto key = std::tuple(at, by_low, by_high);
        if (const auto known = places_.find(key); known != places_.end()) return known->second;
        const char first = by_low ? low_[at] : '0', last = by_high ? high_[at] : '9';
        std::vector<Edge> edges;
        ByteSet free;
        for (char digit = first; digit <= last; ++digit) {
            const bool low = by_low && digit == first, high = by_high && digit == last;
            const ByteSet one = ByteSet::of(static_cast<uint8_t>(digit));
            if (low || high) {
                edges.push_back({one, place(at + 1, low, high)});
            } else {
                free = free | one;
            }
        }
        if (!free.empty()) edges.push_back({free, place(at + 1, false, false)});
        return places_[key] = builder_.edges(std::move(edges));
    }

  private:
    Builder& builder_;
    std::string low_, high_;
    Place next_;
    std::map<std::tuple<size_t, bool, bool>, Place> places_;
};

// Whole numbers from `low` to `high`, both included and not negative; none if there are none.
void add_magnitudes(Builder& builder, int64_t low, int64_t high, Place next,
                    std::vector<Place>& into) {
    high = std::min(high, kMost);
    for (int64_t from = low; from <= high;) {
        const std::string first = std::to_string(from);
        const auto most = static_cast<int64_t>(std::stoll(std::string(first.size(), '9')));
        const int64_t to = std::min(high, most);
        into.push_back(SameLength(builder, first, std::to_string(to), next).place(0, true, true));
        from = to + 1;
    }
}

// Behind the point: some digits, or some of which one is not 0.
Place fraction(Builder& builder, bool not_zero, Place next) {
    const auto digit = [&](Place after) { return builder.set(kDigit, after); };
    if (!not_zero) return builder.bytes(".", builder.repeated(digit, 1, kDigitsMax, next));
    const Place last = builder.set(ByteSet::range('1', '9'), next);
    return builder.bytes(".", builder.repeated(digit, 0, kDigitsMax - 1, last));
}

// Numbers from `low` to `high`, not negative, as a whole part and perhaps a fraction.
void add_decimals(Builder& builder, Bound low, Bound high, Place next, std::vector<Place>& into) {
    if (low.value > high.value) return;
    // What lies strictly between two whole numbers of the range goes with the lower one.
    const Place any = builder.either({fraction(builder, false, next), next});
    add_magnitudes(builder, low.value + 1, high.value - 1, any, into);
    const bool point = low.value == high.value;
    const Place exact = point ? next : any;
    if (!low.excluded && !(point && high.excluded))
        add_magnitudes(builder, low.value, low.value, exact, into);
    if (low.excluded && !point)
        add_magnitudes(builder, low.value, low.value, fraction(builder, true, next), into);
    if (!high.excluded && !point) add_magnitudes(builder, high.value, high.value, next, into);
}

}  // namespace

Place whole_numbers(Builder& builder, std::optional<Bound> low, std::optional<Bound> high,
                    Place next) {
    // Beyond what is written anyway a bound says nothing; nearer, what it leaves out is a number.
    const auto clamped = [](const Bound& bound, int64_t inward) {
        return std::clamp(bound.value, -kMost - 1, kMost + 1) + (bound.excluded ? inward : 0);
    };
    const int64_t from = low ? clamped(*low, 1) : -kMost, to = high ? clamped(*high, -1) : kMost;
    std::vector<Place> places;
    add_magnitudes(builder, std::max<int64_t>(from, 0), to, next, places);
    if (from < 0) {
        std::vector<Place> negative;
        add_magnitudes(builder, std::max<int64_t>(-to, 1), -from, next, negative);
        for (const Place place : negative) places.push_back(builder.bytes("-", place));
    }
    if (places.empty()) fail("no whole number of {} digits lies between its bounds", kDigitsMax);
    return builder.either(std::move(places));
}

Place numbers(Builder& builder, std::optional<Bound> low, std::optional<Bound> high, Place next) {
    const auto digit = [&](Place after) { return builder.set(kDigit, after); };
    std::vector<Place> places;
    if (!low && !high) {
        const Place power = builder.repeated(digit, 1, 2, next);
        const ByteSet sign = ByteSet::of('+') | ByteSet::of('-');
        const Place exponent = builder.set(ByteSet::of('e') | ByteSet::of('E'),
                                           builder.either({builder.set(sign, power), power}));
        const Place whole = builder.either({exponent, next});
        const Place rest = builder.either({fraction(builder, false, whole), whole});
        add_magnitudes(builder, 0, kMost, rest, places);
        places.push_back(builder.bytes("-", builder.either(places)));
        return builder.either(std::move(places));
    }
    const Bound most = {kMost, false}, least = {-kMost, false};
    Bound from = low.value_or(least), to = high.value_or(most);
    if (from.value < -kMost) from = least;
    if (to.value > kMost) to = most;
    if (to.value >= 0 && from.value <= kMost)
        add_decimals(builder, from.value >= 0 ? from : Bound{0, false}, to, next, places);
    if (from.value < 0 && to.value >= -kMost) {
        // Magnitudes: what was low is high. "-0" is left to the other half.
        const Bound near = to.value < 0 ? Bound{-to.value, to.excluded} : Bound{0, true};
        std::vector<Place> negative;
        add_decimals(builder, near, {-from.value, from.excluded}, next, negative);
        for (const Place place : negative) places.push_back(builder.bytes("-", place));
    }
    if (places.empty()) fail("no number lies between its bounds");
    return builder.either(std::move(places));
}

}  // namespace tessera::grammar
