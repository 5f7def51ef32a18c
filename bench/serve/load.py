#!/usr/bin/env python3
"""Loads a server and looks at what comes back: times, memory, and whether every text is the one that
its request has alone.

    bench/serve/load.py                            every scenario, each against a fresh server
    bench/serve/load.py streams full --seconds 10
    bench/serve/load.py --url http://127.0.0.1:8080 --pid $(pidof tessera)

Prints a table, writes JSON with --json; exit code 1 if something is not as it should be. Loads only
loopback addresses. Standard library alone; bounded in time (--seconds, --patience) and count.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from figures import Outcome, table, write_json
from scenarios import ALL, SERVER_ARGUMENTS, Load
from wire import get, target_of

ROOT = Path(__file__).parent.parent.parent
START_S_MAX = 600  # a large model takes its time
DRAIN_S_MAX = 60
TAIL_BYTES = 2000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server of our own, started for one scenario and ended with SIGTERM."""

    def __init__(self, command):
        self.port = free_port()
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=self.log, stderr=self.log)
        self.url = f"http://127.0.0.1:{self.port}"

    def words(self):
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(self.log.tell() - TAIL_BYTES, 0))
        return self.log.read().decode(errors="replace")

    async def until_ready(self, target):
        begun = time.perf_counter()
        while time.perf_counter() - begun < START_S_MAX:
            if self.process.poll() is not None:
                sys.exit(f"load.py: the server ended with {self.process.returncode}:\n{self.words()}")
            if (await get(target, "/health", 5))[0] == 200:
                return
            await asyncio.sleep(0.1)
        self.process.kill()
        sys.exit(f"load.py: the server was not ready within {START_S_MAX} s:\n{self.words()}")

    def end(self, outcome):
        alive = self.process.poll() is None
        outcome.check("the server still runs", alive, self.process.returncode if not alive else "")
        if alive:
            self.process.terminate()
            try:
                code = self.process.wait(DRAIN_S_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                code = f"not within {DRAIN_S_MAX} s"
            outcome.check("SIGTERM ends it with code 0", code == 0, code)
        if not outcome.passed:
            print(f"the server's last words:\n{self.words()}", file=sys.stderr)


async def model_ids(target, patience_s):
    """The base model's id, then the ultraspeed one's if it is served."""
    status, body = await get(target, "/v1/models", patience_s)
    if status != 200:
        sys.exit(f"load.py: /v1/models answers {status or 'nothing'}: {body[:200]!r}")
    ids = [model["id"] for model in json.loads(body)["data"]]
    return sorted(ids, key=lambda name: name.endswith("-ultraspeed"))[:2]


async def run_scenario(name, options):
    server = None
    if options.url is None:
        command = [*shlex.split(options.serve), *SERVER_ARGUMENTS.get(name, []), *shlex.split(options.server_args)]
        server = Server(command)
    target = target_of(options.url or server.url, options.key)
    pid = server.process.pid if server else options.pid
    try:
        if server:
            await server.until_ready(target)
        load = Load(target, pid, await model_ids(target, options.patience), options.seconds, options.streams,
                    options.requests, options.idle, options.slow, options.tokens, options.patience,
                    options.memory_slack / 100, options.refusal_ms, options.asks)
        # Every wait inside has an end; this one is for what was not thought of.
        async with asyncio.timeout(options.scenario_max):
            outcome = await ALL[name](load)
    except TimeoutError:
        outcome = Outcome(name)
        outcome.check(f"the scenario ends within {options.scenario_max:g} s", False)
    except BaseException:
        if server:
            server.process.kill()
        raise
    if server:
        server.end(outcome)
    return outcome


def origin():
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count(), "kernel": platform.release(),
            "python": platform.python_version(), "commit": commit.stdout.strip() or "unknown",
            "command": shlex.join(["bench/serve/load.py", *sys.argv[1:]])}


def bounded(kind, low, high):
    def read(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, found {text}")
        return value
    return read


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(ALL)}; default: all")
    parser.add_argument("--url", help="a server that runs already, on this machine")
    parser.add_argument("--pid", type=int, help="its process, to watch its memory")
    parser.add_argument("--key", default="", help="API key")
    parser.add_argument("--serve", default=f"{ROOT}/build/release/tessera serve",
                        help="command of the server to start without --url; gets --port N")
    parser.add_argument("--server-args", default="", help="more arguments for it")
    parser.add_argument("--seconds", type=bounded(float, 0.1, 3600), default=60, help="of a scenario (60)")
    parser.add_argument("--streams", type=bounded(int, 1, 1024), default=64, help="at the same time (64)")
    parser.add_argument("--requests", type=bounded(int, 1, 1_000_000), default=10_000,
                        help="short ones, and refusals to see (10000)")
    parser.add_argument("--idle", type=bounded(int, 0, 20_000), default=1000, help="idle connections (1000)")
    parser.add_argument("--slow", type=bounded(int, 0, 20_000), default=200, help="slow connections (200)")
    parser.add_argument("--tokens", type=bounded(int, 1, 4096), default=64, help="of an answer (64)")
    parser.add_argument("--asks", type=bounded(int, 1, 1000), default=16, help="different requests (16)")
    parser.add_argument("--patience", type=bounded(float, 0.1, 600), default=120, help="seconds for an answer (120)")
    parser.add_argument("--scenario-max", type=bounded(float, 1, 86_400), default=3600,
                        help="seconds after which a scenario is given up (3600)")
    parser.add_argument("--memory-slack", type=bounded(float, 0, 1000), default=5, help="per cent (5)")
    parser.add_argument("--refusal-ms", type=bounded(float, 0.1, 10_000), default=5,
                        help="within which a full queue says so (5)")
    parser.add_argument("--json", help="file for figures, checks and memory over time")
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in ALL]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]}: expected {', '.join(ALL)}")
    try:
        if options.url is not None:
            target_of(options.url)
    except ValueError as error:
        parser.error(str(error))
    return options


async def run_all(options):
    return [await run_scenario(name, options) for name in options.scenarios or ALL]


def main():
    options = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # a socket a client; the server inherits it
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    outcomes = asyncio.run(run_all(options))
    print(table(outcomes))
    if options.json:
        write_json(options.json, outcomes, origin())
    sys.exit(0 if all(outcome.passed for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
