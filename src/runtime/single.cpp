#include "runtime/single.h"

#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "base/check.h"
#include "plan/check.h"

namespace tessera {
namespace {

constexpr int kPoison = 0xff;  // four of them are a NaN, two of them a bf16 NaN

// Bytes of an element whose NaN is poison; 0 where bytes are no numbers, or not all of them.
uint32_t element_bytes(Value value) {
    switch (value) {
        case Value::residual:
        case Value::angles:
        case Value::partial:
        case Value::scores:
        case Value::logits:
            return 4;
        case Value::normed:
        case Value::query:
        case Value::mixed:
            return 2;
        // Which rows of `gated` and which chunks of `parts` are live is data.
        case Value::normed_int8:
        case Value::cache:
        case Value::parts:
        case Value::routes:
        case Value::gated:
        case Value::gated_int8:
            return 0;
    }
    return 0;
}

bool is_nan(const std::byte* at, uint32_t bytes) {
    if (bytes == 2) {
        bf16 half;
        std::memcpy(&half, at, 2);
        return std::isnan(to_float(half));
    }
    float value;
    std::memcpy(&value, at, 4);
    return std::isnan(value);
}

}  // namespace

SingleMachine::SingleMachine(const Program& program, const PackedWeights& weights,
                             const Kernels& kernels)
    : program_(program), executor_(program, weights, kernels), scratch_(program.request) {
    CHECK(!check(program));
}

std::optional<std::string> SingleMachine::poison_in(uint32_t tile, bool written,
                                                    uint32_t rows) const {
    for (const Access& access : accesses(program_, program_.tiles[tile])) {
        const Buffer& buffer = program_.buffers[access.buffer];
        const uint32_t bytes = element_bytes(buffer.value);
        if (access.write != written || bytes == 0) continue;
        const std::byte* const data = executor_.bytes(buffer).data();
        for (uint32_t row = access.rows.begin; row < std::min(access.rows.end, rows); ++row) {
            for (uint32_t column = access.columns.begin; column < access.columns.end; ++column) {
                if (!is_nan(data + row * buffer.row_bytes + column * bytes, bytes)) continue;
                return fmt::format("tile {} ({}, layer {}) {} poison: {} row {}, column {}", tile,
                                   op_name(program_.tiles[tile].op), program_.tiles[tile].layer,
                                   written ? "wrote" : "would read", value_name(buffer.value), row,
                                   column);
            }
        }
    }
    return std::nullopt;
}

std::optional<std::string> SingleMachine::step(const StepInput& input, uint32_t stop_after,
                                               const std::function<void(uint32_t)>& after) {
    CHECK(input.rows() > 0 && input.rows() <= program_.request.rows);
    for (uint32_t rank = 0; rank < program_.request.ranks; ++rank) {
        const std::span<std::byte> memory = executor_.memory(rank);
        std::memset(memory.data(), kPoison, memory.size());
    }
    executor_.begin(input);
    for (uint32_t i = 0; i < program_.tiles.size() && i <= stop_after; ++i) {
        // Rows without logits leave theirs poison.
        const bool partial = program_.tiles[i].op == Op::head && input.logits_from > 0;
        if (auto fault = poison_in(i, false, input.rows())) return fault;
        executor_.run(program_.tiles[i], scratch_);
        if (!partial)
            if (auto fault = poison_in(i, true, input.rows())) return fault;
        if (after) after(i);
    }
    return std::nullopt;
}

}  // namespace tessera
