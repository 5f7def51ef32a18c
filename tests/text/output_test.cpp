// Replies read whole, byte by byte, token by token and in random cuts: the same events every time,
// whatever the model wrote.
#include "text/output.h"

#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "text/detokenizer.h"
#include "text/utf8.h"

#include "support.h"

namespace tessera {
namespace {

using Kind = OutputEvent::Kind;

// What a reply came to, for tables: calls as name(arguments), "..." behind one that was not closed.
struct Reply {
    std::string reasoning;
    std::string content;
    std::vector<std::string> calls = {};

    bool operator==(const Reply&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Reply& reply) {
    out << fmt::format("\nreasoning [{}]\ncontent [{}]", reply.reasoning, reply.content);
    for (const std::string& call : reply.calls) out << "\ncall " << call;
    return out;
}

OrderedJson tools() {
    return OrderedJson::parse(R"([
        {"type": "function", "function": {"name": "f", "parameters": {"properties": {
            "text": {"type": "string"}, "n": {"type": "integer"}, "flag": {"type": ["boolean", "null"]},
            "either": {"type": ["string", "integer"]}, "list": {"anyOf": [{"type": "array"}]},
            "choice": {"oneOf": [{"type": "number"}, {"type": "string"}]}, "any": {}}}}},
        {"name": "bare", "parameters": {"properties": {"n": {"type": "number"}}}},
        {"name": "none"}, null, 7, {"function": {"name": 3}}
    ])");
}

// Events with neighbours of a kind joined, which is all that does not depend on the cuts.
class Collector {
  public:
    explicit Collector(Opening opening) : parser_(opening, tools()) {}

    void push(std::string_view text) {
        text_ += text;
        take(parser_.push(text));
    }

    std::vector<OutputEvent> finish() {
        take(parser_.finish());
        return joined_;
    }

  private:
    void take(const std::vector<OutputEvent>& events) {
        for (const OutputEvent& event : events) {
            const bool text = event.kind != Kind::kCallBegin && event.kind != Kind::kCallEnd;
            if (text) {
                EXPECT_FALSE(event.text.empty());
            }
            const bool shown = event.kind == Kind::kReasoning || event.kind == Kind::kContent;
            if (shown && !testing::Test::HasFatalFailure()) {  // the first is enough to see
                // Not ASSERT_EQ: of long texts it would print, and search, the difference.
                ASSERT_TRUE(event.text.size() <= event.end && event.end <= text_.size());
                ASSERT_TRUE(std::string_view(text_).substr(0, event.end).ends_with(event.text));
                ASSERT_GE(event.end - event.text.size(), seen_);
                seen_ = event.end;
            }
            if (text && !joined_.empty() && joined_.back().kind == event.kind) {
                joined_.back().text += event.text;
            } else {
                joined_.push_back(event);
            }
        }
    }

    OutputParser parser_;
    std::string text_;
    size_t seen_ = 0;  // bytes of it
    std::vector<OutputEvent> joined_;
};

std::vector<OutputEvent> read_whole(const std::string& text, Opening opening) {
    Collector collector(opening);
    collector.push(text);
    return collector.finish();
}

// The same events however `text` is cut. Tokens cut it as a model would.
void expect_the_same_in_any_cut(const std::string& text, Opening opening, uint64_t seed) {
    const std::vector<OutputEvent> whole = read_whole(text, opening);
    Collector bytes(opening);
    for (const char& c : text) bytes.push({&c, 1});
    EXPECT_EQ(bytes.finish(), whole) << "byte by byte: " << text;
    if (valid_utf8_prefix(text) == text.size()) {
        std::string normalized;  // as it comes back from tokens
        Collector tokens(opening);
        Detokenizer detokenizer(bundled_tokenizer(), ShowSpecials::kShow);
        for (const uint32_t id : bundled_tokenizer().encode(text, Specials::kParse)) {
            const std::string piece = detokenizer.push(id);
            normalized += piece;
            tokens.push(piece);
        }
        EXPECT_EQ(tokens.finish(), read_whole(normalized, opening)) << "by tokens: " << text;
    }
    Draw draw(seed);
    for (int round = 0; round < 4; ++round) {
        Collector cut(opening);
        for (size_t at = 0; at < text.size();) {
            const size_t next = std::min<size_t>(text.size(), at + draw.below(24));
            cut.push(std::string_view(text).substr(at, next - at));
            at = next;
        }
        EXPECT_EQ(cut.finish(), whole) << "random cuts: " << text;
    }
}

Reply reply_of(const std::vector<OutputEvent>& events) {
    Reply reply;
    for (const OutputEvent& event : events) {
        switch (event.kind) {
            case Kind::kReasoning:
                reply.reasoning += event.text;
                break;
            case Kind::kContent:
                reply.content += event.text;
                break;
            case Kind::kCallBegin:
                reply.calls.push_back(event.text + "(");
                break;
            case Kind::kArguments:
                reply.calls.back() += event.text;
                break;
            case Kind::kCallEnd:
                reply.calls.back() += event.whole ? ")" : ")...";
        }
    }
    return reply;
}

struct Case {
    std::string text;
    Reply reply;
    Opening opening = Opening::kReasoningClosed;
};

void expect_replies(const std::vector<Case>& cases) {
    for (const Case& known : cases) {
        EXPECT_EQ(reply_of(read_whole(known.text, known.opening)), known.reply) << known.text;
        expect_the_same_in_any_cut(known.text, known.opening, 11);
    }
}

TEST(Output, ReasoningOpensOnlyWhereThePromptLeftItOpen) {
    constexpr Opening kOpen = Opening::kReasoningMayOpen;
    expect_replies({
        {"<think>R</think>C", {"R", "C"}, kOpen},
        {"\n <think>\nR\n</think>\n\nC", {"\nR\n", "\n\nC"}, kOpen},
        {"<think></think>C", {"", "C"}, kOpen},
        {"<think>R</think>", {"R", ""}, kOpen},
        {"<think>never closed", {"never closed", ""}, kOpen},
        {"<think>a</thin", {"a</thin", ""}, kOpen},
        {"<think>a</think</think>b", {"a</think", "b"}, kOpen},
        {"<think>a<think>b</think>c</think>d", {"a<think>b", "c</think>d"}, kOpen},
        {"plain", {"", "plain"}, kOpen},
        {"  plain", {"", "  plain"}, kOpen},
        {"<thinking>", {"", "<thinking>"}, kOpen},
        {" <thi", {"", " <thi"}, kOpen},
        {" \n", {"", " \n"}, kOpen},
        {"", {"", ""}, kOpen},
        {"x<think>R</think>", {"", "x<think>R</think>"}, kOpen},
        {"<think>R</think>", {"", "<think>R</think>"}},
        {"a</think>b", {"", "a</think>b"}},
        {"<think>a<tool_call>\n<function=f>\n</function>\n</tool_call></think>b",
         {"a<tool_call>\n<function=f>\n</function>\n</tool_call>", "b"},
         kOpen},
    });
}

TEST(Output, CallsBecomeNamesAndJson) {
    const auto call = [](const std::string& name, const std::string& parameters) {
        return "<tool_call>\n<function=" + name + ">\n" + parameters + "</function>\n</tool_call>";
    };
    const auto with = [](const std::string& name, const std::string& value) {
        return "<parameter=" + name + ">" + value + "</parameter>\n";
    };
    expect_replies({
        {call("f", ""), {"", "", {"f({})"}}},
        {call("f", with("text", "a\nb \"c\" \\ \t<x>")),
         {"", "", {R"(f({"text": "a\nb \"c\" \\ \t<x>"}))"}}},
        {call("f", with("text", "") + with("any", " 1 ")),
         {"", "", {R"(f({"text": "", "any": " 1 "}))"}}},
        {call("f", with("n", "42") + with("flag", "True")),
         {"", "", {R"(f({"n": 42, "flag": true}))"}}},
        {call("f", with("n", "\n 42\n")), {"", "", {R"(f({"n": 42}))"}}},
        {call("f", with("n", "042") + with("flag", "None")),
         {"", "", {R"(f({"n": "042", "flag": null}))"}}},
        {call("f", with("n", "")), {"", "", {R"(f({"n": ""}))"}}},
        {call("f", with("n", "1e999")), {"", "", {R"(f({"n": "1e999"}))"}}},
        {call("f", with("list", "[1, {\"a\": \"é\"}]")),
         {"", "", {R"(f({"list": [1, {"a": "é"}]}))"}}},
        {call("f", with("n", std::string("40\0 x", 5))), {"", "", {R"(f({"n": "40\u0000 x"}))"}}},
        {call("f", with("list", "[1,")), {"", "", {R"(f({"list": "[1,"}))"}}},
        {call("f", with("list", std::string(100, '['))),
         {"", "", {"f({\"list\": \"" + std::string(100, '[') + "\"})"}}},
        {call("f", with("either", "5") + with("choice", "6")),
         {"", "", {R"(f({"either": "5", "choice": "6"}))"}}},
        {call("bare", with("n", "1.50") + with("unknown", "2")),
         {"", "", {R"(bare({"n": 1.50, "unknown": "2"}))"}}},
        {call("unknown", with("n", "1")), {"", "", {R"(unknown({"n": "1"}))"}}},
        {call("f", with("text", "</tool_call></function><parameter=x>")),
         {"", "", {R"(f({"text": "</tool_call></function><parameter=x>"}))"}}},
        {call("größe \"q\"", with("a b\\", "v")), {"", "", {"größe \"q\"({\"a b\\\\\": \"v\"})"}}},
        {"Before." + call("f", "") + "\n" + call("none", "") + "\n",
         {"", "Before.", {"f({})", "none({})"}}},
        {call("f", "") + call("f", ""), {"", "", {"f({})", "f({})"}}},
        {call("f", "") + " and after", {"", " and after", {"f({})"}}},
        {"<tool_call><function=f><parameter=n>1</parameter></function></tool_call>",
         {"", "", {R"(f({"n": 1}))"}}},
    });
}

TEST(Output, BrokenCallsLoseNoText) {
    expect_replies({
        // Names no function: content.
        {"a<tool_call>b", {"", "a<tool_call>b"}},
        {"<tool_call>\n{\"name\": \"f\"}\n</tool_call>",
         {"", "<tool_call>\n{\"name\": \"f\"}\n</tool_call>"}},
        {"<tool_call> <function=>x", {"", "<tool_call> <function=>x"}},
        {"<tool_call><function=a<b>", {"", "<tool_call><function=a<b>"}},
        {"<tool_call>\n<function=f", {"", "<tool_call>\n<function=f"}},
        {"<tool_call>\n<func", {"", "<tool_call>\n<func"}},
        {"<tool_call> ", {"", "<tool_call> "}},
        {"<tool_cal", {"", "<tool_cal"}},
        {"<tool_call><function=" + std::string(300, 'n') + ">",
         {"", "<tool_call><function=" + std::string(300, 'n') + ">"}},
        {"<tool_call><tool_call><function=f></tool_call>", {"", "<tool_call>", {"f({})"}}},
        // Breaks inside: the call ends there, the rest is content.
        {"<tool_call><function=f> oops</function></tool_call>",
         {"", " oops</function></tool_call>", {"f({})..."}}},
        {"<tool_call><function=f><parameter=n>1</parameter>\n<parameter=n>2</parameter>",
         {"", "\n<parameter=n>2</parameter>", {R"(f({"n": 1})...)"}}},
        {"<tool_call><function=f><parameter=>1", {"", "<parameter=>1", {"f({})..."}}},
        {"<tool_call><function=f><parameter=a\nb>", {"", "<parameter=a\nb>", {"f({})..."}}},
        {"<tool_call><function=f></function> tail", {"", " tail", {"f({})"}}},
        // Either closing tag will do.
        {"<tool_call><function=f></tool_call>!", {"", "!", {"f({})"}}},
        {"<tool_call><function=f></function>", {"", "", {"f({})"}}},
        // The reply stops.
        {"<tool_call><function=f><parameter=text>hal", {"", "", {R"(f({"text": "hal"})...)"}}},
        {"<tool_call><function=f><parameter=text>a</para",
         {"", "", {R"(f({"text": "a</para"})...)"}}},
        {"<tool_call><function=f><parameter=n>4", {"", "", {R"(f({"n": 4})...)"}}},
        {"<tool_call><function=f><parameter=n>4</p", {"", "", {R"(f({"n": "4</p"})...)"}}},
        {"<tool_call><function=f>\n<para", {"", "", {"f({})..."}}},
        {"<tool_call><function=f><parameter=na", {"", "", {"f({})..."}}},
        {"<tool_call><function=f>", {"", "", {"f({})..."}}},
        {"<tool_call><function=f></function>\n</tool", {"", "", {"f({})"}}},
        {"<tool_call><function=f></tool_call>\n<tool", {"", "\n<tool", {"f({})"}}},
    });
}

// Random replies of tags, halves of tags and numbered words. Each word must come out once, in
// order; arguments must be JSON; no event may cut a character.
TEST(Output, RandomRepliesLoseNoWordAndDoNotDependOnCuts) {
    const std::vector<std::string> fragments = {"<think>",
                                                "</think>",
                                                "<tool_call>",
                                                "</tool_call>",
                                                "<function=",
                                                "<function=f>",
                                                "</function>",
                                                "<parameter=",
                                                "<parameter=n>",
                                                "<parameter=text>",
                                                "</parameter>",
                                                ">",
                                                "<",
                                                "</",
                                                "<tool_",
                                                "call>",
                                                " ",
                                                "\n",
                                                "\"",
                                                "\\",
                                                "é",
                                                "😀",
                                                "1",
                                                "True",
                                                "[",
                                                "<tool_call>\n<function=f>\n",
                                                "</function>\n</tool_call>",
                                                "</parameter>\n<parameter=list>"};
    for (uint64_t seed = 0; seed < 4000; ++seed) {
        Draw draw(seed);
        std::string text;
        uint64_t words = 0;
        for (uint64_t left = draw.below(28); left > 0; --left) {
            text += draw.below(4) == 0 ? fmt::format("w{}.", words++)
                                       : fragments[draw.below(fragments.size())];
        }
        text += "\n!";  // so that the end cuts no tag off
        const Opening opening =
            draw.below(2) == 0 ? Opening::kReasoningMayOpen : Opening::kReasoningClosed;
        expect_the_same_in_any_cut(text, opening, seed);
        std::string all, arguments;
        for (const OutputEvent& event : read_whole(text, opening)) {
            all += event.text;
            EXPECT_EQ(valid_utf8_prefix(event.text), event.text.size()) << text;
            if (event.kind == Kind::kArguments) arguments += event.text;
            if (event.kind != Kind::kCallEnd) continue;
            EXPECT_TRUE(OrderedJson::accept(arguments)) << arguments << "\nin " << text;
            arguments.clear();
        }
        for (uint64_t word = 0, at = 0; word < words; ++word) {
            at = all.find(fmt::format("w{}.", word), at);
            ASSERT_NE(at, std::string::npos) << "word " << word << " of " << text;
        }
    }
}

TEST(Output, EventsComeAsSoonAsTheyAreCertain) {
    OutputParser parser(Opening::kReasoningMayOpen, tools());
    const auto texts = [&](std::string_view text) {
        std::string all;
        for (const OutputEvent& event : parser.push(text)) all += event.text + "|";
        return all;
    };
    EXPECT_EQ(texts("<think>"), "");
    EXPECT_EQ(texts("Hm <"), "Hm |");
    EXPECT_EQ(texts("b"), "<b|");
    EXPECT_EQ(texts("</think>So"), "So|");
    EXPECT_EQ(texts(" <tool_call"), " |");
    EXPECT_EQ(texts(">\n<function=f>"), "f|");
    EXPECT_EQ(texts("<parameter=text>"), "{\"text\": \"|");
    EXPECT_EQ(texts("a\"b"), "a\\\"b|");
    EXPECT_EQ(texts("</parameter><parameter=n>1"), "\", \"n\": |");
    EXPECT_EQ(texts("2</parameter>"), "12|");
    EXPECT_EQ(texts("</function>"), "}||");
}

// Each of these would take hours if any state looked at its text twice.
TEST(Output, TenMegabytesInAnyStateTakeLinearTime) {
    const std::string call = "<tool_call><function=f>";
    const auto many = [](std::string_view unit) {
        std::string text;
        while (text.size() < 10'000'000) text += unit;
        return text;
    };
    for (const std::string& text :
         {many("a"), many("<"), many("<tool_call>"), many("<tool_call><function="), many(" "),
          many("</think>"), call + many(" "), call + "<parameter=text>" + many("</parameter"),
          call + "<parameter=list>" + many("["), "<tool_call>" + many("\n"),
          many(call + "</function></tool_call>")}) {
        read_whole(text, Opening::kReasoningMayOpen);
        read_whole("<think>" + text, Opening::kReasoningMayOpen);
        Collector collector(Opening::kReasoningMayOpen);
        for (size_t at = 0; at < text.size(); at += 3) {
            collector.push(std::string_view(text).substr(at, 3));
        }
        collector.finish();
    }
}

}  // namespace
}  // namespace tessera
