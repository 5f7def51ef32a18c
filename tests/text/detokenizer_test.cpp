// Text from ids as they come: whole characters only, nothing lost, broken bytes as documented.
#include "text/detokenizer.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "text/utf8.h"

#include "support.h"

namespace tessera {
namespace {

// The tokens of single bytes, which cut every character that can be cut.
std::vector<uint32_t> byte_tokens(std::string_view bytes) {
    std::vector<uint32_t> ids;
    for (const char& c : bytes) ids.push_back(*bundled_tokenizer().id_of({&c, 1}));
    return ids;
}

TEST(Detokenizer, NeverCutsACharacter) {
    const std::string text = "aé\u0301你好 \U0001f468\u200d\U0001f469 \U0010ffff\ufffd\n";
    Detokenizer detokenizer(bundled_tokenizer());
    std::string all;
    size_t pieces = 0;
    for (const uint32_t id : byte_tokens(text)) {
        const std::string piece = detokenizer.push(id);
        EXPECT_EQ(valid_utf8_prefix(piece), piece.size());
        all += piece;
        pieces += !piece.empty();
        EXPECT_EQ(all, text.substr(0, all.size()));
    }
    EXPECT_EQ(all, text);
    EXPECT_EQ(pieces, 13u);  // one for each character, at its last byte
    EXPECT_EQ(detokenizer.finish(), "");
}

struct Case {
    std::string bytes;
    std::string text;
    std::string held;  // what finish() gives
};

// Unicode 15, table 3-8 and its neighbours; the same as Python's errors="replace".
TEST(Detokenizer, IllFormedPartsBecomeReplacementCharacters) {
    const std::string r(kReplacementCharacter);
    for (const Case& known :
         std::vector<Case>{{"\xe2\x82", "", r},
                           {"\xf0\x9f\x98", "", r},
                           {"a\xff"
                            "b",
                            "a" + r + "b", ""},
                           {"\x80\xbf", r + r, ""},
                           {"\xc0\xaf", r + r, ""},
                           {"\xc2", "", r},
                           {"\xe2\x82"
                            "a",
                            r + "a", ""},
                           {"\xe2\x82\xe2\x82\xac", r + "€", ""},
                           {"\xed\xa0\x80", r + r + r, ""},
                           {"\xed\x9f\xbf", "\ud7ff", ""},
                           {"\xe0\x80\xaf", r + r + r, ""},
                           {"\xf4\x90\x80\x80", r + r + r + r, ""},
                           {"\xf5\x80", r + r, ""},
                           {"\xf1\x80\x80\xe1\x80\xc2"
                            "b",
                            r + r + r + "b", ""},
                           {std::string("\0\x7f", 2), std::string("\0\x7f", 2), ""}}) {
        Detokenizer detokenizer(bundled_tokenizer());
        std::string text;
        for (const uint32_t id : byte_tokens(known.bytes)) text += detokenizer.push(id);
        EXPECT_EQ(text, known.text);
        EXPECT_EQ(detokenizer.finish(), known.held);
        EXPECT_EQ(detokenizer.finish(), "");
        EXPECT_EQ(repair_utf8(known.bytes), known.text + known.held);
    }
}

TEST(Detokenizer, PiecesJoinToTheWholeForAnyIds) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    for (uint64_t seed = 0; seed < 2000; ++seed) {
        Draw draw(seed);
        std::vector<uint32_t> ids(draw.below(40));
        for (uint32_t& id : ids) {
            // Half of them single bytes, so that broken characters abound.
            const uint64_t one_byte = 0x80 + draw.below(0x80);
            const char c = static_cast<char>(one_byte);
            id = draw.below(2) == 0 ? *tokenizer.id_of({&c, 1})
                                    : static_cast<uint32_t>(draw.below(tokenizer.vocab_size() + 3));
        }
        Detokenizer detokenizer(tokenizer, ShowSpecials::kShow);
        std::string text;
        for (const uint32_t id : ids) {
            const std::string piece = detokenizer.push(id);
            EXPECT_EQ(valid_utf8_prefix(piece), piece.size());
            text += piece;
        }
        EXPECT_EQ(text + detokenizer.finish(), repair_utf8(decode(tokenizer, ids)));
    }
}

TEST(Detokenizer, SpecialsAreSkippedOrShown) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    const auto ids = tokenizer.encode("a<|im_end|>b<think>", Specials::kParse);
    for (const auto& [specials, expected] :
         {std::pair{ShowSpecials::kSkip, "ab"}, {ShowSpecials::kShow, "a<|im_end|>b<think>"}}) {
        Detokenizer detokenizer(tokenizer, specials);
        std::string text;
        for (const uint32_t id : ids) text += detokenizer.push(id);
        EXPECT_EQ(text, expected);
    }
}

// A skipped special between the bytes of a character does not break it, as when all ids are decoded
// at once; a shown one does.
TEST(Detokenizer, ASkippedSpecialDoesNotBreakACharacter) {
    std::vector<uint32_t> ids = byte_tokens("é");
    ids.insert(ids.begin() + 1, *bundled_tokenizer().added_id_of("<|im_end|>"));
    for (const auto& [specials, expected] :
         {std::pair{ShowSpecials::kSkip, "é"}, {ShowSpecials::kShow, "\ufffd<|im_end|>\ufffd"}}) {
        Detokenizer detokenizer(bundled_tokenizer(), specials);
        std::string text;
        for (const uint32_t id : ids) text += detokenizer.push(id);
        EXPECT_EQ(text + detokenizer.finish(), expected);
    }
}

TEST(Detokenizer, UnknownIdsAddNothing) {
    Detokenizer detokenizer(bundled_tokenizer());
    const std::vector<uint32_t> bytes = byte_tokens("é");
    EXPECT_EQ(detokenizer.push(bytes[0]), "");
    EXPECT_EQ(detokenizer.push(4096), "");
    EXPECT_EQ(detokenizer.push(UINT32_MAX), "");
    EXPECT_EQ(detokenizer.push(bytes[1]), "é");
}

}  // namespace
}  // namespace tessera
