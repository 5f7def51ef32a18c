#!/usr/bin/env python3
"""What the bundled model writes, judged by Python itself and shown unedited.

    train/judge.py DATA build/release/tessera --prompts 100 --out judge.json

Prompts are the beginnings of held-out files (packages the model never saw), cut at a line end. A
continuation parses if Python would accept it so far: cut at its last line end, it is a program or
the beginning of one (codeop). The files' own continuations of the same length are the control.
Prints the share that parses, greedy and sampled, and writes everything to --out.
"""

import argparse
import codeop
import json
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

END_OF_TEXT = 0
PROMPT_CHARACTERS = 400
SETTINGS = {"greedy": [], "temperature 0.8, top-p 0.95": ["--temperature", "0.8", "--top-p", "0.95", "--seed", "1"]}


def beginnings(data, count, seed):
    """[(prompt, the rest of the file)] of held-out Python files."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    ids = np.fromfile(data / "test_code.u16", dtype=np.uint16)
    files = np.split(ids, np.flatnonzero(ids == END_OF_TEXT) + 1)
    random.Random(seed).shuffle(files)
    found = []
    for file in files:
        text = tokenizer.decode(file.tolist(), skip_special_tokens=True)
        cut = text.find("\n", PROMPT_CHARACTERS) + 1
        if 0 < cut < len(text) - 1000 and cut < 3 * PROMPT_CHARACTERS:
            found.append((text[:cut], text[cut:]))
    return found[:count]


def parses_so_far(text):
    whole_lines = text[: text.rfind("\n") + 1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codeop.compile_command(whole_lines, symbol="exec")
        return True
    except (SyntaxError, ValueError, OverflowError):
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("binary", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("judge.json"))
    a = parser.parse_args()
    found = beginnings(a.data, a.prompts, a.seed)
    report = {"prompts": len(found), "tokens": a.tokens, "python": sys.version.split()[0], "texts": []}
    for index, (prompt, rest) in enumerate(found):
        row = {"prompt": prompt}
        for name, flags in SETTINGS.items():
            command = [a.binary, "--quiet", "run", "-n", str(a.tokens), *flags, "--file", "-"]
            row[name] = subprocess.run(command, input=prompt, capture_output=True, text=True, check=True).stdout
        row["control"] = rest[: len(row["greedy"])]
        report["texts"].append(row)
        print(f"{index + 1}/{len(found)}", end="\r", file=sys.stderr)
    for name in [*SETTINGS, "control"]:
        good = sum(parses_so_far(row["prompt"] + row[name]) for row in report["texts"])
        report[name] = good / len(found)
        print(f"{name}: {good} of {len(found)} parse")
    a.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
