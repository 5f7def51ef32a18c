#!/usr/bin/env python3
"""Makes the suites of `tessera bench speculation`: 40 prompts each, from short to long.

    bench/suites/make.py            writes the five .jsonl files beside it
    bench/suites/make.py --check    says what is wrong with them; exit code 1

A line is {"prompt": ..., "source": {...}}. `source` says where the text is from: path, SHA-256 and
character range of a file of this repository as it was when the suite was made; or how it was
generated. Those files go on changing and the suites stay, or figures of two days could not be
compared. So --check does not make them again: it looks at form, number, length and uniqueness.
Seeded: the same tree gives the same suites.
"""

import argparse
import ast
import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SUITES = ("code", "edit", "structured", "docs", "prose")
PROMPTS = 40
SEED = 20

# What is aimed at, and what the bundled model's tokenizer makes of such texts. The program counts
# tokens itself; here it is enough that the longest leave room for an answer in 2048.
TOKENS_MIN, TOKENS_MAX = 30, 1200
CHARACTERS_A_TOKEN = {"code": 2.9, "edit": 2.9, "structured": 1.5, "docs": 2.7}
CHARACTERS_MIN, CHARACTERS_MAX = 40, 5000


def wanted_characters(suite):
    """PROMPTS lengths, evenly spread over the logarithm: every class of length gets its share."""
    ratio = (TOKENS_MAX / TOKENS_MIN) ** (1 / (PROMPTS - 1))
    return [round(TOKENS_MIN * ratio**i * CHARACTERS_A_TOKEN[suite]) for i in range(PROMPTS)]


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(name for name in listed.stdout.split("\0") if name)


class Source:
    """A file of the repository, and how a piece of it is named."""

    def __init__(self, path):
        self.path = path
        self.text = (ROOT / path).read_text()
        self.sha256 = hashlib.sha256(self.text.encode()).hexdigest()

    def named(self, begin, end):
        return {"path": self.path, "sha256": self.sha256, "begin": begin, "end": end}


def python_sources():
    return [Source(path) for path in tracked("train/*.py", "tests/*.py", "bench/gpu/*.py", "bench/peers/*.py")]


def windows(sources, suite, random_, may_begin):
    """A window for each wanted length: from a line that may begin one to the line end that is nearest
    to the length, no two with the same end or the same text."""
    begins = [(source, at) for source in sources for at in may_begin(source.text)]
    taken = set()
    for wanted in wanted_characters(suite):
        while True:
            source, begin = random_.choice(begins)
            end = source.text.find("\n", begin + wanted - 20) + 1
            # Something follows, so that no prompt is a finished text.
            if 0 < end < len(source.text) - 200 and end - begin < 1.3 * wanted + 40 \
                    and not taken & {(source.path, end), source.text[begin:end]}:
                break
        taken |= {(source.path, end), source.text[begin:end]}
        yield {"prompt": source.text[begin:end], "source": source.named(begin, end)}


def code(random_):
    def may_begin(text):
        return [0, *(m.start() for m in re.finditer(r"^(?:def|class|import|from|@)\b", text, re.MULTILINE))]

    yield from windows(python_sources(), "code", random_, may_begin)


# ------------------------------------------------------------------ edit

NEW_NAMES = ("value", "found", "entry", "current", "piece", "given", "total", "block", "chosen", "extent", "record")


def functions(source):
    """(name, text, begin, end) of each function and class of a file that stands at its margin."""
    lines = [0]
    for line in source.text.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for node in ast.parse(source.text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            begin, end = lines[node.lineno - 1], lines[node.end_lineno]
            yield node, source.text[begin:end], begin, end


def renamed(text, old, new):
    return re.sub(rf"\b{re.escape(old)}\b", new, text)


def edits(node, text, random_):
    """(what is asked for, the text after it) for edits that leave most of it as it is."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names = sorted(n for n in names if len(n) > 1 and not re.search(rf"['\"\w]{n}['\"]|\.{n}\b|\b{n}=", text))
    new = random_.choice([n for n in NEW_NAMES if not re.search(rf"\b{n}\b", text)])
    if names:
        old = random_.choice(names)
        yield f"with {old} renamed to {new}", renamed(text, old, new)
    yield f"under the name {new}_{node.name}", renamed(text, node.name, f"{new}_{node.name}")


def edit(random_):
    candidates = [(source, *found) for source in python_sources() for found in functions(source)]
    used = set()
    for wanted in wanted_characters("edit"):
        # The length is that of the text, the request and what is begun; the nearest unused one.
        source, node, text, begin, end = min((c for c in candidates if c[2] not in used),
                                             key=lambda c: abs(len(c[2]) * 1.15 + 45 - wanted))
        used.add(text)
        asked, edited = random_.choice(list(edits(node, text, random_)))
        lines = edited.splitlines(keepends=True)
        shown = "".join(lines[: max(1, min(len(lines) // 8, 4))])
        yield {"prompt": f"{text}\n\n# The same {asked}:\n\n\n{shown}",
               "source": {**source.named(begin, end), "edit": asked}}


# ------------------------------------------------------------------ structured

FIELDS = {
    "station": ["Northgate", "Mill Lane", "Harbour", "Old Bridge", "Quarry", "Elm Park", "Summit", "Lower Town"],
    "fruit": ["apple", "pear", "plum", "quince", "cherry", "medlar", "apricot", "fig"],
    "state": ["open", "closed", "waiting", "in repair"],
    "keeper": ["Ada", "Bruno", "Clara", "Dario", "Edith", "Felix", "Greta", "Hugo"],
    "colour": ["red", "green", "blue", "ochre", "grey", "white"],
    "count": range(1, 500),
    "weight_kg": range(2, 90),
    "depth_m": range(1, 60),
    "share": [i / 100 for i in range(100)],
    "checked": [True, False],
}


def records(random_, fields):
    """Endless records: the id counts, the day advances now and then, the rest is drawn."""
    day = random_.randrange(1, 20)
    for number in range(random_.choice((1, 100, 4200)), 10**6):
        day += random_.random() < 0.1
        yield {"id": number, "date": f"2031-{1 + day // 28 % 12:02}-{1 + day % 28:02}",
               **{field: random_.choice(FIELDS[field]) for field in fields}}


def json_rows(fields, rows):
    yield "[\n"
    for record in rows:
        yield f"  {json.dumps(record)},\n"


def json_tree(fields, rows):
    yield '{\n  "records": [\n'
    for record in rows:
        yield "    {\n" + ",\n".join(f'      "{k}": {json.dumps(v)}' for k, v in record.items()) + "\n    },\n"


def markdown(fields, rows):
    names = ("id", "date", *fields)
    yield f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"
    for record in rows:
        yield f"| {' | '.join(str(v) for v in record.values())} |\n"


def csv(fields, rows):
    yield ",".join(("id", "date", *fields)) + "\n"
    for record in rows:
        yield ",".join(str(v) for v in record.values()) + "\n"


FORMS = (json_rows, markdown, csv, json_tree)


def structured(random_):
    for index, wanted in enumerate(wanted_characters("structured")):
        form = FORMS[index % len(FORMS)]
        fields = random_.sample(sorted(FIELDS), 2 + index % 3)
        text = ""
        for piece in form(fields, records(random_, fields)):
            # The first row is always there: without one there is nothing to go on with.
            if text.count("\n") > 3 and len(text) + len(piece) / 2 > wanted:
                break
            text += piece
        yield {"prompt": text, "source": {"generated": form.__name__, "fields": fields}}


# ------------------------------------------------------------------ docs, prose

# From here on a document quotes what others wrote or what a model did.
QUOTES_FROM = {"docs/MODEL.md": "## Ten held-out prompts"}


def docs(random_):
    sources = [Source(path) for path in tracked("docs/*.md", "README.md", "CONTRIBUTING.md", "train/README.md")]
    for source in sources:
        if source.path in QUOTES_FROM:
            source.text = source.text[: source.text.index(QUOTES_FROM[source.path])]

    def may_begin(text):
        return [m.end() for m in re.finditer(r"\A|\n\n(?=[A-Z#*])", text)]

    yield from windows(sources, "docs", random_, may_begin)


def prose(random_):
    """Each opening by itself, and longer prompts of several in a row: the last one stays open."""
    source = Source("bench/suites/openings.txt")
    openings, at = [], 0
    for text in re.split(r"(?<=\n)---\n", source.text):
        # Lines are broken for the file's sake alone.
        openings.append((re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip()), source.named(at, at + len(text))))
        at += len(text) + len("---\n")
    for text, where in openings:
        yield {"prompt": text, "source": where}
    for wanted in (700, 900, 1200, 1500, 1900, 2400, 2900, 3500)[: PROMPTS - len(openings)]:
        order = random_.sample(openings, len(openings))
        count = next(n for n in range(2, len(order)) if sum(len(text) for text, _ in order[:n]) > wanted)
        texts = [text for text, _ in order[:count]]
        # One that breaks off in the middle of a sentence stands last.
        texts.sort(key=lambda text: text[-1] not in '."?')
        yield {"prompt": "\n\n* * *\n\n".join(texts), "source": {"path": source.path, "sha256": source.sha256,
                                                                  "openings": count}}


# ------------------------------------------------------------------ what is written, and looked at

def problems():
    """What is wrong with the suites as they stand, a line each."""
    seen = {}
    for suite in SUITES:
        file = HERE / f"{suite}.jsonl"
        if not file.exists():
            yield f"{file.name}: is missing"
            continue
        lines = file.read_text().splitlines()
        if len(lines) != PROMPTS:
            yield f"{file.name}: has {len(lines)} prompts, not {PROMPTS}"
        for number, line in enumerate(lines, 1):
            where = f"{file.name}:{number}"
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                yield f"{where}: is not JSON: {error}"
                continue
            if not isinstance(entry, dict) or set(entry) != {"prompt", "source"} \
                    or not isinstance(entry["prompt"], str) or not isinstance(entry["source"], dict):
                yield f'{where}: is not {{"prompt": text, "source": object}}'
                continue
            length = len(entry["prompt"])
            if not CHARACTERS_MIN <= length <= CHARACTERS_MAX:
                yield f"{where}: has {length} characters, not {CHARACTERS_MIN} to {CHARACTERS_MAX}"
            if not {"path", "generated"} & set(entry["source"]):
                yield f"{where}: does not say where it is from"
            if entry["prompt"] in seen:
                yield f"{where}: is {seen[entry['prompt']]} again"
            seen[entry["prompt"]] = where


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="look at what is there; write nothing")
    if not parser.parse_args().check:
        for suite in SUITES:
            entries = list(globals()[suite](random.Random(f"{SEED} {suite}")))
            (HERE / f"{suite}.jsonl").write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries))
    found = list(problems())
    for problem in found:
        print(problem)
    print(f"suites: {len(found)} problems" if found else f"suites: {len(SUITES)} of {PROMPTS} prompts, sound")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
