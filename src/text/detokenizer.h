// Token ids to text, as they come. Owns what is held back: the bytes of a character that is not yet
// whole. Knows nothing about stop strings or chat.
#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace tessera {

enum class ShowSpecials {
    kSkip,  // tokens the file calls special add nothing
    kShow,  // they are written as they are spelt; what an OutputParser (output.h) reads
};

// One per reply. All pieces joined are the bytes of all ids decoded at once, with each ill-formed
// part as U+FFFD (Python's errors="replace"). Nothing here throws; unknown ids add nothing.
class Detokenizer {
  public:
    // `tokenizer` must outlive this.
    explicit Detokenizer(const Tokenizer& tokenizer, ShowSpecials specials = ShowSpecials::kSkip)
        : tokenizer_(&tokenizer), specials_(specials) {}

    // The text that `id` completes: whole characters of UTF-8, perhaps none.
    std::string push(uint32_t id);

    // The end: U+FFFD if a character was left unfinished, else nothing. Ready for another reply.
    std::string finish();

  private:
    const Tokenizer* tokenizer_;
    ShowSpecials specials_;
    Utf8Repair repair_;
};

}  // namespace tessera
