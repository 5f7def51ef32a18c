// Stamps become a trace: every phase of every block where it was, its parts within it, and nothing
// made of stamps that a phase does not write.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/scratch_folder.h"
#include "runtime/gpu/stamps.h"
#include "runtime/trace.h"

namespace tessera {
namespace {

// Slices by track and kind, in their order; nanoseconds, of which the file says thousandths.
struct Found {
    std::string name;
    int64_t began, ended;
    Json arguments;
};
using Tracks = std::map<std::pair<uint32_t, std::string>, std::vector<Found>>;

Tracks read(const std::filesystem::path& path) {
    Tracks tracks;
    std::ifstream file(path);
    const Json trace = Json::parse(file);
    for (const Json& e : trace.at("traceEvents")) {
        if (e.at("ph") != "X") continue;
        const int64_t began = std::llround(1000 * e.at("ts").get<double>());
        const int64_t took = std::llround(1000 * e.at("dur").get<double>());
        tracks[{e.at("tid"), e.at("cat")}].push_back(
            {e.at("name"), began, began + took, e.at("args")});
    }
    return tracks;
}

// Two blocks: what is embedded, a matrix, attention, a matrix of experts. Nanoseconds of a clock
// that has run for days, in steps of 32 as a card's.
struct Recorded {
    Recorded() {
        const auto add = [&](Op op, uint16_t layer, bool matrix, bool moe) {
            gpu::Phase p{};
            p.op = op;
            p.layer = layer;
            p.moe = moe;
            if (matrix) p.matrix.data = weights;
            phases.push_back(p);
        };
        add(Op::embed, 0, false, false);
        add(Op::qkv, 0, true, false);
        add(Op::attend, 0, false, false);
        add(Op::down, 1, true, true);
        constexpr uint64_t kZero = 1'790'000'000'000'000'000;
        const gpu::Stamp at[] = {// Attention's inner stamps are of the matrix before it.
                                 {0, 0, 0, 0, 960},
                                 {32, 32, 0, 0, 640},
                                 {992, 1920, 2880, 5120, 5760},
                                 {672, 1952, 2912, 5440, 5888},
                                 {5760, 6400, 2880, 5120, 9600},
                                 {5888, 6432, 2912, 5440, 8992},
                                 {9600, 10240, 10240, 12800, 13120},
                                 {9024, 10272, 10304, 12992, 13440}};
        for (const gpu::Stamp& s : at)
            stamps.push_back({kZero + s.arrived, kZero + s.began, kZero + s.prepared,
                              kZero + s.streamed, kZero + s.ended});
    }
    std::byte weights[1]{};
    std::vector<gpu::Phase> phases;
    std::vector<gpu::Stamp> stamps;  // [phase][block]
};

TEST(GpuStamps, BecomeATrace) {
    const Recorded r;
    const test::ScratchFolder folder;
    const auto path = folder.path() / "trace.json";
    gpu::write_trace(path, r.phases, r.stamps);
    const Tracks tracks = read(path);
    for (uint32_t block = 0; block < 2; ++block) {
        const std::vector<Found>& work = tracks.at({block, "work"});
        ASSERT_EQ(work.size(), 4u);
        for (size_t i = 0; i < 4; ++i) {
            EXPECT_EQ(work[i].name, gpu::phase_name(r.phases[i]));
            EXPECT_EQ(work[i].arguments.at("layer"), r.phases[i].layer);
            EXPECT_TRUE(i == 0 || work[i].began >= work[i - 1].ended) << "they do not overlap";
        }
        // Waiting ends where work begins.
        for (const Found& wait : tracks.at({block, "wait"})) {
            const auto after = std::ranges::find(work, wait.ended, &Found::began);
            ASSERT_NE(after, work.end());
            EXPECT_EQ(wait.arguments.at("for"), after->name);
        }
        // Parts fill a matrix's phase from end to end.
        for (const size_t i : {1, 3}) {
            int64_t at = work[i].began;
            for (const Found& part : tracks.at({block, "part"}))
                if (part.began == at && part.ended <= work[i].ended) at = part.ended;
            EXPECT_EQ(at, work[i].ended) << i;
        }
        for (const Found& part : tracks.at({block, "part"}))
            EXPECT_TRUE(part.began < work[2].began || part.began >= work[2].ended)
                << "attention has no parts";
    }
    const Found& down = tracks.at({1, "work"})[3];
    EXPECT_EQ(down.name, "down of experts");
    EXPECT_EQ(down.began, 10272);
    EXPECT_EQ(down.ended, 13440);
    // What took no time is no slice: block 0 found its activations prepared.
    EXPECT_EQ(tracks.at({0, "part"}).size(), 5u);
    EXPECT_EQ(tracks.at({0, "wait"}).size(), 3u);
}

TEST(GpuStamps, AFileThatCannotBeWrittenIsAnError) {
    const Recorded r;
    EXPECT_THROW(gpu::write_trace("/nowhere/trace.json", r.phases, r.stamps), Error);
}

// The same file format from the CPU's workers.
TEST(CpuTrace, IsOneToo) {
    Trace trace(2, 4);
    Tile tile{};
    tile.op = Op::router;
    tile.layer = 3;
    tile.begin = 1;
    tile.end = 2;
    trace.add(0, {tile, 1000, 1500, 2500});
    trace.add(1, {tile, 700, 700, 900});
    const test::ScratchFolder folder;
    trace.write(folder.path() / "trace.json");
    const Tracks tracks = read(folder.path() / "trace.json");
    ASSERT_EQ(tracks.at({0, "work"}).size(), 1u);
    const Found& work = tracks.at({0, "work"})[0];
    EXPECT_EQ(work.name, "router");
    EXPECT_EQ(work.arguments,
              Json({{"layer", 3}, {"rank", 0}, {"slot", 0}, {"begin", 1}, {"end", 2}}));
    EXPECT_EQ(work.began, 1500);
    EXPECT_EQ(tracks.at({0, "wait"})[0].began, 1000);
    EXPECT_FALSE(tracks.contains({1, "wait"}));
}

}  // namespace
}  // namespace tessera
