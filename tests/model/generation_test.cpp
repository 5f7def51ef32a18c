// generation_config.json: what is read, what is left alone, what is refused.
#include "model/generation.h"

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/refusal.h"

namespace tessera {
namespace {

using test::refusal;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint32_t kVocab = 152576;
constexpr const char* kSource = "generation_config.json";

Generation parse(const char* text) {
    return parse_generation(parse_json(text, kSource), kVocab, kSource);
}

TEST(Generation, Published) {
    const Generation g =
        parse(R"({"bos_token_id": 151643, "do_sample": true, "temperature": 1.0, "top_p": 0.95,
                  "eos_token_id": [151643, 151645, 151672], "transformers_version": "4.40.1"})");
    EXPECT_THAT(g.end_tokens, ElementsAre(151643, 151645, 151672));
    EXPECT_EQ(g.temperature, 1.0f);
    EXPECT_EQ(g.top_p, 0.95f);
    EXPECT_EQ(g.top_k, 0u);
}

TEST(Generation, EndTokensAreOneOrAList) {
    EXPECT_THAT(parse("{}").end_tokens, IsEmpty());
    EXPECT_THAT(parse(R"({"eos_token_id": null})").end_tokens, IsEmpty());
    EXPECT_THAT(parse(R"({"eos_token_id": []})").end_tokens, IsEmpty());
    EXPECT_THAT(parse(R"({"eos_token_id": 7})").end_tokens, ElementsAre(7));
    EXPECT_THAT(parse(R"({"eos_token_id": [0, 152575]})").end_tokens, ElementsAre(0, 152575));
}

TEST(Generation, IsGreedyUnlessItSamples) {
    EXPECT_EQ(parse("{}").temperature, 0.0f);
    EXPECT_EQ(parse(R"({"temperature": 0.6, "top_p": 0.5})").temperature, 0.0f);
    EXPECT_EQ(parse(R"({"do_sample": false, "temperature": 0.6})").temperature, 0.0f);
    const Generation g = parse(R"({"do_sample": true, "top_k": 20, "top_p": null})");
    EXPECT_EQ(g.temperature, 1.0f);
    EXPECT_EQ(g.top_p, 1.0f);
    EXPECT_EQ(g.top_k, 20u);
}

TEST(Generation, RefusesWrongValuesBySourceAndKey) {
    for (const auto& [key, values] : std::vector<std::pair<std::string, std::vector<Json>>>{
             {"eos_token_id",
              {-1,
               kVocab,
               1.5,
               1e30,
               "2",
               true,
               Json::object(),
               {1, -1},
               {"2"},
               {nullptr},
               Json::array({Json::array({1})})}},
             {"do_sample", {1, "true", Json::array()}},
             {"temperature", {-0.1, 101, 1e300, "1.0", true, Json::array()}},
             {"top_p", {0, -1, 1.1, "NaN", false}},
             {"top_k", {-1, 0.5, 1e9, "20", true}}}) {
        for (const Json& value : values) {
            Json config = {{"do_sample", true}};
            config[key] = value;
            EXPECT_THAT(refusal([&] { parse_generation(config, kVocab, kSource); }),
                        AllOf(HasSubstr(kSource), HasSubstr(fmt::format("\"{}\"", key))))
                << key << " " << value;
        }
    }
    EXPECT_THAT(refusal([] { parse("[]"); }), HasSubstr("expected a JSON object, found array"));
}

}  // namespace
}  // namespace tessera
