// Attention and routing of the GPU's kernels on the emulated card, each alone: against sums in
// double, and against the CPU's routes. Whole steps of small models reach neither long caches nor
// ties.
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/gpu/attend.cuh"
#include "runtime/gpu/fill.h"
#include "runtime/gpu/phases.h"

#include "gpu/emulated/card.h"

namespace tessera::gpu {
namespace {

template <typename... Parameters, typename... Arguments>
cudaError_t run(void (*kernel)(Parameters...), uint32_t blocks, uint32_t shared_bytes,
                Arguments... arguments) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = kConsumerThreads;
    config.dynamicSmemBytes = shared_bytes;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// ---- attention

__global__ void attend_alone(const Network* net, const Phase* phase, const Step* step) {
    View view{*net, emulated::shared_memory()};
    if (threadIdx.x == 0) {
        view.step() = *step;
        view.counts() = {};
    }
    sync_consumers();
    attend(view, *phase);
}

struct Text {
    uint32_t position, rows;  // of the step
    uint32_t seen_from = 0;
};

class Attention {
  public:
    Attention(const AttentionShape& shape, uint32_t context, bool sinks)
        : heads_(heads_of(shape, 1, 0, context)), sinks_(shape.heads) {
        const uint32_t all = padded(context, kKeyTile);
        phase_.op = Op::attend;
        phase_.cache = {0, shape.window == 0 ? all : std::min(all, padded(shape.window + 80, 16))};
        for (float& sink : sinks_) sink = draw();
        phase_.vector = sinks ? sinks_.data() : nullptr;
        SharedNeeds needs;
        needs.sums = 1;
        needs.activations = attention_bytes(shape.head_dim, heads_.dims);
        net_.shared = lay_out(needs, 227 << 10);
        net_.full = heads_;
        net_.part_chunks = context / heads_.chunk + 3;
    }

    // The largest difference from what it ought to be, of outputs between -1 and 1.
    double off_by(const std::vector<Text>& texts, uint32_t blocks) {
        Step step{};
        std::vector<std::vector<uint16_t>> caches;
        std::vector<std::vector<std::vector<float>>> keys, values;  // text, position, kv and dim
        const Heads& h = heads_;
        for (const Text& text : texts) {
            caches.emplace_back(phase_.cache.bytes(h) / 2);  // cleared, as a new text's is
            keys.emplace_back();
            values.emplace_back();
            for (uint32_t p = 0; p < text.position + text.rows; ++p)
                place(caches.back(), p, keys.back().emplace_back(), values.back().emplace_back());
            step.run[step.runs++] = {step.rows, text.rows, text.position, text.seen_from,
                                     reinterpret_cast<std::byte*>(caches.back().data())};
            for (uint32_t i = 0; i < text.rows; ++i)
                step.positions[step.rows++] = text.position + i;
        }
        std::vector<uint16_t> query(kRowsMax * h.heads * h.head_dim),
            mixed(kRowsMax * h.heads * h.v_head_dim);
        for (uint16_t& q : query) q = static_cast<uint16_t>(to_bf16_bits(2 * draw()));
        const uint32_t tiles = h.kv_heads * (h.group() * kRowsMax / 16 + kRowsMax) * h.dim_shares;
        std::vector<float> parts(size_t{tiles} * net_.part_chunks * part_floats(h.dims));
        std::vector<uint32_t> arrivals(tiles);
        net_.query = query.data();
        net_.mixed = mixed.data();
        net_.parts = parts.data();
        net_.arrivals = arrivals.data();
        EXPECT_EQ(run(attend_alone, blocks, net_.shared.bytes, &net_, &phase_, &step), cudaSuccess);
        double worst = 0;
        for (uint32_t t = 0; t < texts.size(); ++t) {
            for (uint32_t i = 0; i < texts[t].rows; ++i) {
                const uint32_t row = step.run[t].first + i, position = texts[t].position + i;
                const uint32_t first =
                    std::max(texts[t].seen_from,
                             h.window > 0 && position >= h.window ? position - h.window + 1 : 0);
                for (uint32_t head = 0; head < h.heads; ++head) {
                    const auto expected = plain(&query[(size_t{row} * h.heads + head) * h.head_dim],
                                                head, keys[t], values[t], first, position + 1);
                    for (uint32_t d = 0; d < h.v_head_dim; ++d) {
                        const float found =
                            from_bf16(mixed[(size_t{row} * h.heads + head) * h.v_head_dim + d]);
                        worst = std::max(worst, std::abs(found - expected[d]));
                        if (std::isnan(found)) worst = INFINITY;
                    }
                }
            }
        }
        return worst;
    }

  private:
    float draw() { return static_cast<float>(random_() % 2001) / 1000.0f - 1; }
    float draw_bf16() { return from_bf16(to_bf16_bits(draw())); }

    void place(std::vector<uint16_t>& cache, uint32_t position, std::vector<float>& keys,
               std::vector<float>& values) {
        const Heads& h = heads_;
        const uint32_t at = position % phase_.cache.ring;
        for (uint32_t kv = 0; kv < h.kv_heads; ++kv) {
            uint16_t* const k =
                cache.data() + kv * (phase_.cache.key_bytes(h) + phase_.cache.value_bytes(h)) / 2;
            uint16_t* const v = k + phase_.cache.key_bytes(h) / 2;
            for (uint32_t d = 0; d < h.head_dim; ++d) {
                keys.push_back(draw_bf16());
                k[(at / 16 * (h.head_dim / 2) + d / 2) * 32 + at % 16 * 2 + d % 2] =
                    static_cast<uint16_t>(to_bf16_bits(keys.back()));
            }
            for (uint32_t d = 0; d < h.v_head_dim; ++d) {
                values.push_back(draw_bf16());
                v[(at / 2 * h.v_head_dim + d) * 2 + at % 2] =
                    static_cast<uint16_t>(to_bf16_bits(values.back()));
            }
        }
    }

    std::vector<double> plain(const uint16_t* query, uint32_t head,
                              const std::vector<std::vector<float>>& keys,
                              const std::vector<std::vector<float>>& values, uint32_t first,
                              uint32_t end) const {
        const Heads& h = heads_;
        const uint32_t kv = head / h.group();
        std::vector<double> out(h.v_head_dim);
        double total = phase_.vector != nullptr ? std::exp(double{sinks_[head]}) : 0;
        for (uint32_t p = first; p < end; ++p) {
            double score = 0;
            for (uint32_t d = 0; d < h.head_dim; ++d)
                score += double{from_bf16(query[d])} * keys[p][kv * h.head_dim + d];
            const double weight = std::exp(score * h.scale);
            total += weight;
            for (uint32_t d = 0; d < h.v_head_dim; ++d)
                out[d] += weight * values[p][kv * h.v_head_dim + d];
        }
        for (double& x : out) x /= total;
        return out;
    }

    std::mt19937 random_{7};
    Heads heads_;
    std::vector<float> sinks_;
    Phase phase_{};
    Network net_{};
};

AttentionShape shape_of(uint32_t heads, uint32_t kv, uint32_t dim, uint32_t v, uint32_t window) {
    AttentionShape a{};
    a.heads = heads;
    a.kv_heads = kv;
    a.head_dim = dim;
    a.v_head_dim = v;
    a.rotary_dims = dim;
    a.window = window;
    return a;
}

TEST(EmulatedTiles, AttentionIsASumOverWhatIsSeen) {
    constexpr double kNear = 6e-3;  // of bf16, between -1 and 1
    // Chunks of 320 keys, so that each warp of a block has two tiles of a chunk, and of 160.
    for (const uint32_t context : {4096, 1024}) {
        SCOPED_TRACE(context);
        EXPECT_LT(Attention(shape_of(16, 1, 192, 128, 0), context, false).off_by({{300, 8}}, 3),
                  kNear);
        EXPECT_LT(Attention(shape_of(8, 2, 192, 128, 128), context, true)
                      .off_by({{500, 3}, {0, 1}, {77, 4}}, 3),
                  kNear);
    }
    EXPECT_LT(Attention(shape_of(4, 4, 16, 16, 0), 4096, true).off_by({{1000, 8}}, 3), kNear);
    EXPECT_LT(Attention(shape_of(6, 2, 48, 80, 0), 4096, false).off_by({{200, 5, 90}}, 3), kNear);
    EXPECT_LT(Attention(shape_of(2, 1, 128, 64, 200), 2048, true).off_by({{640, 8}}, 1), kNear);
}

// ---- routing

__global__ void route_alone(const float* scores, const float* bias, uint32_t rows, uint32_t experts,
                            uint32_t per_token, Routing* out) {
    auto& routing = *reinterpret_cast<Routing*>(emulated::shared_memory());
    if (threadIdx.x < sizeof(routing.pair) / 4)
        reinterpret_cast<uint32_t*>(routing.pair)[threadIdx.x] = ~0u;
    if (threadIdx.x < kRouteExperts / 32) routing.wanted[threadIdx.x] = 0;
    sync_consumers();
    const uint32_t warp = threadIdx.x / 32;
    if (warp < rows) {
        RowScores own(scores + warp * experts, bias, experts);
        choose_experts(own, experts, per_token, true, 2.5f, warp, routing);
    }
    sync_consumers();
    if (warp < rows) fill_slots(warp, per_token, routing);
    sync_consumers();
    if (threadIdx.x == 0) *out = routing;
}

TEST(EmulatedTiles, RoutesAreTheCpus) {
    std::mt19937 random(11);
    for (uint32_t turn = 0; turn < 40; ++turn) {
        SCOPED_TRACE(turn);
        const uint32_t rows = 1 + turn % 8, per_token = 1 + turn * 5 % 8;
        const uint32_t experts = std::max(per_token, turn % 4 == 0 ? 384 : 8 + turn * 9);
        // Few values, so that many are equal: within a lane, and across lanes.
        const uint32_t values = turn % 3 == 0 ? 3 : turn % 3 == 1 ? 1 : 100000;
        std::vector<float> scores(rows * experts), bias(experts);
        for (float& x : scores)
            x = static_cast<float>(random() % values) / static_cast<float>(values);
        for (float& x : bias) x = turn % 2 == 0 ? 0 : static_cast<float>(random() % 5) * 0.01f;
        Routing found;
        ASSERT_EQ(run(route_alone, 1, sizeof(Routing), scores.data(), bias.data(), rows, experts,
                      per_token, &found),
                  cudaSuccess);
        const RouteShape shape{rows, experts, per_token};
        std::vector<std::byte> memory(route_bytes(rows, per_token, experts));
        const Routes routes = routes_at(memory.data(), shape);
        route(scores.data(), experts, rows, shape, {bias.data(), true, 2.5f}, routes);
        ASSERT_EQ(found.live, *routes.live);
        for (uint32_t slot = 0; slot < found.live; ++slot) {
            EXPECT_EQ(found.expert[slot], routes.expert[slot]);
            std::vector<uint32_t> pairs;
            for (const uint8_t pair : found.pair[slot])
                if (pair != kNoPair) pairs.push_back(pair);
            EXPECT_EQ(pairs, std::vector<uint32_t>(routes.pair + routes.first[slot],
                                                   routes.pair + routes.first[slot + 1]));
        }
        for (uint32_t pair = 0; pair < rows * per_token; ++pair) {
            EXPECT_EQ(found.chosen[pair], routes.chosen[pair]);
            EXPECT_NEAR(found.weight[pair], routes.weight[pair], 1e-5f);
        }
        for (uint32_t row = 0; row < rows; ++row)
            for (uint32_t c = 1; c < per_token; ++c)
                EXPECT_LT(found.chosen[found.order[row * per_token + c - 1]],
                          found.chosen[found.order[row * per_token + c]]);
    }
}

// ---- panels

TEST(EmulatedTiles, ACodeThatIsNoNumberTakesItsRowsScaleWithIt) {
    std::vector<uint32_t> panel(panel_bytes(Format::fp8) / 4, 0x38383838u);  // ones
    for (uint32_t row = 0; row < kUnitRows; ++row) panel[row] = std::bit_cast<uint32_t>(0.25f);
    panel[kUnitRows * 3 + 5] = 0x38ff3838u;  // of row 5
    ASSERT_EQ(
        arrange_panels(reinterpret_cast<std::byte*>(panel.data()), panel.size() * 4, Format::fp8),
        cudaSuccess);
    cudaDeviceSynchronize();
    for (uint32_t row = 0; row < kUnitRows; ++row) {
        if (row == 5) {
            EXPECT_TRUE(std::isnan(from_bf16(panel[row] & 0xffffu)));
        } else {
            EXPECT_EQ(panel[row], e4m3_scale_for_gpu(0.25f)) << row;
        }
    }
}

}  // namespace
}  // namespace tessera::gpu
