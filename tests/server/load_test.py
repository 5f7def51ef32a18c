"""The load generator: it passes a server that behaves, and each of its checks fails for a server that
does not (fake_server.py). What it says of the real server is bench/serve's business.

Run as: load_test.py [unittest arguments].
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).parent
LOAD = HERE.parent.parent / "bench" / "serve" / "load.py"
sys.path.insert(0, str(LOAD.parent))

import figures  # noqa: E402
import wire  # noqa: E402

DEADLINE_S = 300
SMALL = ["--seconds", "1", "--streams", "6", "--requests", "150", "--idle", "30", "--slow", "4", "--asks", "4",
         "--patience", "5", "--tokens", "32", "--memory-slack", "40", "--refusal-ms", "100"]


def load(*arguments, fault=None):
    """(exit code, {scenario: outcome}, stdout) of a small run against the fake server."""
    fake = f"{sys.executable} {HERE / 'fake_server.py'}" + (f" --fault {fault}" if fault else "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        done = subprocess.run([sys.executable, LOAD, "--serve", fake, "--json", str(file), *SMALL, *arguments],
                              capture_output=True, text=True, timeout=DEADLINE_S)
        outcomes = json.loads(file.read_text())["outcomes"] if file.exists() else []
    return done.returncode, {outcome["scenario"]: outcome for outcome in outcomes}, done.stdout + done.stderr


class Behaves(unittest.TestCase):
    def test_every_scenario_passes(self):
        code, outcomes, words = load()
        self.assertEqual(code, 0, words)
        self.assertEqual(list(outcomes), ["streams", "idle", "short", "aborts", "full"])
        for outcome in outcomes.values():
            self.assertTrue(outcome["passed"], outcome)
            self.assertGreater(outcome["figures"]["requests"], 0)
            self.assertGreaterEqual(len(outcome["checks"]), 6)
        for name in ("streams", "idle", "aborts", "full"):
            f = outcomes[name]["figures"]
            self.assertLess(0, f["first_token"]["p50_ms"])
            self.assertLessEqual(f["gap"]["p50_ms"], f["gap"]["p99_ms"])
        self.assertEqual(outcomes["short"]["figures"]["requests"], 150)
        self.assertEqual(outcomes["idle"]["figures"]["connections"], 34)
        self.assertTrue(all(outcomes["aborts"]["figures"]["aborts"].values()))
        self.assertGreater(len(outcomes["streams"]["memory"]), 20)
        self.assertIn("passed", words)


# fault of the fake server -> (scenario, words of the check that must fail)
MISBEHAVES = {
    "mixed": ("streams", "each text is the one"),
    "lost": ("streams", "each text is the one"),
    "cut": ("streams", "no stream is lost"),
    "error": ("short", "no stream is lost"),
    "leak": ("streams", "memory is flat"),
    "zombie": ("aborts", "nothing runs on for clients that left"),
    "slow_refusal": ("full", "99 of 100 refusals come within 100 ms"),
    "bare_refusal": ("full", "every 429 has retry-after"),
    "crowded": ("idle", "no stream is lost"),
    "fickle": ("streams", "says the same twice"),
    "parrot": ("streams", "a mix-up would not show"),
    "modes": ("streams", "in every mode"),
    "crash": ("streams", "the server still runs"),
    "stubborn": ("streams", "SIGTERM ends it with code 0"),
}


class Misbehaves(unittest.TestCase):
    def test_each_fault_is_found(self):
        for fault, (scenario, words) in MISBEHAVES.items():
            with self.subTest(fault=fault):
                code, outcomes, said = load(scenario, fault=fault)
                self.assertEqual(code, 1, said)
                failed = [check["should"] for check in outcomes[scenario]["checks"] if not check["holds"]]
                self.assertTrue(any(words in should for should in failed), f"{failed}\n{said}")
                self.assertIn("NOT SO", said)

    def test_a_queue_that_never_fills_is_no_proof(self):
        code, outcomes, _ = load("full", "--seconds", "0.2", "--server-args", "--queue-max 100000")
        failed = [check["should"] for check in outcomes["full"]["checks"] if not check["holds"]]
        self.assertEqual(code, 1)
        self.assertIn("the queue was full", failed)


class Refuses(unittest.TestCase):
    def test_other_machines_are_not_loaded(self):
        for url in ("http://192.0.2.1:80", "http://0.0.0.0:80", "http://[2001:db8::1]:80", "https://127.0.0.1",
                    "ftp://127.0.0.1", "127.0.0.1:80", "http://"):
            with self.assertRaises(ValueError, msg=url):
                wire.target_of(url)
        self.assertEqual(wire.target_of("http://127.0.0.1:81/v0/").prefix, "/v0")
        self.assertEqual(wire.target_of("http://[::1]:81").host, "::1")
        done = subprocess.run([sys.executable, LOAD, "--url", "http://192.0.2.1"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 2)
        self.assertIn("only loopback addresses", done.stderr)

    def test_counts_and_times_are_bounded(self):
        for wrong in (["--seconds", "1e9"], ["--streams", "0"], ["--requests", "10000000"], ["everything"]):
            done = subprocess.run([sys.executable, LOAD, *wrong], capture_output=True, text=True)
            self.assertEqual(done.returncode, 2, wrong)

    def test_a_server_that_does_not_start_is_an_error(self):
        done = subprocess.run([sys.executable, LOAD, "--serve", "false"], capture_output=True, text=True,
                              timeout=DEADLINE_S)
        self.assertEqual(done.returncode, 1)
        self.assertIn("the server ended with 1", done.stderr)


def chunked(*events):
    body = b"".join(b"data: " + event + b"\n\n" for event in events)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


ROLE = b'{"choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}'
WORD = b'{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}'
STOP = b'{"choices":[{"delta":{},"finish_reason":"stop"}]}'
USAGE = b'{"choices":[],"usage":{"completion_tokens":1}}'
DONE = b"[DONE]"
SOUND = chunked(ROLE, WORD, STOP, USAGE, DONE)

RAW = [  # what a server sends, and a word of the fault; empty: none
    (SOUND, ""),
    (chunked(WORD, STOP, USAGE, DONE), "no role"),
    (chunked(ROLE, WORD, USAGE, DONE), "finish_reason"),
    (chunked(ROLE, WORD, STOP, USAGE), "[DONE]"),
    (chunked(ROLE, STOP, WORD, DONE), "after the finish_reason"),
    (chunked(ROLE, STOP, DONE, USAGE), "after [DONE]"),
    (chunked(ROLE, b'{"error":{"message":"broke"}}'), "broke"),
    (chunked(ROLE, b"{"), "not as documented"),
    (chunked(ROLE, b'{"choices":[{}]}'), "not as documented"),
    (chunked(ROLE, b"[]"), "not as documented"),
    (SOUND[:-20], "cut"),
    (SOUND.replace(b"\r\n0\r\n", b"x\r\n0\r\n"), "longer than it says"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "no chunk"),
    (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "content-length"),
    (b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\n{}", "status 503"),
    (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no header"),
    (b"SSH-2.0-x\r\n", "no HTTP"),
    (b"", "cut"),
]


class Wire(unittest.TestCase):
    def test_what_is_no_whole_reply_is_a_fault(self):
        async def reply_to(raw):
            async def serve(reader, writer):
                await reader.readuntil(b"}}")
                for at in range(0, len(raw), 7):  # in pieces that end anywhere
                    writer.write(raw[at:at + 7])
                    await writer.drain()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            target = wire.target_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            reply = await wire.generate(target, {"stream": True, "stream_options": {"include_usage": True}}, 5)
            server.close()
            return reply

        for raw, word in RAW:
            with self.subTest(raw=raw[:60], word=word):
                reply = asyncio.run(reply_to(raw))
                self.assertEqual(bool(reply.fault), bool(word), reply.fault)
                self.assertIn(word, reply.fault)
        sound = asyncio.run(reply_to(SOUND))
        self.assertEqual(sound.said, ("a", "", "stop", 1))

    def test_a_silent_server_is_given_up(self):
        async def silent():
            async def say_nothing(reader, writer):
                await reader.read()
                writer.close()

            server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
            target = wire.target_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            reply = await wire.generate(target, {"stream": True}, 0.1)
            await asyncio.sleep(0.1)  # for its side to notice
            server.close()
            return reply

        self.assertIn("nothing for 0.1 s", asyncio.run(silent()).fault)


class Figures(unittest.TestCase):
    def test_percentiles_are_nearest_ranks(self):
        for values, share, expected in (([], 0.5, 0), ([7], 0.99, 7), ([1, 2], 0.5, 1), (range(1, 101), 0.99, 99),
                                        (range(1, 101), 0.5, 50), ([3, 1, 2], 1.0, 3), ([3, 1, 2], 0.0, 1)):
            self.assertEqual(figures.percentile(values, share), expected)

    def test_memory_growth_compares_quarters_behind_the_warm_up(self):
        memory = figures.Memory(0, 1)
        for sizes, expected in (([100] * 40, 0.0), ([1] * 8 + [100] * 32, 0.0), ([100] * 32 + [150] * 8, 0.5),
                                ([100] * 7, None)):
            memory.samples = list(enumerate(sizes))
            self.assertEqual(memory.growth(), expected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
