// Names and presence of the kernel tables: what is found is what was asked for, whole.
#include <gtest/gtest.h>

#include "tiles/kernels.h"

namespace tessera {
namespace {

TEST(Isa, PlainLoopsAreEverywhere) {
    ASSERT_NE(find_kernels(Isa::portable), nullptr);
}

TEST(Isa, WhatIsFoundIsWhatWasAskedFor) {
    for (const Isa isa : kIsas) {
        const Kernels* const k = find_kernels(isa);
        if (k == nullptr) continue;
        EXPECT_EQ(k->isa, isa) << isa_name(isa);
        EXPECT_TRUE(k->read && k->multiply && k->multiply_int16 && k->multiply_int8 && k->norm &&
                    k->quantize_int16 && k->quantize_int8 && k->to_mxfp4 && k->gate &&
                    k->add_weighted && k->add_residual && k->attend && k->merge)
            << isa_name(isa);
    }
}

TEST(Isa, TheBestIsTheLastThatIsThere) {
    Isa last = Isa::portable;
    for (const Isa isa : kIsas)
        if (find_kernels(isa) != nullptr) last = isa;
    EXPECT_EQ(best_kernels().isa, last);
}

TEST(Isa, NamesReadBack) {
    for (const Isa isa : kIsas) {
        EXPECT_FALSE(isa_name(isa).empty());
        EXPECT_EQ(isa_of(isa_name(isa)), isa);
    }
    for (const char* name : {"", "AVX2", "avx", "avx5122"}) EXPECT_EQ(isa_of(name), std::nullopt);
}

}  // namespace
}  // namespace tessera
