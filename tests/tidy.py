#!/usr/bin/env python3
"""The rules of the tree that a compiler does not check.

    tests/tidy.py            every rule over the repository; exit code 1 and one line a breach
    tests/tidy.py --test     proves on small trees that each rule can fail

Floors: a folder includes only the folders of its row (docs/ARCHITECTURE.md). Apart from that: a file
fits a head, names say something, headers guard themselves, sources are clang-format's, every fuzz
target has seeds and regressions, and no text speaks of one machine.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES_MAX = 500

# folder -> what it may include besides itself. "door" is include/tessera.
FLOORS = {
    "src/base": set(),
    "src/checkpoint": {"base"},
    "src/text": {"base"},
    "src/model": {"base"},
    "src/tiles": {"base"},
    "src/judge": {"base"},
    "src/grammar": {"base"},
    "src/weights": {"base", "checkpoint", "model", "tiles"},
    "src/plan": {"base", "model", "tiles"},
    "src/reference": {"base", "model", "weights"},
    "src/runtime": {"base", "model", "tiles", "plan", "weights"},
    "src/decode": {"base", "model", "tiles", "weights", "door"},
    "src/engine": {"base", "checkpoint", "text", "grammar", "model", "tiles", "weights", "plan", "reference", "runtime",
                   "decode", "door"},
    "src/server": {"base", "door"},
    "include/tessera": {"text"},
    "apps": {"base", "text", "server", "door"},
    # Tools for those who build the engine: they look where the door does not.
    "apps/inspect.cpp": {"base", "checkpoint", "model", "weights"},
    "apps/explain.cpp": {"base", "checkpoint", "model", "plan"},
    "apps/bench.cpp": {"base", "checkpoint", "model", "weights", "plan", "runtime", "reference"},
    "apps/bench_activations.cpp": {"base", "checkpoint", "model", "weights", "runtime", "reference", "door"},
    "apps/compare.cpp": {"base", "checkpoint", "model", "weights", "plan", "runtime", "reference", "door"},
    "apps/quantize.cpp": {"base", "checkpoint", "text", "weights", "reference"},
    "apps/bench_quantize.cpp": {"base", "tiles", "weights"},
    "apps/bench_masks.cpp": {"base", "text", "grammar", "engine"},
    "apps/eval.cpp": {"base", "text", "judge", "door"},
    "apps/eval_report.h": {"judge", "door"},
    "apps/eval_report.cpp": {"base", "judge", "door"},
    "apps/eval_page.cpp": {"base", "judge", "door"},
    "apps/doctor_machine.cpp": {"base", "tiles", "runtime", "weights", "server"},
    "apps/doctor_model.cpp": {"base", "checkpoint", "model", "plan", "weights"},
    "apps/compare.h": {"weights", "runtime", "reference"},
    "apps/compare_machines.cpp": {"plan", "runtime"},
    "apps/compare_drafter.cpp": {"base", "checkpoint", "model", "weights", "plan", "runtime", "reference"},
}
FOLDERS = {Path(key).name for key in FLOORS if key.startswith("src/")} | {"door"}
VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "stuff"}
SOURCES = {".h", ".cpp", ".cu", ".cuh"}
TEXTS = SOURCES | {".py", ".md", ".txt", ".json", ".jinja", ".html", ".css", ".js", ".cmake", ""}
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
MACHINE = re.compile(r"/(?:home|root|Users|work)/\w")


def files(root):
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root,
                            capture_output=True, text=True, check=True).stdout
    return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


def floor_of(path):
    """The key of FLOORS that holds for a path relative to the root: the longest that fits."""
    fitting = [key for key in FLOORS if path == key or path.startswith(key + "/")]
    return max(fitting, key=len, default=None)


def included_folder(name):
    first = name.split("/")[0]
    return "door" if first == "tessera" else first


def check_floors(path, text):
    floor = floor_of(path)
    if floor is None:
        if path.startswith(("src/", "include/")):
            yield "stands on no floor: give its folder a row in tests/tidy.py and docs/ARCHITECTURE.md"
        return
    own = "door" if floor == "include/tessera" else Path(floor).name
    for name in INCLUDE.findall(text):
        folder = included_folder(name)
        if folder in FOLDERS and folder != own and folder not in FLOORS[floor]:
            yield f'includes "{name}", but {floor} may include only {", ".join(sorted(FLOORS[floor])) or "nothing"}'


def check_source(path, text):
    lines = text.count("\n")
    if lines > LINES_MAX and not path.startswith("tests/"):
        yield f"has {lines} lines, at most {LINES_MAX}: it hides a noun"
    if path.endswith((".h", ".cuh")) and "#pragma once" not in text:
        yield "has no #pragma once"
    if Path(path).stem in VAGUE or VAGUE & set(Path(path).parent.parts):
        yield "has a name that says nothing"


def check_cuda(path, text):
    """CUDA stays where its runtime, its tiles, its benchmarks and its emulated card are; no other source sees it."""
    at_home = path.startswith(("src/runtime/gpu", "bench/gpu/", "tests/gpu/emulated/")) or re.fullmatch(r"src/tiles/\w+_gpu\.cuh", path)
    if at_home:
        return
    if path.endswith((".cu", ".cuh")):
        yield "is CUDA outside src/runtime/gpu, src/tiles/*_gpu.cuh, bench/gpu and tests/gpu/emulated"
    for name in INCLUDE.findall(text):
        if name.endswith(".cuh"):
            yield f'includes "{name}": only CUDA includes CUDA'


def check_text(path, text):
    found = MACHINE.search(text)
    if found:
        yield f"names a path of one machine: {found[0]}…"


def check_fuzz(root):
    listing = root / "fuzz/CMakeLists.txt"
    if not listing.exists():
        return
    targets = re.findall(r"^tessera_fuzz\((\w+)", listing.read_text(), re.MULTILINE)
    for target in targets:
        for kind in ("seeds", "regressions"):
            folder = root / "fuzz" / kind / target
            if not folder.is_dir() or not any(folder.iterdir()):
                yield f"fuzz/{kind}/{target}", "is empty: a target starts from examples and keeps its findings"
    for source in (root / "fuzz").glob("*.cpp"):
        if source.stem not in targets:
            yield f"fuzz/{source.name}", "is in no tessera_fuzz() line: it is never run"


def check_format(root, sources):
    tool = shutil.which("clang-format-14") or shutil.which("clang-format")
    if tool is None:
        yield "clang-format-14", "is not installed: scripts/install brings it"
        return
    for start in range(0, len(sources), 50):
        run = subprocess.run([tool, "--dry-run", *map(str, sources[start : start + 50])], capture_output=True, text=True)
        for path in sorted(set(re.findall(r"^(.*?):\d+:\d+: warning", run.stderr, re.MULTILINE))):
            yield str(Path(path).relative_to(root)), "is not formatted: clang-format -i"


def breaches(root):
    """[(path, what is wrong)] of a tree."""
    found, sources = [], []
    for file in files(root):
        path = str(file.relative_to(root))
        if file.suffix not in TEXTS or path.startswith(("fuzz/seeds/", "fuzz/regressions/", "models/", "tests/vectors/")):
            continue
        text = file.read_text(errors="replace")
        found += [(path, what) for what in check_text(path, text)]
        if file.suffix in SOURCES:
            sources.append(file)
            found += [(path, what) for what in [*check_source(path, text), *check_cuda(path, text),
                                             *check_floors(path, text)]]
    return found + list(check_fuzz(root)) + list(check_format(root, sources))


BROKEN = [  # (file, content, a word of the breach)
    ("src/base/json.h", '#pragma once\n#include "text/utf8.h"\n', "may include only nothing"),
    ("src/reference/step.cpp", '#include "decode/sample.h"\n', "may include only"),
    ("apps/run.cpp", '#include "weights/bind.h"\n', "may include only"),
    ("include/tessera/model.h", '#pragma once\n#include "weights/bind.h"\n', "may include only text"),
    ("src/novel/idea.cpp", "int x;\n", "stands on no floor"),
    ("src/base/long.cpp", "int a;\n" * (LINES_MAX + 1), "at most"),
    ("src/base/bare.h", "int f();\n", "#pragma once"),
    ("src/base/utils.cpp", "int x;\n", "says nothing"),
    ("src/base/crooked.cpp", "int    x  ;\n", "not formatted"),
    ("src/plan/kernel.cu", "int x;\n", "is CUDA outside"),
    ("src/tiles/norm.cuh", "#pragma once\n", "is CUDA outside"),
    ("src/runtime/cpu.cpp", '#include "runtime/gpu/ring.cuh"\n', "only CUDA includes"),
    ("src/runtime/gpu/decode.cu", '#include "decode/sample.h"\n', "may include only"),
    ("src/runtime/gpu/bare.cuh", "int f();\n", "#pragma once"),
    ("docs/NOTES.md", "see /ho" + "me/somebody/notes\n", "one machine"),
    ("fuzz/CMakeLists.txt", "tessera_fuzz(index tessera_checkpoint)\n", "is empty"),
    ("fuzz/lost.cpp", "int x;\n", "never run"),
]
SOUND = [
    ("src/decode/sample.cpp", '#include "base/check.h"\n#include "tessera/sampling.h"\n'),
    ("apps/inspect.cpp", '#include "weights/bind.h"\n'),
    ("src/tiles/norm_gpu.cuh", "#pragma once\n"),
    ("bench/gpu/ground.cu", '#include "runtime/gpu/ring.cuh"\n'),
    ("docs/NOTES.md", "Nothing to see.\n"),
]


def test():
    def tree(name, content):
        folder = Path(tempfile.mkdtemp())
        subprocess.run(["git", "init", "-q", folder], check=True)
        for path, text in {".clang-format": (ROOT / ".clang-format").read_text(), name: content,
                           "fuzz/CMakeLists.txt": content if name == "fuzz/CMakeLists.txt" else ""}.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        found = breaches(folder)
        shutil.rmtree(folder)
        return found

    for name, content, word in BROKEN:
        found = tree(name, content)
        assert any(word in what for _, what in found), f"{name} should breach a rule ({word}), found {found}"
    for name, content in SOUND:
        found = tree(name, content)
        assert not found, f"{name} should be fine, found {found}"
    print(f"tidy: {len(BROKEN)} breaches found, {len(SOUND)} sound trees passed")


def main():
    if sys.argv[1:] == ["--test"]:
        return test()
    found = breaches(ROOT)
    for path, what in found:
        print(f"{path}: {what}")
    print(f"tidy: {len(found)} breaches" if found else "tidy: the tree keeps its rules")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
