"""Anthropic's API, driven by the official client; what goes over the wire is held against shapes.py.

Run as: anthropic_test.py PROGRAM MODEL [unittest arguments].
"""

import json
import sys
import typing
import unittest

import anthropic
import pydantic

import running
import shapes

BASE, FAST = "tessera-mini", "tessera-mini-ultraspeed"
QUESTION = [{"role": "user", "content": "Write a function that adds two numbers."}]
TOOL = {"name": "get_weather", "description": "Weather of a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
GREEDY = {"temperature": 0}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = running.Server()
        cls.client = anthropic.Anthropic(base_url=cls.server.url + "/anthropic", api_key="none", max_retries=0,
                                         timeout=running.DEADLINE_S)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        with cls.server:
            pass

    def ask(self, model=BASE, messages=QUESTION, max_tokens=60, **fields):
        return self.client.messages.create(model=model, messages=messages, max_tokens=max_tokens,
                                           extra_body={**GREEDY, **fields.pop("extra_body", {})}, **fields)

    def post(self, **fields):
        reply = self.server.post("/v1/messages", {"model": BASE, "messages": QUESTION, "max_tokens": 60, **GREEDY, **fields},
                                 **{"anthropic-version": "2023-06-01"})
        return reply

    def stream(self, **fields):
        """[(name, event)] of a stream, each of the right shape."""
        reply = self.post(stream=True, **fields)
        self.assertEqual(reply.status, 200, reply.body)
        found = [(name, json.loads(data)) for name, data in running.events(reply.body)]
        for name, event in found:
            shapes.check(event, shapes.A_EVENTS[name])
        return found


class Messages(Case):
    def test_answers_as_openais_api_does(self):
        message = self.ask()
        text = self.server.post("/v1/chat/completions", {"model": BASE, "messages": QUESTION, "max_tokens": 60,
                                                         **GREEDY}).json()["choices"][0]["message"]["content"]
        self.assertEqual(message.content[0].text, text)
        self.assertEqual(message.stop_reason, "end_turn")
        self.assertEqual(self.ask(FAST).content[0].text, text)
        shapes.check(self.post().json(), {**shapes.MESSAGE, **shapes.MEASURED})

    def test_a_stream_opens_and_closes_its_blocks(self):
        events = self.stream()
        self.assertEqual(events[0][0], "message_start")
        self.assertEqual([name for name, _ in events[-2:]], ["message_delta", "message_stop"])
        self.assertEqual(events[-2][1]["delta"]["stop_reason"], "end_turn")
        self.assertEqual([name for name, _ in events if name.startswith("content_block_st")],
                         ["content_block_start", "content_block_stop"])
        text = "".join(event["delta"]["text"] for name, event in events if name == "content_block_delta")
        self.assertEqual(text, self.ask().content[0].text)

    def test_the_stream_helper(self):
        with self.client.messages.stream(model=FAST, messages=QUESTION, max_tokens=60, extra_body=GREEDY) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, final.content[0].text)
        self.assertEqual(text, self.ask().content[0].text)
        self.assertEqual(final.usage.output_tokens, self.ask().usage.output_tokens)

    def test_stop_sequences_are_named(self):
        text = self.ask().content[0].text
        stop = text[10:13]
        for model in (BASE, FAST):
            message = self.ask(model, stop_sequences=["never there", stop])
            self.assertEqual((message.stop_reason, message.stop_sequence), ("stop_sequence", stop))
            self.assertEqual(message.content[0].text, text[:text.index(stop)])
        self.assertEqual(self.ask(max_tokens=3).stop_reason, "max_tokens")

    def test_tokens_are_counted_as_they_are_used(self):
        count = self.client.messages.count_tokens(model=BASE, messages=QUESTION, system="Be brief.", tools=[TOOL])
        usage = self.ask(system="Be brief.", tools=[TOOL]).usage
        self.assertEqual(count.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)
        plain = self.client.messages.count_tokens(model=BASE, messages=QUESTION)
        self.assertLess(plain.input_tokens, count.input_tokens)

    def test_tools(self):
        for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True}):
            message = self.ask(FAST, tools=[TOOL], tool_choice=choice, stop_sequences=["\n"])
            block, = message.content
            self.assertEqual((block.type, block.name, list(block.input)), ("tool_use", "get_weather", ["city"]))
            with self.client.messages.stream(model=BASE, messages=QUESTION, max_tokens=60, tools=[TOOL], tool_choice=choice,
                                             stop_sequences=["\n"], extra_body=GREEDY) as stream:
                self.assertEqual(stream.get_final_message().content[0].input, block.input)
        result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "sunny"}]}
        turns = [*QUESTION, {"role": "assistant", "content": [block.model_dump(include={"type", "id", "name", "input"})]},
                 {"role": "user", "content": [result, {"type": "text", "text": "So?"}]}]
        self.assertIn(self.ask(messages=turns, tools=[TOOL]).stop_reason, ("end_turn", "max_tokens"))
        events = self.stream(tools=[TOOL], tool_choice={"type": "any"}, stop_sequences=["\n"])
        pieces = [event["delta"]["partial_json"] for name, event in events if name == "content_block_delta"]
        self.assertEqual(json.loads("".join(pieces)), block.input)

    def test_json_that_fits_a_schema(self):
        schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}, "ok": {"type": "boolean"}},
                  "required": ["n", "ok"], "additionalProperties": False}
        form = {"type": "json_schema", "schema": schema}
        for fields in ({"output_config": {"format": form}}, {"output_format": form}):
            message = self.ask(max_tokens=100, extra_body=fields)
            self.assertEqual(set(json.loads(message.content[0].text)), {"n", "ok"})

    def test_parse(self):
        class Answer(pydantic.BaseModel):
            ok: bool
            colour: typing.Literal["red", "green"]

        for model in (BASE, FAST):
            message = self.client.messages.parse(model=model, messages=QUESTION, max_tokens=100, output_format=Answer)
            self.assertIsInstance(message.parsed_output, Answer)

    def test_thinking_comes_and_goes(self):
        self.ask(extra_body={"thinking": {"type": "enabled", "budget_tokens": 1024}})
        self.ask(messages=[*QUESTION, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "No."}]}, *QUESTION])

    def test_errors(self):
        cases = [({"model": "claude"}, 404, "not_found_error"), ({"messages": []}, 400, "invalid_request_error"),
                 ({"max_tokens": 0}, 400, "invalid_request_error"), ({"max_tokens": None}, 400, "invalid_request_error"),
                 ({"temperature": 1.5}, 400, "invalid_request_error"), ({"stop_sequences": "x"}, 400, "invalid_request_error"),
                 ({"messages": [{"role": "system", "content": "x"}]}, 400, "invalid_request_error"),
                 ({"tools": [{"name": "x"}]}, 400, "invalid_request_error"),
                 ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 501, "api_error"),
                 ({"tool_choice": {"type": "any"}}, 400, "invalid_request_error"),
                 ({"messages": [*QUESTION, {"role": "assistant", "content": "It is"}]}, 501, "api_error"),
                 ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 501, "api_error"),
                 ({"thinking": {"type": "maybe"}}, 400, "invalid_request_error")]
        for fields, status, kind in cases:
            reply = self.post(**fields)
            self.assertEqual((reply.status, reply.json()["error"]["type"]), (status, kind), reply.body)
            shapes.check(reply.json(), shapes.A_ERROR)
        with self.assertRaises(anthropic.NotFoundError):
            self.ask("claude")
        with self.assertRaises(anthropic.BadRequestError):
            self.ask(messages=[])


if __name__ == "__main__":
    running.program, running.model = sys.argv[1:3]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
