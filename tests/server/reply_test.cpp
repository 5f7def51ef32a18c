// From tokens to what a client reads: scripted replies through detokenizer, stop strings, parser
// and each API's format, whole and streamed. The model's tokenizer is real, its words are ours.
#include "server/reply.h"

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "server/anthropic.h"
#include "server/openai.h"

namespace tessera {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const Model& bundled() {
    static const Model model = Model::load(TESSERA_MODEL);
    return model;
}

class Recorder : public Exchange {
  public:
    HttpRequest& request() override { return request_; }
    void reply(HttpReply whole) override {
        status = whole.status;
        text = whole.body;
        over = true;
    }
    void begin(HttpReply head, std::string) override {
        status = head.status;
        text = head.body;
    }
    bool write(std::string_view piece) override {
        text += piece;
        return !left;
    }
    void end() override { over = true; }
    bool gone() const override { return left; }
    void on_gone(std::function<void()>) override {}

    uint32_t status = 0;
    std::string text;
    bool over = false, left = false;

  private:
    HttpRequest request_;
};

struct Told {
    std::optional<Ended> how;
    TokenCounts tokens;
};

class Observer : public ReplyObserver {
  public:
    explicit Observer(Told& told) : told_(told) {}
    void started(uint32_t) override {}
    void tokens(uint32_t) override {}
    void ended(Ended how, const TokenCounts& tokens, const JobReport&) override {
        told_ = {how, tokens};
    }

  private:
    Told& told_;
};

const OrderedJson kTools = OrderedJson::parse(R"([{"type": "function", "function": {"name": "f",
    "parameters": {"properties": {"n": {"type": "integer"}, "s": {"type": "string"}}}}}])");
constexpr std::string_view kCall =
    "<tool_call>\n<function=f>\n<parameter=n>3</parameter>\n<parameter=s>a \"b\"\n</parameter>\n"
    "</function>\n</tool_call>";

struct Script {
    std::string text;
    JobEnd end = JobEnd::kModel;
    std::vector<std::string> stops = {};
    bool tools = true, one_call = false, thinking = false, leaves = false;
    uint32_t at_once = 3;  // tokens a step
    bool rounds = false;
};

// Of the step with `count` tokens: now a draft is refused, now all stand.
Round round_of(size_t step, size_t count) {
    Round round;
    round.passes = 1;
    round.drafts = step % 3 == 0 ? Round::Drafts::kSuffix : Round::Drafts::kDrafter;
    round.accepted = static_cast<uint32_t>(count - 1);
    round.verified = round.accepted + step % 2;
    return round;
}

struct Written {
    std::string text;
    uint32_t status = 0;
    Told told;
    bool enough = false;
};

// Markers of a reply are tokens of their own.
std::vector<Token> tokens_of(std::string_view text) {
    std::vector<Token> tokens;
    while (!text.empty()) {
        size_t first = text.size(), length = 0;
        for (const std::string_view marker : kMarkerText)
            if (const size_t at = text.find(marker); at < first) first = at, length = marker.size();
        for (const Token token : bundled().encode(text.substr(0, first))) tokens.push_back(token);
        if (length > 0) {
            for (Token id = 0; id < bundled().info().vocab; ++id)
                if (bundled().token_bytes(id) == text.substr(first, length)) {
                    tokens.push_back(id);
                    break;
                }
        }
        text.remove_prefix(first + length);
    }
    return tokens;
}

Written write(const Script& script, bool stream, std::unique_ptr<ReplyFormat> format) {
    ReplyPlan plan;
    plan.format = std::move(format);
    plan.stream = stream;
    plan.stops = script.stops;
    plan.one_call = script.one_call;
    plan.rounds = script.rounds;
    plan.parser.emplace(script.thinking ? Opening::kReasoningMayOpen : Opening::kReasoningClosed,
                        kTools, script.tools ? Calls::kParse : Calls::kAsText);
    JobSpec spec;
    spec.prompt = {1, 2, 3};
    const auto exchange = std::make_shared<Recorder>();
    Written written;
    Reply reply(std::move(spec), std::move(plan), bundled(), exchange,
                std::make_unique<Observer>(written.told));
    reply.queued();
    reply.started(1);
    const std::vector<Token> tokens = tokens_of(script.text);
    JobEnd end = script.end;
    for (size_t at = 0; at < tokens.size(); at += script.at_once) {
        const auto step =
            std::span(tokens).subspan(at, std::min<size_t>(script.at_once, tokens.size() - at));
        exchange->left = script.leaves && at > 0;
        if (!reply.tokens(step, {}, round_of(at / script.at_once, step.size()))) {
            end = JobEnd::kEnough;
            written.enough = true;
            break;
        }
    }
    reply.ended(end, {});
    EXPECT_TRUE(exchange->over || script.leaves);
    written.text = exchange->text;
    written.status = exchange->status;
    return written;
}

std::unique_ptr<ReplyFormat> chat() {
    return openai::chat_format({"id", "model", 7, false, false});
}

Json whole_message(const Script& script) {
    return Json::parse(write(script, false, chat()).text)["choices"][0];
}

// The deltas of a stream joined as a client joins them.
Json joined(const std::string& stream) {
    Json message = {{"content", ""}, {"reasoning_content", ""}, {"tool_calls", Json::array()}};
    size_t at = 0;
    while ((at = stream.find("data: {", at)) != stream.npos) {
        const size_t end = stream.find("\n\n", at);
        const Json chunk = Json::parse(stream.substr(at + 6, end - at - 6));
        at = end;
        const Json& choice = chunk["choices"][0];
        if (!choice["finish_reason"].is_null()) message["finish"] = choice["finish_reason"];
        const Json& delta = choice["delta"];
        for (const char* field : {"content", "reasoning_content"})
            if (delta.contains(field))
                message[field] =
                    message[field].get<std::string>() + delta[field].get<std::string>();
        if (!delta.contains("tool_calls")) continue;
        for (const Json& call : delta["tool_calls"]) {
            Json& calls = message["tool_calls"];
            if (call["index"] == calls.size()) {
                EXPECT_EQ(call["type"], "function");
                calls.push_back(
                    {{"id", call["id"]}, {"name", call["function"]["name"]}, {"arguments", ""}});
            }
            Json& mine = calls[call["index"].get<size_t>()];
            mine["arguments"] = mine["arguments"].get<std::string>() +
                                call["function"]["arguments"].get<std::string>();
        }
    }
    return message;
}

TEST(ChatReply, IsContentReasoningAndCalls) {
    const Script script{"<think>Hm, </think>So: " + std::string(kCall) + "\n" + std::string(kCall),
                        JobEnd::kModel,
                        {},
                        true,
                        false,
                        true};
    const Json choice = whole_message(script);
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
    EXPECT_EQ(choice["message"]["reasoning_content"], "Hm, ");
    EXPECT_EQ(choice["message"]["content"], "So: ");
    const Json& calls = choice["message"]["tool_calls"];
    ASSERT_EQ(calls.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
        EXPECT_EQ(calls[i]["function"]["name"], "f");
        EXPECT_EQ(Json::parse(calls[i]["function"]["arguments"].get<std::string>()),
                  Json({{"n", 3}, {"s", "a \"b\"\n"}}));
    }
    EXPECT_NE(calls[0]["id"], calls[1]["id"]);
}

TEST(ChatReply, IsTheSameAsAStreamHoweverItIsCut) {
    const std::string text =
        "<think>Hm, </think>So: " + std::string(kCall) + "\n" + std::string(kCall);
    const Json whole = whole_message({text, JobEnd::kModel, {}, true, false, true})["message"];
    for (const uint32_t at_once : {1u, 2u, 5u, 8u, 100u}) {
        const Written stream =
            write({text, JobEnd::kModel, {}, true, false, true, false, at_once}, true, chat());
        EXPECT_THAT(stream.text, testing::EndsWith("data: [DONE]\n\n"));
        const Json message = joined(stream.text);
        EXPECT_EQ(message["content"], whole["content"]);
        EXPECT_EQ(message["reasoning_content"], whole["reasoning_content"]);
        EXPECT_EQ(message["finish"], "tool_calls");
        ASSERT_EQ(message["tool_calls"].size(), 2u);
        for (size_t i = 0; i < 2; ++i)
            EXPECT_EQ(message["tool_calls"][i]["arguments"],
                      whole["tool_calls"][i]["function"]["arguments"]);
        EXPECT_EQ(stream.told.how, Ended::kToolCalls);
        EXPECT_EQ(stream.told.tokens.completion, tokens_of(text).size() + 1) << "the end token too";
    }
}

TEST(ChatReply, OneCallEndsIt) {
    const Written written = write(
        {std::string(kCall) + "\n" + std::string(kCall) + "more", JobEnd::kLimit, {}, true, true},
        false, chat());
    EXPECT_TRUE(written.enough);
    const Json choice = Json::parse(written.text)["choices"][0];
    EXPECT_EQ(choice["message"]["tool_calls"].size(), 1u);
    EXPECT_EQ(choice["message"]["content"], Json());
    EXPECT_EQ(choice["finish_reason"], "tool_calls");
}

TEST(ChatReply, WithoutToolsACallIsText) {
    const Json choice = whole_message({std::string(kCall), JobEnd::kModel, {}, false});
    EXPECT_EQ(choice["message"]["content"], std::string(kCall));
    EXPECT_FALSE(choice["message"].contains("tool_calls"));
    EXPECT_EQ(choice["finish_reason"], "stop");
}

TEST(ChatReply, StopsInsideABlockAndCountsNoFurther) {
    const std::string text = "One, two, three, four, five, six.";
    const std::vector<Token> tokens = tokens_of(text);
    std::vector<uint32_t> completions;
    for (const uint32_t at_once : {1u, 8u}) {
        for (const bool stream : {false, true}) {
            Script script{text, JobEnd::kModel, {"never", "e, fo"}};
            script.at_once = at_once;
            const Written written = write(script, stream, chat());
            const Json content =
                stream ? joined(written.text)["content"]
                       : Json::parse(written.text)["choices"][0]["message"]["content"];
            EXPECT_EQ(content, "One, two, thre");
            EXPECT_EQ(written.told.how, Ended::kStop);
            completions.push_back(written.told.tokens.completion);
        }
    }
    EXPECT_THAT(completions, testing::Each(completions[0]));
    EXPECT_LT(completions[0], tokens.size());
}

TEST(ChatReply, EndsOfAllKindsAreNamed) {
    EXPECT_EQ(whole_message({"x", JobEnd::kLimit})["finish_reason"], "length");
    EXPECT_EQ(whole_message({"x", JobEnd::kContext})["finish_reason"], "length");
    EXPECT_EQ(whole_message({"x", JobEnd::kModel})["finish_reason"], "stop");
    const std::string half(kCall.substr(0, kCall.size() / 2));
    const Json cut = whole_message({half, JobEnd::kLimit});
    EXPECT_EQ(cut["finish_reason"], "length");
    EXPECT_TRUE(
        Json::accept(cut["message"]["tool_calls"][0]["function"]["arguments"].get<std::string>()));
}

TEST(ChatReply, ReasoningIsCounted) {
    const std::string thought = "<think>one two three</think>";
    Script script{thought + "four", JobEnd::kModel};
    script.thinking = true;
    const Json usage = Json::parse(write(script, false, chat()).text)["usage"];
    EXPECT_EQ(usage["completion_tokens_details"]["reasoning_tokens"], tokens_of(thought).size());
    EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 1);
}

TEST(ChatReply, AShutdownIsAnError) {
    const Written whole = write({"x", JobEnd::kCut}, false, chat());
    EXPECT_EQ(whole.status, 503u);
    EXPECT_EQ(Json::parse(whole.text)["error"]["code"], "shutting_down");
    const Written stream = write({"x", JobEnd::kCut}, true, chat());
    EXPECT_EQ(stream.status, 200u);
    EXPECT_THAT(stream.text, HasSubstr("data: {\"error\":{"));
    EXPECT_THAT(stream.text, testing::Not(HasSubstr("[DONE]")));
    EXPECT_EQ(stream.told.how, Ended::kCut);
}

TEST(ChatReply, SomebodyWhoLeftIsTold) {
    Script script{"One, two, three, four, five, six.", JobEnd::kModel};
    script.leaves = true;
    for (const bool stream : {false, true}) {
        const Written written = write(script, stream, chat());
        EXPECT_TRUE(written.enough);
        EXPECT_EQ(written.told.how, Ended::kCancelled);
    }
}

// ------------------------------------------------------------------ rounds

std::unique_ptr<ReplyFormat> chat_with_rounds() {
    return openai::chat_format({"id", "model", 7, false, false, true});
}

std::vector<Json> chunks_of(const std::string& stream) {
    std::vector<Json> chunks;
    for (size_t at = 0; (at = stream.find("data: {", at)) != stream.npos;) {
        const size_t end = stream.find("\n\n", at);
        chunks.push_back(Json::parse(stream.substr(at + 6, end - at - 6)));
        at = end;
    }
    return chunks;
}

std::string name_of(Origin origin) {
    return std::array{
        "model", "drafter", "suffix", "forced", "correction", "bonus"}[static_cast<size_t>(origin)];
}

// Each byte of a reply with the token that completed its character, and what becomes of them.
struct FromToken {
    char byte;
    std::string from;
};
std::vector<FromToken> bytes_of(const Script& script) {
    std::vector<FromToken> bytes;
    Detokenizer detokenizer = bundled().detokenizer(ShowSpecials::kShow);
    const std::vector<Token> tokens = tokens_of(script.text);
    for (size_t i = 0; i < tokens.size(); ++i) {
        const size_t step = i / script.at_once, place = i % script.at_once;
        const size_t count =
            std::min<size_t>(script.at_once, tokens.size() - step * script.at_once);
        for (const char byte : detokenizer.push(tokens[i]))
            bytes.push_back({byte, name_of(origin_of(round_of(step, count), place))});
    }
    return bytes;
}
void drop(std::vector<FromToken>& bytes, std::string_view what) {
    std::string text;
    for (const FromToken& one : bytes) text += one.byte;
    const size_t at = text.find(what);
    ASSERT_NE(at, text.npos) << what;
    const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    bytes.erase(first, first + static_cast<std::ptrdiff_t>(what.size()));
}

TEST(Rounds, EveryByteIsItsTokensWhereverItIsHeldBack) {
    struct Case {
        std::string text;
        std::vector<std::string> dropped;  // tags, and what a stop string takes
        std::vector<std::string> stops = {};
    };
    const std::vector<Case> cases = {
        {"One, two, three, four, five.", {}},
        {" \n<think>Hm, 😀 </thin </think>So: 😀é<tool", {" \n<think>", "</think>"}},
        {"<think>a</think><tool_call>\n<function=none", {"<think>", "</think>"}},
        {"a 😀 b<tool_call>\nno call </tool_call> c", {}},
        {"One, two, three, four, five.", {"e, four, five."}, {"never", "e, fo", "fiver"}},
        {"one t, ton, tone, tones", {}, {"tonic", "tones."}},
    };
    for (const Case& known : cases) {
        for (const uint32_t at_once : {1u, 2u, 3u, 5u, 8u}) {
            Script script{known.text, JobEnd::kModel, known.stops};
            script.thinking = true;
            script.rounds = true;
            script.at_once = at_once;
            std::vector<FromToken> expected = bytes_of(script);
            for (const std::string& what : known.dropped) drop(expected, what);
            std::vector<FromToken> shown;
            size_t rounds = 0;
            for (const Json& chunk : chunks_of(write(script, true, chat_with_rounds()).text)) {
                if (!chunk.contains("speculation")) continue;
                rounds += chunk["speculation"]["rounds"].size();
                std::string text;
                for (const Json& token : chunk["speculation"]["tokens"]) {
                    for (const char byte : token["text"].get<std::string>())
                        shown.push_back({byte, token["from"]});
                    text += token["text"].get<std::string>();
                }
                const Json& delta = chunk["choices"][0]["delta"];
                EXPECT_EQ(delta.value("content", delta.value("reasoning_content", "")), text);
            }
            ASSERT_EQ(shown.size(), expected.size()) << known.text;
            for (size_t i = 0; i < shown.size(); ++i) {
                EXPECT_EQ(shown[i].byte, expected[i].byte) << known.text << i;
                EXPECT_EQ(shown[i].from, expected[i].from) << known.text << i << " of " << at_once;
            }
            const size_t steps = (tokens_of(known.text).size() + at_once - 1) / at_once;
            if (known.stops.size() != 3) {
                EXPECT_EQ(rounds, steps) << known.text;
            }
        }
    }
}

TEST(Rounds, AreAllThatAskingForThemAdds) {
    for (const std::string& text :
         {std::string("<think>Hm</think>So."), "a" + std::string(kCall) + std::string(kCall)}) {
        Script script{text};
        script.thinking = true;
        const std::string plain = write(script, true, chat()).text;
        EXPECT_THAT(plain, testing::Not(HasSubstr("speculation\":")));
        script.rounds = true;
        const std::vector<Json> without = chunks_of(plain);
        std::vector<Json> with = chunks_of(write(script, true, chat_with_rounds()).text);
        ASSERT_EQ(with.size(), without.size());
        size_t told = 0;
        for (size_t i = 0; i < with.size(); ++i) {
            told += with[i].erase("speculation");
            EXPECT_EQ(with[i], without[i]);
        }
        EXPECT_GT(told, 1u);
    }
}

TEST(Rounds, WaitForAChunk) {
    // Nothing can be shown before the end: the last chunk says what was done.
    Script script{"<tool_ca", JobEnd::kLimit};
    script.rounds = true;
    script.at_once = 1;
    const std::vector<Json> chunks = chunks_of(write(script, true, chat_with_rounds()).text);
    ASSERT_EQ(chunks.size(), 3u);  // the role, the text, the end
    EXPECT_FALSE(chunks[0].contains("speculation"));
    EXPECT_EQ(chunks[1]["speculation"]["rounds"].size(), tokens_of(script.text).size());
    EXPECT_EQ(chunks[1]["speculation"]["rounds"][0],
              Json({{"drafts", "suffix"}, {"verified", 0}, {"accepted", 0}}));
    EXPECT_EQ(chunks[2]["choices"][0]["finish_reason"], "length");
}

// ------------------------------------------------------------------ Anthropic

TEST(MessageReply, IsBlocks) {
    Script script{"<think>Hm</think>So: " + std::string(kCall), JobEnd::kModel};
    script.thinking = true;
    const Json message =
        Json::parse(write(script, false, anthropic::message_format("id", "model")).text);
    EXPECT_EQ(message["stop_reason"], "tool_use");
    const Json& blocks = message["content"];
    ASSERT_EQ(blocks.size(), 3u);
    EXPECT_EQ(blocks[0]["thinking"], "Hm");
    EXPECT_EQ(blocks[1]["text"], "So: ");
    EXPECT_EQ(blocks[2]["input"], Json({{"n", 3}, {"s", "a \"b\"\n"}}));
    EXPECT_EQ(message["usage"]["input_tokens"], 2);
    EXPECT_EQ(message["usage"]["cache_read_input_tokens"], 1);
}

TEST(MessageReply, StreamsEachBlockOpenedAndClosed) {
    Script script{"<think>Hm</think>So: " + std::string(kCall) + std::string(kCall),
                  JobEnd::kModel};
    script.thinking = true;
    const std::string text = write(script, true, anthropic::message_format("id", "model")).text;
    std::vector<std::string> names;
    std::vector<std::string> kinds(4);
    int64_t open = -1;
    for (size_t at = 0; (at = text.find("event: ", at)) != text.npos;) {
        const size_t end = text.find("\n\n", at);
        const std::string name = text.substr(at + 7, text.find('\n', at) - at - 7);
        const Json event = Json::parse(
            text.substr(text.find("data: ", at) + 6, end - text.find("data: ", at) - 6));
        at = end;
        EXPECT_EQ(event["type"], name);
        if (name == "content_block_start") {
            EXPECT_EQ(open, -1);
            open = event["index"];
            kinds.at(static_cast<size_t>(open)) = event["content_block"]["type"];
        } else if (name == "content_block_delta") {
            EXPECT_EQ(event["index"], open);
        } else if (name == "content_block_stop") {
            EXPECT_EQ(event["index"], open);
            open = -1;
        } else {
            names.push_back(name);
        }
    }
    EXPECT_THAT(kinds, ElementsAre("thinking", "text", "tool_use", "tool_use"));
    EXPECT_THAT(names, ElementsAre("message_start", "message_delta", "message_stop"));
}

TEST(MessageReply, NamesItsStopSequence) {
    const Json message = Json::parse(write({"One, two, three.", JobEnd::kModel, {", t"}}, false,
                                           anthropic::message_format("id", "model"))
                                         .text);
    EXPECT_EQ(message["stop_reason"], "stop_sequence");
    EXPECT_EQ(message["stop_sequence"], ", t");
    EXPECT_EQ(message["content"][0]["text"], "One");
}

}  // namespace
}  // namespace tessera
