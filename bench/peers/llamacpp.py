#!/usr/bin/env python3
"""Measures llama.cpp on a GGUF: a token at a time, a verify step of eight rows, a prefill.

    bench/peers/llamacpp.py --model X.gguf --threads 1 2 --sweep --json OUT.json
    bench/peers/llamacpp.py --model X.gguf --no-repack --flash-attention off --json OUT.json
    bench/peers/llamacpp.py --model X.gguf --check tests/vectors/bundled.json
    bench/peers/llamacpp.py --model X.gguf --greedy 32 --text "def fibonacci(n):"

Without flags the library's own defaults are measured; --sweep measures those and every combination
of weight repacking, memory mapping, flash attention and the --cache types, and names the fastest.
--check and --greedy prove an export. Times are of llama_decode alone: no sampling, no tokenizer.
(The file cannot be called llama_cpp.py: it would hide the package of that name.)
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import llama_cpp as llama
import numpy as np

VERIFY_ROWS = 8  # as many as a block of speculation has
PREFILL_TOKENS = 512
DECODE_STEPS = 16  # single-row steps in one repetition
MEASUREMENTS = ("decode", "verify", "prefill")  # a prefill empties the cache: last
MAPPED, READ = 1, 0  # LLAMA_LOAD_MODE_MMAP, LLAMA_LOAD_MODE_NONE
FLASH_ATTENTION = {"auto": llama.LLAMA_FLASH_ATTN_TYPE_AUTO,
                   "on": llama.LLAMA_FLASH_ATTN_TYPE_ENABLED,
                   "off": llama.LLAMA_FLASH_ATTN_TYPE_DISABLED}
BF16 = 30  # GGML_TYPE_BF16, which the package does not name
CACHE = {"f16": llama.GGML_TYPE_F16, "bf16": BF16, "f32": llama.GGML_TYPE_F32}


@dataclass(frozen=True)
class Flags:
    """None leaves the library's default."""

    repack: bool | None = None  # use_extra_bufts: weights reordered for this CPU's kernels
    flash_attention: str = "auto"
    mmap: bool | None = None
    cache: str = "f16"  # type of cached keys and values
    gpu_layers: int = 0  # on a card, in a build with CUDA (bench/gpu/peers)


class Model:
    def __init__(self, file, flags):
        params = llama.llama_model_default_params()
        params.n_gpu_layers = flags.gpu_layers
        if flags.repack is not None:
            params.use_extra_bufts = flags.repack
        if flags.mmap is not None:
            params.load_mode = MAPPED if flags.mmap else READ
        self.handle = llama.llama_model_load_from_file(str(file).encode(), params)
        if not self.handle:
            raise SystemExit(f"{file}: llama.cpp does not load it; --verbose says why")
        self.vocab = llama.llama_model_get_vocab(self.handle)
        self.vocab_size = llama.llama_vocab_n_tokens(self.vocab)

    def tokenize(self, text):
        data = text.encode()
        ids = (llama.llama_token * (len(data) + 1))()
        count = llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, True)
        return list(ids[:count])

    def text(self, tokens):
        ids = (llama.llama_token * len(tokens))(*tokens)
        room = ctypes.create_string_buffer(64 * len(tokens) + 64)
        size = llama.llama_detokenize(self.vocab, ids, len(ids), room, len(room), False, True)
        return room.raw[:size].decode(errors="replace")

    def close(self):
        llama.llama_model_free(self.handle)


class Sequence:
    """One sequence in a context of its own."""

    def __init__(self, model, flags, threads, tokens_max):
        params = llama.llama_context_default_params()
        params.n_ctx = tokens_max
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH_ATTENTION[flags.flash_attention]
        params.type_k = params.type_v = CACHE[flags.cache]
        self.handle = llama.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise SystemExit("llama.cpp makes no context; --verbose says why")
        self.memory = llama.llama_get_memory(self.handle)
        self.batch = llama.llama_batch_init(tokens_max, 0, 1)
        self.vocab_size, self.length = model.vocab_size, 0

    def append(self, tokens, rows_with_logits=1):
        """Decodes tokens behind what is cached; the last rows give logits. Returns seconds."""
        batch, count = self.batch, len(tokens)
        batch.n_tokens = count
        for row, token in enumerate(tokens):
            batch.token[row] = token
            batch.pos[row] = self.length + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = 0
            batch.logits[row] = row >= count - rows_with_logits
        begin = time.perf_counter()
        status = llama.llama_decode(self.handle, batch)
        llama.llama_synchronize(self.handle)
        seconds = time.perf_counter() - begin
        if status:
            raise SystemExit(f"llama_decode: {status}")
        self.length += count
        return seconds

    def logits(self):
        """Of the last row, f32 [vocab]."""
        row = llama.llama_get_logits_ith(self.handle, -1)
        return np.ctypeslib.as_array(row, (self.vocab_size,)).copy()

    def cut(self, length):
        if not llama.llama_memory_seq_rm(self.memory, 0, length, -1):
            raise SystemExit(f"the cache cannot be cut to {length} tokens")
        self.length = length

    def close(self):
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.handle)


SILENCE = llama.llama_log_callback(lambda level, text, data: None)  # must outlive every call


def be_quiet():
    """Without llama.cpp's own log."""
    llama.llama_log_set(SILENCE, ctypes.c_void_p(0))


# ---------------------------------------------------------------- the three measurements


def input_tokens(count, vocab_size):
    """Ids spread over the vocabulary, so that neighbouring rows choose different experts."""
    return [7919 * (i + 1) % vocab_size for i in range(count)]


def spread(seconds, rows):
    ms = [1000 * s for s in seconds]
    return {"ms": statistics.median(ms), "ms_min": min(ms), "ms_max": max(ms),
            "rows_per_s": 1000 * rows / statistics.median(ms)}


def repeat(repetitions, once):
    """Seconds of each repetition, after one that warms up."""
    return [once() for _ in range(repetitions + 1)][1:]


def measure(a, model, flags, threads):
    context = a.context
    tokens = input_tokens(max(context + DECODE_STEPS, PREFILL_TOKENS), model.vocab_size)
    sequence = Sequence(model, flags, threads, len(tokens))

    def prefill():
        sequence.cut(0)
        return sequence.append(tokens[:PREFILL_TOKENS])

    def decode():
        sequence.cut(context)
        steps = tokens[context:context + DECODE_STEPS]
        return sum(sequence.append([token]) for token in steps) / DECODE_STEPS

    def verify():
        sequence.cut(context)
        return sequence.append(tokens[context:context + VERIFY_ROWS], VERIFY_ROWS)

    once = {"decode": (decode, 1), "verify": (verify, VERIFY_ROWS), "prefill": (prefill, PREFILL_TOKENS)}
    sequence.append(tokens[:context])
    result = {what: spread(repeat(a.repetitions, once[what][0]), once[what][1])
              for what in MEASUREMENTS if what in a.measure}
    sequence.close()
    return {"flags": asdict(flags), "threads": threads} | result


def given(a):
    return Flags(a.repack, a.flash_attention, a.mmap, a.cache[0], a.gpu_layers)


def runs(a):
    """One run for each set of flags and thread count; a model is loaded once for its flags."""
    grid = itertools.product((True, False), (True, False), a.cache, ("on", "off"))  # outer: loading
    sets = [Flags()] + [Flags(repack, attention, mmap, cache) for repack, mmap, cache, attention in grid]
    if not a.sweep:
        sets = [replace(given(a), cache=cache) for cache in a.cache]
    for loading, group in itertools.groupby(sets, lambda flags: Flags(flags.repack, mmap=flags.mmap)):
        model = Model(a.model, loading)
        for flags, threads in itertools.product(group, a.threads):
            run = measure(a, model, flags, threads)
            print(line(run), flush=True)
            yield run
        model.close()


def line(run):
    def figures(ms, ms_min, ms_max, rows_per_s):
        return f"{ms:.2f} ms ({ms_min:.2f}..{ms_max:.2f}), {rows_per_s:.2f} rows/s"

    flags = " ".join(f"{name}={'default' if value is None else value}"
                     for name, value in run["flags"].items())
    measured = "; ".join(f"{what} {figures(**run[what])}" for what in MEASUREMENTS if what in run)
    return f"threads={run['threads']} {flags}: {measured}"


def best(a, done):
    """For each thread count and measurement, the run with the lowest median."""
    def fastest(threads, what):
        return min((run for run in done if run["threads"] == threads), key=lambda run: run[what]["ms"])

    return {threads: {what: fastest(threads, what) for what in a.measure} for threads in a.threads}


def cpu_name():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def bench(a):
    load_before = os.getloadavg()[0]
    done = list(runs(a))
    report = {
        "package": f"llama-cpp-python {llama.__version__}",
        "kernels": llama.llama_print_system_info().decode(),
        "cpu": cpu_name(), "cpus": os.cpu_count(), "load_average": [load_before, os.getloadavg()[0]],
        "model": a.model.name, "model_bytes": a.model.stat().st_size,
        "context": a.context, "repetitions": a.repetitions, "decode_steps": DECODE_STEPS,
        "verify_rows": VERIFY_ROWS, "prefill_tokens": PREFILL_TOKENS,
        "runs": done, "best": best(a, done),
    }
    if a.json:
        a.json.write_text(json.dumps(report, indent=1) + "\n")


# ---------------------------------------------------------------- proofs of an export


def continuation(a, model, prompt, count):
    """(logits after the prompt, greedy ids)"""
    sequence = Sequence(model, given(a), a.threads[-1], len(prompt) + count)
    sequence.append(prompt)
    first, ids = sequence.logits(), []
    while len(ids) < count:
        ids.append(int(sequence.logits().argmax()))
        sequence.append(ids[-1:])
    sequence.close()
    return first, ids


def greedy(a):
    model = Model(a.model, given(a))
    prompt = a.tokens or model.tokenize(a.text)
    ids = continuation(a, model, prompt, a.greedy)[1]
    print(json.dumps({"prompt": prompt, "greedy": ids}))
    if a.text:
        print(model.text(ids))
    model.close()


def check(a):
    """Against a vector with a prompt, the logits after it and the greedy ids that follow."""
    vector = json.loads(a.check.read_text())
    model = Model(a.model, given(a))
    wanted = vector["greedy"]
    logits, ids = continuation(a, model, vector["prompt"], len(wanted))
    oracle = np.array(vector["logits"], np.float32)
    difference = np.linalg.norm(logits - oracle) / np.linalg.norm(oracle)
    same = [x == y for x, y in zip(ids, wanted)]
    first_other = same.index(False) if False in same else len(same)
    print(f"logits differ by {difference:.1e}; {first_other} of {len(wanted)} greedy tokens before the "
          f"first that differs; {sum(same)} equal in place")
    model.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--context", type=int, default=256, help="tokens cached before decode and verify")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--repack", action=argparse.BooleanOptionalAction)
    parser.add_argument("--mmap", action=argparse.BooleanOptionalAction)
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, default="auto")
    parser.add_argument("--cache", nargs="+", choices=CACHE, default=["f16"])
    parser.add_argument("--measure", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS)
    parser.add_argument("--gpu-layers", type=int, default=0, help="on a card, in a build with CUDA: 999 for all")
    parser.add_argument("--sweep", action="store_true", help="the defaults, and every combination")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", type=Path, metavar="VECTOR", help="compare with an oracle's output")
    parser.add_argument("--greedy", type=int, metavar="N", help="print N greedy token ids")
    parser.add_argument("--tokens", type=lambda text: [int(t) for t in text.split(",")],
                        help="a prompt as ids: 5,100,2000")
    parser.add_argument("--text", default="", help="a prompt as text")
    parser.add_argument("--verbose", action="store_true", help="llama.cpp's own log")
    a = parser.parse_args()
    if a.greedy and not (a.tokens or a.text):
        parser.error("--greedy needs --tokens or --text")
    if not a.verbose:
        be_quiet()
    llama.llama_backend_init()
    action = check if a.check else greedy if a.greedy else bench
    action(a)


if __name__ == "__main__":
    main()
