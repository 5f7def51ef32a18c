#!/usr/bin/env python3
"""llama.cpp's CUDA build on the bundled model: what bench/gpu/steps measures of Tessera, in its JSON.

    bench/gpu/peers/llama_steps.py --model mini.gguf --json llama.json

A step of one row and one of eight behind a context of cached tokens, all layers on the card. The clock runs on the
host around llama_decode and its synchronisation: logits for every row come back, as Tessera's do not in
bench/gpu/steps. Five steps before it warm up: the first of a shape runs directly, a later one records a CUDA graph.
The GGUF is bench/peers/export_gguf.py's. --processor runs the same without a card, to see that it works.

Flash attention is off: llama.cpp 0.5.0 has no such kernel for keys of 96 and values of 64 dims, and where it is asked
for moves all attention to the processor (--flash-attention on shows what that costs).
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "peers"))
import llamacpp  # noqa: E402  (bench/peers: the model, the sequence, the tokens)

ALL_LAYERS = 999


def card_name():
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


WARM_UPS = 5


def step_of(model, flags, a, rows):
    """Milliseconds of a step of `rows` behind the context."""
    tokens = llamacpp.input_tokens(a.context + rows, model.vocab_size)
    sequence = llamacpp.Sequence(model, flags, a.threads, len(tokens))
    sequence.append(tokens[:a.context])

    def once():
        sequence.cut(a.context)
        return sequence.append(tokens[a.context:], rows)

    for _ in range(WARM_UPS):
        once()
    found = llamacpp.spread(llamacpp.repeat(a.repeats, once), rows)
    sequence.close()
    return {"median": found["ms"], "low": found["ms_min"], "high": found["ms_max"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF of bench/peers/export_gguf.py")
    parser.add_argument("--context", type=int, default=1016)
    parser.add_argument("--rows", type=lambda t: [int(n) for n in t.split(",")], default=[1, 8])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="of the host")
    parser.add_argument("--flash-attention", default="off", choices=["off", "on", "auto"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processor", action="store_true", help="without a card: no figures of one")
    a = parser.parse_args()
    if not a.processor and not llamacpp.llama.llama_supports_gpu_offload():
        sys.exit("this llama-cpp-python was built without CUDA: bench/gpu/peers/README.md has the command")
    card = "the processor" if a.processor else card_name()
    if not card:
        sys.exit("nvidia-smi names no card: --processor runs without one")
    llamacpp.be_quiet()  # else every line of its log is printed by the clock's own thread
    layers = 0 if a.processor else ALL_LAYERS
    model = llamacpp.Model(a.model, llamacpp.Flags(gpu_layers=layers))
    subject = f"llama.cpp of llama-cpp-python {llamacpp.llama.__version__}, {a.model.name}"
    print(f"{subject}, on {card}")
    report = {"card": card, "subject": subject, "weights_bytes": a.model.stat().st_size, "context": a.context,
              "ceiling_gb_per_s": 0, "steps": []}
    flags = llamacpp.Flags(gpu_layers=layers, flash_attention=a.flash_attention)
    path = f"flash attention {a.flash_attention}"
    for rows in a.rows:
        ms = step_of(model, flags, a, rows)
        report["steps"].append({"rows": rows, path: {"ms": ms}})
        print(f"  {rows} rows, {path:<20} {ms['median']:8.3f} ms ({ms['low']:.3f} to {ms['high']:.3f})")
    model.close()
    if a.json:
        a.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
