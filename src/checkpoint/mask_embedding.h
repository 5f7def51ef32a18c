// dflash/mask_embedding.pt: a torch-saved dict {mask_token_id: int, embedding: bf16 [hidden]}.
// A torch file is a zip of a pickle and raw storages. Of pickle's language only the few opcodes
// that spell such a dict are read, nothing is ever executed, and any other content is refused by
// name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/numbers.h"

namespace tessera {

struct MaskEmbedding {
    int64_t mask_token_id;
    std::vector<bf16> embedding;  // hidden
};

// Throws Error naming `source` and what was found: not a zip, a compressed entry, an opcode or
// class outside the allowed few, a tensor that is not contiguous bf16 or f32, bytes out of range.
MaskEmbedding parse_mask_embedding(std::span<const std::byte> file, std::string_view source);

}  // namespace tessera
