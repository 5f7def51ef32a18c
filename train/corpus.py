#!/usr/bin/env python3
"""Makes the corpus of the bundled model from Python packages, whole packages held out.

    train/corpus.py fetch DIR      download the packages of packages.txt with pip and, on Debian,
                                   their pages with apt-get (about 2 GB)
    train/corpus.py build DIR      read, filter, deduplicate, split; train the tokenizer; tokenize
    train/corpus.py report DIR     the table of CORPUS.md

The interpreter's own library is read where it lies. `build` writes DIR/tokenizer.json (one that is
there is kept, so that ids do not depend on the day of the download), DIR/corpus.json (what went in,
by package) and one array of little-endian uint16 ids a split: train.u16, valid_{code,prose}.u16,
test_{...}.u16, documents separated by <|endoftext|>. The same DIR gives the same bytes.
"""

import argparse
import ast
import concurrent.futures
import hashlib
import json
import multiprocessing
import random
import re
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import zipfile
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SEED = 20261123
VOCAB_SIZE = 4096
# Order gives the ids, from 0; the names are those of the published tokenizer.
SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<think>", "</think>", "<|mask|>",
]
# Qwen2's pre-tokenizer with single digits, as MiMo-V2 publishes it.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = {".py": "code", ".rst": "prose", ".md": "prose", ".txt": "prose",
         ".json": "data", ".yaml": "data", ".yml": "data", ".toml": "data", ".csv": "data"}
PACKAGE_BYTES_MAX = {"code": 3_000_000, "prose": 5_000_000, "data": 150_000}
FILE_BYTES = {"code": (200, 150_000), "prose": (500, 150_000), "data": (200, 12_000)}
# The dialect's default system turn (spec of the chat template).
SYSTEM = "You are MiMo, a helpful AI assistant engineered by Xiaomi."


def packages():
    """name -> (licence, role) from packages.txt."""
    listed = {}
    for line in (HERE / "packages.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, licence, *role = line.split()
            listed[name.lower()] = (licence, role[0] if role else "train")
    return listed


def run_in(folder, command, seconds=300):
    """Whether the command ended well and in time."""
    try:
        return subprocess.run(command, cwd=folder, timeout=seconds, capture_output=True).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def fetch_source(name, folder):
    """The newest source archive, straight from the index: `pip download` would run its build."""
    from pip._internal.models.index import PyPI

    request = urllib.request.Request(f"{PyPI.simple_url}/{name.replace('.', '-')}/",
                                     headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        listing = json.load(answer)
    final = [f for f in listing["files"] if f["filename"].endswith((".tar.gz", ".zip")) and not f.get("yanked")
             and re.search(r"-\d+(\.\d+)*(\.post\d+)?\.(tar\.gz|zip)$", f["filename"])]
    if not final or final[-1].get("size", 0) > 150 << 20:
        return False
    newest = max(final, key=lambda f: f.get("upload-time", ""))
    with urllib.request.urlopen(newest["url"], timeout=300) as answer:
        (folder / newest["filename"]).write_bytes(answer.read())
    return True


def fetch(folder):
    target = (folder / "packages").absolute()
    target.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
           "--python-version", "3.13"]

    def fetch_one(name):
        got = ["wheel"] if run_in(target, [*pip, name]) else []
        try:
            # The source archive has the documentation, and so has Debian's package of it.
            got += ["source"] if fetch_source(name, target) else []
        except OSError as failed:
            print(f"{name}: {failed}", file=sys.stderr)
        got += ["pages" for three in ("", "3") if run_in(target, ["apt-get", "download", f"python{three}-{name}-doc"])]
        print(f"{name}: {' '.join(got) or 'nothing'}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(fetch_one, packages()))


def package_name(file):
    """The package a downloaded file belongs to, in the spelling of packages.txt."""
    stem = file.name.split("_")[0] if file.suffix == ".deb" else re.split(r"-\d", file.name)[0]
    if file.suffix == ".deb":
        stem = re.sub(r"^python3?-|^python3\.\d+-doc$|-doc$", "", stem) or "python"
        stem = {"attr": "attrs", "sklearn": "scikit-learn"}.get(stem, stem)
    return stem.replace("_", "-").lower()


def members(file):
    """Yields (path, bytes) of the text files in a wheel, source archive or Debian package."""
    wanted = tuple(KINDS)
    if file.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.endswith(wanted) and info.file_size < 400_000:
                    yield info.filename, archive.read(info)
        return
    if file.suffix == ".deb":
        stream = subprocess.Popen(["dpkg", "--fsys-tarfile", str(file)], stdout=subprocess.PIPE)
        archive = tarfile.open(fileobj=stream.stdout, mode="r|")
    else:
        archive = tarfile.open(file)
    with archive:
        for info in archive:
            if info.isfile() and info.name.endswith(wanted) and info.size < 400_000:
                yield info.name, archive.extractfile(info).read()


def standard_library():
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if "site-packages" not in path.parts:
            yield str(path.relative_to(root)), path.read_bytes()


LICENCE_BLOCK = re.compile(r"\A(?:#!.*\n)?(?:#.*coding.*\n)?((?:[ \t]*#.*\n|[ \t]*\n)+)")


def strip_licence(text):
    """Drops a leading comment block that is a licence notice: it teaches nothing and repeats."""
    block = LICENCE_BLOCK.match(text)
    if block and re.search("licen[cs]e|copyright", block[1], re.IGNORECASE):
        return text[block.end():]
    return text


def admit(path, raw, kind):
    """The text of a file worth learning from, or None."""
    try:
        text = raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
    if kind == "code":
        text = strip_licence(text)
    low, high = FILE_BYTES[kind]
    if not low <= len(text) <= high:
        return None
    lines = text.split("\n")
    if max(map(len, lines)) > 600 or len(text) / len(lines) > 110:
        return None
    letters = sum(c.isalpha() for c in text) / len(text)
    digits = sum(c.isdigit() for c in text) / len(text)
    if letters < 0.3 or digits > 0.15 or sum(ord(c) > 0x2FF for c in text) > 0.02 * len(text):
        return None
    lowered = path.lower()
    if kind == "prose" and (not re.search("readme|doc|guide|news|change|releasenote|_sources", lowered)
                            or re.search("licen|entry_points|requirements|top_level|/[a-z]{2}/docs/", lowered)):
        return None
    if kind == "code":
        if re.search("autogenerated|generated by|do not edit", text[:1500], re.IGNORECASE):
            return None
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
    return text


def read_package(job):
    """All admitted documents of one archive: [(package, kind, path, text)]."""
    name, file = job
    documents = []
    source = standard_library() if file is None else members(file)
    try:
        for path, raw in source:
            kind = KINDS[Path(path).suffix]
            text = admit(path, raw, kind)
            if text is not None:
                documents.append((name, kind, path, text))
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as broken:
        print(f"{file}: {broken}", file=sys.stderr)
    return documents


def deduplicate(documents):
    """Drops a document when most of its longer lines were seen before, in any package."""
    seen, kept, budget = set(), [], Counter()
    for name, kind, path, text in documents:
        if budget[name, kind] > PACKAGE_BYTES_MAX[kind]:
            continue
        lines = {zlib.crc32(line.encode()) for line in map(str.strip, text.split("\n")) if len(line) > 24}
        if not lines or len(lines & seen) > 0.5 * len(lines):
            continue
        seen |= lines
        budget[name, kind] += len(text)
        kept.append((name, kind, path, text))
    return kept


def hash64(text):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def conversation(user, answer):
    turns = [("system", SYSTEM), ("user", user), ("assistant", "<think></think>" + answer)]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>" for role, text in turns)


ASKS = [
    "Write a Python function `{name}`. {doc}", "{doc}\n\nImplement it as `{head}`.",
    "Please write `{name}` in Python: {doc}", "I need a function. {doc} Call it `{name}`.",
    "Complete this function:\n```python\n{head}\n```\n{doc}",
]


def conversations(text, rng):
    """Chat examples from a module's own functions: write it, explain it, rename something in it."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or node.end_lineno - node.lineno not in range(3, 40):
            continue
        body = lines[node.lineno - 1:node.end_lineno]
        indent = len(body[0]) - len(body[0].lstrip())
        code = "\n".join(line[indent:] for line in body)
        doc = ast.get_docstring(node)
        draw = rng.random()
        if doc and len(doc) > 24 and draw < 0.35:
            sentence = " ".join(doc.split("\n\n")[0].split())
            head = code.split("\n")[0]
            yield conversation(rng.choice(ASKS).format(name=node.name, doc=sentence, head=head),
                               f"```python\n{code}\n```")
        elif doc and len(doc) > 24 and draw < 0.45:
            yield conversation(f"What does this function do?\n```python\n{code}\n```",
                               " ".join(doc.split("\n\n")[0].split()))
        elif draw > 0.93:
            names = [arg.arg for arg in node.args.args if len(arg.arg) > 2 and arg.arg != "self"]
            if names:
                old = rng.choice(names)
                new = rng.choice(["value", "item", "source", "target", "name", "data", "first", "count"])
                edited = re.sub(rf"\b{old}\b", new, code)
                yield conversation(f"Rename `{old}` to `{new}` in this code:\n```python\n{code}\n```",
                                   f"```python\n{edited}\n```")


def train_tokenizer(texts, file):
    """The tokenizer at `file` if there is one (its ids stay what they were), else a new one."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if file.exists():
        return Tokenizer.from_file(str(file))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=SPECIALS, min_frequency=8,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    tokenizer.save(str(file))
    return tokenizer


def write_ids(tokenizer, texts, file):
    end = tokenizer.token_to_id("<|endoftext|>")
    parts = []
    for start in range(0, len(texts), 2000):
        for encoding in tokenizer.encode_batch_fast(texts[start:start + 2000]):
            parts.append(np.array([*encoding.ids, end], dtype=np.uint16))
    ids = np.concatenate(parts)
    ids.tofile(file)
    return len(ids)


def build(folder):
    listed = packages()
    jobs = [("python", None)] + [
        (package_name(file), file) for file in sorted((folder / "packages").iterdir())
    ]
    jobs = [job for job in jobs if job[0] in listed or job[0] in ("python", "sphinx")]
    with multiprocessing.Pool() as pool:
        documents = [d for part in pool.imap(read_package, jobs) for d in part]
    print(f"{len(documents)} admitted, {sum(len(d[3]) for d in documents) / 1e6:.1f} MB", flush=True)
    rng = random.Random(SEED)
    # Held-out packages first, so that what they share with others is dropped from the others.
    roles = {"python": "train"} | {name: role for name, (_, role) in listed.items()}
    documents.sort(key=lambda d: (roles.get(d[0], "train") == "train", hash64(d[0] + d[2])))
    documents = deduplicate(documents)

    texts, table = defaultdict(list), defaultdict(Counter)
    for name, kind, _, text in documents:
        role = roles.get(name, "train")
        split = "train" if role == "train" else f"{role}_{kind}"
        texts[split].append(text)
        table[name][kind] += len(text.encode())
    chats = [c for name, kind, _, text in documents if kind == "code" and roles.get(name) == "train"
             and rng.random() < 0.4 for c in conversations(text, rng)]
    sample = rng.sample(texts["train"], len(texts["train"]) // 8)
    tokenizer = train_tokenizer(sample, folder / "tokenizer.json")
    print(f"{len(documents)} kept; {len(chats)} conversations", flush=True)
    texts["train"] += ["".join(chats[i:i + 4]) for i in range(0, len(chats), 4)]
    rng.shuffle(texts["train"])
    report = {"packages": {n: dict(c, licence=listed.get(n, ("PSF-2.0",))[0], role=roles.get(n, "train"))
                           for n, c in sorted(table.items())},
              "conversation_bytes": sum(map(len, chats)), "splits": {}}
    for split, parts in sorted(texts.items()):
        count = write_ids(tokenizer, parts, folder / f"{split}.u16")
        size = sum(len(part.encode()) for part in parts)
        report["splits"][split] = {"bytes": size, "tokens": count, "documents": len(parts)}
        print(f"{split}: {size / 1e6:.1f} MB, {count / 1e6:.2f} M tokens", flush=True)
    (folder / "corpus.json").write_text(json.dumps(report, indent=1))


REPORT_HEAD = """# The corpus

Made by `train/corpus.py` from published Python packages: the newest wheel and source archive of each
on the day of the download, Debian's documentation packages of them, and the interpreter's own
library. Code is what parses; prose is READMEs, guides and change logs. Nothing comes from a model or
data hub. Table: `train/corpus.py report DIR`.

* **Licences.** Permissive only; each package is listed with its own. Leading licence notices are cut
  from files (they repeat), the terms stand as the packages state them.
* **Deduplication** across packages and versions: a file is dropped when most of its longer lines were
  seen before. At most 3 MB of code, 5 MB of prose and 150 kB of data a package.
* **Held out by package**: a package lends itself whole to training, validation or test, and held-out
  packages are read first, so that what they share with others is dropped from the others.
* **Conversations**: {conversations:.1f} MB made from the code itself, in the chat dialect: write this function
  (from its docstring), say what it does, rename this in it.
* **The bundled model** was trained on the first 104,000,000 tokens of the training stream.

| split | documents | MB | M tokens |
|---|---|---|---|
{splits}

{count} packages:

| package | licence | role | code kB | prose kB | data kB |
|---|---|---|---|---|---|
"""


def report(folder):
    data = json.loads((folder / "corpus.json").read_text())
    splits = "\n".join(f"| {name} | {row['documents']} | {row['bytes'] / 1e6:.1f} | {row['tokens'] / 1e6:.2f} |"
                       for name, row in data["splits"].items())
    print(REPORT_HEAD.format(conversations=data["conversation_bytes"] / 1e6, splits=splits,
                             count=len(data["packages"])), end="")
    for name, row in data["packages"].items():
        sizes = " | ".join(str(row.get(kind, 0) // 1000) for kind in ("code", "prose", "data"))
        print(f"| {name} | {row['licence']} | {row['role']} | {sizes} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=["fetch", "build", "report"])
    parser.add_argument("folder", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    {"fetch": fetch, "build": build, "report": report}[arguments.command](arguments.folder)


if __name__ == "__main__":
    main()
