// Any model that can be cut over its ranks, on any machine: its plan passes the check, as do those
// that keep taps and those of a drafter. And with one harm done to its queues, counts or signals,
// the check says something or nothing, but ends.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <span>

#include "base/check.h"
#include "plan/check.h"
#include "plan/program.h"

namespace {

using namespace tessera;

// The input byte by byte; behind its end, zeros.
class Bytes {
  public:
    explicit Bytes(std::span<const uint8_t> bytes) : left_(bytes) {}

    uint32_t byte() {
        if (left_.empty()) return 0;
        const uint32_t value = left_.front();
        left_ = left_.subspan(1);
        return value;
    }
    // From low to high.
    uint32_t between(uint32_t low, uint32_t high) {
        const uint32_t value = byte() << 8 | byte();
        return low + value % (high - low + 1);
    }
    bool flag() { return byte() % 2 == 1; }
    bool at_end() const { return left_.empty(); }

  private:
    std::span<const uint8_t> left_;
};

// Small sizes: what is wrong with a plan is wrong with a small one. Pages of keys and windows are
// the real ones.
AttentionShape attention(Bytes& bytes, bool sliding) {
    AttentionShape a{};
    a.kv_heads = 1u << bytes.between(0, 3);
    a.heads = a.kv_heads * bytes.between(1, 4);
    a.head_dim = 2 * bytes.between(1, 20);
    a.v_head_dim = bytes.between(1, 40);
    a.rotary_dims = 2 * bytes.between(1, a.head_dim / 2);
    a.rope_theta = 10000;
    a.window = sliding ? bytes.between(1, 1200) : 0;
    a.sink = sliding;
    return a;
}

PlanRequest request(Bytes& bytes) {
    PlanRequest r;
    r.ranks = kRankCounts[bytes.between(0, 3)];
    r.workers = bytes.between(1, 20);
    r.rows = bytes.between(1, 16);
    r.context = bytes.between(1, 3000);
    r.blocks = static_cast<Blocks>(bytes.between(0, 2));
    Shape& s = r.shape;
    s.model_type = "mimo_v2";
    s.layers = bytes.between(1, 8);
    for (uint32_t i = 0; i < s.layers; ++i) {
        s.is_sliding.push_back(bytes.flag());
        s.is_moe.push_back(bytes.flag());
    }
    s.full = attention(bytes, false);
    s.sliding = attention(bytes, true);
    s.quantization.fp8 = bytes.flag();
    s.quantization.mxfp4_experts = s.quantization.fp8 && bytes.flag();
    // Whole blocks of MXFP4, also in a rank's part.
    const uint32_t block = s.quantization.mxfp4_experts || r.ranks > 1 ? kMxBlock : 1;
    s.hidden = padded(bytes.between(1, 400), block);
    s.vocab = bytes.between(8, 400);
    s.dense_width = padded(bytes.between(1, 500), block * r.ranks);
    s.expert_width = padded(bytes.between(1, 500), block * r.ranks);
    s.experts = bytes.between(1, 16);
    s.experts_per_token = bytes.between(1, s.experts);
    s.context_max = r.context;
    return r;
}

// A drafter of that target, on the same machine: a block, or the context alone.
std::optional<PlanRequest> draft_request(Bytes& bytes, PlanRequest r) {
    DrafterShape d{};
    d.hidden = r.shape.hidden;
    d.layers = bytes.between(1, 5);
    d.width = padded(bytes.between(1, 500), r.ranks > 1 ? kMxBlock * r.ranks : 1);
    d.attention = attention(bytes, false);
    d.attention.head_dim = kUnitRows * bytes.between(1, 4);
    d.attention.rotary_dims = 2 * bytes.between(1, d.attention.head_dim / 2);
    // Windows around a chunk of keys, where a block of rows decides how many it reaches.
    d.attention.window = bytes.flag() ? bytes.between(1, 1200) : bytes.between(0, 1) * 505;
    d.taps.resize(bytes.between(1, 6));
    if (drafter_ranks_problem(d, r.ranks)) return std::nullopt;
    r.shape = layers_of(d, r.shape);
    r.blocks = Blocks::none;
    r.taps.clear();
    r.rows = bytes.flag() ? bytes.between(1, 16) : 0;
    r.draft = {.context_rows = bytes.between(1, 80), .taps = static_cast<uint32_t>(d.taps.size())};
    return r;
}

// Some tile's place in the queues; none if all are empty.
uint32_t* some_place(Program& p, Bytes& bytes) {
    std::vector<uint32_t>& queue = p.queues[bytes.between(0, 65535) % p.queues.size()];
    return queue.empty() ? nullptr : &queue[bytes.between(0, 65535) % queue.size()];
}

void harm(Program& p, Bytes& bytes) {
    Tile& tile = p.tiles[bytes.between(0, 65535) % p.tiles.size()];
    const uint32_t other = bytes.between(0, 65535);
    std::vector<uint32_t>& queue = p.queues[other % p.queues.size()];
    const auto event = static_cast<uint32_t>(other % (p.signals.size() + 2));
    switch (bytes.between(0, 9)) {
        case 0:
            tile.count = other;
            break;
        case 1:
            --tile.count;
            break;
        case 2:
            tile.wait = event;
            break;
        case 3:
            tile.done = event;
            break;
        case 4:
            p.signals[other % p.signals.size()] = bytes.between(0, 65535);
            break;
        case 5:
            p.signals.resize(event);
            break;
        case 6:
            if (!queue.empty()) queue.pop_back();
            break;
        case 7:
            queue.push_back(bytes.between(0, 65535));
            break;
        case 8: {
            uint32_t *const a = some_place(p, bytes), *const b = some_place(p, bytes);
            if (a != nullptr && b != nullptr) std::swap(*a, *b);
            break;
        }
        default:
            p.queues.resize(other % 40);
    }
}

void prove(const PlanRequest& r, Bytes& bytes) {
    Program program = plan(r);
    const auto fault = check(program);
    if (fault) std::fprintf(stderr, "%s\n", fault->c_str());
    CHECK(!fault);
    harm(program, bytes);
    check(program);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Bytes bytes({data, size});
    PlanRequest r = request(bytes);
    if (ranks_problem(r.shape, r.ranks)) return 0;
    prove(r, bytes);
    if (bytes.at_end()) return 0;
    for (uint32_t layer = 0; layer < r.shape.layers; ++layer)
        if (bytes.flag()) r.taps.push_back(layer);
    if (!r.taps.empty()) prove(r, bytes);
    if (bytes.at_end()) return 0;
    if (const auto draft = draft_request(bytes, r)) prove(*draft, bytes);
    return 0;
}
