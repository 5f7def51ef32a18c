// What the tests of grammars share: the table of schemas, and vocabularies.
#pragma once

#include <fstream>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"

#include "grammar/matcher.h"
#include "grammar/schema.h"

namespace tessera::grammar::test {

inline Schema table() {
    std::ifstream file(TESSERA_SCHEMAS);
    return Schema::parse(file);
}

// The program of a schema that is understood.
inline std::shared_ptr<const Program> program_of(const Schema& schema) {
    OrRefusal made = json_schema(schema);
    if (const auto* refusal = std::get_if<Refusal>(&made)) throw Error(refusal->message);
    return std::make_shared<Program>(std::move(std::get<Program>(made)));
}

// Every byte, and what ends a text.
inline std::shared_ptr<const Vocabulary> bytes_alone() {
    static const std::string kBytes = [] {
        std::string all;
        for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
        return all;
    }();
    std::vector<std::string_view> tokens;
    for (size_t byte = 0; byte < 256; ++byte)
        tokens.push_back(std::string_view(kBytes).substr(byte, 1));
    return std::make_shared<Vocabulary>(std::move(tokens), std::vector<uint32_t>{256},
                                        std::vector<Vocabulary::Marker>{}, 257);
}

// Every byte, and pieces of two to nine bytes that JSON is likely to meet or to stumble over.
class Pieces {
  public:
    explicit Pieces(uint32_t count, uint32_t seed = 1);
    std::shared_ptr<const Vocabulary> vocabulary() const { return vocabulary_; }
    uint32_t end() const { return static_cast<uint32_t>(texts_.size()); }

  private:
    std::vector<std::string> texts_;
    std::shared_ptr<const Vocabulary> vocabulary_;
};

inline Pieces::Pieces(uint32_t count, uint32_t seed) {
    const std::vector<std::string> parts = {
        "a",      "b",      "e",  "x",  "\"", "\"", ", ", ": ",       "{",    "}",    "[",
        "]",      "0",      "1",  "42", ".",  "-",  "\\", "\\n",      "\\u",  "00e9", "true",
        "null",   " ",      "\n", "é",  "日", "😀",  "<",  "\xc3",     "\xa9", "ab",   "name",
        "\": \"", "\", \"", "T",  "Z",  ":",  "_",  "/",  "\x9f\x98", "\xf0"};
    for (int byte = 0; byte < 256; ++byte) texts_.emplace_back(1, static_cast<char>(byte));
    uint64_t state = seed;
    while (texts_.size() < 256 + count) {
        std::string text;
        const uint64_t length = 2 + (state >> 33) % 4;
        for (uint64_t i = 0; i < length; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            text += parts[(state >> 33) % parts.size()];
        }
        texts_.push_back(std::move(text));
    }
    std::vector<std::string_view> tokens(texts_.begin(), texts_.end());
    vocabulary_ = std::make_shared<Vocabulary>(std::move(tokens), std::vector<uint32_t>{end()},
                                               std::vector<Vocabulary::Marker>{}, end() + 1);
}

// Whether `text`, byte by byte, is written by the program.
inline bool writes(const std::shared_ptr<LocalMasks>& bytes, std::string_view text) {
    Matcher matcher(bytes);
    for (const char byte : text) {
        if (!matcher.allows(static_cast<uint8_t>(byte))) return false;
        matcher.push(static_cast<uint8_t>(byte));
    }
    return matcher.may_end();
}

}  // namespace tessera::grammar::test
