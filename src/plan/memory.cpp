#include "plan/memory.h"

#include <algorithm>
#include <numeric>

namespace tessera {
namespace {

// Indices of tiles, in the defining order, from the first write of a content to its last access.
struct Life {
    uint32_t begin, end;
};

// A write after a read begins a new content: every op writes its buffer whole, over its tiles,
// before anyone reads it. (The stream is read and written in one tile: one long life.) What other
// ranks read lives always: they may be phases behind.
std::vector<std::vector<Life>> lives(const Program& program) {
    std::vector<std::vector<Life>> lives(program.buffers.size());
    std::vector<bool> was_read(program.buffers.size(), true);
    for (uint32_t b = 0; b < program.buffers.size(); ++b) {
        if (program.buffers[b].value == Value::partial)
            lives[b] = {{0, static_cast<uint32_t>(program.tiles.size() - 1)}};
    }
    for (uint32_t i = 0; i < program.tiles.size(); ++i) {
        const std::vector<Access> touched = accesses(program, program.tiles[i]);
        const auto reads_too = [&](uint32_t buffer) {
            return std::ranges::any_of(
                touched, [&](const Access& a) { return a.buffer == buffer && !a.write; });
        };
        for (const Access& access : touched) {
            if (program.buffers[access.buffer].value == Value::partial) continue;
            std::vector<Life>& all = lives[access.buffer];
            const bool renews =
                access.write && was_read[access.buffer] && !reads_too(access.buffer);
            if (all.empty() || renews) {
                all.push_back({i, i});
                was_read[access.buffer] = false;
            }
            all.back().end = i;
            if (!access.write) was_read[access.buffer] = true;
        }
    }
    return lives;
}

// Tiles of neighbouring phases run side by side: a life is widened to whole phases.
void widen(const Program& program, std::vector<std::vector<Life>>& lives) {
    // Tiles of a rank that wait for the same event; those of a phase need not stand together.
    std::vector<uint32_t> phase(program.tiles.size());
    std::vector<uint32_t> now(program.request.ranks), event(program.request.ranks, kNoEvent);
    for (uint32_t i = 0; i < program.tiles.size(); ++i) {
        const Tile& tile = program.tiles[i];
        if (tile.wait != event[tile.rank]) ++now[tile.rank];
        event[tile.rank] = tile.wait;
        phase[i] = now[tile.rank];
    }
    for (auto& all : lives)
        for (Life& life : all) life = {phase[life.begin], phase[life.end]};
}

bool meet(const std::vector<Life>& a, const std::vector<Life>& b) {
    for (const Life& x : a) {
        for (const Life& y : b)
            if (x.begin <= y.end && y.begin <= x.end) return true;
    }
    return false;
}

}  // namespace

void lay_out_buffers(Program& program) {
    std::vector<std::vector<Life>> all = lives(program);
    widen(program, all);
    // Largest first, each at the lowest place where it meets no one.
    std::vector<uint32_t> order(program.buffers.size());
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        return program.buffers[a].bytes() > program.buffers[b].bytes();
    });
    std::vector<uint32_t> placed;
    for (const uint32_t index : order) {
        Buffer& buffer = program.buffers[index];
        if (buffer.bytes() == 0) continue;
        std::vector<std::pair<uint64_t, uint64_t>> taken;
        for (const uint32_t other : placed) {
            const Buffer& o = program.buffers[other];
            if (o.rank == buffer.rank && meet(all[index], all[other]))
                taken.emplace_back(o.offset, o.offset + o.bytes());
        }
        std::ranges::sort(taken);
        buffer.offset = 0;
        for (const auto& [begin, end] : taken) {
            if (buffer.offset + buffer.bytes() <= begin) break;
            buffer.offset = std::max(buffer.offset, end);
        }
        program.arena_bytes = std::max(program.arena_bytes, buffer.offset + buffer.bytes());
        placed.push_back(index);
    }
}

}  // namespace tessera
