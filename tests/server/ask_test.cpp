// Requests from JSON: what is read, and what is refused with which field.
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/anthropic.h"
#include "server/openai.h"

namespace tessera {
namespace {

using testing::ElementsAre;

Sampling recommended() {
    Sampling sampling;
    sampling.temperature = 0.7f;
    sampling.top_p = 0.9f;
    return sampling;
}

// A chat request with more fields, given as the inside of an object.
OrProblem<Ask> chat(const std::string& more) {
    const std::string text = R"({"model": "m", "messages": [{"role": "user", "content": "Hi"}])" +
                             (more.empty() ? "" : ", " + more) + "}";
    auto body = parse_body(text);
    if (auto* problem = std::get_if<ApiProblem>(&body)) return *problem;
    return openai::parse_chat(std::get<OrderedJson>(body), recommended());
}

OrProblem<Ask> message(const std::string& more) {
    const std::string text =
        R"({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}])" +
        (more.empty() ? "" : ", " + more) + "}";
    auto body = parse_body(text);
    if (auto* problem = std::get_if<ApiProblem>(&body)) return *problem;
    return anthropic::parse_message(std::get<OrderedJson>(body), recommended());
}

const Ask& good(const OrProblem<Ask>& asked) {
    if (const auto* problem = std::get_if<ApiProblem>(&asked)) ADD_FAILURE() << problem->message;
    static const Ask kNone;
    return std::holds_alternative<Ask>(asked) ? std::get<Ask>(asked) : kNone;
}

TEST(Body, IsOneObjectOfBoundedSizeAndDepth) {
    for (const std::string& text :
         {std::string(), std::string("  "), std::string("3"), std::string("[]"), std::string("{"),
          std::string("{}x"), std::string("{\"a\":1,\"a\":2}"), std::string("{\"a\":\"\xff\"}"),
          std::string("{\"a\":\"\\ud800\"}"), std::string("{\"a\":NaN}"),
          std::string("{\"a\":1e999}"), std::string("{\"a\":\"\0\"}", 9), std::string(100'000, '['),
          "{\"a\":[" + std::string(2'000'001, ',') + "]}"}) {
        EXPECT_TRUE(std::holds_alternative<ApiProblem>(parse_body(text))) << text.substr(0, 40);
    }
    EXPECT_FALSE(std::holds_alternative<ApiProblem>(parse_body(" {\"a\": \"\\ud83d\\ude00\"} ")));
}

TEST(ChatAsk, KeepsWhatIsRecommendedUnlessItIsGiven) {
    const auto plain = chat("");
    EXPECT_EQ(good(plain).sampling.temperature, 0.7f);
    EXPECT_FALSE(good(plain).seed || good(plain).max_draft || good(plain).tokens_max);
    const auto asked =
        chat(R"("temperature": 0, "top_p": null, "top_k": -1, "min_p": 0.5, "seed": -1,
        "max_tokens": 3, "max_completion_tokens": 4.0, "stop": "x", "speculative": {"max_draft": 2},
        "presence_penalty": -2, "frequency_penalty": 1.5, "logprobs": true, "top_logprobs": 4,
        "parallel_tool_calls": false, "stream": true,
        "stream_options": {"include_usage": true, "include_rounds": true})");
    const Ask& ask = good(asked);
    EXPECT_EQ(ask.sampling.temperature, 0);
    EXPECT_EQ(ask.sampling.top_p, 0.9f);
    EXPECT_EQ(ask.sampling.top_k, 0u);
    EXPECT_EQ(ask.sampling.min_p, 0.5f);
    EXPECT_EQ(ask.sampling.presence_penalty, -2);
    EXPECT_EQ(ask.sampling.frequency_penalty, 1.5f);
    EXPECT_EQ(ask.seed, UINT64_MAX);
    EXPECT_EQ(ask.tokens_max, 4u);
    EXPECT_EQ(ask.max_draft, 2u);
    EXPECT_EQ(ask.likelihood_top, 4u);
    EXPECT_THAT(ask.stops, ElementsAre("x"));
    EXPECT_TRUE(ask.one_call && ask.stream && ask.include_usage && ask.include_rounds);
}

TEST(ChatAsk, NamesTheFieldThatIsWrong) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {R"("temperature": 2.1)", "temperature"},
        {R"("temperature": "1")", "temperature"},
        {R"("top_p": 0)", "top_p"},
        {R"("top_k": -2)", "top_k"},
        {R"("max_tokens": 0)", "max_tokens"},
        {R"("max_tokens": 1.5)", "max_tokens"},
        {R"("max_completion_tokens": 99999999999)", "max_completion_tokens"},
        {R"("seed": 1.5)", "seed"},
        {R"("stop": ["a", ""])", "stop"},
        {R"("stop": [1])", "stop"},
        {R"("stream": 1)", "stream"},
        {R"("stream_options": {"include_usage": true})", "stream_options"},
        {R"("stream": true, "stream_options": {"include_rounds": 1})",
         "stream_options.include_rounds"},
        {R"("n": 0)", "n"},
        {R"("top_logprobs": 2)", "top_logprobs"},
        {R"("logprobs": true, "top_logprobs": 21)", "top_logprobs"},
        {R"("speculative": {"max_draft": 8})", "speculative.max_draft"},
        {R"("thinking": {"type": "perhaps"})", "thinking.type"},
        {R"("chat_template_kwargs": {"enable_thinking": 1})",
         "chat_template_kwargs.enable_thinking"},
        {R"("tools": [{"type": "function", "function": {"name": ""}}])", "tools.0.function.name"},
        {R"("tools": 3)", "tools"},
        {R"("tool_choice": "required")", "tool_choice"},
        {R"("response_format": {"type": "xml"})", "response_format.type"},
        {R"("response_format": {"type": "json_schema"})", "response_format.json_schema"},
        {R"("response_format": {"type": "json_schema", "json_schema": {"name": "x"}})",
         "response_format.json_schema"},
        {R"("response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}})",
         "response_format.json_schema.schema"},
    };
    for (const auto& [more, param] : cases) {
        const auto asked = chat(more);
        const auto* problem = std::get_if<ApiProblem>(&asked);
        ASSERT_NE(problem, nullptr) << more;
        EXPECT_EQ(problem->status, 400u) << more;
        EXPECT_EQ(problem->param, param) << problem->message;
    }
}

TEST(ChatAsk, SaysWhatIsNotSupported) {
    for (const std::string more :
         {R"("n": 2)", R"("logit_bias": {"1": 2})", R"("functions": [])", R"("audio": {})",
          R"("tools": [{"type": "function", "function": {"name": "f"}}],
             "response_format": {"type": "json_object"})"}) {
        const auto asked = chat(more);
        ASSERT_TRUE(std::holds_alternative<ApiProblem>(asked)) << more;
        EXPECT_EQ(std::get<ApiProblem>(asked).status, 501u) << more;
    }
}

TEST(ChatAsk, ACallThatIsAskedForBeginsTheReply) {
    const std::string tools =
        R"("tools": [{"type": "function", "function": {"name": "f", "parameters":
        {"type": "object", "properties": {"a": {}}, "required": ["a"]}}}])";
    const auto begins = [&](const std::string& more) {
        return std::get<Conversation>(good(chat(tools + more)).prompt).reply_begins;
    };
    EXPECT_EQ(begins(""), "");
    EXPECT_EQ(begins(R"(, "tool_choice": "auto")"), "");
    const std::string forced = "<tool_call>\n<function=f>\n<parameter=a>";
    EXPECT_EQ(begins(R"(, "tool_choice": "required")"), forced);
    EXPECT_EQ(begins(R"(, "tool_choice": {"type": "function", "function": {"name": "f"}})"),
              forced);
    // No name that could be more than a name.
    const auto odd = chat(R"("tool_choice": "required", "tools": [{"type": "function", "function":
        {"name": "f", "parameters": {"required": ["<|im_end|>"]}}}])");
    EXPECT_EQ(std::get<ApiProblem>(odd).param, "tool_choice");
    // Of several the name is the model's choice.
    const auto several = chat(R"("tool_choice": "required", "tools": [
        {"type": "function", "function": {"name": "go"}},
        {"type": "function", "function": {"name": "get"}}])");
    EXPECT_EQ(std::get<Conversation>(good(several).prompt).reply_begins,
              "<tool_call>\n<function=g");
}

TEST(ChatAsk, AFormatIsAConstraint) {
    const auto format = [&](const std::string& more) {
        return std::get<Conversation>(good(chat(R"("response_format": )" + more)).prompt)
            .constraint.has_value();
    };
    EXPECT_FALSE(format(R"({"type": "text"})"));
    EXPECT_TRUE(format(R"({"type": "json_object"})"));
    EXPECT_TRUE(format(R"({"type": "json_schema", "json_schema": {"name": "x", "strict": true,
        "schema": {"type": "object", "properties": {}, "additionalProperties": false}}})"));
}

TEST(MessageAsk, ReadsBlocksIntoTurns) {
    const std::string text =
        R"({"model": "m", "max_tokens": 5, "system": [{"type": "text", "text": "S"}],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "messages": [{"role": "user", "content": "A"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "T", "signature": ""},
            {"type": "text", "text": "B"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "R"},
            {"type": "text", "text": "C"}]}]})";
    const auto asked = anthropic::parse_message(OrderedJson::parse(text), recommended());
    const auto& conversation = std::get<Conversation>(good(asked).prompt);
    std::vector<std::pair<Role, std::string>> turns;
    for (const Turn& turn : conversation.turns) turns.emplace_back(turn.role, turn.content);
    EXPECT_THAT(turns, ElementsAre(std::pair(Role::kSystem, "S"), std::pair(Role::kUser, "A"),
                                   std::pair(Role::kAssistant, "B"), std::pair(Role::kTool, "R"),
                                   std::pair(Role::kUser, "C")));
    EXPECT_EQ(conversation.turns[2].reasoning, "T");
    EXPECT_EQ(conversation.turns[2].tool_calls[0].arguments, OrderedJson::parse(R"({"x": 1})"));
    EXPECT_EQ(conversation.tools[0]["function"]["parameters"],
              OrderedJson::parse(R"({"type": "object"})"));
}

TEST(MessageAsk, NamesTheFieldThatIsWrong) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {R"("temperature": 1.1)", "temperature"},
        {R"("stop_sequences": "x")", "stop_sequences"},
        {R"("system": [{"type": "image"}])", "system.0.type"},
        {R"("tools": [{"name": "f"}])", "tools.0.input_schema"},
        {R"("tool_choice": {"type": "any"})", "tool_choice.name"},
        {R"("tool_choice": {"type": "tool"})", "tool_choice.name"},
        {R"("output_config": {"format": {"type": "xml"}})", "output_config.format.type"},
        {R"("output_format": {"type": "json_schema"})", "output_format.schema"},
        {R"("thinking": {"type": "enabled", "budget_tokens": -1})", "thinking.budget_tokens"},
    };
    for (const auto& [more, param] : cases) {
        const auto asked = message(more);
        ASSERT_TRUE(std::holds_alternative<ApiProblem>(asked)) << more;
        EXPECT_EQ(std::get<ApiProblem>(asked).param, param);
    }
}

}  // namespace
}  // namespace tessera
