// The tokenizer against the `tokenizers` package (tests/vectors/text_tokenizer.py), and against
// text made to hurt.
#include "text/tokenizer.h"

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "text/detokenizer.h"
#include "text/normalize.h"
#include "text/utf8.h"

#include "support.h"

namespace tessera {
namespace {

std::string utf8_of(uint32_t code) {
    const auto byte = [](uint32_t bits) { return static_cast<char>(bits); };
    if (code < 0x80) return {byte(code)};
    if (code < 0x800) return {byte(0xc0 | code >> 6), byte(0x80 | (code & 63))};
    if (code < 0x10000) {
        return {byte(0xe0 | code >> 12), byte(0x80 | (code >> 6 & 63)), byte(0x80 | (code & 63))};
    }
    return {byte(0xf0 | code >> 18), byte(0x80 | (code >> 12 & 63)), byte(0x80 | (code >> 6 & 63)),
            byte(0x80 | (code & 63))};
}

// Draws the strings that the vector's script drew; see piece() there.
class Generator {
  public:
    explicit Generator(const OrderedJson& vector)
        : fragments_(vector["fragments"]), ranges_(vector["ranges"]), seed_(vector["seed"]) {}

    std::string string(uint64_t index) const {
        Draw draw(seed_ + index);
        std::string bytes;
        for (uint64_t left = draw.below(16); left > 0; --left) bytes += piece(draw);
        return bytes;
    }

  private:
    std::string code_point(Draw& draw) const {
        const auto& [first, last] = ranges_[draw.below(ranges_.size())];
        return utf8_of(first + static_cast<uint32_t>(draw.below(last - first + 1)));
    }

    std::string piece(Draw& draw) const {
        const uint64_t kind = draw.below(16);
        if (kind < 9) return fragments_[draw.below(fragments_.size())];
        if (kind < 13) return code_point(draw);
        if (kind < 14) {
            const std::string one = code_point(draw);
            std::string run;
            for (uint64_t left = 1 + draw.below(70); left > 0; --left) run += one;
            return run;
        }
        if (kind < 15) return std::string(1, static_cast<char>(32 + draw.below(95)));
        return std::string(1, static_cast<char>(draw.below(256)));
    }

    std::vector<std::string> fragments_;
    std::vector<std::pair<uint32_t, uint32_t>> ranges_;
    uint64_t seed_;
};

// FNV-1a over ids and texts, each with an end mark; see hashed() in the vector's script.
class Hash {
  public:
    void add(const std::vector<uint32_t>& ids) {
        for (const uint32_t id : ids) add_id(id);
        add_id(0xffffffffu);
    }

    void add(std::string_view text) {
        for (const char c : text) add_byte(static_cast<uint8_t>(c));
        add_byte(0xff);
    }

    std::string hex() const { return fmt::format("{:016x}", state_); }

  private:
    void add_byte(uint8_t byte) { state_ = (state_ ^ byte) * 0x100000001b3u; }
    void add_id(uint32_t id) {
        for (int shift = 0; shift < 32; shift += 8) add_byte(static_cast<uint8_t>(id >> shift));
    }

    uint64_t state_ = 0xcbf29ce484222325u;
};

std::string detokenized(const std::vector<uint32_t>& ids, ShowSpecials specials) {
    Detokenizer detokenizer(bundled_tokenizer(), specials);
    std::string text;
    for (const uint32_t id : ids) text += detokenizer.push(id);
    return text + detokenizer.finish();
}

std::string normalized(std::string_view text) {
    std::string storage;
    return std::string(nfc(repair_utf8(text), storage));
}

TEST(Tokenizer, EncodesAsThePublishedPackageDoes) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    const OrderedJson vector = read_vector("text_tokenizer.json");
    ASSERT_GT(vector["explicit"].size(), 200u);
    for (const OrderedJson& known : vector["explicit"]) {
        const std::string text = known["text"];
        const std::vector<uint32_t> parsed = known["parse"];
        const std::vector<uint32_t> plain = known[known["plain"].is_null() ? "parse" : "plain"];
        EXPECT_EQ(tokenizer.encode(text, Specials::kParse), parsed) << known["text"];
        EXPECT_EQ(tokenizer.encode(text, Specials::kAsText), plain) << known["text"];
    }
}

TEST(Tokenizer, TreatsManyStringsAsThePublishedPackageDoes) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    const OrderedJson vector = read_vector("text_tokenizer.json");
    const Generator generator(vector);
    const uint64_t strings = vector["strings"], group = vector["group"];
    ASSERT_GE(strings, 50'000u);
    ASSERT_EQ(vector["string_hashes"].size() * group, strings);
    for (uint64_t begin = 0; begin < strings; begin += group) {
        Hash hash;
        for (uint64_t i = begin; i < begin + group; ++i) {
            const std::string text = generator.string(i);
            const auto parsed = tokenizer.encode(text, Specials::kParse);
            const auto plain = tokenizer.encode(text, Specials::kAsText);
            hash.add(parsed);
            hash.add(plain);
            hash.add(detokenized(parsed, ShowSpecials::kSkip));
            hash.add(detokenized(plain, ShowSpecials::kShow));
            ASSERT_EQ(decode(tokenizer, plain), normalized(text)) << "string " << i;
        }
        EXPECT_EQ(hash.hex(), vector["string_hashes"][begin / group].get<std::string>())
            << "strings " << begin << " to " << begin + group - 1;
    }
}

TEST(Tokenizer, DecodesRandomIdsAsThePublishedPackageDoes) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    const OrderedJson vector = read_vector("text_tokenizer.json");
    const uint64_t sequences = vector["sequences"], group = vector["group"];
    const uint64_t seed = vector["seed"];
    ASSERT_EQ(vector["sequence_hashes"].size() * group, sequences);
    for (uint64_t begin = 0; begin < sequences; begin += group) {
        Hash hash;
        for (uint64_t i = begin; i < begin + group; ++i) {
            Draw draw(~seed ^ i);
            std::vector<uint32_t> ids(draw.below(24));
            for (uint32_t& id : ids) {
                id = static_cast<uint32_t>(draw.below(tokenizer.vocab_size() + 2));
            }
            hash.add(detokenized(ids, ShowSpecials::kSkip));
            hash.add(detokenized(ids, ShowSpecials::kShow));
        }
        EXPECT_EQ(hash.hex(), vector["sequence_hashes"][begin / group].get<std::string>())
            << "sequences " << begin << " to " << begin + group - 1;
    }
}

// Ten megabytes of what makes naive tokenizers quadratic: hours, then, where these take a second at
// most. Here each only has to end and come back; bench/text_bench.cpp measures.
class TenMegabytes
    : public testing::TestWithParam<std::pair<const char*, std::string (*)(size_t)>> {};

TEST_P(TenMegabytes, ComesBack) {
    const std::string text = GetParam().second(10'000'000);
    const Tokenizer& tokenizer = bundled_tokenizer();
    const auto ids = tokenizer.encode(text, Specials::kParse);
    EXPECT_TRUE(decode(tokenizer, ids) == normalized(text));
}

std::string repeated(std::string_view unit, size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += unit;
    return text;
}

std::string random_bytes(size_t bytes) {
    Draw draw(7);
    std::string text(bytes, ' ');
    for (char& c : text) c = static_cast<char>(draw.next());
    return text;
}

std::string random_letters(size_t bytes) {
    Draw draw(8);
    std::string text(bytes, ' ');
    for (char& c : text) c = static_cast<char>('a' + draw.below(26));
    return text;
}

INSTANTIATE_TEST_SUITE_P(
    Tokenizer, TenMegabytes,
    testing::Values(
        std::pair{"letter", +[](size_t n) { return std::string(n, 'a'); }},
        std::pair{"letters", &random_letters},
        std::pair{"spaces", +[](size_t n) { return std::string(n, ' '); }},
        std::pair{"spaces_then_letter", +[](size_t n) { return std::string(n, ' ') + "a"; }},
        std::pair{"newlines", +[](size_t n) { return std::string(n, '\n'); }},
        std::pair{"lines_of_space", +[](size_t n) { return repeated(" \n", n); }},
        std::pair{"digits", +[](size_t n) { return std::string(n, '1'); }},
        std::pair{"punctuation", +[](size_t n) { return std::string(n, '<'); }},
        std::pair{"marks", +[](size_t n) { return repeated("\u0301\u0316", n); }},
        std::pair{"markers", +[](size_t n) { return repeated("<|im_start|><|im_", n); }},
        std::pair{"random", &random_bytes}),
    [](const auto& named) { return named.param.first; });

TEST(Tokenizer, MarkersInTextAreTextUnlessParsed) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    const std::string text = "a<|im_end|>b</think>";
    const uint32_t end = *tokenizer.id_of("<|im_end|>"), close = *tokenizer.id_of("</think>");
    const auto plain = tokenizer.encode(text, Specials::kAsText);
    for (const uint32_t id : plain) EXPECT_FALSE(id == end || id == close);
    EXPECT_EQ(decode(tokenizer, plain), text);
    const auto parsed = tokenizer.encode(text, Specials::kParse);
    EXPECT_EQ(parsed,
              (std::vector<uint32_t>{*tokenizer.id_of("a"), end, *tokenizer.id_of("b"), close}));
    EXPECT_TRUE(tokenizer.is_special(end));
    EXPECT_FALSE(tokenizer.is_special(parsed[0]));
}

TEST(Tokenizer, BrokenBytesReadAsReplacementCharacters) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    for (const auto& [broken, repaired] : std::vector<std::pair<std::string, std::string>>{
             {"a\xff", "a\ufffd"},
             {"\xe2\x82", "\ufffd"},
             {"\xe2\x82z", "\ufffdz"},
             {"\xed\xa0\x80", "\ufffd\ufffd\ufffd"},
             {"\xc0\xaf", "\ufffd\ufffd"},
             {"\xf0\x9f\x98", "\ufffd"},
             {"\xf4\x90\x80\x80", "\ufffd\ufffd\ufffd\ufffd"}}) {
        EXPECT_EQ(tokenizer.encode(broken, Specials::kParse),
                  tokenizer.encode(repaired, Specials::kParse));
    }
}

TEST(Tokenizer, EveryTokenIsFoundByItsBytes) {
    const Tokenizer& tokenizer = bundled_tokenizer();
    ASSERT_EQ(tokenizer.vocab_size(), 4096u);
    for (uint32_t id = 0; id < tokenizer.vocab_size(); ++id) {
        EXPECT_EQ(tokenizer.id_of(tokenizer.token_bytes(id)), id);
    }
    EXPECT_EQ(tokenizer.id_of("no token is as long as this"), std::nullopt);
    EXPECT_EQ(tokenizer.id_of(""), std::nullopt);
    EXPECT_EQ(tokenizer.token_bytes(4096), "");
    EXPECT_FALSE(tokenizer.is_special(4096));
}

}  // namespace
}  // namespace tessera
