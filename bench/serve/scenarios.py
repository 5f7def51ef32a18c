"""The loads: what they send, and what has to be true of the answers.

Each scenario is `async (load) -> Outcome`. Whatever else it does, texts that come back whole must be
those that the same requests have alone.
"""

import asyncio
import itertools
import json
import re
import time
from dataclasses import dataclass

from figures import Memory, Outcome, Tally, spread
from wire import Broken, Connection, generate, get

IDLE_AGAIN_S = 10       # after the last abort, until the server has nothing left to do
SLOW_BYTE_S = 0.5       # between two bytes of a slow client
MEMORY_SAMPLES = 100    # a scenario, about
SHORT_TOKENS = 16       # few, and enough for different requests to differ
FAULT_PAUSE_S = 0.05    # after a reply that is none: a server that is gone is not asked without end
DESERTER_S = 0.02       # between two of one client: ports that were left rest for a minute
INSIDE_MAX = 4096       # requests on their way; a queue that holds more is not filled
PROBE_S = 0.02          # after which a request counts as waiting, and the next one is sent
REFUSED_PAUSE_S = 0.002 # between two refusals

SUBJECTS = ["adds two numbers", "reverses a list", "counts the words of a text", "finds the largest number",
            "reads a file line by line", "sorts names by length", "tells whether a year is a leap year",
            "joins paths", "removes duplicates", "converts celsius to fahrenheit", "parses a date",
            "computes a factorial", "merges two dictionaries", "checks a password", "draws a triangle",
            "sums the digits of a number"]


@dataclass
class Load:
    """What all scenarios share."""
    target: object
    pid: int | None    # of the server; none: its memory is not watched
    models: list       # ids: the base one, then the ultraspeed one if there is one
    seconds: float
    streams: int
    requests: int
    idle: int
    slow: int
    tokens: int        # of an answer, at most
    patience_s: float  # for one answer
    memory_slack: float
    refusal_ms: float  # from a request to its 429
    asks: int          # different requests

    def body(self, number, tokens=None, stream=True):
        """Request `number`: half of them greedy, half with a seed; every model says the same."""
        models = len(self.models)
        ask = number // models
        body = {"model": self.models[number % models],
                "messages": [{"role": "user", "content": f"Write a function that {SUBJECTS[ask % len(SUBJECTS)]}, "
                                                         f"variant {ask}."}],
                "max_completion_tokens": tokens or self.tokens, "stream": stream,
                "temperature": ask % 2 * 1.0, "seed": ask}
        if stream:
            body["stream_options"] = {"include_usage": True}
        return body

    @property
    def numbers(self):
        return self.asks * len(self.models)


async def alone(load, outcome, tokens=None, stream=True):
    """What each request says when nothing else runs: {number: Reply.said}. Asked twice, the second
    time with a warm cache."""
    said, faults, unlike = {}, [], []
    for number in range(load.numbers):
        first, again = [await generate(load.target, load.body(number, tokens, stream), load.patience_s)
                        for _ in range(2)]
        faults += [f"request {number}: {reply.fault}" for reply in (first, again) if reply.fault]
        said[number] = first.said
        of_base = said[number - number % len(load.models)]
        if not (first.fault or again.fault) and (again.said != first.said or first.said != of_base):
            unlike.append(f"request {number}: {of_base!r:.100}, {first.said!r:.100}, {again.said!r:.100}")
    outcome.check("every request is answered when it is alone", not faults, faults[0] if faults else "")
    outcome.check("alone, a request says the same twice, in every mode", not unlike, unlike[0] if unlike else "")
    different = len({json.dumps(said[n]) for n in range(0, load.numbers, len(load.models))})
    outcome.check("different requests have different answers, or a mix-up would not show",
                  different * 2 > load.asks or load.asks == 1, f"{different} of {load.asks}")
    return said


async def stream_until(load, tally, end, first, step):
    """One client that asks again and again until `end` (perf_counter)."""
    for number in itertools.count(first, step):
        if time.perf_counter() >= end:
            return
        number %= load.numbers
        reply = await generate(load.target, load.body(number), load.patience_s)
        tally.add(number, reply)
        if reply.fault:
            await asyncio.sleep(FAULT_PAUSE_S)


class watched:
    """The server's memory during a block, judged at its end."""

    def __init__(self, load, outcome, seconds):
        self.load, self.outcome = load, outcome
        self.memory = Memory(load.pid, max(seconds / MEMORY_SAMPLES, 0.02)) if load.pid else None

    async def __aenter__(self):
        self.task = asyncio.create_task(self.memory.watch()) if self.memory else None

    async def __aexit__(self, *_):
        if self.memory is None:
            return
        self.task.cancel()
        self.outcome.memory = self.memory.samples
        growth = self.memory.growth()
        if growth is not None:
            self.outcome.figures["memory_growth"] = growth
            self.outcome.check(f"memory is flat within {100 * self.load.memory_slack:g} %",
                               abs(growth) <= self.load.memory_slack, f"{100 * growth:+.1f} %")


async def streams(load):
    """Many streams at once, for a while."""
    outcome = Outcome("streams")
    tally = Tally(await alone(load, outcome))
    begun = time.perf_counter()
    async with watched(load, outcome, load.seconds), asyncio.TaskGroup() as group:
        for i in range(load.streams):
            group.create_task(stream_until(load, tally, begun + load.seconds, i, load.streams + 1))
    tally.fill(outcome, time.perf_counter() - begun)
    tally.judge(outcome)
    return outcome


# ------------------------------------------------------------------ clients that take their time


async def hold(load, slow, opened, closed):
    """A connection that says nothing, or a byte now and then, until it is cancelled."""
    try:
        connection = await Connection.open(load.target)
    except OSError:
        return
    opened.append(slow)
    head, body = connection.request_bytes("POST", "/v1/chat/completions", load.body(0))
    if slow == "body":
        connection.writer.write(head)
    reading = asyncio.create_task(connection.reader.read(1))
    try:
        pending = {"": b"", "head": head, "body": body}[slow]
        for byte in pending:
            done, _ = await asyncio.wait([reading], timeout=SLOW_BYTE_S)
            if done:  # an answer (408) or the end
                break
            connection.writer.write(bytes([byte]))
        await reading
        closed.append(slow)
    except OSError:
        closed.append(slow)
    finally:
        reading.cancel()
        connection.writer.transport.abort()


async def idle(load):
    """Idle and slow connections beside a few active ones."""
    outcome = Outcome("idle")
    tally, quiet = Tally(await alone(load, outcome)), Tally({})
    active = min(8, load.streams)

    async def run(into, seconds):
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for i in range(active):
                group.create_task(stream_until(load, into, begun + seconds, i, active + 1))
        return time.perf_counter() - begun

    quiet.alone = tally.alone
    await run(quiet, load.seconds / 4)  # the same clients without the crowd
    opened, closed = [], []
    crowd = [asyncio.create_task(hold(load, kind, opened, closed))
             for kind in [""] * load.idle + ["head", "body"] * (load.slow // 2)]
    wanted = len(crowd)
    try:
        async with asyncio.timeout(load.patience_s):
            while len(opened) < wanted and not all(task.done() for task in crowd):
                await asyncio.sleep(0.01)
    except TimeoutError:
        pass
    async with watched(load, outcome, load.seconds):
        seconds = await run(tally, load.seconds)
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    tally.fill(outcome, seconds)
    outcome.figures.update({"connections": len(opened), "closed_by_server": len(closed),
                            "gap_without_the_crowd": spread(quiet.gaps_s),
                            "first_token_without_the_crowd": spread(quiet.first_s)})
    outcome.check("all connections were taken", len(opened) == wanted, f"{len(opened)} of {wanted}")
    tally.judge(outcome)
    return outcome


# ------------------------------------------------------------------ many short ones


async def open_or_none(load):
    try:
        return await Connection.open(load.target)
    except OSError:
        return None  # whoever opens the next one says why


async def short(load):
    """Many short requests: every second client opens a connection for each, the others keep theirs."""
    outcome, tokens = Outcome("short"), min(SHORT_TOKENS, load.tokens)
    tally = Tally(await alone(load, outcome, tokens, stream=False))
    left = iter(range(load.requests))

    async def client(keeps):
        connection = None
        for number in left:
            number %= load.numbers
            if keeps and connection is None:
                connection = await open_or_none(load)
            reply = await generate(load.target, load.body(number, tokens, stream=False), load.patience_s, connection)
            tally.add(number, reply)
            if connection is not None and (reply.fault or not connection.keeps_open):
                connection.writer.transport.abort()
                connection = None
            if reply.fault:
                await asyncio.sleep(FAULT_PAUSE_S)
        if connection is not None:
            await connection.close()

    begun = time.perf_counter()
    async with watched(load, outcome, load.seconds), asyncio.TaskGroup() as group:
        for i in range(min(load.streams, 32)):
            group.create_task(client(i % 2 == 0))
    seconds = time.perf_counter() - begun
    tally.fill(outcome, seconds)
    outcome.figures["requests_per_s"] = tally.whole / seconds
    outcome.check("all requests were sent", tally.whole + len(tally.faults) == load.requests,
                  f"{tally.whole + len(tally.faults)} of {load.requests}")
    tally.judge(outcome)
    return outcome


# ------------------------------------------------------------------ clients that leave

PHASES = ["connected", "in the head", "in the body", "queued", "at the head of the reply", "at the first text",
          "in the stream"]


async def leave(load, number, phase, reset):
    """A client that leaves at `phase`, with a FIN or an RST; whether it came so far."""
    if (connection := await open_or_none(load)) is None:
        return False
    head, body = connection.request_bytes("POST", "/v1/chat/completions", load.body(number))
    send = {"connected": b"", "in the head": head[:len(head) // 2], "in the body": head + body[:len(body) // 2]}
    try:
        async with asyncio.timeout(load.patience_s):
            connection.writer.write(send.get(phase, head + body))
            await connection.writer.drain()
            if phase in PHASES[4:]:
                reply = await connection.head()
                texts = {"at the head of the reply": 0, "at the first text": 1, "in the stream": 3}[phase]
                if reply.status != 200:
                    return False
                async for _, data in connection.events(reply):
                    if texts == 0 or data == b"[DONE]":
                        break
                    choices = json.loads(data)["choices"]
                    texts -= bool(choices and any(choices[0]["delta"].get(name) for name in
                                                  ("content", "reasoning_content")))
        return True
    except (TimeoutError, Broken, OSError, ValueError, KeyError):
        return False
    finally:
        connection.reset() if reset else connection.writer.close()


def gauges(text):
    """Requests running and waiting, of an exposition; none where it does not say."""
    found = [re.search(rf"^tessera_num_requests_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
             for name in ("running", "waiting")]
    return sum(float(f[1]) for f in found) if all(found) else None


async def busy_for(load):
    """Seconds until the server has nothing to do, and what it had at the end."""
    begun, busy = time.perf_counter(), None
    while time.perf_counter() - begun < IDLE_AGAIN_S:
        status, body = await get(load.target, "/metrics", load.patience_s)
        busy = gauges(body.decode(errors="replace")) if status == 200 else None
        if busy is None or busy == 0:
            break
        await asyncio.sleep(0.02)
    return time.perf_counter() - begun, busy


async def aborts(load):
    """Clients that leave at every phase, beside witnesses that must not notice."""
    outcome = Outcome("aborts")
    tally = Tally(await alone(load, outcome))
    reached = dict.fromkeys(PHASES, 0)
    begun = time.perf_counter()
    end = begun + load.seconds

    async def deserter(first):
        for i in itertools.count(first):
            if time.perf_counter() >= end:
                return
            phase = PHASES[i % len(PHASES)]
            reached[phase] += await leave(load, i % load.numbers, phase, reset=i // len(PHASES) % 2 == 0)
            await asyncio.sleep(DESERTER_S)

    async with watched(load, outcome, load.seconds), asyncio.TaskGroup() as group:
        for i in range(min(4, load.streams)):
            group.create_task(stream_until(load, tally, end, i, 5))
        for i in range(min(8, load.streams)):
            group.create_task(deserter(i * 3))
    tally.fill(outcome, time.perf_counter() - begun)
    seconds, busy = await busy_for(load)
    outcome.figures.update({"aborts": reached, "idle_again_s": seconds})
    outcome.check("clients left at every phase", all(reached.values()), reached)
    outcome.check(f"nothing runs on for clients that left, {IDLE_AGAIN_S} s later", busy == 0,
                  "/metrics does not say" if busy is None else f"{busy:g} requests")
    tally.judge(outcome)
    return outcome


# ------------------------------------------------------------------ more than fit


async def full(load):
    """Requests until the queue is full, then probes of how fast it says so."""
    outcome, tokens = Outcome("full"), 4 * load.tokens  # long ones: the queue stays full
    tally = Tally(await alone(load, outcome, tokens))
    late_s, crowded_s, without, inside, refused = [], [], [], set(), asyncio.Event()
    begun = time.perf_counter()

    async def probe(number, measured):
        """One request. What comes in must be whole too."""
        reply = await generate(load.target, load.body(number, tokens), load.patience_s)
        if reply.status != 429:
            return tally.add(number, reply)
        refused.set()
        (late_s if measured else crowded_s).append(reply.head_s)
        if not (reply.headers.get("retry-after") and reply.headers.get("retry-after-ms")):
            without.append(number)

    # As long as requests come in, the next one follows at once. After a refusal one is sent alone, so
    # that its time is the server's and not that of a crowd in this process.
    for number in itertools.cycle(range(load.numbers)):
        if time.perf_counter() - begun >= load.seconds or len(late_s) >= load.requests:
            break
        measured = refused.is_set()
        refused.clear()
        if measured:
            await asyncio.sleep(REFUSED_PAUSE_S)
        inside.add(task := asyncio.create_task(probe(number, measured)))
        task.add_done_callback(inside.discard)
        await asyncio.wait([task], timeout=PROBE_S if measured or len(inside) >= INSIDE_MAX else 0)
    if inside:
        await asyncio.wait(inside)
    tally.fill(outcome, time.perf_counter() - begun)
    # Where none that was sent alone was refused, those of the crowd have to do.
    timed = spread(late_s or crowded_s)
    refusals, p99_ms = len(late_s) + len(crowded_s), timed["p99_ms"]
    outcome.figures.update({"refusal": timed, "refused": refusals})
    outcome.check("the queue was full", refusals, f"{tally.whole} requests came in")
    outcome.check(f"99 of 100 refusals come within {load.refusal_ms:g} ms", p99_ms < load.refusal_ms, f"{p99_ms:.2f} ms")
    outcome.check("every 429 has retry-after and retry-after-ms", not without, f"{len(without)} have not")
    tally.judge(outcome)
    return outcome


ALL = {"streams": streams, "idle": idle, "short": short, "aborts": aborts, "full": full}
# What a server is started with for a scenario, beside its defaults.
SERVER_ARGUMENTS = {"full": ["--sequences-max", "4", "--queue-max", "8"]}
