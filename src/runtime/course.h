// Where a sequence stands, whatever machine keeps its keys and values: how long it is, how far it
// can go back, and what its drafter has taken in. It touches no memory; it says what has to be
// copied.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "model/shape.h"
#include "runtime/kv_cache.h"

namespace tessera {

// Marks of a sequence; the oldest makes room for a new one.
inline constexpr uint32_t kMarks = 8;

// Rows of taps that a sequence keeps for its drafter: all that the window can still want, and what
// one read adds. Without a window nothing may be lost, so what waits is taken in before it is
// overwritten.
inline uint32_t taps_ring(const DrafterShape& drafter) {
    return drafter.attention.window + 2 * kStepRowsMax;
}

class Course {
  public:
    // `taps_ring`: rows of taps that are kept; 0: nothing is drafted.
    explicit Course(uint32_t taps_ring = 0) : taps_ring_(taps_ring) {}

    uint32_t length() const { return length_; }        // tokens read
    uint32_t drafted() const { return drafted_; }      // of them, the drafter has taken in
    uint32_t seen_from() const { return seen_from_; }  // the first of those that it still has

    // Where the taps of a position are kept.
    uint32_t taps_row(uint32_t position) const { return position % taps_ring_; }

    // The rings of the sliding layers, as they are now, belong to the mark that is returned
    // (below kMarks).
    uint32_t mark();

    struct Return {
        uint32_t length;
        std::optional<uint32_t> mark;  // whose rings come back
    };
    // To the last place at or before `length` that can be: `length` itself if it is a mark, or no
    // more than kStepRowsMax before the furthest token read since the mark before it; else a mark,
    // or the start.
    Return rewind(uint32_t length);

    // `rows` more are read next, their taps kept or not. Taps that are overwritten before they were
    // taken in are lost, and with them, for the drafter, all that came before.
    void make_room(uint32_t rows, bool kept);
    // Whether that would overwrite taps that were not taken in.
    bool would_lose(uint32_t rows) const { return length_ + rows - drafted_ > taps_ring_; }

    void read(uint32_t rows);
    void take_in(uint32_t rows) { drafted_ += rows; }

  private:
    struct Mark {
        uint32_t length = 0;
        uint32_t furthest = 0;
        bool used = false;
    };

    uint32_t taps_ring_;
    uint32_t length_ = 0;
    uint32_t furthest_ = 0;  // positions written since the last start or return, rejected ones too
    uint32_t drafted_ = 0;
    uint32_t seen_from_ = 0;
    std::array<Mark, kMarks> marks_{};
    uint32_t next_mark_ = 0;
};

}  // namespace tessera
