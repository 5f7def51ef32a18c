// tokenizer.json from a stranger: it is refused with an Error, or it makes a tokenizer that encodes
// any text, loses nothing of it, and agrees with itself however tokens arrive.
//
// A file must name all 256 bytes, which is three kilobytes of nothing to find. So the member
// "@":0 of an input stands for all of them, with the ids 0 to 255, and seeds stay small.
#include "text/tokenizer.h"

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "text/detokenizer.h"
#include "text/normalize.h"
#include "text/utf8.h"

namespace {

constexpr std::string_view kAllBytes = "\"@\":0";

// The byte-level alphabet as members of a JSON object, escaped.
std::string all_bytes() {
    std::string members;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
        const bool own =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        char member[32];
        std::snprintf(member, sizeof member, "%s\"\\u%04x\":%u", byte == 0 ? "" : ",",
                      own ? byte : next++, byte);
        members += member;
    }
    return members;
}

void use(const tessera::Tokenizer& tokenizer, std::string_view text) {
    const std::string repaired = tessera::repair_utf8(text);
    std::string storage;
    const std::string_view normalized = tessera::nfc(repaired, storage);
    for (const auto specials : {tessera::Specials::kAsText, tessera::Specials::kParse}) {
        const std::vector<uint32_t> ids = tokenizer.encode(text, specials);
        std::string bytes, pieces;
        tessera::Detokenizer detokenizer(tokenizer, tessera::ShowSpecials::kShow);
        for (const uint32_t id : ids) {
            CHECK(id < tokenizer.vocab_size());
            bytes += tokenizer.token_bytes(id);
            const std::string piece = detokenizer.push(id);
            CHECK(tessera::valid_utf8_prefix(piece) == piece.size());
            pieces += piece;
        }
        pieces += detokenizer.finish();
        CHECK(pieces == tessera::repair_utf8(bytes));
        if (specials == tessera::Specials::kAsText) CHECK(bytes == repaired || bytes == normalized);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const std::string bytes = all_bytes();
    std::string json(reinterpret_cast<const char*>(data), size);
    if (const size_t at = json.find(kAllBytes); at != std::string::npos) {
        json.replace(at, kAllBytes.size(), bytes);
    }
    std::optional<tessera::Tokenizer> tokenizer;
    try {
        tokenizer.emplace(tessera::Tokenizer::parse(json, "tokenizer.json"));
    } catch (const tessera::Error&) {
        return 0;
    }
    use(*tokenizer, "Hello, w\u00f6rld!  e\u0301 \u4f60\u597d 123\n\n\t<|end|> abababab");
    use(*tokenizer, std::string(300, 'a') + std::string(60, ' ') + "ab");
    use(*tokenizer, std::string_view(reinterpret_cast<const char*>(data), size).substr(0, 256));
    for (const uint32_t id : {0u, 255u, 256u, tokenizer->vocab_size(), UINT32_MAX}) {
        CHECK(tokenizer->token_bytes(id).empty() || id < tokenizer->vocab_size());
    }
    return 0;
}
