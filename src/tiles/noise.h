// Noise that sampling adds to logits, for the host and the card: the same bits on both, whatever
// libraries they have, so that a text does not depend on which of them chose its tokens. Only
// operations that IEEE 754 rounds one way are used, and none is contracted (the host's code is
// compiled with -ffp-contract=off; the card's names the rounding).
#pragma once

#include <bit>
#include <cstdint>

#ifdef __CUDACC__
#define TESSERA_ANYWHERE __host__ __device__
#else
#define TESSERA_ANYWHERE
#endif

namespace tessera {

TESSERA_ANYWHERE inline double product(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

TESSERA_ANYWHERE inline double sum(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
}

// The natural logarithm of a positive, normal number, to 7e-16 of it: log(m) + e log(2) with
// m about 1, and log(m) = 2 artanh((m - 1) / (m + 1)), whose series ends where the next term is
// below half a last place.
TESSERA_ANYWHERE inline double natural_log(double x) {
    constexpr uint64_t kMantissa = (uint64_t{1} << 52) - 1;
    constexpr double kLog2 = 0.693147180559945309417, kRootHalf = 0.707106781186547524401;
    constexpr double kSeries[] = {1,        1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11,
                                  1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23};
    constexpr int kTerms = sizeof(kSeries) / sizeof(kSeries[0]);
    const auto bits = std::bit_cast<uint64_t>(x);
    int exponent = static_cast<int>(bits >> 52) - 1022;
    double m = std::bit_cast<double>((bits & kMantissa) | uint64_t{1022} << 52);  // 0.5 to 1
    if (m < kRootHalf) {
        m = product(m, 2);
        --exponent;
    }
    const double s = (m - 1) / (m + 1), z = product(s, s);
    double series = kSeries[kTerms - 1];
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
    for (int k = kTerms - 2; k >= 0; --k) series = sum(product(series, z), kSeries[k]);
    return sum(product(exponent, kLog2), product(product(2, s), series));
}

// The finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
TESSERA_ANYWHERE constexpr uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// The noise of all tokens at one position of a text: standard Gumbel, -log(-log(u)) with u from a
// hash of seed, position and token.
class NoiseSource {
  public:
    TESSERA_ANYWHERE NoiseSource(uint64_t seed, uint64_t position)
        : stem_(mix(mix(seed + kGolden) + (position + 1) * kGolden)) {}

    TESSERA_ANYWHERE uint64_t hash(uint32_t token) const {
        return mix(stem_ + (token + 1ull) * kGolden);
    }

    TESSERA_ANYWHERE static float noise(uint64_t hash) {
        // 52 bits and a half are exact; with 53 the half would round the largest u to 1, its noise
        // to infinity.
        const double u = product(static_cast<double>(hash >> 12) + 0.5, 0x1p-52);
        return static_cast<float>(-natural_log(-natural_log(u)));
    }

    // No less than noise(hash), for the price of counting zeros: -log(-log(u)) <= -log(1 - u), and
    // 1 - u has as many leading zeros as the complement of the hash, which is at most one short.
    TESSERA_ANYWHERE static float at_most(uint64_t hash) {
        constexpr float kLog2 = 0.693148f;  // a little more than it is
        const uint64_t rest = ~hash | uint64_t{1} << 11;
#ifdef __CUDA_ARCH__
        const int zeros = __clzll(static_cast<long long>(rest));
#else
        const int zeros = std::countl_zero(rest);
#endif
        return kLog2 * static_cast<float>(zeros + 1);
    }

    // u is at most 1 - 2^-53, so no noise exceeds -log(2^-53).
    static constexpr float kMax = 37.0f;

  private:
    static constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

    uint64_t stem_;
};

}  // namespace tessera
