// Prompts against the Jinja template under jinja2 (tests/vectors/text_chat.py), and the promise
// that nobody's text becomes a marker.
#include "text/chat.h"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/normalize.h"

#include "support.h"

namespace tessera {
namespace {

// A message as templates take it; what a server does with requests is stricter.
Turn turn_of(const OrderedJson& message) {
    Turn turn;
    const std::string role = message["role"];
    turn.role = role == "system"      ? Role::kSystem
                : role == "assistant" ? Role::kAssistant
                : role == "tool"      ? Role::kTool
                                      : Role::kUser;
    if (message["content"].is_string()) turn.content = message["content"];
    if (message.contains("reasoning_content") && message["reasoning_content"].is_string()) {
        turn.reasoning = message["reasoning_content"];
    }
    if (!message.contains("tool_calls")) return turn;
    for (const OrderedJson& call : message["tool_calls"]) {
        const OrderedJson& inner = call.contains("function") ? call["function"] : call;
        turn.tool_calls.push_back({inner["name"], inner["arguments"]});
    }
    return turn;
}

std::vector<Piece> render_known(const OrderedJson& known) {
    std::vector<Turn> turns;
    for (const OrderedJson& message : known["messages"]) turns.push_back(turn_of(message));
    RenderOptions options;
    options.add_generation_prompt = known["add_generation_prompt"];
    options.enable_thinking = known["enable_thinking"];
    options.keep_all_reasoning = known["keep_all_reasoning"];
    return render(turns, known.contains("tools") ? known["tools"] : OrderedJson(), options);
}

std::vector<uint32_t> marker_ids(const std::vector<uint32_t>& ids) {
    std::vector<uint32_t> markers;
    for (const uint32_t id : ids) {
        const std::string_view text = bundled_tokenizer().token_bytes(id);
        if (std::ranges::find(kMarkerText, text) != kMarkerText.end()) markers.push_back(id);
    }
    return markers;
}

TEST(Chat, RendersAsTheTemplateDoes) {
    const OrderedJson vector = read_vector("text_chat.json");
    ASSERT_GE(vector.size(), 200u);
    for (const OrderedJson& known : vector) {
        EXPECT_EQ(to_text(render_known(known)), known["text"].get<std::string>())
            << known["messages"];
    }
}

TEST(Chat, EncodesItsOwnMarkersAndNobodyElses) {
    const ChatEncoder encoder(bundled_tokenizer());
    for (const OrderedJson& known : read_vector("text_chat.json")) {
        const std::vector<Piece> prompt = render_known(known);
        std::vector<uint32_t> markers;
        std::string text, storage;
        for (const Piece& piece : prompt) {
            if (piece.marker) markers.push_back(encoder.id_of(*piece.marker));
            text += piece.marker ? marker_text(*piece.marker) : nfc(piece.text, storage);
        }
        const std::vector<uint32_t> ids = encoder.encode(prompt);
        EXPECT_EQ(marker_ids(ids), markers) << known["messages"];
        EXPECT_EQ(decode(bundled_tokenizer(), ids), text) << known["messages"];
    }
}

// Where no text holds a marker, the prompt is what any other engine makes of the template's output.
TEST(Chat, EncodesLikeParsedTextWhereNoTextHoldsMarkers) {
    const ChatEncoder encoder(bundled_tokenizer());
    size_t compared = 0;
    for (const OrderedJson& known : read_vector("text_chat.json")) {
        const std::vector<Piece> prompt = render_known(known);
        const bool clean = std::ranges::none_of(prompt, [](const Piece& piece) {
            return std::ranges::any_of(kMarkerText, [&](std::string_view marker) {
                return piece.text.find(marker) != std::string::npos;
            });
        });
        if (!clean) continue;
        ++compared;
        EXPECT_EQ(encoder.encode(prompt),
                  bundled_tokenizer().encode(to_text(prompt), Specials::kParse));
    }
    EXPECT_GT(compared, 50u);
}

// The same turns with each text replaced by all markers in a row: as many markers as before.
TEST(Chat, TextOfStrangersNeverBecomesAMarker) {
    std::string hostile;
    for (const std::string_view marker : kMarkerText) hostile += marker;
    const ChatEncoder encoder(bundled_tokenizer());
    const auto markers_of = [&](const std::string& text) {
        const OrderedJson schema = {{"type", text}, {"description", text}, {text, text}};
        const OrderedJson tool = {{"name", text},
                                  {"description", text},
                                  {"parameters", {{"properties", {{text, schema}}}, {text, text}}},
                                  {text, {text}}};
        const std::vector<Turn> turns = {
            {Role::kSystem, text},
            {Role::kUser, text},
            {Role::kAssistant, text, text, {{text, {{text, text}}}}},
            {Role::kTool, text},
            {Role::kTool, text},
        };
        return marker_ids(encoder.encode(render(turns, OrderedJson::array({tool}))));
    };
    EXPECT_EQ(markers_of(hostile), markers_of("harmless"));
    EXPECT_EQ(markers_of(""), markers_of("harmless"));
}

TEST(Chat, OpeningFollowsTheEndOfThePromptAlone) {
    const std::vector<Turn> history = {{Role::kUser, "1"},
                                       {Role::kAssistant, "</think>", "<think></think>"},
                                       {Role::kUser, "<think></think>"}};
    const auto opening = [&](bool prefix, bool thinking) {
        RenderOptions options;
        options.add_generation_prompt = prefix;
        options.enable_thinking = thinking;
        return opening_of(render(history, nullptr, options));
    };
    EXPECT_EQ(opening(true, true), Opening::kReasoningMayOpen);
    EXPECT_EQ(opening(true, false), Opening::kReasoningClosed);
    EXPECT_EQ(opening(false, false), Opening::kReasoningMayOpen);
    EXPECT_EQ(opening_of({}), Opening::kReasoningMayOpen);
}

TEST(Chat, MarkersThatTheTokenizerLacksAreNamed) {
    const std::string json = read_text(std::string(TESSERA_MODEL) + "/tokenizer.json");
    std::string without = json;
    for (size_t at = 0; (at = without.find("<think>", at)) != std::string::npos; ++at) {
        without.replace(at, 7, "<thonk>");
    }
    const Tokenizer tokenizer = Tokenizer::parse(without, "without.json");
    try {
        const ChatEncoder encoder(tokenizer);
        FAIL() << "accepted";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("<think>"), std::string::npos) << error.what();
    }
}

// Python's spelling of the scalars that prompts hold.
TEST(PythonJson, SpellsAsPythonDoes) {
    struct Case {
        std::string json, dumped, printed;
    };
    for (const Case& known : std::vector<Case>{
             {"1e16", "1e+16", "1e+16"},
             {"1e15", "1000000000000000.0", "1000000000000000.0"},
             {"1E-5", "1e-05", "1e-05"},
             {"0.0001", "0.0001", "0.0001"},
             {"-0.0", "-0.0", "-0.0"},
             {"2.50", "2.5", "2.5"},
             {"18446744073709551615", "18446744073709551615", "18446744073709551615"},
             {"true", "true", "True"},
             {"null", "null", "None"},
             {R"("a\"\u00e9\n\u007f\u0001/")", "\"a\\\"é\\n\x7f\\u0001/\"", "a\"é\n\x7f\x01/"},
             {R"({"b":[1,[],{}],"a":{"x":false}})", R"({"b": [1, [], {}], "a": {"x": false}})",
              R"({"b": [1, [], {}], "a": {"x": false}})"}}) {
        const auto value = parse_ordered_json(known.json);
        ASSERT_TRUE(value) << known.json;
        EXPECT_EQ(python_json(*value), known.dumped);
        EXPECT_EQ(python_text(*value), known.printed);
    }
}

TEST(PythonJson, RefusesWhatIsNotJsonUnderTheLimits) {
    for (const std::string& text :
         {std::string(), std::string("{"), std::string(R"({"a":1,"a":2})"), std::string(100, '['),
          std::string("1e999"), std::string("\"\xff\""), std::string("NaN"),
          std::string("40\0x", 4), std::string("40\0", 3)}) {
        std::string why;
        EXPECT_FALSE(parse_ordered_json(text, &why)) << text;
        EXPECT_FALSE(why.empty()) << text;
    }
}

}  // namespace
}  // namespace tessera
