#include "runtime/course.h"

#include <algorithm>

#include "base/check.h"

namespace tessera {

uint32_t Course::mark() {
    const uint32_t made = next_mark_;
    next_mark_ = (next_mark_ + 1) % kMarks;
    marks_[made] = {length_, furthest_, true};
    return made;
}

Course::Return Course::rewind(uint32_t length) {
    CHECK(length <= length_);
    std::optional<uint32_t> from;
    // Rings are longer than their windows by kStepRowsMax and more: so far back nothing is lost.
    if (length + kStepRowsMax < furthest_ && length > 0) {
        for (uint32_t i = 0; i < kMarks; ++i) {
            const Mark& mark = marks_[i];
            if (mark.used && mark.length <= length &&
                (!from || mark.length >= marks_[*from].length))
                from = i;
        }
        length = from ? marks_[*from].length : 0;
        if (from) furthest_ = marks_[*from].furthest;
    }
    if (length == 0) furthest_ = 0;
    length_ = length;
    // Marks of a future that did not come.
    for (Mark& mark : marks_)
        if (mark.length > length) mark.used = false;
    // The drafter's ring holds a window and a step's rows as well; further back it starts anew.
    if (length + kStepRowsMax < drafted_) seen_from_ = length;
    drafted_ = std::min(drafted_, length);
    seen_from_ = std::min(seen_from_, drafted_);
    return {length, from};
}

void Course::make_room(uint32_t rows, bool kept) {
    const uint32_t end = length_ + rows;
    const uint32_t lost = !kept ? end : end > taps_ring_ ? end - taps_ring_ : 0;
    if (lost <= drafted_) return;
    drafted_ = seen_from_ = lost;
}

void Course::read(uint32_t rows) {
    length_ += rows;
    furthest_ = std::max(furthest_, length_);
}

}  // namespace tessera
