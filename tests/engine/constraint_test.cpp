// Constraints at the door, with the bundled model and its drafter: what is written fits, it is the
// same text however it is drafted and whoever steps beside it, and it ends with its answer.
#include "tessera/constraint.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tessera/session.h"
#include "text/output.h"

namespace tessera {
namespace {

const Model& bundled() {
    static const Model model = Model::load(TESSERA_MODEL);
    return model;
}

Constraint constraint_of(const char* schema) {
    return std::get<Constraint>(Constraint::json_schema(OrderedJson::parse(schema)));
}

const char* const kOrder = R"({"type": "object", "additionalProperties": false,
    "properties": {"identifier_of_the_order": {"type": "integer", "minimum": 1, "maximum": 999},
                   "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 4},
                   "note": {"type": ["string", "null"], "maxLength": 12}},
    "required": ["identifier_of_the_order", "colours", "note"]})";

Sampling warm(uint64_t seed) {
    Sampling sampling;
    sampling.temperature = 1.5f;
    sampling.seed = seed;
    return sampling;
}

// Up to an end token, which is the last.
std::vector<Token> answer(Session& session) {
    std::vector<Token> tokens;
    do {
        tokens.push_back(session.next());
    } while (!bundled().is_end(tokens.back()) && tokens.size() < 300);
    return tokens;
}

std::string text_of(const std::vector<Token>& tokens) {
    std::string text;
    for (const Token token : tokens)
        if (!bundled().is_end(token)) text += bundled().token_bytes(token);
    return text;
}

void expect_order(const std::string& text) {
    OrderedJson order;
    ASSERT_NO_THROW(order = OrderedJson::parse(text)) << text;
    ASSERT_EQ(order.size(), 3u) << text;
    EXPECT_GE(order["identifier_of_the_order"].get<int>(), 1);
    EXPECT_LE(order["identifier_of_the_order"].get<int>(), 999);
    EXPECT_LE(order["colours"].size(), 4u);
    for (const OrderedJson& colour : order["colours"])
        EXPECT_TRUE(colour == "red" || colour == "green");
    EXPECT_TRUE(order["note"].is_string() || order["note"].is_null());
}

TEST(Constraint, TheTextFitsAndIsTheSameHoweverItIsDrafted) {
    uint32_t forced = 0;
    for (uint64_t seed = 0; seed < 8; ++seed) {
        std::vector<Token> plain;
        for (const Speculation& speculation :
             {Speculation{Speculate::kOff}, Speculation{Speculate::kAuto},
              Speculation{Speculate::kFixed}, Speculation{Speculate::kAuto, 2}}) {
            Session session(bundled(), seed == 0 ? Sampling{} : warm(seed), speculation);
            session.append(bundled().encode("An order:\n"));
            session.constrain(constraint_of(kOrder));
            const std::vector<Token> tokens = answer(session);
            if (plain.empty()) plain = tokens;
            EXPECT_EQ(tokens, plain) << seed;
            EXPECT_EQ(speculation.mode == Speculate::kOff, session.stats().forced == 0);
            forced += session.stats().forced;
        }
        expect_order(text_of(plain));
    }
    EXPECT_GT(forced, 8u);
}

TEST(Constraint, NobodyBesideItNotices) {
    const std::vector<Token> prompt = bundled().encode("def f(x):\n");
    const auto make = [&](bool constrained) {
        Session session(bundled(), warm(5), {});
        session.append(prompt);
        if (constrained) session.constrain(constraint_of(kOrder));
        return session;
    };
    Session alone = make(true), free_alone = make(false);
    const std::vector<Token> order = answer(alone);
    std::vector<Token> text;
    for (int i = 0; i < 40; ++i) text.push_back(free_alone.next());

    Session a = make(true), b = make(false);
    std::vector<Token> of_a, of_b;
    while (of_b.size() < text.size()) {
        Session* const both[] = {&a, &b};
        Session::step(both);
        while (a.ready() > 0) of_a.push_back(a.next());
        while (b.ready() > 0) of_b.push_back(b.next());
    }
    of_b.resize(text.size());
    EXPECT_EQ(of_b, text);
    of_a.resize(std::min(of_a.size(), order.size()));
    EXPECT_TRUE(std::equal(of_a.begin(), of_a.end(), order.begin()));
}

TEST(Constraint, EndsWithItsAnswer) {
    Session session(bundled(), {}, {});
    session.append(bundled().encode("x"));
    session.constrain(constraint_of(R"({"const": "one"})"));
    EXPECT_EQ(text_of(answer(session)), "\"one\"");
    // The same memory, another answer: free, and as if there had been no constraint.
    const std::vector<Token> prompt = bundled().encode("def fibonacci(n):");
    session.restart({}, {});
    session.append(std::span(prompt).subspan(session.reuse(prompt)));
    Session fresh(bundled(), {}, {});
    fresh.append(prompt);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(session.next(), fresh.next());
}

TEST(Constraint, ReasoningComesFirstAndIsFree) {
    const std::vector<Turn> turns = {{Role::kUser, "Yes or no?"}};
    Constraint constraint = constraint_of(R"({"enum": ["yes", "no"]})");
    constraint.after_reasoning = true;
    uint32_t reasoned = 0, at_once = 0;
    for (uint64_t seed = 0; seed < 12; ++seed) {
        Session session(bundled(), warm(seed), {});
        session.append(bundled().encode_chat(turns));
        session.constrain(constraint);
        const std::vector<Token> tokens = answer(session);
        const std::string text = text_of(tokens);
        if (text.starts_with("<think>")) {
            ++reasoned;
            const size_t end = text.find("</think>");
            if (end == text.npos || !bundled().is_end(tokens.back())) continue;  // cut
            const std::string said = text.substr(end + 8);
            EXPECT_TRUE(said == "\"yes\"" || said == "\"no\"") << text;
        } else {
            ++at_once;
            EXPECT_TRUE(text == "\"yes\"" || text == "\"no\"") << text;
        }
    }
    EXPECT_EQ(reasoned + at_once, 12u);
}

TEST(Constraint, ACallOfATool) {
    const OrderedJson tools =
        OrderedJson::parse(R"([{"type": "function", "function": {"name": "paint",
        "parameters": {"type": "object", "required": ["colour", "coats"], "properties": {
            "colour": {"enum": ["red", "green"]}, "coats": {"type": "integer", "minimum": 1, "maximum": 9},
            "area": {"type": "array", "items": {"type": "number", "minimum": 0}, "maxItems": 2}}}}}])");
    const auto made = Constraint::tool_call(tools);
    const auto& constraint = std::get<Constraint>(made);
    EXPECT_EQ(constraint.begins, "\n<function=paint>\n<parameter=colour>");
    const std::vector<Turn> turns = {{Role::kUser, "Paint it."}};
    for (uint64_t seed = 0; seed < 6; ++seed) {
        RenderOptions render;
        render.enable_thinking = false;
        render.reply_begins = "<tool_call>" + constraint.begins;
        Session session(bundled(), warm(seed), {});
        session.append(bundled().encode_chat(turns, tools, render));
        session.constrain(constraint);
        OutputParser parser(Opening::kReasoningClosed, tools);
        std::vector<OutputEvent> events = parser.push(render.reply_begins);
        const std::vector<OutputEvent> more = parser.push(text_of(answer(session)));
        events.insert(events.end(), more.begin(), more.end());
        std::string arguments;
        for (const OutputEvent& event : events)
            if (event.kind == OutputEvent::Kind::kArguments) arguments += event.text;
        ASSERT_EQ(events.back().kind, OutputEvent::Kind::kCallEnd);
        EXPECT_TRUE(events.back().whole);
        const OrderedJson call = OrderedJson::parse(arguments);
        EXPECT_TRUE(call["colour"] == "red" || call["colour"] == "green");
        EXPECT_TRUE(call["coats"].is_number_integer());
        EXPECT_TRUE(!call.contains("area") || call["area"].is_array());
    }
}

TEST(Constraint, SaysWhatIsWrongWithASchema) {
    const auto made = Constraint::json_schema(OrderedJson::parse(R"({"type": "strin"})"));
    EXPECT_EQ(std::get<std::string>(made), "#/type: \"strin\" is no type");
}

}  // namespace
}  // namespace tessera
