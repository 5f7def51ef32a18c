// The CPU machine against the reference, and against itself: a row's numbers do not depend on how
// many rows share a step, on how many workers run it, or on who is beside it.
#include <gtest/gtest.h>

#include "runtime/support.h"

namespace tessera {
namespace {

using test::kContext;
using test::Reader;
using test::relative_difference;
using test::seeded_tokens;
using test::Toy;

// What bf16 rounding at other places than the reference's sums moves logits by, at most.
constexpr double kTolerance = 2e-2;

std::vector<float> reference_logits(const Weights& weights, std::span<const uint32_t> tokens) {
    const Reference reference(weights, Rounding::bf16);
    Reference::Cache cache;
    return reference.logits(reference.forward(cache, tokens));
}

class EachIsa : public testing::TestWithParam<Isa> {
  protected:
    void SetUp() override {
        kernels = find_kernels(GetParam());
        if (kernels == nullptr) GTEST_SKIP() << "this processor has no " << isa_name(GetParam());
    }
    CpuOptions options(uint32_t workers = 1, uint32_t ranks = 1) const {
        CpuOptions o;
        o.ranks = ranks;
        o.workers = workers;
        o.context = kContext;
        o.pin = false;
        o.kernels = kernels;
        return o;
    }
    const Kernels* kernels = nullptr;
};

std::string name_of(const testing::TestParamInfo<Isa>& info) {
    std::string name(isa_name(info.param));
    std::ranges::replace(name, '-', '_');
    return name;
}

TEST_P(EachIsa, ComputesWhatTheReferenceDoes) {
    const Toy toy(test::toy_shape());
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(40, packed.shape.vocab);
    CpuMachine machine(packed, options());
    const auto logits = Reader(machine).read_all(tokens, 5);
    const double difference = relative_difference(logits, reference_logits(toy.weights, tokens));
    RecordProperty("difference", std::to_string(difference));
    std::printf("%s: %.2e\n", std::string(isa_name(GetParam())).c_str(), difference);
    EXPECT_LT(difference, kTolerance);
}

TEST_P(EachIsa, Int8ActivationsCostLittle) {
    const Toy toy(test::toy_shape());
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(40, packed.shape.vocab);
    CpuOptions int8 = options();
    int8.int8_activations = true;
    CpuMachine machine(packed, int8);
    const auto logits = Reader(machine).read_all(tokens, 5);
    const double difference = relative_difference(logits, reference_logits(toy.weights, tokens));
    std::printf("%s, int8: %.2e\n", std::string(isa_name(GetParam())).c_str(), difference);
    EXPECT_LT(difference, 0.5);  // random weights: routes flip
    EXPECT_NE(logits, Reader(*std::make_unique<CpuMachine>(packed, options())).read_all(tokens, 5));
}

TEST_P(EachIsa, RowsAndWorkersChangeNoBit) {
    const Toy toy(test::toy_shape());
    const PackedWeights packed = toy.pack();
    const auto tokens = seeded_tokens(70, packed.shape.vocab);
    CpuMachine alone(packed, options());
    const auto expected = Reader(alone).read_all(tokens, 1);
    for (const uint32_t workers : {1u, 2u, 3u, 7u}) {
        CpuMachine machine(packed, options(workers));
        for (const size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 23, 64})
            EXPECT_EQ(Reader(machine).read_all(tokens, rows), expected)
                << workers << " workers, " << rows << " rows";
    }
}

INSTANTIATE_TEST_SUITE_P(All, EachIsa, testing::ValuesIn(kIsas), name_of);

}  // namespace
}  // namespace tessera
