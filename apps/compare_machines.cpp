// The walk of compare: one program on the debug machine and on the CPU machine, tile by tile.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "runtime/single.h"

#include "compare.h"
#include "report.h"

namespace tessera {
namespace {

std::string tile_text(const Program& p, uint32_t index) {
    const Tile& t = p.tiles[index];
    return fmt::format("tile {} ({}, layer {}, rank {}, {} to {})", index, op_name(t.op), t.layer,
                       t.rank, t.begin, t.end);
}

bool is_phase_end(const Program& p, uint32_t index) {
    return index + 1 == p.tiles.size() || p.tiles[index + 1].op != p.tiles[index].op ||
           p.tiles[index + 1].layer != p.tiles[index].layer;
}

// Buffers whose every written place is a float at its column.
bool is_plain(Value value) {
    switch (value) {
        case Value::residual:
        case Value::normed:
        case Value::query:
        case Value::mixed:
        case Value::partial:
        case Value::scores:
        case Value::logits:
        case Value::tapped:
        case Value::fused:
        case Value::context:
            return true;
        default:
            return false;
    }
}

using Snapshot = std::vector<float>;

Snapshot written_by(const Executor& executor, const StepInput& input, uint32_t tile) {
    const Program& p = executor.program();
    Snapshot values;
    for (const Access& access : accesses(p, p.tiles[tile])) {
        const Buffer& buffer = p.buffers[access.buffer];
        if (!access.write) continue;
        const uint32_t end =
            std::min(access.rows.end, is_context(buffer) ? input.context.rows() : input.rows());
        for (uint32_t row = access.rows.begin; row < end; ++row) {
            if (buffer.value == Value::taps && p.tiles[tile].rank == 0) {
                const uint32_t hidden = p.request.shape.hidden;
                const bf16* const tap = input.taps[row] + size_t{access.columns.begin} * hidden;
                for (uint32_t i = 0; i < hidden; ++i) values.push_back(to_float(tap[i]));
            }
            const bool left_out = buffer.value == Value::logits && row < input.logits_from;
            if (!is_plain(buffer.value) || left_out) continue;
            const std::byte* const bytes = executor.bytes(buffer).data();
            const auto* const from = reinterpret_cast<const float*>(bytes + row * buffer.row_bytes);
            values.insert(values.end(), from + access.columns.begin, from + access.columns.end);
        }
    }
    return values;
}

// The first place where the CPU machine is not the debug machine, and how many phases were walked.
struct BitByBit {
    std::optional<std::string> first;
    uint32_t phases = 0;
};

BitByBit bit_by_bit(const Walk& walk, const std::vector<Snapshot>& snapshots, uint32_t last_tile) {
    const Program& program = walk.program;
    BitByBit result;
    Workers workers(program.request.ranks, program.request.workers, true);
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (uint32_t w = 0; w < workers.count(); ++w)
        scratch.push_back(std::make_unique<Scratch>(program.request));
    for (uint32_t end = 0, begin = 0; end <= last_tile && !result.first; ++end) {
        if (!is_phase_end(program, end) && end < last_tile) continue;
        CpuProgram part(truncated(program, end), walk.weights, walk.kernels,
                        CpuProgram::Extent::truncated);
        const StepInput input = walk.fresh();
        part.begin(input);
        workers.everyone([&](uint32_t w) { part.walk(w, *scratch[w], nullptr, 0); });
        for (uint32_t tile = begin; tile <= end && !result.first; ++tile) {
            const Snapshot found = written_by(part.executor(), input, tile);
            const Snapshot& expected = snapshots[tile];
            for (size_t i = 0; i < expected.size() && !result.first; ++i) {
                if (std::memcmp(&found[i], &expected[i], sizeof(float)) == 0) continue;
                result.first = fmt::format("{}: element {}: expected {}, found {}",
                                           tile_text(program, tile), i, expected[i], found[i]);
            }
        }
        begin = end + 1;
        ++result.phases;
    }
    return result;
}

}  // namespace

void Worst::add(double size, uint32_t at_row, uint32_t at_column, float want, float have) {
    double off = std::fabs(double{have} - want) / size;
    if (std::isnan(off)) off = std::numeric_limits<double>::infinity();
    if (off > difference) *this = {off, at_row, at_column, want, have};
}

double root_mean_square(std::span<const float> row) {
    const double squares = std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
    return std::sqrt(squares / static_cast<double>(row.size())) + 1e-30;
}

void each_written(const Executor& executor, uint32_t tile, Value value, uint32_t rows,
                  const std::function<void(uint32_t, uint32_t, float)>& each) {
    const Program& p = executor.program();
    for (const Access& access : accesses(p, p.tiles[tile])) {
        const Buffer& buffer = p.buffers[access.buffer];
        if (!access.write || buffer.value != value) continue;
        const std::byte* const bytes = executor.bytes(buffer).data();
        for (uint32_t row = access.rows.begin; row < std::min(access.rows.end, rows); ++row) {
            const auto* const from = reinterpret_cast<const float*>(bytes + row * buffer.row_bytes);
            for (uint32_t c = access.columns.begin; c < access.columns.end; ++c)
                each(row, c, from[c]);
        }
    }
}

bool machines_agree(const Walk& walk, double tolerance, uint32_t stop_after) {
    const Program& program = walk.program;
    const auto last_tile = std::min(stop_after, static_cast<uint32_t>(program.tiles.size()) - 1);
    SingleMachine single(program, walk.weights, walk.kernels);
    std::vector<Judgement> by_stage;  // the worst, in the order in which stages come
    std::optional<std::string> first_lie;
    std::vector<Snapshot> snapshots(program.tiles.size());
    const StepInput input = walk.fresh();
    const auto poison = single.step(input, last_tile, [&](uint32_t tile) {
        snapshots[tile] = written_by(single.executor(), input, tile);
        const auto judged = walk.judge(single.executor(), tile);
        if (!judged) return;
        const Worst& worst = judged->worst;
        auto so_far = std::ranges::find(by_stage, judged->stage, &Judgement::stage);
        if (so_far == by_stage.end()) so_far = by_stage.insert(so_far, *judged);
        if (worst.difference > so_far->worst.difference) so_far->worst = worst;
        if (!first_lie && worst.difference > tolerance) {
            first_lie = fmt::format("{}: {}, row {}, column {}: expected {}, found {}",
                                    tile_text(program, tile), judged->stage, worst.row,
                                    worst.column, worst.expected, worst.found);
        }
    });
    std::vector<std::vector<std::string>> table = {{"debug machine against reference", "largest"}};
    for (const Judgement& judged : by_stage)
        table.push_back(
            {std::string(judged.stage), fmt::format("{:.4f}", judged.worst.difference)});
    print_table(table);
    fmt::print("(in units of the row's root mean square; tolerance {})\n\n", tolerance);
    if (poison) fmt::print("POISON: {}\n", *poison);
    if (first_lie) fmt::print("FIRST DIFFERENCE: {}\n", *first_lie);

    const BitByBit bits = bit_by_bit(walk, snapshots, last_tile);
    if (bits.first) {
        fmt::print("CPU MACHINE DIFFERS: {}\n", *bits.first);
    } else {
        fmt::print(
            "the CPU machine equals the debug machine bit for bit, after each of {} phases\n",
            bits.phases);
    }
    return !poison && !first_lie && !bits.first;
}

}  // namespace tessera
