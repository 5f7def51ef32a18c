#include "server/provenance.h"

#include <algorithm>

#include "base/check.h"

namespace tessera {

void Provenance::push(size_t bytes, Origin origin) {
    last_ = origin;
    if (bytes == 0) return;
    end_ += bytes;
    pieces_.push_back({end_, origin});
}

void Provenance::extend(size_t bytes) {
    push(bytes, last_);
}

void Provenance::take(size_t end, size_t bytes, std::vector<TextSpan>& spans) {
    CHECK(bytes <= end && end <= end_);
    size_t at = end - bytes;
    while (at < end) {
        const Piece piece = pieces_.front();
        if (piece.end > at) {
            const size_t until = std::min(piece.end, end);
            spans.push_back({until - at, piece.origin});
            at = until;
        }
        if (piece.end <= end) pieces_.pop_front();
    }
}

}  // namespace tessera
