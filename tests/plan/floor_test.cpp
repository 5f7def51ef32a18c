// The least time of a step against what the design states for V2.5-Pro: 8 rows verified and a block
// drafted by 8 ranks at 4096 tokens of context. tests/model/traffic_test.cpp has the bytes by kind.
#include "plan/floor.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "model/published.h"

namespace tessera {
namespace {

struct Stated {
    const char* machine;
    double experts;  // distinct ones in a layer; 0: what random choices give, 59.5
    double gb, read_ms, ms;
    double tokens_per_second;  // at 6.3 tokens a step
};
// What is not stated is 0.
constexpr Stated kStated[] = {
    {"h200", 0, 15.4, 3.58, 4.04, 1560},
    {"h200", 38, 11.7, 2.72, 3.17, 1984},
    {"b200", 0, 15.4, 0, 0, 2316},
    {"b200", 38, 11.7, 0, 0, 2897},
};

void expect_within_one_percent(double found, double stated, const char* what) {
    if (stated == 0) return;
    EXPECT_NEAR(found, stated, 0.01 * stated) << what;
}

TEST(Floor, IsTheDesigns) {
    const PublishedModel pro = published_model("mimo-v2.5-pro").value();
    for (const Stated& s : kStated) {
        SCOPED_TRACE(testing::Message() << s.machine << ", experts " << s.experts);
        const Floor floor = floor_of(pro.shape, pro.drafter,
                                     {.rows = 8, .context = 4096, .experts = s.experts, .ranks = 8},
                                     known_machine(s.machine).value());
        EXPECT_EQ(floor.exchanges, 152u);
        expect_within_one_percent(1e-9 * floor.traffic.total(), s.gb, "GB");
        expect_within_one_percent(1e-9 * floor.traffic.drafter, 0.93, "GB of drafter and head");
        expect_within_one_percent(1e3 * floor.read_seconds, s.read_ms, "ms of reading");
        expect_within_one_percent(1e3 * floor.seconds, s.ms, "ms");
        expect_within_one_percent(floor.tokens_per_second(6.3), s.tokens_per_second, "tokens/s");
    }
}

TEST(Floor, WithoutADrafterOrRanksHasNoneOfTheirs) {
    const PublishedModel pro = published_model("mimo-v2.5-pro").value();
    const MachineSpec machine{"slow", 1e9, 1};
    TrafficCase at{.rows = 8, .context = 4096, .experts = 0, .ranks = 8};
    const Floor target = floor_of(pro.shape, std::nullopt, at, machine);
    EXPECT_EQ(target.traffic.drafter, 0);
    EXPECT_EQ(target.exchanges, 2 * 70 + 1u);
    EXPECT_DOUBLE_EQ(target.seconds, target.read_seconds + 141);
    at.ranks = 1;
    const Floor alone = floor_of(pro.shape, pro.drafter, at, machine);
    EXPECT_EQ(alone.exchanges, 0u);
    EXPECT_EQ(alone.seconds, alone.read_seconds);
    EXPECT_GT(alone.read_seconds, 7 * target.read_seconds);
}

TEST(Machines, AreKnownOrDescribed) {
    EXPECT_EQ(known_machine("h200")->bytes_per_second, 4.3e12);
    EXPECT_EQ(known_machine("b200")->bytes_per_second, 6.8e12);
    EXPECT_FALSE(known_machine("H200"));
    EXPECT_FALSE(known_machine(""));
    const MachineSpec mine = parse_machine(
        Json{{"name", "mine"}, {"read_gb_per_second", 33.5}, {"exchange_us", 2}}, "mine.json");
    EXPECT_EQ(mine.name, "mine");
    EXPECT_NEAR(mine.bytes_per_second, 33.5e9, 1e3);
    EXPECT_NEAR(mine.exchange_seconds, 2e-6, 1e-12);
    const MachineSpec least = parse_machine(Json{{"read_gb_per_second", 33.5}}, "mine.json");
    EXPECT_EQ(least.name, "mine.json");
    EXPECT_EQ(least.exchange_seconds, 0);
    for (const Json& bad : {Json::object(), Json{{"read_gb_per_second", 0}},
                            Json{{"read_gb_per_second", -4}}, Json{{"read_gb_per_second", "4"}},
                            Json{{"read_gb_per_second", 4}, {"exchange_us", -1}}}) {
        EXPECT_THROW(parse_machine(bad, "mine.json"), Error) << bad.dump();
    }
}

}  // namespace
}  // namespace tessera
