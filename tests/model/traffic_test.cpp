// Bytes of a step against the floor that the design states for V2.5-Pro: 8 rows verified by 8
// tensor-parallel ranks at 4096 tokens of context, in GB (10^9) on one of them.
#include "model/traffic.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "support/published.h"
#include "support/toys.h"

namespace tessera {
namespace {

Shape pro() {
    return parse_shape(test::pro_fp4_config(), "pro");
}

// Within 1 %, or what is lost by stating two digits behind the point.
void expect_gb(double bytes, double gb, const char* what) {
    EXPECT_NEAR(bytes / 1e9, gb, std::max(0.01 * gb, 0.005)) << what;
}

TEST(Traffic, IsTheFloorOfTheDesign) {
    const Shape shape = pro();
    const Traffic t = step_traffic(shape, {.rows = 8, .context = 4096, .experts = 0, .ranks = 8});
    expect_gb(t.experts, 10.30, "experts, 59.5 distinct");
    expect_gb(t.qkv + t.output + t.cache, 3.22, "attention");
    expect_gb(t.router, 0.65, "router");
    expect_gb(t.head, 0.23, "head");
    const DrafterShape drafter = parse_drafter_shape(test::pro_drafter_config(), shape, "drafter");
    const double draft = drafter_bytes(drafter) / 8 + t.head;
    expect_gb(draft, 0.93, "drafter and head");
    // 15.4 GB stands for the sum with two digits behind the comma, the dense layer and norms among
    // the rest.
    expect_gb(t.total() + draft, 15.4, "all");
}

TEST(Traffic, IsTheFloorOfTheDesignWithTheExpertsOfRealCode) {
    const Traffic t = step_traffic(pro(), {.rows = 8, .context = 4096, .experts = 38, .ranks = 8});
    expect_gb(t.experts, 6.59, "experts, 38 distinct");
}

TEST(DistinctExperts, AreWhatRandomChoicesGive) {
    EXPECT_NEAR(distinct_experts(pro(), 8), 59.5, 0.1);
    EXPECT_NEAR(distinct_experts(pro(), 1), 8, 1e-9);
    EXPECT_NEAR(distinct_experts(pro(), 0), 0, 1e-9);
    EXPECT_NEAR(distinct_experts(pro(), 1e4), 384, 1e-6);
    const Shape all = test::toy_shape({{"n_routed_experts", 3}});
    EXPECT_NEAR(distinct_experts(all, 1), 3, 1e-9);
}

TEST(MatrixBytes, CountScales) {
    EXPECT_EQ(matrix_bytes(Format::f32, 3, 5), 60);
    EXPECT_EQ(matrix_bytes(Format::bf16, 3, 5), 30);
    EXPECT_EQ(matrix_bytes(Format::fp8, 128, 256), 128 * 256 + 2 * 4);
    EXPECT_EQ(matrix_bytes(Format::fp8, 129, 257), 129 * 257 + 2 * 3 * 4);
    EXPECT_EQ(matrix_bytes(Format::mxfp4, 10, 64), 320 + 20);
}

TEST(StoredFormat, FollowsTheQuantization) {
    const Shape fp4 = pro();
    EXPECT_EQ(stored_format(fp4, Linear::qkv, 3), Format::fp8);
    EXPECT_EQ(stored_format(fp4, Linear::output, 3), Format::bf16);
    EXPECT_EQ(stored_format(fp4, Linear::dense, 0), Format::fp8);
    EXPECT_EQ(stored_format(fp4, Linear::expert, 3), Format::mxfp4);
    EXPECT_EQ(stored_format(fp4, Linear::router, 3), Format::f32);
    EXPECT_EQ(stored_format(fp4, Linear::head, 69), Format::bf16);
    const Shape fp8 = test::toy_shape(
        {{"quantization_config", {{"store_dtype", nullptr}, {"ignored_layers", nullptr}}}});
    EXPECT_EQ(stored_format(fp8, Linear::output, 3), Format::fp8);  // nothing is ignored
    EXPECT_EQ(stored_format(fp8, Linear::expert, 3), Format::fp8);
    const Shape plain = test::toy_shape({{"quantization_config", nullptr}});
    for (const Linear linear :
         {Linear::qkv, Linear::output, Linear::dense, Linear::expert, Linear::head})
        EXPECT_EQ(stored_format(plain, linear, 1), Format::bf16);
    EXPECT_EQ(stored_format(plain, Linear::router, 1), Format::f32);
}

// Rank by rank, everything but what all ranks have is cut into equal parts.
TEST(Traffic, RanksShareAllButRouterAndNorms) {
    const TrafficCase one{.rows = 8, .context = 4096, .experts = 40, .ranks = 1};
    TrafficCase eight = one;
    eight.ranks = 8;
    const Traffic a = step_traffic(pro(), one), b = step_traffic(pro(), eight);
    EXPECT_EQ(a.router, b.router);
    EXPECT_EQ(a.norms, b.norms);
    EXPECT_NEAR(a.experts, 8 * b.experts, 1);
    EXPECT_NEAR(a.head, 8 * b.head, 1);
    EXPECT_NEAR(a.cache, 8 * b.cache, 1);
    EXPECT_NEAR(a.output, 8 * b.output, 1);
    EXPECT_NEAR(a.qkv, 8 * b.qkv, 1e-3 * a.qkv);  // scale blocks of 128 rows do not divide
    EXPECT_NEAR(a.dense, 8 * b.dense, 1e-3 * a.dense);
    // Fewer kv heads than ranks: each is read by several.
    const Shape toy = test::toy_shape();  // 2 and 4 kv heads
    const Traffic c = step_traffic(toy, one), d = step_traffic(toy, eight);
    EXPECT_GT(8 * d.cache, c.cache);
}

TEST(Traffic, AWindowBoundsTheCache) {
    const Shape toy = test::toy_shape();  // two layers see all, two see 9
    const auto cache = [&](double context) {
        return step_traffic(toy, {.rows = 1, .context = context, .experts = 1, .ranks = 1}).cache;
    };
    EXPECT_EQ(cache(0), 0);
    EXPECT_EQ(cache(9), 2 * 9 * (24 + 16) * (2 * 2 + 2 * 4));
    EXPECT_EQ(cache(1000), 2 * (24 + 16) * (1000 * 2 * 2 + 9 * 2 * 4));
}

TEST(Multiplications, CountEveryWeightOfATokenOnce) {
    const Shape toy = test::toy_shape();
    const double attention = 160 * (8 * 24 + 8 * 16) * 4 + 160 * (24 + 16) * (2 * 2 + 2 * 4);
    const double experts = 3 * (12 * 160 + 3 * 3 * 256 * 160), dense = 3 * 256 * 160;
    const double head = 203 * 160;
    EXPECT_EQ(step_multiplications(toy, {.rows = 1, .context = 0, .experts = 0, .ranks = 1}),
              attention + experts + dense + head);
    EXPECT_EQ(step_multiplications(toy, {.rows = 5, .context = 0, .experts = 0, .ranks = 1}),
              5 * (attention + experts + dense + head));
    EXPECT_EQ(step_multiplications(toy, {.rows = 1, .context = 100, .experts = 0, .ranks = 1}),
              attention + experts + dense + head + (2 * 100 + 2 * 9) * 8 * (24 + 16));
}

}  // namespace
}  // namespace tessera
