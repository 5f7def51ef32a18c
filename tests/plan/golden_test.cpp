// Small programs as text, most tile by tile, beside this file in golden/. A change of the planner
// shows as a change of these files: read it, then write them anew with TESSERA_UPDATE_GOLDEN=1.
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "plan/explain.h"
#include "plan/support.h"

namespace tessera {
namespace {

using test::request;

void expect_golden(const char* name, const std::string& found) {
    const std::string path = std::string(TESSERA_VECTORS "/../plan/golden/") + name;
    if (std::getenv("TESSERA_UPDATE_GOLDEN") != nullptr) {
        ASSERT_TRUE(std::ofstream(path, std::ios::binary) << found) << path;
        return;
    }
    std::ifstream file(path, std::ios::binary);
    ASSERT_TRUE(file) << path;
    std::stringstream expected;
    expected << file.rdbuf();
    EXPECT_EQ(found, expected.str()) << "TESSERA_UPDATE_GOLDEN=1 writes " << path;
}

TEST(Golden, OneRowTwoWorkers) {
    expect_golden("one_row_two_workers.txt",
                  explain_tiles(plan(request(test::two_layers(), 1, 2, 1))));
}

TEST(Golden, ADraftedBlock) {
    expect_golden("drafted_block.txt",
                  explain_tiles(plan(test::draft_request(test::toy_drafter_shape(), 2, 1, 8, 8))));
}

TEST(Golden, ADrafterAsATable) {
    expect_golden("drafter_table.txt",
                  explain(plan(test::draft_request(test::toy_drafter_shape(), 2, 3, 8, 8))));
}

TEST(Golden, ADraftersContext) {
    expect_golden("drafters_context.txt",
                  explain_tiles(plan(test::draft_request(test::toy_drafter_shape(), 1, 2, 0, 64))));
}

TEST(Golden, OneRowTwoTaps) {
    expect_golden("one_row_two_taps.txt",
                  explain_tiles(plan(test::tapped_request(test::two_layers(), {0, 1}, 1, 1, 1))));
}

TEST(Golden, TwoRowsTwoRanks) {
    expect_golden("two_rows_two_ranks.txt",
                  explain_tiles(plan(request(test::two_layers(), 2, 1, 2))));
}

}  // namespace
}  // namespace tessera
