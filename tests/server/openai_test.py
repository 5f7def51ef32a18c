"""OpenAI's API, driven by the official client; what goes over the wire is held against shapes.py.

Run as: openai_test.py PROGRAM MODEL [unittest arguments].
"""

import enum
import json
import sys
import threading
import time
import typing
import unittest

import openai
import pydantic

import running
import shapes

BASE, FAST = "tessera-mini", "tessera-mini-ultraspeed"
QUESTION = [{"role": "user", "content": "Write a function that adds two numbers."}]
LOOP = "x = 1\n" * 40  # goes on and on
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = running.Server()
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0,
                                   timeout=running.DEADLINE_S)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        with cls.server:
            pass

    def ask(self, model=BASE, messages=QUESTION, max_tokens=40, temperature=0, **fields):
        reply = self.client.chat.completions.create(model=model, messages=messages, max_tokens=max_tokens,
                                                    temperature=temperature, **fields)
        shapes.check(json.loads(reply.model_dump_json(exclude_unset=True)), shapes.CHAT)
        return reply

    def text(self, *args, **fields):
        return self.ask(*args, **fields).choices[0].message.content

    def chunks(self, body):
        """The chunks of a stream as they come over the wire, each of the right shape."""
        reply = self.server.post("/v1/chat/completions", {"stream": True, **body})
        self.assertEqual(reply.status, 200, reply.body)
        self.assertTrue(reply.whole)
        data = [data for _, data in running.events(reply.body)]
        self.assertEqual(data[-1], "[DONE]")
        return [shapes.check(json.loads(one), shapes.CHAT_CHUNK) for one in data[:-1]]

    def refused(self, kind, code=None, param=None, **fields):
        with self.assertRaises(kind) as caught:
            self.ask(**fields)
        shapes.check({"error": caught.exception.body}, shapes.ERROR)
        if code:
            self.assertEqual(caught.exception.code, code)
        if param:
            self.assertEqual(caught.exception.param, param)
        return caught.exception


class Models(Case):
    def test_one_id_a_mode(self):
        self.assertEqual([model.id for model in self.client.models.list()], [BASE, FAST])
        self.assertEqual(self.client.models.retrieve(FAST).id, FAST)
        shapes.check(self.server.get("/v1/models").json(), shapes.MODELS)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve("gpt-4")
        self.assertEqual(caught.exception.code, "model_not_found")


class Chat(Case):
    def test_answers_and_counts(self):
        reply = self.ask()
        self.assertEqual(reply.model, BASE)
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        self.assertIn("def ", reply.choices[0].message.content)
        usage = reply.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertLess(abs(time.time() - reply.created), 3600)

    def test_the_mode_changes_no_token(self):
        for seed in range(4):
            plain = self.ask(BASE, max_tokens=60, temperature=0.8, seed=seed)
            fast = self.ask(FAST, max_tokens=60, temperature=0.8, seed=seed)
            self.assertEqual(plain.choices[0].message.content, fast.choices[0].message.content)
            self.assertEqual(plain.usage.completion_tokens, fast.usage.completion_tokens)
            self.assertEqual(plain.metrics["speculative_decoding"]["num_spec_steps"], 0)

    def test_speculation_is_counted_and_can_be_turned_off_or_down(self):
        drafts = lambda **extra: self.client.completions.create(
            model=FAST, prompt=LOOP, temperature=0, max_tokens=120, extra_body=extra).metrics["speculative_decoding"]
        # Whether drafting pays is measured while it goes: on a busy machine not in every request.
        free = next((one for one in (drafts() for _ in range(20)) if one["num_accepted_draft_tokens"] > 0), None)
        self.assertIsNotNone(free)
        self.assertGreater(free["mean_acceptance_length"], 1)
        self.assertEqual(sum(free["acceptance_histogram"][k] * k for k in range(8)), free["num_accepted_draft_tokens"])
        self.assertEqual(drafts(speculative=False)["num_draft_tokens"], 0)
        self.assertEqual(sum(drafts(speculative={"max_draft": 1})["acceptance_histogram"][2:]), 0)

    def test_seeds(self):
        say = lambda seed: self.text(max_tokens=30, temperature=1, seed=seed)
        self.assertEqual(say(7), say(7))
        self.assertGreater(len({say(seed) for seed in range(5)}), 1)
        self.assertEqual(say(-(2**63)), say(-(2**63)))

    def test_a_stream_is_the_same_text(self):
        whole = self.ask(FAST, max_tokens=60)
        chunks = self.chunks({"model": FAST, "messages": QUESTION, "max_tokens": 60, "temperature": 0,
                              "stream_options": {"include_usage": True}})
        self.assertEqual(chunks[0]["choices"][0]["delta"]["role"], "assistant")
        self.assertTrue(all("role" not in c["choices"][0]["delta"] for c in chunks[1:-1]))
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
        self.assertEqual(text, whole.choices[0].message.content)
        reasons = [c["choices"][0]["finish_reason"] for c in chunks[:-1]]
        self.assertEqual(reasons, [None] * (len(reasons) - 1) + ["stop"])
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], whole.usage.completion_tokens)
        self.assertIn("timings", chunks[-1])
        self.assertEqual(len({c["id"] for c in chunks}), 1)

    def test_rounds_add_up(self):
        for path, shape, prompt in (("/v1/completions", shapes.COMPLETION_CHUNK, {"prompt": LOOP}),
                                    ("/v1/chat/completions", shapes.CHAT_CHUNK, {"messages": QUESTION})):
            body = {"model": FAST, **prompt, "max_tokens": 80, "temperature": 0, "stream": True}
            asked = [self.server.post(path, {**body, **extra}) for extra in (
                {}, {"stream_options": {"include_rounds": False}}, {"stream_options": {"include_rounds": True}})]
            streams = [[shapes.check(json.loads(data), shape) for _, data in running.events(reply.body) if data != "[DONE]"]
                       for reply in asked]
            for stream in streams[:2]:
                self.assertFalse(any("speculation" in chunk for chunk in stream))
            rounds, text = [], ""
            for chunk in streams[2]:
                told = chunk.get("speculation", {"rounds": [], "tokens": []})
                rounds += told["rounds"]
                choice = chunk["choices"][0]
                shown = choice.get("text", choice.get("delta", {}).get("content", ""))
                self.assertEqual("".join(token["text"] for token in told["tokens"]), shown)
                text += shown
            plain = "".join(c["choices"][0].get("text", c["choices"][0].get("delta", {}).get("content", "")) for c in streams[0])
            self.assertEqual(text, plain)
            measured = streams[2][-1]["metrics"]["speculative_decoding"]
            histogram = [sum(one["accepted"] == k for one in rounds) for k in range(8)]
            self.assertEqual(histogram, measured["acceptance_histogram"])
            self.assertEqual(sum(one["verified"] for one in rounds), measured["num_draft_tokens"])

    def test_without_usage_the_last_chunk_has_the_measurements(self):
        chunks = self.chunks({"model": BASE, "messages": QUESTION, "max_tokens": 3, "temperature": 0})
        self.assertIn("metrics", chunks[-1])
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "length")
        self.assertTrue(all("usage" not in c for c in chunks))

    def test_the_stream_helper(self):
        with self.client.chat.completions.stream(model=FAST, messages=QUESTION, temperature=0, max_tokens=60) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion()
        self.assertEqual(text, final.choices[0].message.content)
        self.assertEqual(text, self.text(max_tokens=60))

    def test_stop_strings_cut_inside_a_block(self):
        text = self.text(max_tokens=60)
        for at in range(3, len(text) - 4, 7):
            stop = text[at:at + 3]
            wanted = text[:text.index(stop)]
            for model in (BASE, FAST):
                reply = self.ask(model, max_tokens=60, stop=["never there", stop])
                self.assertEqual(reply.choices[0].message.content, wanted)
                self.assertEqual(reply.choices[0].finish_reason, "stop")
                streamed = self.chunks({"model": model, "messages": QUESTION, "max_tokens": 60, "temperature": 0,
                                        "stop": stop})
                self.assertEqual("".join(c["choices"][0]["delta"].get("content", "") for c in streamed), wanted)
            self.assertEqual(self.ask(BASE, max_tokens=60, stop=stop).usage.completion_tokens,
                             reply.usage.completion_tokens)

    def test_limits_of_tokens(self):
        reply = self.ask(max_tokens=5)
        self.assertEqual((reply.usage.completion_tokens, reply.choices[0].finish_reason), (5, "length"))
        reply = self.client.chat.completions.create(model=FAST, messages=QUESTION, max_completion_tokens=1)
        self.assertEqual(reply.usage.completion_tokens, 1)
        self.refused(openai.BadRequestError, "context_length_exceeded", "messages",
                     messages=[{"role": "user", "content": "word " * 4000}])
        # More than fits is cut at the context.
        long = self.ask(messages=[{"role": "user", "content": "word " * 995}], max_tokens=4000, temperature=1, seed=3)
        self.assertLessEqual(long.usage.total_tokens, 2048)

    def test_logprobs_are_one_entry_a_token(self):
        for model in (BASE, FAST):
            reply = self.ask(model, max_tokens=20, logprobs=True, top_logprobs=3)
            entries = reply.choices[0].logprobs.content
            self.assertEqual(len(entries), 20)
            self.assertEqual(b"".join(bytes(e.bytes) for e in entries).decode(), reply.choices[0].message.content)
            for entry in entries:
                self.assertLessEqual(entry.logprob, 0)
                self.assertEqual([t.token for t in entry.top_logprobs][0], entry.token, "greedy")
                self.assertEqual(sorted((t.logprob for t in entry.top_logprobs), reverse=True),
                                 [t.logprob for t in entry.top_logprobs])
            chunks = self.chunks({"model": model, "messages": QUESTION, "max_tokens": 20, "temperature": 0,
                                  "logprobs": True, "top_logprobs": 3})
            streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
            self.assertEqual([e["token"] for e in streamed], [e.token for e in entries])
            self.assertEqual([e["logprob"] for e in streamed], [e.logprob for e in entries])

    def test_penalties_change_the_text_in_both_modes_alike(self):
        penalties = {"frequency_penalty": 2, "presence_penalty": 2}
        say = lambda model, **more: self.client.completions.create(
            model=model, prompt=LOOP, temperature=0, max_tokens=60, **more).choices[0].text
        self.assertNotEqual(say(BASE), say(BASE, **penalties))
        self.assertEqual(say(FAST, **penalties), say(BASE, **penalties))

    def test_thinking_and_unknown_fields_are_taken(self):
        self.ask(extra_body={"thinking": {"type": "enabled"}, "no_such_field": [1], "user": "x"})
        self.ask(extra_body={"chat_template_kwargs": {"enable_thinking": True}})
        self.ask(messages=[*QUESTION, {"role": "assistant", "content": "No.", "reasoning_content": "Hm."},
                           {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, *QUESTION])

    def test_a_conversation_is_not_read_twice(self):
        first = self.ask(FAST)
        turns = [*QUESTION, {"role": "assistant", "content": first.choices[0].message.content},
                 {"role": "user", "content": "And one that subtracts."}]
        second = self.ask(BASE, turns)
        cached = second.usage.prompt_tokens_details.cached_tokens
        self.assertGreaterEqual(cached, first.usage.prompt_tokens)
        self.assertEqual(second.timings["prompt_n"], second.usage.prompt_tokens - cached)
        with running.Server("--cache-tokens", "0") as fresh:
            reply = fresh.post("/v1/chat/completions",
                               {"model": BASE, "messages": turns, "max_tokens": 40, "temperature": 0}).json()
            self.assertEqual(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            self.assertEqual(reply["choices"][0]["message"]["content"], second.choices[0].message.content)

    def test_many_at_once_write_what_each_writes_alone(self):
        questions = [dict(model=(BASE, FAST)[i % 2], temperature=0.9 * (i % 3 > 0), seed=i, max_tokens=30 + 7 * i,
                          messages=[{"role": "user", "content": f"Write function number {i}. " * (1 + i)}])
                     for i in range(10)]
        alone = [self.text(**question) for question in questions]
        together = [None] * len(questions)

        def answer(i):
            with self.client.chat.completions.stream(**questions[i]) as stream:
                together[i] = "".join(event.delta for event in stream if event.type == "content.delta")

        threads = [threading.Thread(target=answer, args=(i,)) for i in range(len(questions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(together, alone)

    def test_an_abort_stops_the_work_and_nobody_elses(self):
        other = threading.Thread(target=lambda: results.append(self.text(FAST, max_tokens=200)))
        results, alone = [], self.text(FAST, max_tokens=200)
        other.start()
        logged = len(self.server.lines)
        for model in (BASE, FAST):
            stream = self.client.completions.create(model=model, prompt=LOOP, max_tokens=1500, temperature=0, stream=True)
            next(iter(stream))
            stream.close()
        for _ in range(2):
            line = self.server.wait_for(r"reply .*ended=cancelled .* completion=(\d+)", logged)
            self.assertLess(int(line[1]), 1500)
        other.join()
        self.server.wait_until_idle()
        self.assertEqual(results, [alone])


class Tools(Case):
    def test_a_call_that_is_asked_for(self):
        for choice in ({"type": "function", "function": {"name": "get_weather"}}, "required"):
            reply = self.ask(FAST, tools=[TOOL], tool_choice=choice, stop="\n")
            call, = reply.choices[0].message.tool_calls
            self.assertEqual(call.function.name, "get_weather")
            self.assertEqual(list(json.loads(call.function.arguments)), ["city"])
            self.assertIsNone(reply.choices[0].message.content)
            with self.client.chat.completions.stream(model=BASE, messages=QUESTION, tools=[TOOL], tool_choice=choice,
                                                     temperature=0, max_tokens=40, stop="\n") as stream:
                streamed = stream.get_final_completion() if not list(stream) else stream.get_final_completion()
            self.assertEqual(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments)

    def test_deltas_of_a_call(self):
        chunks = self.chunks({"model": FAST, "messages": QUESTION, "tools": [TOOL], "tool_choice": "required",
                              "stop": "\n", "max_tokens": 40})
        deltas = [d for c in chunks for d in c["choices"][0]["delta"].get("tool_calls", [])]
        self.assertEqual(deltas[0]["function"]["name"], "get_weather")
        self.assertEqual(deltas[0]["type"], "function")
        self.assertTrue(deltas[0]["id"])
        self.assertTrue(all("id" not in d and d["index"] == 0 for d in deltas[1:]))
        json.loads("".join(d["function"]["arguments"] for d in deltas))

    def test_results_go_back(self):
        reply = self.ask(FAST, tools=[TOOL], tool_choice="required", stop="\n")
        message = reply.choices[0].message
        turns = [*QUESTION, message.model_dump(exclude_unset=True),
                 {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}]
        self.assertEqual(self.ask(messages=turns, tools=[TOOL]).choices[0].finish_reason in ("stop", "length"), True)
        self.ask(messages=turns, tools=[TOOL], tool_choice="none")

    def test_what_is_no_tool_is_refused(self):
        for tools, choice in (([{"type": "web_search"}], None), ([{"type": "function"}], None),
                              ([{**TOOL, "function": {"name": "two words"}}], None), ([], "required"),
                              ([TOOL], {"type": "function", "function": {"name": "other"}}), ([TOOL], "sometimes")):
            extra = {} if choice is None else {"tool_choice": choice}
            self.refused(openai.BadRequestError, tools=tools, **extra)
        unknown = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 3}}}}
        error = self.refused(openai.BadRequestError, param="tool_choice", tool_choice="required",
                             tools=[{"type": "function", "function": unknown}])
        self.assertIn("multipleOf", str(error))

    def test_every_call_that_is_asked_for_fits_its_schema(self):
        kind = {"type": "string", "enum": ["sun", "rain"]}
        tools = [{"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "required": ["days", "kinds"], "properties": {
                "days": {"type": "integer", "minimum": 1, "maximum": 14}, "kind": kind,
                "kinds": {"type": "array", "items": kind, "minItems": 1, "maxItems": 3}}}}} for name in ("forecast", "history")]
        names = set()
        for seed in range(12):
            plain, fast = (self.ask(model, tools=tools, tool_choice="required", temperature=1.5, seed=seed, max_tokens=200)
                           for model in (BASE, FAST))
            self.assertEqual(plain.choices[0].finish_reason, "tool_calls")
            call, = plain.choices[0].message.tool_calls
            self.assertEqual(fast.choices[0].message.tool_calls[0].function, call.function)
            names.add(call.function.name)
            arguments = json.loads(call.function.arguments)
            self.assertLessEqual({"days", "kinds"}, set(arguments))
            self.assertIn(arguments["days"], range(1, 15))
            self.assertIn(arguments.get("kind", "sun"), kind["enum"])
            self.assertLessEqual(set(arguments["kinds"]), set(kind["enum"]))
            self.assertIn(len(arguments["kinds"]), range(1, 4))
        self.assertEqual(names, {"forecast", "history"})


class Colour(enum.Enum):
    red = "red"
    green = "green"


class Part(pydantic.BaseModel):
    colour: Colour
    count: typing.Annotated[int, pydantic.Field(ge=1, le=99)]
    label: typing.Optional[typing.Annotated[str, pydantic.Field(max_length=8)]]


class Order(pydantic.BaseModel):
    number: typing.Annotated[str, pydantic.Field(pattern=r"^[A-Z]{2}-[0-9]{4}$")]
    parts: typing.Annotated[list[Part], pydantic.Field(min_length=1, max_length=3)]
    paid: bool


class Structured(Case):
    def test_parse(self):
        for seed in range(6):
            replies = [self.client.chat.completions.parse(model=model, messages=QUESTION, response_format=Order,
                                                          temperature=1.5, seed=seed, max_tokens=400) for model in (BASE, FAST)]
            orders = [reply.choices[0].message.parsed for reply in replies]
            self.assertIsInstance(orders[0], Order)
            self.assertEqual(replies[0].choices[0].message.content, replies[1].choices[0].message.content)
            self.assertEqual(orders[0], orders[1])

    def test_streamed_and_whole_are_one(self):
        whole = self.client.chat.completions.parse(model=BASE, messages=QUESTION, response_format=Order, temperature=0, max_tokens=400)
        with self.client.chat.completions.stream(model=FAST, messages=QUESTION, response_format=Order, temperature=0,
                                                 max_tokens=400) as stream:
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.parsed, whole.choices[0].message.parsed)

    def test_any_object(self):
        for seed in range(8):
            reply = self.ask(FAST, response_format={"type": "json_object"}, temperature=1.2, seed=seed, max_tokens=200)
            if reply.choices[0].finish_reason == "stop":
                self.assertIsInstance(json.loads(reply.choices[0].message.content), dict)
            self.assertTrue(reply.choices[0].message.content.startswith("{"))

    def test_behind_reasoning(self):
        reply = self.ask(FAST, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}},
                         max_tokens=300, extra_body={"thinking": {"type": "enabled"}})
        if reply.choices[0].finish_reason == "stop":
            self.assertIn(reply.choices[0].message.content, ('"yes"', '"no"'))

    def test_what_has_to_come_is_drafted(self):
        properties = {f"a_property_with_quite_a_long_name_{i}": {"type": "boolean"} for i in range(8)}
        schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        reply = self.ask(FAST, response_format=form, max_tokens=400)
        self.assertEqual(set(json.loads(reply.choices[0].message.content)), set(properties))
        drafts = reply.model_extra["metrics"]["speculative_decoding"]
        self.assertGreater(drafts["num_accepted_draft_tokens"], 0.5 * reply.usage.completion_tokens)

    def test_what_is_not_understood_is_named(self):
        schema = {"type": "object", "properties": {"a": {"type": "array", "items": {}, "uniqueItems": True}}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        error = self.refused(openai.BadRequestError, param="response_format.json_schema.schema", response_format=form)
        self.assertIn('#/properties/a: "uniqueItems"', str(error))


class Errors(Case):
    def test_each_has_its_class(self):
        self.refused(openai.NotFoundError, "model_not_found", "model", model="gpt-4")
        self.refused(openai.BadRequestError, param="temperature", temperature=3)
        self.refused(openai.BadRequestError, param="messages", messages=[])
        for extra in ({"n": 2}, {"logit_bias": {"1": 1}}, {"tools": [TOOL], "response_format": {"type": "json_object"}}):
            error = self.refused(openai.InternalServerError, "unsupported", **extra)
            self.assertEqual(error.status_code, 501)
        self.assertTrue(error.request_id)

    def test_a_full_queue_answers_at_once_and_the_client_retries(self):
        with running.Server("--sequences-max", "1", "--queue-max", "0") as server:
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
            hold = dict(model=BASE, prompt=LOOP, temperature=0, max_tokens=1500)
            stream = client.completions.create(stream=True, **hold)
            next(iter(stream))
            with self.assertRaises(openai.RateLimitError) as caught:
                client.completions.create(**{**hold, "max_tokens": 1})
            self.assertEqual(caught.exception.code, "queue_full")
            headers = caught.exception.response.headers
            self.assertGreaterEqual(int(headers["retry-after"]), 1)
            self.assertGreater(int(headers["retry-after-ms"]), 0)
            patient = client.with_options(max_retries=60)
            closer = threading.Timer(0.3, stream.close)
            closer.start()
            self.assertEqual(patient.completions.create(**{**hold, "max_tokens": 1}).usage.completion_tokens, 1)
            closer.join()


class Completions(Case):
    def complete(self, **fields):
        reply = self.server.post("/v1/completions", {"model": BASE, "prompt": "def add(a, b):", "temperature": 0,
                                                     "max_tokens": 12, **fields})
        self.assertEqual(reply.status, 200, reply.body)
        return shapes.check(reply.json(), shapes.COMPLETION)

    def test_text_and_tokens_are_the_same_prompt(self):
        text = self.complete()["choices"][0]["text"]
        tokens = self.server.post("/tokenize", {"prompt": "def add(a, b):"}).json()["tokens"]
        self.assertEqual(self.server.post("/detokenize", {"tokens": tokens}).json(), {"prompt": "def add(a, b):"})
        self.assertEqual(self.complete(prompt=tokens)["choices"][0]["text"], text)
        self.assertEqual(self.complete(model=FAST)["choices"][0]["text"], text)
        client = self.client.completions.create(model=BASE, prompt="def add(a, b):", temperature=0, max_tokens=12)
        self.assertEqual(client.choices[0].text, text)

    def test_stream_and_logprobs(self):
        whole = self.complete(logprobs=2)
        listed = whole["choices"][0]["logprobs"]
        self.assertEqual("".join(listed["tokens"]), whole["choices"][0]["text"])
        self.assertEqual(listed["text_offset"][1], len(listed["tokens"][0]))
        reply = self.server.post("/v1/completions", {"model": FAST, "prompt": "def add(a, b):", "temperature": 0,
                                                     "max_tokens": 12, "logprobs": 2, "stream": True,
                                                     "stream_options": {"include_usage": True}})
        data = [data for _, data in running.events(reply.body)]
        self.assertEqual(data.pop(), "[DONE]")
        chunks = [shapes.check(json.loads(one), shapes.COMPLETION_CHUNK) for one in data]
        self.assertEqual("".join(c["choices"][0]["text"] for c in chunks[:-1]), whole["choices"][0]["text"])
        self.assertEqual([t for c in chunks[:-1] for t in (c["choices"][0]["logprobs"] or {"tokens": []})["tokens"]],
                         listed["tokens"])

    def test_what_is_not_supported_says_so(self):
        for fields, status in (({"echo": True}, 400), ({"suffix": "x"}, 400), ({"best_of": 2}, 501),
                               ({"prompt": ["a", "b"]}, 400), ({"prompt": []}, 400), ({"prompt": [4095999]}, 400)):
            reply = self.server.post("/v1/completions", {"model": BASE, "prompt": "x", **fields})
            self.assertEqual(reply.status, status, fields)
            shapes.check(reply.json(), shapes.ERROR)


if __name__ == "__main__":
    running.program, running.model = sys.argv[1:3]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
