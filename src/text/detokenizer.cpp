#include "text/detokenizer.h"

namespace tessera {

std::string Detokenizer::push(uint32_t id) {
    std::string text;
    if (specials_ == ShowSpecials::kSkip && tokenizer_->is_special(id)) return text;
    repair_.push(tokenizer_->token_bytes(id), text);
    return text;
}

std::string Detokenizer::finish() {
    std::string text;
    repair_.finish(text);
    return text;
}

}  // namespace tessera
