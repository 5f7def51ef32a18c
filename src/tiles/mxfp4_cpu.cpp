// bf16 becomes MXFP4 without a float anywhere: a threshold times a power of two is the threshold's
// bits with another exponent, so an element is compared with seven integers of 16 bits.
#include "tiles/table_cpu.h"

namespace tessera::TESSERA_ISA {
namespace {

// One register of the instruction set: wider ones are taken apart by the compiler, shuffles a lane
// at a time.
#if defined(__AVX2__)
constexpr uint32_t kLanes = 16;
#else
constexpr uint32_t kLanes = 8;
#endif
using Lanes [[gnu::vector_size(2 * kLanes)]] = int16_t;
using CodePairs [[gnu::vector_size(2 * kLanes)]] = int32_t;
using CodeBytes [[gnu::vector_size(kLanes / 2)]] = uint8_t;
using Eight [[gnu::vector_size(16)]] = int16_t;

constexpr uint32_t kParts = kMxBlock / kLanes;
constexpr int16_t kMagnitude = 0x7fff;  // of a bf16's bits: all but the sign
constexpr int kFieldShift = 7;          // below a bf16's exponent field

// The largest magnitude that the code before each of the upper seven still takes, as a bf16's bits:
// of a tie the even code has it, so of an odd code's lower edge the number just below.
constexpr int16_t kLimits[] = {0x3e80,      // 0.25, a tie for 0
                               0x3f40 - 1,  // 0.75, for 1
                               0x3fa0,      // 1.25, for 1
                               0x3fe0 - 1,  // 1.75, for 2
                               0x4020,      // 2.5, for 2
                               0x4060 - 1,  // 3.5, for 4
                               0x40a0};     // 5, for 4

struct Block {
    Lanes bits[kParts], magnitudes[kParts];
};

// The largest magnitude's bits. Magnitudes compare like their bits.
uint32_t largest_bits(const Block& block) {
    Lanes most = block.magnitudes[0];
    for (const Lanes& some : block.magnitudes) most = some > most ? some : most;
#if defined(__AVX2__)
    const Eight low = __builtin_shufflevector(most, most, 0, 1, 2, 3, 4, 5, 6, 7);
    const Eight high = __builtin_shufflevector(most, most, 8, 9, 10, 11, 12, 13, 14, 15);
    Eight top = low > high ? low : high;
#else
    Eight top = most;
#endif
    // In halves: extracting eight lanes costs 6 % of the whole.
    const auto fold = [&](const Eight& other) { top = other > top ? other : top; };
    fold(__builtin_shufflevector(top, top, 4, 5, 6, 7, 0, 1, 2, 3));
    fold(__builtin_shufflevector(top, top, 2, 3, 0, 1, 6, 7, 4, 5));
    fold(__builtin_shufflevector(top, top, 1, 0, 3, 2, 5, 4, 7, 6));
    return static_cast<uint32_t>(top[0]);
}

// The codes of a block whose scale is 2^exponent: 16 bytes.
void write_codes(const Block& block, int exponent, std::byte* out) {
    const Lanes scale = Lanes{} + static_cast<int16_t>(exponent * (1 << kFieldShift));
    for (uint32_t part = 0; part < kParts; ++part) {
        Lanes code = block.bits[part] >> 12 & 8;  // the sign
        for (const int16_t limit : kLimits)
            code -= block.magnitudes[part] > scale + limit;  // true is -1
        CodePairs pairs;
        std::memcpy(&pairs, &code, sizeof(pairs));
        pairs = (pairs | pairs >> 12) & 0xff;  // the even element low
        const auto bytes = __builtin_convertvector(pairs, CodeBytes);
        std::memcpy(out + part * sizeof(bytes), &bytes, sizeof(bytes));
    }
}

}  // namespace

uint32_t to_mxfp4(const std::byte* row, uint32_t blocks, std::byte* codes, std::byte* scales) {
    constexpr uint32_t kInfinityField = 255, kBias = 127;
    for (uint32_t i = 0; i < blocks; ++i) {
        Block block;
        std::memcpy(block.bits, row + i * sizeof(block.bits), sizeof(block.bits));
        for (uint32_t part = 0; part < kParts; ++part)
            block.magnitudes[part] = block.bits[part] & kMagnitude;
        const uint32_t field = largest_bits(block) >> kFieldShift;
        if (field < kToMxfp4FieldMin || field == kInfinityField) return i;
        const uint32_t byte = field - kE2m1ExponentMax;
        scales[i] = static_cast<std::byte>(byte);
        write_codes(block, static_cast<int>(byte - kBias), codes + i * kMxBlock / 2);
    }
    return blocks;
}

}  // namespace tessera::TESSERA_ISA
