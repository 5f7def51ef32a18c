"""The server as its operator meets it: start, health, keys, ledger, metrics, signals.

Run as: operation_test.py PROGRAM MODEL [unittest arguments].
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

import running
import shapes
from running import head, read_reply

MODEL, FAST = "tessera-mini", "tessera-mini-ultraspeed"
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
LOOP = {"model": MODEL, "prompt": "x = 1\n" * 40, "temperature": 0, "max_tokens": 1500}


def chat(**fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, **fields}


class Stream:
    """A long reply on its way, read in the background."""

    def __init__(self, server, **fields):
        self.sock = server.connect()
        body = json.dumps({**LOOP, "stream": True, **fields}).encode()
        self.sock.sendall(head("POST", COMPLETE, body, **{"Content-Type": "application/json"}) + body)
        self.sock.recv(1, socket.MSG_PEEK)
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self):
        self.reply = read_reply(self.sock.makefile("rb"))

    def finish(self):
        self.thread.join()
        self.sock.close()
        return self.reply


class Life(unittest.TestCase):
    def test_a_terminated_server_finishes_its_streams(self):
        with running.Server() as server:
            self.assertEqual(server.get("/health").json(), {"status": "ok"})
            idle = server.connect()
            stream = Stream(server)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            health = server.get("/health")
            if health.status:  # unless the stream has ended already
                self.assertEqual((health.status, health.json()["status"]), (503, "draining"))
                refused = server.post(CHAT, chat())
                self.assertEqual(refused.status, 503)
                self.assertEqual(shapes.check(refused.json(), shapes.ERROR)["error"]["code"], "shutting_down")
                self.assertGreater(int(refused.headers["retry-after-ms"]), 0)
            reply = stream.finish()
            self.assertTrue(reply.whole)
            self.assertTrue(reply.body.endswith(b"data: [DONE]\n\n"))
            self.assertEqual(server.process.wait(running.DEADLINE_S), 0)
            self.assertEqual(idle.recv(1), b"")
            idle.close()

    def test_a_drain_has_a_limit(self):
        with running.Server("--drain-s", "0.05") as server:
            stream = Stream(server)
            self.assertEqual(server.stop(), 0)
            reply = stream.finish()
            if b"[DONE]" not in reply.body:
                last = running.events(reply.body)[-1][1]
                self.assertEqual(shapes.check(json.loads(last), shapes.ERROR)["error"]["code"], "shutting_down")

    def test_a_second_signal_exits_at_once(self):
        with running.Server() as server:
            stream = Stream(server)
            server.process.send_signal(signal.SIGINT)
            server.wait_for("draining")
            begun = time.monotonic()
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(running.DEADLINE_S), 0)
            self.assertLess(time.monotonic() - begun, 30)
            stream.finish()

    def test_health_says_how_far_it_is(self):
        with running.Server(wait=False) as server:
            seen = {200}
            while (health := server.get("/health")).status != 200:
                self.assertIn(health.json()["status"], ("loading", "warming"))
                refused = server.post(CHAT, chat())
                if refused.status == 503:
                    self.assertEqual(refused.json()["error"]["code"], "loading")
                    self.assertIn("retry-after", refused.headers)
                seen.add(503)
            self.assertEqual(server.post(CHAT, chat()).status, 200)

    def test_what_cannot_start_says_why(self):
        def fails(word, *flags, environment=None):
            done = subprocess.run([running.program, "serve", *flags], capture_output=True, text=True,
                                  timeout=running.DEADLINE_S, env={**os.environ, **(environment or {})})
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(word, done.stderr)
            self.assertEqual(done.stdout, "")

        with running.Server() as server:
            fails("cannot listen on 127.0.0.1", running.model, "--port", str(server.port))
        fails("--port", "--port", "seventy")
        fails("TESSERA_QUEUE_MAX", environment={"TESSERA_QUEUE_MAX": "-3"})
        fails("--sequences-max", running.model, "--port", "0", "--sequences-max", "1000")
        fails("/no/such/folder", "/no/such/folder", "--port", "0")
        fails("keys", running.model, "--port", "0", "--keys-required")

    def test_flags_environment_and_file(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "server.toml"
            file.write_text('model_id = "from-file"\n[limits]\nqueue_max = 3\n')
            for flags, environment, wanted in (
                    (("--config", file), {}, "from-file"),
                    ((), {"TESSERA_CONFIG": str(file)}, "from-file"),
                    (("--config", file), {"TESSERA_MODEL_ID": "from-environment"}, "from-environment"),
                    (("--config", file, "--model-id", "from-flag"), {"TESSERA_MODEL_ID": "x"}, "from-flag")):
                with running.Server(*flags, environment=environment) as server:
                    self.assertEqual(server.get("/v1/models").json()["data"][0]["id"], wanted)

    def test_json_logs(self):
        with running.Server("--log", "json") as server:
            server.post(CHAT, chat())
            for event in ("http", "reply"):
                server.wait_for(f'"event":"{event}"')
            lines = [json.loads(line) for line in server.log().splitlines()]
            reply = next(line for line in lines if line.get("event") == "reply")
            self.assertEqual((reply["mode"], reply["completion"]), ("base", 2))

    def test_the_service_manager_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            manager.bind(f"{folder}/notify")
            manager.settimeout(running.DEADLINE_S)
            with running.Server(environment={"NOTIFY_SOCKET": f"{folder}/notify", "WATCHDOG_USEC": "100000"}) as server:
                said = [manager.recv(100), manager.recv(100)]
                server.stop()
                while b"STOPPING=1" not in said[-1]:
                    said.append(manager.recv(100))
            self.assertIn(b"READY=1", said[0])
            self.assertIn(b"WATCHDOG=1", said[1])
            manager.close()


class Keys(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.store = str(Path(self.folder.name) / "store.db")

    def tearDown(self):
        self.folder.cleanup()

    def tessera(self, *arguments):
        done = subprocess.run([running.program, *arguments, "--store", self.store], capture_output=True, text=True,
                              timeout=running.DEADLINE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def key(self, name, *rules):
        return self.tessera("keys", "create", "--name", name, *rules)

    def test_who_may_do_what(self):
        both = self.key("both", "--modes", "base,ultraspeed")
        base = self.key("base")
        late = self.key("late", "--valid-until", "2020-01-01")
        slow = self.key("slow", "--requests-per-minute", "1")
        with running.Server("--store", self.store) as server:
            say = lambda key, **fields: server.post(CHAT, chat(**fields), **({"Authorization": f"Bearer {key}"} if key else {}))
            for header in ({"Authorization": f"Bearer {base}"}, {"api-key": base}, {"x-api-key": base}):
                self.assertEqual(server.post(CHAT, chat(), **header).status, 200)
                self.assertEqual(server.get("/v1/models", **header).status, 200)
            self.assertEqual(say(both, model=FAST).status, 200)
            for reply, status in ((say(None), 401), (say("tsk-" + "A" * 43), 401), (say(base[:-1]), 401), (say(late), 403),
                                  (say(base, model=FAST), 403), (server.get("/v1/models"), 401), (server.get("/metrics"), 401),
                                  (server.get("/no/such/route"), 401)):
                self.assertEqual(reply.status, status, reply.body)
                shapes.check(reply.json(), shapes.ERROR)
            self.assertEqual(server.get("/health").status, 200)
            self.assertEqual(server.get("/").status, 200)
            self.assertEqual(server.get("/", **{"Authorization": "Bearer nobody"}).status, 200)
            self.assertEqual(say(slow).status, 200)
            limited = say(slow)
            self.assertEqual(limited.status, 429)
            self.assertGreater(int(limited.headers["retry-after-ms"]), 0)
            # Refused from its headers: the body, were it ever so long, is not waited for.
            with server.connect() as sock:
                sock.sendall(head("POST", CHAT, None, **{"Content-Type": "application/json", "Content-Length": "10000000"}))
                self.assertEqual(read_reply(sock.makefile("rb")).status, 401)
            self.tessera("keys", "revoke", "base")
            until = time.monotonic() + running.DEADLINE_S
            while say(base).status == 200 and time.monotonic() < until:
                time.sleep(0.1)
            self.assertEqual(say(base).status, 403)

    def test_concurrency_of_a_key(self):
        key = self.key("one", "--concurrency", "1")
        with running.Server("--store", self.store) as server:
            body = json.dumps({**LOOP, "stream": True}).encode()
            with server.connect() as sock:
                sock.sendall(head("POST", COMPLETE, body, **{"Content-Type": "application/json", "api-key": key}) + body)
                sock.recv(1)
                self.assertEqual(server.post(CHAT, chat(), **{"api-key": key}).status, 429)
            until = time.monotonic() + running.DEADLINE_S
            while (reply := server.post(CHAT, chat(), **{"api-key": key})).status == 429 and time.monotonic() < until:
                time.sleep(0.05)
            self.assertEqual(reply.status, 200)

    def test_every_request_is_one_row(self):
        key = self.key("payer", "--modes", "base,ultraspeed")
        header = {"Authorization": f"Bearer {key}"}
        with running.Server("--store", self.store) as server:
            used = {MODEL: [0, 0], FAST: [0, 0]}
            for i in range(6):
                model = (MODEL, FAST)[i % 2]
                usage = server.post(CHAT, chat(model=model, max_tokens=3 + i), **header).json()["usage"]
                used[model][0] += usage["prompt_tokens"]
                used[model][1] += usage["completion_tokens"]
            for status in (server.post(CHAT, chat(model="other"), **header), server.post(CHAT, b"{", **header)):
                self.assertGreaterEqual(status.status, 400)
            with server.connect() as sock:  # one that is cut is a row too
                body = json.dumps({**LOOP, "stream": True}).encode()
                sock.sendall(head("POST", COMPLETE, body, **{"Content-Type": "application/json", **header}) + body)
                sock.recv(1)
            server.wait_for("reply .*ended=cancelled")
            server.stop()
        rows = json.loads(self.tessera("usage", "--json"))
        rows = rows["rows"] if isinstance(rows, dict) else rows
        requests = {row["mode"]: row["requests"] for row in rows}
        self.assertEqual(requests, {"base": 4, "ultraspeed": 3})
        fast = next(row for row in rows if row["mode"] == "ultraspeed")
        self.assertEqual([fast["prompt_tokens" if "prompt_tokens" in fast else "prompt"],
                          fast["completion_tokens" if "completion_tokens" in fast else "completion"]], used[FAST])


class Metrics(unittest.TestCase):
    def test_they_count_what_happened(self):
        with running.Server() as server:
            used = [server.post(CHAT, chat(model=model, max_tokens=9)).json()["usage"] for model in (MODEL, FAST, FAST)]
            server.post(CHAT, b"{")
            server.wait_until_idle()
            self.assertEqual(server.metric("tessera_generation_tokens_total"), sum(u["completion_tokens"] for u in used))
            self.assertEqual(server.metric("tessera_prompt_tokens_total"), sum(u["prompt_tokens"] for u in used))
            self.assertEqual(server.metric("tessera_generation_tokens_total", model_name=MODEL), used[0]["completion_tokens"])
            self.assertEqual(server.metric("tessera_time_to_first_token_seconds_count"), 3)
            text = server.get("/metrics")
            self.assertTrue(text.headers["content-type"].startswith("text/plain"))


if __name__ == "__main__":
    running.program, running.model = sys.argv[1:3]
    if "tsan" in running.program:  # a hundred times slower
        LOOP["max_tokens"] = 60
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
