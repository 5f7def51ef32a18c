#include "runtime/single.h"

#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "base/check.h"
#include "plan/check.h"

namespace tessera {
namespace {

constexpr int kPoison = 0xff;  // four bytes of it are a NaN

// Whether all of the value's written places are floats, so that a NaN there is poison.
bool is_floats(Value value) {
    switch (value) {
        case Value::residual:
        case Value::angles:
        case Value::normed:
        case Value::query:
        case Value::mixed:
        case Value::partial:
        case Value::scores:
        case Value::logits:
        case Value::tapped:
        case Value::fused:
        case Value::context:
        case Value::context_angles:
            return true;
        // Which rows of `gated` and which chunks of `parts` are live is data.
        case Value::normed_blocks:
        case Value::cache:
        case Value::parts:
        case Value::routes:
        case Value::gated:
        case Value::gated_blocks:
        case Value::taps:
            return false;
    }
    return false;
}

}  // namespace

SingleMachine::SingleMachine(const Program& program, const PackedWeights& weights,
                             const Kernels& kernels)
    : program_(program), executor_(program, weights, kernels), scratch_(program.request) {
    CHECK(!check(program));
}

std::optional<std::string> SingleMachine::poison_in(uint32_t tile, bool written,
                                                    const StepInput& input) const {
    for (const Access& access : accesses(program_, program_.tiles[tile])) {
        const Buffer& buffer = program_.buffers[access.buffer];
        if (access.write != written || !is_floats(buffer.value)) continue;
        const std::byte* const data = executor_.bytes(buffer).data();
        const uint32_t rows = is_context(buffer) ? input.context.rows() : input.rows();
        for (uint32_t row = access.rows.begin; row < std::min(access.rows.end, rows); ++row) {
            const auto* const values =
                reinterpret_cast<const float*>(data + row * buffer.row_bytes);
            for (uint32_t column = access.columns.begin; column < access.columns.end; ++column) {
                if (!std::isnan(values[column])) continue;
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
    CHECK(input.rows() <= program_.request.rows);
    CHECK(input.context.rows() <= program_.request.context_rows());
    for (uint32_t rank = 0; rank < program_.request.ranks; ++rank) {
        const std::span<std::byte> memory = executor_.memory(rank);
        std::memset(memory.data(), kPoison, memory.size());
    }
    executor_.begin(input);
    for (uint32_t i = 0; i < program_.tiles.size() && i <= stop_after; ++i) {
        // Rows without logits leave theirs poison.
        const bool partial = program_.tiles[i].op == Op::head && input.logits_from > 0;
        if (auto fault = poison_in(i, false, input)) return fault;
        executor_.run(program_.tiles[i], scratch_);
        if (!partial)
            if (auto fault = poison_in(i, true, input)) return fault;
        if (after) after(i);
    }
    return std::nullopt;
}

}  // namespace tessera
