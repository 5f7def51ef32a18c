// Which token each byte of a reply is from. Text is held back on its way (half a character, what
// may become a stop string or a tag) and tags are dropped, so what is shown after a step need not
// be what the step wrote: this remembers who wrote it.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "server/round.h"

namespace tessera {

// So many bytes of text, whole characters, from one token.
struct TextSpan {
    size_t bytes = 0;
    Origin origin = Origin::kModel;

    bool operator==(const TextSpan&) const = default;
};

class Provenance {
  public:
    // The reply goes on with `bytes` that a token completed.
    void push(size_t bytes, Origin origin);
    // What the last token left unfinished was made whole.
    void extend(size_t bytes);

    // Appends the spans of the `bytes` of the reply that end at byte `end`, both as pushed. Calls
    // come in the order of the text.
    void take(size_t end, size_t bytes, std::vector<TextSpan>& spans);

  private:
    struct Piece {
        size_t end;
        Origin origin;
    };
    std::deque<Piece> pieces_;  // that are not taken, or not to their end
    size_t end_ = 0;
    Origin last_ = Origin::kModel;
};

}  // namespace tessera
