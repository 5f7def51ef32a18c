// bf16 to mxfp4 in every instruction set: which blocks a kernel does itself. What it makes of them
// is held against an oracle in tests/weights/quantize_test.cpp.
#include <vector>

#include "tiles/support.h"

namespace tessera {
namespace {

class Mxfp4 : public test::EachIsa {};
INSTANTIATE_TEST_SUITE_P(All, Mxfp4, testing::ValuesIn(kIsas), test::isa_test_name);

constexpr uint32_t kBlocks = 5;
constexpr std::byte kUntouched{0xa5};

struct Done {
    uint32_t blocks;
    std::vector<std::byte> codes, scales;
};

// kBlocks blocks of ones, with `bits` somewhere in the last but one.
Done run(const Kernels& kernels, uint16_t bits) {
    std::vector<uint16_t> row(kBlocks * kMxBlock, to_bf16(1).bits);
    for (uint32_t i = 0; i < kMxBlock; ++i) row[3 * kMxBlock + i] = 0;
    row[3 * kMxBlock + 17] = bits;
    Done done{0, std::vector<std::byte>(row.size() / 2, kUntouched),
              std::vector<std::byte>(kBlocks, kUntouched)};
    done.blocks = kernels.to_mxfp4(reinterpret_cast<const std::byte*>(row.data()), kBlocks,
                                   done.codes.data(), done.scales.data());
    return done;
}

TEST_P(Mxfp4, OrdinaryBlocksAreAllDone) {
    for (const uint32_t field : {kToMxfp4FieldMin, 127u, 254u}) {
        const Done done = run(kernels(), static_cast<uint16_t>(field << 7));
        EXPECT_EQ(done.blocks, kBlocks) << field;
        EXPECT_EQ(std::to_integer<uint32_t>(done.scales[3]), field - kE2m1ExponentMax);
        // The one at 17 is 4 times its scale; so are all of the others.
        EXPECT_EQ(std::to_integer<uint32_t>(done.codes[3 * 16 + 8]), 0x60u);
        EXPECT_EQ(std::to_integer<uint32_t>(done.codes[0]), 0x66u);
    }
}

TEST_P(Mxfp4, TheRestIsLeftToTheCaller) {
    for (const uint16_t bits :
         std::vector<uint16_t>{0x0000, 0x8000, 0x0001, 0x01ff, 0x027f, 0x7f80, 0xff80, 0x7fc0}) {
        const Done done = run(kernels(), bits);
        EXPECT_EQ(done.blocks, 3u) << bits;
        for (size_t i = 3; i < kBlocks; ++i) EXPECT_EQ(done.scales[i], kUntouched) << bits;
        for (size_t i = 3 * 16; i < done.codes.size(); ++i)
            EXPECT_EQ(done.codes[i], kUntouched) << bits;
    }
}

}  // namespace
}  // namespace tessera
