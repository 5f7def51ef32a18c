// Repeated text is found: small tables, then a twin that looks at every earlier place, on random
// texts over alphabets so small that everything repeats.
#include "decode/suffix.h"

#include <algorithm>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace tessera {
namespace {

using Tokens = std::vector<uint32_t>;

struct Found {
    uint32_t length;
    Tokens tokens;

    friend bool operator==(const Found&, const Found&) = default;
    friend void PrintTo(const Found& found, std::ostream* out) {
        *out << "match of " << found.length << ':';
        for (const uint32_t token : found.tokens) *out << ' ' << token;
    }
};

Found find(const SuffixMatcher& matcher, uint32_t count) {
    constexpr uint32_t kUntouched = 0xdead;
    Tokens out(count + 1, kUntouched);
    const SuffixMatcher::Match match = matcher.find(std::span(out).first(count));
    EXPECT_EQ(match.count, match.length > 0 ? count : 0);
    for (uint32_t i = match.count; i < out.size(); ++i) EXPECT_EQ(out[i], kUntouched);
    out.resize(match.count);
    return {match.length, out};
}

// What find() promises, from its words alone: every earlier end, newest first, as far as `looks` of
// those that share kMatchMin tokens.
Found twin_find(const Tokens& text, uint32_t count, uint32_t looks) {
    Found best{};
    for (size_t end = text.size(); end-- > kMatchMin && looks > 0;) {
        uint32_t match = 0;
        while (match < kMatchMax && match < end &&
               text[end - 1 - match] == text[text.size() - 1 - match]) {
            ++match;
        }
        if (match < kMatchMin) continue;
        --looks;
        if (match <= best.length) continue;
        Tokens going_on(text.begin() + static_cast<ptrdiff_t>(end), text.end());
        for (size_t i = 0; going_on.size() < count; ++i) going_on.push_back(going_on[i]);
        going_on.resize(count);
        best = {match, going_on};
    }
    return best;
}

Tokens operator+(Tokens a, const Tokens& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

Tokens numbers(uint32_t from, uint32_t to) {
    Tokens tokens;
    for (uint32_t token = from; token < to; ++token) tokens.push_back(token);
    return tokens;
}

// -------------------------------------------------------------------------------------- tables

struct Case {
    const char* what;
    Tokens text;
    uint32_t count;
    Found found;
};

TEST(SuffixMatcher, FindsWhatFollowed) {
    const Tokens nine = {9, 9, 9, 9, 9, 9, 9, 9, 9};
    for (const Case& c : std::vector<Case>{
             {"nothing", {}, 3, {0, {}}},
             {"too short for a match", numbers(0, 7), 3, {0, {}}},
             {"no repeat", numbers(0, 30), 3, {0, {}}},
             {"seven are too few", numbers(0, 20) + numbers(3, 10), 3, {0, {}}},
             {"eight", numbers(0, 20) + numbers(3, 11), 3, {8, {11, 12, 13}}},
             {"eight, of the very first", numbers(0, 20) + numbers(0, 8), 2, {8, {8, 9}}},
             {"none wanted", numbers(0, 20) + numbers(3, 11), 0, {8, {}}},
             {"the longest wins over the newest",
              numbers(0, 20) + Tokens{50} + numbers(1, 10) + Tokens{51} + numbers(0, 10),
              2,
              {10, {10, 11}}},
             {"the newest of equally long ones",
              numbers(0, 9) + Tokens{50} + numbers(0, 9) + Tokens{51, 52} + numbers(1, 9),
              2,
              {8, {51, 52}}},
             {"past the end: from the proposal's own beginning",
              numbers(0, 10) + numbers(0, 8),
              14,
              {8, {8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1}}},
             {"a loop of one", nine, 4, {8, {9, 9, 9, 9}}},
             {"a loop of three", {1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2}, 7, {8, {3, 1, 2, 3, 1, 2, 3}}},
             {"length stops at the longest told apart",
              numbers(0, 100) + numbers(0, 90),
              1,
              {kMatchMax, {90}}},
             {"of two longer than that, the newest",
              Tokens{7} + numbers(100, 180) + Tokens{200} + numbers(100, 180) + Tokens{201, 7} +
                  numbers(100, 180),
              1,
              {kMatchMax, {201}}}}) {
        SuffixMatcher matcher(static_cast<uint32_t>(c.text.size()));
        matcher.append(c.text);
        EXPECT_EQ(find(matcher, c.count), c.found) << c.what;
        EXPECT_EQ(twin_find(c.text, c.count, kCandidatesMax), c.found) << c.what << ", twin";
    }
}

TEST(SuffixMatcher, ForgetsWhatIsTakenBack) {
    SuffixMatcher matcher(100);
    matcher.append(numbers(0, 20));
    matcher.append(numbers(3, 11));
    matcher.truncate(20);
    EXPECT_EQ(matcher.length(), 20u);
    EXPECT_EQ(find(matcher, 2), (Found{0, {}}));
    matcher.append(numbers(3, 11));
    EXPECT_EQ(find(matcher, 2), (Found{8, {11, 12}}));
    matcher.truncate(0);
    matcher.append(numbers(3, 11));
    EXPECT_EQ(find(matcher, 2), (Found{0, {}}));
}

TEST(SuffixMatcherDeathTest, HoldsNoMoreThanItsContext) {
    SuffixMatcher matcher(10);
    matcher.append(numbers(0, 10));
    EXPECT_DEATH(matcher.append(Tokens{1}), "broken fact");
    EXPECT_DEATH(matcher.truncate(11), "broken fact");
}

// ---------------------------------------------------------------------------------- random texts

struct Texts {
    const char* what;
    uint32_t context;
    uint32_t alphabet;
    uint32_t rounds;
};

// Appends and rewinds at random and asks after each. In the small contexts most buckets are shared
// by different ends, and no chain is longer than what is looked at; in the large ones chains are
// longer and, over so few different ends, hardly any bucket is shared.
TEST(SuffixMatcher, EqualsItsTwin) {
    for (const Texts& texts : {Texts{"shared buckets", 38, 2, 400},
                               {"shared buckets", 38, 3, 400},
                               {"shared buckets, loops", 38, 1, 20},
                               {"long chains", 1500, 2, 4},
                               {"long chains", 1500, 3, 4},
                               {"loops", 300, 1, 4}}) {
        std::mt19937 random(texts.context + texts.alphabet);
        const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
        uint32_t matches = 0;
        for (uint32_t round = 0; round < texts.rounds; ++round) {
            // Room for few shared buckets where chains are long.
            SuffixMatcher matcher(texts.context > 100 ? 1u << 20 : texts.context);
            Tokens text;
            for (uint32_t step = 0; step < 200; ++step) {
                if (text.size() == texts.context || below(8) == 0) {
                    text.resize(text.size() - std::min<size_t>(text.size(), below(30)));
                    matcher.truncate(static_cast<uint32_t>(text.size()));
                } else if (text.size() > kMatchMin && below(4) == 0) {  // long repeats, and loops
                    const size_t from = random() % text.size();
                    for (uint32_t i = below(90); i-- > 0 && text.size() < texts.context;) {
                        text.push_back(text[from + i % (text.size() - from)]);
                    }
                    matcher.append(std::span(text).subspan(matcher.length()));
                } else {
                    const size_t more = std::min<size_t>(below(10), texts.context - text.size());
                    for (size_t i = 0; i < more; ++i) text.push_back(below(texts.alphabet));
                    matcher.append(std::span(text).last(more));
                }
                ASSERT_EQ(matcher.length(), text.size());
                const uint32_t count = below(12);
                const Found found = find(matcher, count);
                ASSERT_EQ(found, twin_find(text, count, kCandidatesMax))
                    << texts.what << ", " << texts.alphabet << " letters, round " << round << ", "
                    << text.size() << " tokens";
                matches += found.length > 0;
            }
        }
        EXPECT_GT(matches, 5 * texts.rounds) << texts.what;
    }
}

// Rewinding restores all that find() will ever look at, not only its next answer.
TEST(SuffixMatcher, RewoundEqualsNeverAppended) {
    std::mt19937 random(1);
    const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
    for (uint32_t round = 0; round < 200; ++round) {
        SuffixMatcher rewound(64);
        SuffixMatcher straight(64);
        Tokens text(64);
        for (uint32_t& token : text) token = below(2);
        const uint32_t kept = below(40);
        rewound.append(std::span(text).first(kept));
        straight.append(std::span(text).first(kept));
        for (uint32_t times = below(4); times-- > 0;) {
            Tokens other(24);
            for (uint32_t& token : other) token = below(2);
            rewound.append(other);
            rewound.truncate(kept);
        }
        for (uint32_t i = kept; i < 64; ++i) {
            rewound.append(std::span(text).subspan(i, 1));
            straight.append(std::span(text).subspan(i, 1));
            ASSERT_EQ(find(rewound, 7), find(straight, 7));
        }
    }
}

// ---------------------------------------------------------------------------------------- bounds

TEST(SuffixMatcher, FindsInALongTextWhoseEndsAreAllAlike) {
    constexpr uint32_t kContext = 1u << 20;
    SuffixMatcher matcher(kContext);
    Tokens period(kMatchMax - 1, 5);
    uint32_t next = 100;
    while (matcher.length() + kMatchMax <= kContext) {
        const uint32_t unique = next++;
        matcher.append(std::span(&unique, 1));
        matcher.append(period);
    }
    // 63 fives end the text, and sixteen thousand places before it. A search without a bound would
    // compare with them all and find 63; looked at are the newest ends, within the last run itself.
    Tokens out(7);
    const SuffixMatcher::Match match = matcher.find(out);
    EXPECT_EQ(match, (SuffixMatcher::Match{kMatchMax - 2, 7}));
    EXPECT_EQ(out, Tokens(7, 5));
}

}  // namespace
}  // namespace tessera
