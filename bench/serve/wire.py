"""HTTP/1.1 and server-sent events over raw sockets of this machine, with the time of every event.

Nothing here believes the server: every length is bounded, every wait has an end (the caller's
asyncio.timeout), and what is not HTTP raises Broken.
"""

import asyncio
import ipaddress
import json
import socket
import struct
import time
import urllib.parse
from dataclasses import dataclass, field

LINE_BYTES_MAX = 1 << 20
BODY_BYTES_MAX = 1 << 26


class Broken(Exception):
    """The server answered something that is no HTTP, no event stream or no JSON, or cut it short."""


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    key: str = ""
    prefix: str = ""


def target_of(url, key=""):
    """The server behind `url`. ValueError if any address of it is not a loopback one: this program
    must not be able to load anybody else's machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url}: expected http://HOST:PORT")
    port = parts.port or 80
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"{url}: {error}") from None
    addresses = [entry[4][0] for entry in found]
    for address in addresses:
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            raise ValueError(f"{url}: {address} is not this machine: only loopback addresses are loaded")
    return Target(addresses[0], port, key, parts.path.rstrip("/"))


@dataclass
class Head:
    status: int
    headers: dict  # names in lower case


class Connection:
    """One socket. Asks one thing at a time."""

    def __init__(self, target, reader, writer):
        self.target, self.reader, self.writer = target, reader, writer
        self.keeps_open = True  # as the last reply said

    @staticmethod
    async def open(target):
        reader, writer = await asyncio.open_connection(target.host, target.port, limit=LINE_BYTES_MAX)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(target, reader, writer)

    def request_bytes(self, method, path, body=None):
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {self.target.prefix}{path} HTTP/1.1", f"host: {self.target.host}:{self.target.port}"]
        if self.target.key:
            lines.append(f"authorization: Bearer {self.target.key}")
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(content)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n", content

    async def ask(self, method, path, body=None):
        """Sends the request and reads the head of its reply."""
        self.writer.write(b"".join(self.request_bytes(method, path, body)))
        await self.writer.drain()
        return await self.head()

    async def line(self):
        try:
            line = await self.reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Broken(f"a line was cut: {error}") from None
        return line.rstrip(b"\r\n").decode("latin-1")

    async def exactly(self, size):
        try:
            return await self.reader.readexactly(size)
        except asyncio.IncompleteReadError:
            raise Broken("the body was cut") from None

    async def head(self):
        first = (await self.line()).split(" ", 2)
        if len(first) < 2 or not first[0].startswith("HTTP/1.") or not first[1].isdigit():
            raise Broken(f"no HTTP: {' '.join(first)[:80]!r}")
        headers = {}
        while line := await self.line():
            name, colon, value = line.partition(":")
            if not colon:
                raise Broken(f"no header: {line[:80]!r}")
            headers[name.strip().lower()] = value.strip()
        self.keeps_open = headers.get("connection", "").lower() != "close"
        return Head(int(first[1]), headers)

    async def pieces(self, head):
        """The body's bytes as they come."""
        total = 0
        if head.headers.get("transfer-encoding", "").lower() == "chunked":
            while True:
                line = (await self.line()).partition(";")[0]
                try:
                    size = int(line, 16)
                except ValueError:
                    raise Broken(f"no chunk: {line[:80]!r}") from None
                total += size
                if not 0 <= total <= BODY_BYTES_MAX:
                    raise Broken("the body is too long")
                data = await self.exactly(size)
                if await self.line():
                    raise Broken("a chunk is longer than it says")
                if size == 0:
                    return
                yield data
        elif (length := head.headers.get("content-length")) is not None:
            if not length.isdigit() or int(length) > BODY_BYTES_MAX:
                raise Broken(f"content-length: {length[:80]!r}")
            yield await self.exactly(int(length))
        else:
            while data := await self.reader.read(1 << 16):
                total += len(data)
                if total > BODY_BYTES_MAX:
                    raise Broken("the body is too long")
                yield data

    async def body(self, head):
        return b"".join([piece async for piece in self.pieces(head)])

    async def events(self, head):
        """(when, data) of each event; comments (pings) have no data and are passed over."""
        rest = b""
        async for piece in self.pieces(head):
            now = time.perf_counter()
            *whole, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in whole:
                lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
                if lines:
                    yield now, b"\n".join(lines)
        if rest.strip():
            raise Broken("the last event was cut")

    def reset(self):
        """Ends with RST: what a crashed client or a middle box does."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self):
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass


@dataclass
class Reply:
    """What became of one generation."""
    status: int = 0
    text: str = ""
    reasoning: str = ""
    finish: str = ""
    tokens: int = 0      # of usage
    fault: str = ""      # why it is no whole, well-formed reply; empty: it is one
    headers: dict = field(default_factory=dict)
    head_s: float = 0.0   # from the first byte sent to the head of the reply; the connection is open
    first_s: float = 0.0  # from the request to the first text
    whole_s: float = 0.0
    gaps_s: list = field(default_factory=list)  # between deltas with text

    @property
    def said(self):
        """What must not depend on the neighbours."""
        return (self.text, self.reasoning, self.finish, self.tokens)


def _take_delta(reply, event, begun, last, when):
    """One chunk of a stream into the reply; the time of the last text."""
    if "error" in event:
        raise Broken(f"the stream says: {event['error']}")
    if event.get("usage"):
        reply.tokens = event["usage"]["completion_tokens"]
    for choice in event["choices"]:
        if reply.finish:
            raise Broken("something after the finish_reason")
        delta = choice["delta"]
        text, thought = delta.get("content") or "", delta.get("reasoning_content") or ""
        if text or thought:
            if last is None:
                reply.first_s = when - begun
            else:
                reply.gaps_s.append(when - last)
            last = when
        reply.text += text
        reply.reasoning += thought
        reply.finish = choice.get("finish_reason") or ""
    return last


async def _read_stream(connection, head, reply, begun):
    last, done, chunks = None, False, 0
    async for when, data in connection.events(head):
        if done:
            raise Broken("something after [DONE]")
        if data == b"[DONE]":
            done = True
            continue
        event = json.loads(data)
        if chunks == 0 and event["choices"] and "role" not in event["choices"][0]["delta"]:
            raise Broken("the first delta has no role")
        chunks += 1
        last = _take_delta(reply, event, begun, last, when)
    if not done:
        raise Broken("the stream ended without [DONE]")
    if not reply.finish:
        raise Broken("the stream ended without a finish_reason")


async def _read_whole(connection, head, reply):
    event = json.loads(await connection.body(head))
    choice = event["choices"][0]
    reply.text = choice["message"].get("content") or ""
    reply.reasoning = choice["message"].get("reasoning_content") or ""
    reply.finish = choice.get("finish_reason") or ""
    reply.tokens = event["usage"]["completion_tokens"]
    if not reply.finish:
        raise Broken("no finish_reason")


async def generate(target, body, patience_s, connection=None):
    """One generation, whatever comes of it. `connection` is used and left open if it is given."""
    reply, begun = Reply(), time.perf_counter()
    own = None
    try:
        async with asyncio.timeout(patience_s):
            if connection is None:
                connection = own = await Connection.open(target)
            sent = time.perf_counter()
            head = await connection.ask("POST", "/v1/chat/completions", body)
            reply.head_s = time.perf_counter() - sent
            reply.status, reply.headers = head.status, head.headers
            if head.status != 200:
                reply.fault = f"status {head.status}: {(await connection.body(head))[:200]!r}"
            elif body.get("stream"):
                await _read_stream(connection, head, reply, begun)
            else:
                await _read_whole(connection, head, reply)
    except TimeoutError:
        reply.fault = f"nothing for {patience_s:g} s"
    except (Broken, OSError) as error:
        reply.fault = f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reply.fault = f"not as documented: {type(error).__name__}: {error}"
    reply.whole_s = time.perf_counter() - begun
    if own is not None:
        own.writer.transport.abort() if reply.fault else await own.close()
    return reply


async def get(target, path, patience_s):
    """(status, bytes) of a page; status 0 if there is no answer."""
    try:
        async with asyncio.timeout(patience_s):
            connection = await Connection.open(target)
            try:
                head = await connection.ask("GET", path)
                return head.status, await connection.body(head)
            finally:
                await connection.close()
    except (TimeoutError, Broken, OSError):
        return 0, b""
