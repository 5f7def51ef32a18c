#!/usr/bin/env python3
"""A small server that answers as tessera serve does, so that the load generator can be tested, and
misbehaves on request, so that its checks can be seen to fail.

    fake_server.py --port N [--sequences-max N] [--queue-max N] [--fault NAME]

Its texts are hashes of the request: the same request has the same text, another has another.
"""

import argparse
import asyncio
import hashlib
import json
import os
import signal
import sys

FAULTS = {
    "mixed": "now and then a stream gets a word of another one that runs beside it",
    "lost": "when others run, a chunk is left out",
    "cut": "when others run, a stream ends without [DONE]",
    "error": "when others run, some requests are answered 500",
    "leak": "memory grows with every request",
    "zombie": "what a client left behind runs on for ever",
    "slow_refusal": "429 comes after 200 ms",
    "bare_refusal": "429 comes without Retry-After",
    "crowded": "takes no more than 20 connections",
    "fickle": "the same request has another text each time",
    "parrot": "every request has the same text",
    "modes": "the ultraspeed model says something else",
    "crash": "the process ends in the middle",
    "stubborn": "SIGTERM ends it with code 1",
}
TOKEN_S = 0.001
LEAK_BYTES = 1 << 18


class Fake:
    def __init__(self, options):
        self.options, self.fault = options, options.fault
        self.free = asyncio.Semaphore(options.sequences_max)
        self.running = self.waiting = self.connections = self.requests = 0
        self.spoken, self.leaked = {}, []  # request number -> its last word

    def words(self, body):
        """The text of a request, a word a token, and what ends it."""
        model = body["model"] if self.fault == "modes" else ""
        about = json.dumps([body["messages"], body["temperature"], body["seed"], model])
        if self.fault == "fickle":
            about += str(self.requests)
        if self.fault == "parrot":
            about = ""
        digest = hashlib.sha256(about.encode()).digest()
        most = body["max_completion_tokens"]
        count = min(most, (4 + digest[0] % 8) * max(most // 32, 1))
        return [hashlib.sha256(digest + bytes([i])).hexdigest()[:6] + " " for i in range(count)]

    async def speak(self, number, body):
        """The words, as they come."""
        for i, word in enumerate(words := self.words(body)):
            await asyncio.sleep(TOKEN_S)
            others = [said for other, said in self.spoken.items() if other != number]
            beside = bool(others) and i == len(words) // 2 and number % 5 == 0
            self.spoken[number] = word
            if beside and self.fault == "mixed":
                word = others[0]
            if beside and self.fault == "cut":
                return
            if beside and self.fault == "crash" and number > 60:
                os._exit(3)
            if not (beside and self.fault == "lost"):
                yield word

    async def place(self):
        """Waits for a place; false if the queue is full."""
        if self.free.locked():
            if self.waiting >= self.options.queue_max:
                return False
            self.waiting += 1
            try:
                await self.free.acquire()
            finally:
                self.waiting -= 1
        else:
            await self.free.acquire()
        self.running += 1
        return True

    async def generate(self, body, reader, writer):
        self.requests += 1
        number = self.requests
        if self.fault == "leak":
            self.leaked.append(os.urandom(LEAK_BYTES))
        if not await self.place():
            if self.fault == "slow_refusal":
                await asyncio.sleep(0.2)
            retry = "" if self.fault == "bare_refusal" else "retry-after: 1\r\nretry-after-ms: 500\r\n"
            return await answer(writer, "429 Too Many Requests", {"error": {"message": "full"}}, retry)
        left = asyncio.ensure_future(watch_end(reader)) if body.get("stream") else None
        forget = True
        try:
            if self.fault == "error" and self.spoken and number % 5 == 0:
                return await answer(writer, "500 Internal Server Error", {"error": {"message": "oops"}})
            self.spoken[number] = ""
            if not body.get("stream"):
                words = [word async for word in self.speak(number, body)]
                return await answer(writer, "200 OK", {
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": "".join(words)},
                                 "finish_reason": "stop"}], "usage": {"completion_tokens": len(words)}})
            await self.stream(number, body, writer, left)
        except ConnectionError:
            forget = self.fault != "zombie"
            raise
        finally:
            self.spoken.pop(number, None)
            if left:
                left.cancel()
            if forget:
                self.running -= 1
                self.free.release()

    async def stream(self, number, body, writer, left):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
                     b"connection: close\r\n\r\n")

        def send(data):
            event = b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")

        def chunk(delta, finish=None):
            return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        send(chunk({"role": "assistant", "content": ""}))
        count = 0
        async for word in self.speak(number, body):
            if left.done():
                raise ConnectionResetError
            send(chunk({"content": word}))
            await writer.drain()
            count += 1
        if count == len(self.words(body)) or self.fault in ("lost", "fickle"):
            send(chunk({}, "stop"))
            send({"choices": [], "usage": {"completion_tokens": count}})
            send(b"[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            if self.fault == "crowded" and self.connections > 20:
                return
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if path == "/health":
                    await answer(writer, "200 OK", {"status": "ok"})
                elif path == "/v1/models":
                    await answer(writer, "200 OK", {"data": [{"id": "fake-ultraspeed"}, {"id": "fake"}]})
                elif path == "/metrics":
                    await answer(writer, "200 OK", f"tessera_num_requests_running {self.running}\n"
                                                   f"tessera_num_requests_waiting {self.waiting}\n")
                elif path == "/v1/chat/completions" and method == "POST":
                    await self.generate(json.loads(body), reader, writer)
                else:
                    await answer(writer, "404 Not Found", {"error": {"message": path}})
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.transport.abort() if writer.is_closing() is False else None


async def watch_end(reader):
    """Returns when the client has left; what it sends meanwhile is not asked for."""
    while await reader.read(1 << 10):
        pass


async def answer(writer, status, body, headers=""):
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status}\r\n{headers}content-length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()


async def main(options):
    fake = Fake(options)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", options.port, backlog=4096)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    server.close()
    sys.stdout.flush()
    os._exit(1 if options.fault == "stubborn" else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sequences-max", type=int, default=16)
    parser.add_argument("--queue-max", type=int, default=256)
    parser.add_argument("--fault", choices=FAULTS)
    asyncio.run(main(parser.parse_args()))
