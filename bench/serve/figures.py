"""What was measured: percentiles, memory over time, verdicts, and how they are printed."""

import asyncio
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

WARM_UP = 0.2  # of a run's memory samples: caches and buffers that fill once


def percentile(values, share):
    """The smallest value that `share` of all are not above (nearest rank); 0 if there are none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]


def spread(values):
    """Median, 99th percentile and the largest, in milliseconds, and how many there were."""
    return {"p50_ms": 1e3 * percentile(values, 0.5), "p99_ms": 1e3 * percentile(values, 0.99),
            "max_ms": 1e3 * max(values, default=0.0), "count": len(values)}


def resident_bytes(pid):
    """VmRSS of a process; none if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


class Memory:
    """Samples a process' memory until it is stopped."""

    def __init__(self, pid, every_s):
        self.pid, self.every_s, self.samples = pid, every_s, []  # (seconds, bytes)

    async def watch(self):
        begun = time.perf_counter()
        while True:
            if (size := resident_bytes(self.pid)) is not None:
                self.samples.append((time.perf_counter() - begun, size))
            await asyncio.sleep(self.every_s)

    def growth(self):
        """How much more the last quarter of the samples has than the first one behind the warm-up,
        as a share of it; none with fewer than 8 samples."""
        sizes = [size for _, size in self.samples][int(len(self.samples) * WARM_UP):]
        quarter = len(sizes) // 4
        if len(self.samples) < 8 or quarter == 0:
            return None
        first, last = sum(sizes[:quarter]) / quarter, sum(sizes[-quarter:]) / quarter
        return last / first - 1


@dataclass
class Outcome:
    """What a scenario found. A check is (what should be, whether it is, what was seen)."""
    scenario: str
    figures: dict = field(default_factory=dict)
    checks: list = field(default_factory=list)
    memory: list = field(default_factory=list)

    def check(self, should, holds, seen=""):
        self.checks.append((should, bool(holds), str(seen)))

    @property
    def passed(self):
        return all(holds for _, holds, _ in self.checks)

    def as_json(self):
        return {"scenario": self.scenario, "passed": self.passed, "figures": self.figures,
                "checks": [{"should": s, "holds": h, "seen": w} for s, h, w in self.checks],
                "memory": [{"s": round(s, 3), "bytes": size} for s, size in self.memory]}


class Tally:
    """Replies, held against what each request says when it is alone."""

    def __init__(self, alone):
        self.alone = alone  # request -> Reply.said
        self.whole = self.tokens = 0
        self.faults, self.different = [], []
        self.first_s, self.gaps_s, self.whole_s = [], [], []

    def add(self, number, reply):
        if reply.fault:
            self.faults.append(f"request {number}: {reply.fault}")
            return
        self.whole += 1
        self.tokens += reply.tokens
        self.whole_s.append(reply.whole_s)
        self.gaps_s += reply.gaps_s
        if reply.first_s:
            self.first_s.append(reply.first_s)
        if reply.said != self.alone[number]:
            self.different.append(f"request {number}: {reply.said!r:.120} instead of {self.alone[number]!r:.120}")

    def judge(self, outcome):
        outcome.check("some requests were answered", self.whole > 0, self.whole)
        outcome.check("no stream is lost or malformed", not self.faults,
                      f"{len(self.faults)}; {self.faults[0]}" if self.faults else "0")
        outcome.check("each text is the one that its request has alone", not self.different,
                      f"{len(self.different)} differ; {self.different[0]}" if self.different else "0 differ")

    def fill(self, outcome, seconds):
        outcome.figures.update({"requests": self.whole, "tokens": self.tokens, "seconds": seconds,
                                "tokens_per_s": self.tokens / seconds if seconds else 0.0,
                                "first_token": spread(self.first_s), "gap": spread(self.gaps_s),
                                "whole": spread(self.whole_s)})


def table(outcomes):
    rows = [["scenario", "requests", "tokens/s", "first p50", "first p99", "gap p50", "gap p99", "memory", "checks"]]
    for outcome in outcomes:
        f = outcome.figures
        growth = f.get("memory_growth")
        rows.append([outcome.scenario, str(f.get("requests", "")),
                     *(f"{f[name]:.0f}" if name in f else "" for name in ("tokens_per_s",)),
                     *(f"{f[name][p]:.2f} ms" if f.get(name, {}).get("count") else ""
                       for name in ("first_token", "gap") for p in ("p50_ms", "p99_ms")),
                     f"{100 * growth:+.1f} %" if growth is not None else "",
                     "passed" if outcome.passed else "FAILED"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
             for row in rows]
    for outcome in outcomes:
        if "refusal" in outcome.figures:
            r = outcome.figures["refusal"]
            lines.append(f"{outcome.scenario}: {outcome.figures['refused']} refused with 429, {r['count']} of them timed: p50 {r['p50_ms']:.2f} ms, "
                         f"p99 {r['p99_ms']:.2f} ms, max {r['max_ms']:.2f} ms")
        lines += [f"{outcome.scenario}: NOT SO: {should} (seen: {seen})"
                  for should, holds, seen in outcome.checks if not holds]
    return "\n".join(line.rstrip() for line in lines)


def write_json(path, outcomes, about):
    Path(path).write_text(json.dumps({**about, "outcomes": [o.as_json() for o in outcomes]}, indent=1) + "\n")
