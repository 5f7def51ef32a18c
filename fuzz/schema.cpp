// Any bytes as a JSON Schema: refused in words, or a program that never leaves a text without a
// next token, and whose whole texts are JSON. Which tokens are taken, the bytes behind the schema
// say.
#include "grammar/schema.h"

#include <bit>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/check.h"

#include "grammar/matcher.h"

using namespace tessera;

namespace {

constexpr uint32_t kEnd = 300, kTokensMax = 48;

// Every byte, and pieces that cross the borders of JSON.
std::shared_ptr<const grammar::Vocabulary> make_vocabulary() {
    static const std::vector<std::string> texts = [] {
        std::vector<std::string> all;
        for (int byte = 0; byte < 256; ++byte) all.emplace_back(1, static_cast<char>(byte));
        for (const char* piece :
             {"\"",   "\", \"", "\": ", "\": \"", "}, {", "]]",       "[[",       "{\"",      "\"}",
              "ab",   "\"a",    "\\n",  "\\u00",  "é",    "日\"",     "12",       "1.5",      "-0",
              "true", "null",   ", ",   "]}",     "\"\"", "a\", \"b", "\xf0\x9f", "\x98\x80x"})
            all.emplace_back(piece);
        return all;
    }();
    std::vector<std::string_view> tokens(texts.begin(), texts.end());
    return std::make_shared<grammar::Vocabulary>(std::move(tokens), std::vector<uint32_t>{kEnd},
                                                 std::vector<grammar::Vocabulary::Marker>(),
                                                 kEnd + 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const auto vocabulary = make_vocabulary();
    // The schema is a line.
    const std::string_view input(reinterpret_cast<const char*>(data), size);
    const size_t line = std::min(input.find('\n'), size);
    std::string_view choices = input.substr(line);
    grammar::Schema schema;
    try {
        schema = parse_json_in_order(input.substr(0, line), "fuzz", {.bytes_max = 4096});
    } catch (const std::exception&) {
        return 0;
    }
    grammar::OrRefusal made = grammar::json_schema(schema);
    if (const auto* refusal = std::get_if<grammar::Refusal>(&made)) {
        CHECK(!refusal->message.empty());
        return 0;
    }
    const auto masks = std::make_shared<grammar::LocalMasks>(
        std::make_shared<grammar::Program>(std::move(std::get<grammar::Program>(made))),
        vocabulary);
    grammar::Matcher matcher(masks);
    std::string text;
    for (uint32_t i = 0; i < kTokensMax; ++i) {
        const std::span<const uint64_t> allowed = matcher.allowed();
        std::vector<uint32_t> tokens;
        for (uint32_t token = 0; token <= kEnd; ++token)
            if (allowed[token / 64] >> token % 64 & 1) tokens.push_back(token);
        CHECK(!tokens.empty());
        const auto choice = static_cast<uint8_t>(i + 1 < choices.size() ? choices[i + 1] : 0);
        // Without choices left, the last: where the text may end, that is the end.
        const uint32_t token =
            i + 1 < choices.size() ? tokens[choice % tokens.size()] : tokens.back();
        if (token == kEnd) {
            CHECK(matcher.may_end());
            CHECK(nlohmann::json::accept(text));
            return 0;
        }
        text += vocabulary->bytes(token);
        matcher.push(token);
    }
    return 0;
}
