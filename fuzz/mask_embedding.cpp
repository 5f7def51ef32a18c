// Any bytes as a torch file, and, where they are no archive, as the pickle inside one: mutating an
// archive as a whole rarely leaves its directory intact.
#include "checkpoint/mask_embedding.h"

#include <string>

#include "base/check.h"
#include "base/error.h"

#include "../tests/checkpoint/torch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    std::string file(reinterpret_cast<const char*>(data), size);
    if (!file.starts_with("PK")) file = tessera::test::torch_file(file);
    try {
        const tessera::MaskEmbedding mask =
            tessera::parse_mask_embedding(std::as_bytes(std::span(file)), "file");
        CHECK(mask.mask_token_id >= 0);
        CHECK(!mask.embedding.empty());
        CHECK(mask.embedding.size() * sizeof(tessera::bf16) <= file.size());
    } catch (const tessera::Error&) {
    }
    return 0;
}
