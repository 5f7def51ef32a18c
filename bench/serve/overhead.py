#!/usr/bin/env python3
"""What one stream through HTTP loses against `tessera run`: the same greedy text, by turns.

    bench/serve/overhead.py
    bench/serve/overhead.py --tokens 1000 --turns 15 --json overhead.json

Both rates are tokens from the first to the last, a second: of `run` by its own statistics, of the server
as its client's clock has it, from the first event to the last, looking every --look-ms. Prints medians with their spread, the
ratio, and whether the texts are one; exit code 1 if they are not. Standard library alone.
"""

import argparse
import asyncio
import hashlib
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from load import ROOT, Server
from wire import target_of

PROMPT = "x = 1\n" * 40  # the bundled model repeats it to the limit
MODES = {"base": "off", "ultraspeed": "auto"}  # of the server; of `run --speculate`
PATIENCE_S = 600


def flags_of(arguments):
    given = {"--threads": arguments.threads, "--isa": arguments.isa}
    return [word for flag, value in given.items() if value for word in (flag, str(value))]


def run_alone(arguments, mode):
    """(tokens a second, text)"""
    done = subprocess.run([arguments.program, "run", "--model", arguments.model, "-n", str(arguments.tokens),
                           "--speculate", MODES[mode], *flags_of(arguments), "--", PROMPT],
                          capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return float(re.search(r"tokens at ([\d.]+)/s; τ", done.stderr)[1]), done.stdout


def run_served(target, model_id, tokens, look_s):
    """(tokens a second, text) of a stream: bytes off a socket, looked at afterwards."""
    body = json.dumps({"model": model_id, "prompt": PROMPT, "temperature": 0, "max_tokens": tokens, "stream": True,
                       "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((target.host, target.port), PATIENCE_S) as sock:
        sock.sendall(head.encode() + body)
        received, first, last = [], None, None
        while not received or b"data: [DONE]" not in received[-1]:
            piece = sock.recv(1 << 16)
            if not piece:
                raise SystemExit("overhead.py: the stream was cut")
            received.append(piece)
            time.sleep(look_s)
            if first is None and b'"text":"' in piece:
                first = time.perf_counter()
            if b'"text":"' in piece:
                last = time.perf_counter()
    events = [json.loads(line[6:]) for line in b"".join(received).split(b"\n") if line.startswith(b"data: {")]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    made = events[-1]["usage"]["completion_tokens"]
    return (made - 1) / (last - first), text


def compare(server, mode, arguments):
    target, model_id = target_of(server.url), Path(arguments.model).name + ("-ultraspeed" if mode == "ultraspeed" else "")
    rates, texts = {"run": [], "http": []}, set()
    for turn in range(-1, arguments.turns):  # the first is a warm-up
        for how in rates:
            if how == "run":
                rate, text = run_alone(arguments, mode)
            else:
                rate, text = run_served(target, model_id, arguments.tokens, arguments.look_ms / 1e3)
            texts.add(text.rstrip("\n"))  # `run` ends the last line for the terminal
            if turn >= 0:
                rates[how].append(rate)
    medians = {how: statistics.median(found) for how, found in rates.items()}
    ratio = medians["http"] / medians["run"]
    for how, found in rates.items():
        print(f"{mode:11} {how:5} {medians[how]:8.1f} tokens/s ({min(found):.1f} to {max(found):.1f})")
    print(f"{mode:11} http / run: {100 * ratio:.1f} %; texts {'are one' if len(texts) == 1 else 'DIFFER'}, "
          f"{hashlib.sha256(min(texts).encode()).hexdigest()[:16]}")
    return {"mode": mode, "rates": rates, "ratio": ratio, "one_text": len(texts) == 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--program", default=str(ROOT / "build/release/tessera"))
    parser.add_argument("--model", default=str(ROOT / "models/tessera-mini"))
    parser.add_argument("--tokens", type=int, default=1500, help="of an answer (1500)")
    parser.add_argument("--turns", type=int, default=9, help="of each, by turns (9)")
    parser.add_argument("--threads", type=int, help="workers of both (all cores)")
    parser.add_argument("--isa", help="instructions of both: portable makes steps longer")
    parser.add_argument("--look-ms", type=float, default=20,
                        help="between two looks of the client at its socket (20): it shares the server's cores here")
    parser.add_argument("--json", help="file for all rates")
    arguments = parser.parse_args()
    server = Server([arguments.program, "serve", arguments.model, *flags_of(arguments)])
    try:
        asyncio.run(server.until_ready(target_of(server.url)))
        found = [compare(server, mode, arguments) for mode in MODES]
    finally:
        server.process.terminate()
        server.process.wait(PATIENCE_S)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"tokens": arguments.tokens, "modes": found}, indent=1) + "\n")
    return 0 if all(one["one_text"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
