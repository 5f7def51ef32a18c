"""The program as a person meets it: what it prints where, its exit codes, Ctrl-C and Ctrl-D.

Run as: cli_test.py PROGRAM MODEL [unittest arguments]. Answers are a few tokens long and deadlines
generous, so that a sanitized build passes too.
"""

import html.parser
import json
import math
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest
import xml.etree.ElementTree

DEADLINE_S = 300
PROMPT = "def add(a, b):"
CTRL_C, CTRL_D, CTRL_Z = b"\x03", b"\x04", b"\x1a"

program = model = None  # from the command line


def tessera(*arguments, stdin=""):
    return subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True,
                          timeout=DEADLINE_S)


def run(*arguments, tokens=12, stdin=""):
    return tessera("run", "--model", model, "--max-tokens", str(tokens), *arguments, stdin=stdin)


class Once(unittest.TestCase):
    def text(self, *arguments, tokens=12, stdin=""):
        done = run(*arguments, tokens=tokens, stdin=stdin)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotEqual(done.stdout, "")
        return done.stdout

    def test_stdout_is_the_generated_text_alone(self):
        done = run(PROMPT)
        self.assertEqual(done.returncode, 0)
        self.assertFalse(done.stdout.startswith(PROMPT))
        self.assertNotIn("tessera", done.stdout)
        self.assertNotIn("\x1b", done.stdout + done.stderr)
        for line in done.stderr.splitlines():
            self.assertTrue(line.startswith(("tessera: ", "loading: ")), line)  # a slow load shows itself
        self.assertIn("12 tokens", done.stderr)

    def test_quiet_leaves_stderr_empty(self):
        done = tessera("--quiet", "run", "--model", model, "-n", "12", PROMPT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(done.stdout, self.text(PROMPT))

    def test_the_bundled_model_is_the_default(self):
        done = tessera("run", "-n", "12", PROMPT)
        self.assertEqual(done.stdout, self.text(PROMPT))

    def test_max_tokens_cuts_the_same_text(self):
        self.assertTrue(self.text(PROMPT).startswith(self.text(PROMPT, tokens=5)))
        self.assertEqual(run(PROMPT, tokens=0).stdout, "")

    def test_prompt_from_argument_file_and_stdin(self):
        text = self.text(PROMPT)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(PROMPT)
            file.flush()
            self.assertEqual(self.text("--file", file.name), text)
        self.assertEqual(self.text("-", stdin=PROMPT), text)
        self.assertEqual(self.text("--file", "-", stdin=PROMPT), text)
        self.assertEqual(self.text(stdin=PROMPT), text)

    def test_stop_ends_before_the_text(self):
        text = self.text(PROMPT)
        stop = text[len(text) // 2:][:3]
        self.assertEqual(run("--stop", stop, PROMPT).stdout, text[:text.index(stop)])
        self.assertEqual(run("--stop", "\x01", "--stop", stop, PROMPT).stdout,
                         text[:text.index(stop)])
        self.assertIn("stop string", run("--stop", stop, PROMPT).stderr)

    def test_speculation_changes_no_text(self):
        off = self.text("--speculate", "off", PROMPT, tokens=48)
        # A stop that lies inside a block, wherever blocks begin: some of these do.
        for mode in ("auto", "1", "7"):
            self.assertEqual(self.text("--speculate", mode, PROMPT, tokens=48), off)
            for at in (5, len(off) // 3, len(off) // 2):
                stop = off[at:at + 4]
                found = run("--speculate", mode, "--stop", stop, PROMPT, tokens=48)
                expected = run("--speculate", "off", "--stop", stop, PROMPT, tokens=48)
                self.assertEqual(found.stdout, expected.stdout)
                # Nothing behind the match was counted.
                counts = [re.search(r"; (\d+) tokens at.*(hash \w+)", done.stderr).groups()
                          for done in (found, expected)]
                self.assertEqual(*counts)
        self.assertIn("expected auto, off or 1 to 7", run("--speculate", "8", PROMPT).stderr)

    def test_stop_understands_backslash_n(self):
        text = self.text(PROMPT)
        self.assertIn("\n", text)
        self.assertEqual(run("--stop", r"\n", PROMPT).stdout, text[:text.index("\n")])

    def test_seed_decides_the_text(self):
        hot = ("--temperature", "1", PROMPT)
        self.assertEqual(self.text("--seed", "1", *hot), self.text("--seed", "1", *hot))
        self.assertNotEqual(self.text("--seed", "1", *hot), self.text("--seed", "2", *hot))
        self.assertEqual(self.text("--seed", "1", PROMPT), self.text("--seed", "2", PROMPT))

    def test_chat_answers_without_special_tokens(self):
        text = self.text("--chat", "Write a function that adds two numbers.")
        self.assertNotIn("<|", text)
        self.assertNotEqual(text, self.text("Write a function that adds two numbers."))

    def test_help_and_version(self):
        for arguments in ([], ["--help"], ["run", "--help"], ["--version"]):
            done = tessera(*arguments)
            self.assertEqual((done.returncode, done.stderr), (0, ""), arguments)
            self.assertIn("essera", done.stdout)


class Errors(unittest.TestCase):
    def refused(self, words, *arguments, stdin=""):
        done = tessera(*arguments, stdin=stdin)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("tessera: "), done.stderr)
        self.assertTrue(done.stderr.endswith("\n"), done.stderr)
        self.assertIn(words, done.stderr)

    def test_missing_model(self):
        self.refused("/nowhere", "run", "--model", "/nowhere", PROMPT)
        self.refused("config.json", "run", "--model", tempfile.gettempdir(), PROMPT)

    def test_a_gpu_that_is_not_there(self):
        """Before anything is read: what was looked for, and what to do."""
        if tessera("run", "--model", model, "--device", "gpu", "-n", "1", PROMPT).returncode == 0:
            self.skipTest("there is a card")
        for command in (["run", "--device", "gpu", "--model", "/nowhere", PROMPT],
                        ["bench", "speculation", "--device", "gpu", "--model", "/nowhere"]):
            with self.subTest(command[0]):
                self.refused("or decode without --device gpu", *command)
                self.assertRegex(tessera(*command).stderr,
                                 "no card to decode on|no GPU code, since there was no nvcc")
        served = tessera("serve", "--port", "0", "--device", "gpu")
        self.assertEqual((served.returncode, served.stdout), (2, ""))
        self.assertIn("tessera: --device gpu: ", served.stderr)

    def test_what_is_the_processors_alone(self):
        for flag, value in (("--ranks", "2"), ("--isa", "portable"), ("--activations", "int8"),
                            ("--engine", "reference")):
            self.refused(f"--device gpu: {flag} is for the CPU alone", "run", "--device", "gpu", flag, value,
                         "--model", model, PROMPT)

    def test_bad_flag_values(self):
        for flag, value in (("--max-tokens", "many"), ("--max-tokens", "-1"),
                            ("--max-tokens", "99999999999"), ("--seed", "x"),
                            ("--temperature", "hot"), ("--temperature", "-1"),
                            ("--temperature", "nan"), ("--top-p", "0"), ("--top-p", "1.5"),
                            ("--top-k", "-1"), ("--min-p", "2")):
            self.refused(flag, "run", flag, value, PROMPT)

    def test_unknown_flags_and_commands(self):
        self.refused("--bogus", "run", "--bogus")
        self.refused("", "walk")
        self.refused("", "--quiet")
        self.refused("surplus", "run", PROMPT, "surplus")

    def test_empty_prompt(self):
        self.refused("empty", "run", "--model", model, "")
        self.refused("empty", "run", "--model", model, "-")
        with tempfile.NamedTemporaryFile() as file:
            self.refused("empty", "run", "--model", model, "--file", file.name)

    def test_unreadable_prompt_file(self):
        self.refused("/nowhere.txt", "run", "--file", "/nowhere.txt")
        self.refused("cannot be read", "run", "--file", tempfile.gettempdir())

    def test_prompt_longer_than_the_context(self):
        for chat in ([], ["--chat"]):
            self.refused("the model's context is 2048", "--quiet", "run", "--model", model, *chat,
                         "-", stdin="a b\n" * 1500)


class Explain(unittest.TestCase):
    def lines(self, *arguments):
        done = tessera("explain", *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.splitlines()

    def words(self, *arguments):
        return [line.split() for line in self.lines(*arguments)]

    def test_the_drafters_program_instead_of_the_targets(self):
        target = self.words("--model", model, "--workers", "2")
        drafter = self.words("--model", model, "--workers", "2", "--drafter")
        phases = {words[0] for words in drafter if words}
        self.assertLessEqual({"gather", "fuse", "query", "keys", "head", "checked:"}, phases)
        self.assertTrue(phases.isdisjoint({"qkv", "router"}))
        self.assertTrue({words[0] for words in target if words}.isdisjoint({"gather", "fuse", "keys"}))
        # 384 x 5 * 384 weights in bf16, and a table of the buffers' bytes.
        self.assertIn(["fuse", "2", "1.4", "MiB"], drafter)
        self.assertTrue(any(words[:4] == ["tapped", "8", "60.0", "KiB"] for words in drafter))

    def test_the_drafters_tiles(self):
        first = self.lines("--drafter", "--ranks", "2", "--workers", "1", "--tiles")[0]
        self.assertEqual(first, "0 embed layer 0 rank 0 worker 0 [0, 8)")

    def test_a_published_drafter_and_the_floor(self):
        text = "\n".join(self.lines("--shape", "mimo-v2.5-pro", "--ranks", "8", "--workers", "2", "--drafter",
                                    "--machine", "h200"))
        self.assertIn("takes in 8 rows of 5 tapped layers", text)
        self.assertIn("drafter and head", text)

    def test_no_drafter_says_where_there_is_one(self):
        done = tessera("explain", "--shape", "mimo-v2-flash", "--drafter")
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1))
        self.assertIn("--drafter: this model has none; try --shape mimo-v2.5-pro", done.stderr)

    def test_a_drafter_that_cannot_be_cut(self):
        done = tessera("explain", "--model", model, "--ranks", "4", "--drafter")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--ranks: 6 drafter heads (2 kv) cannot be cut over 4 ranks", done.stderr)
        self.assertEqual(tessera("explain", "--model", model, "--ranks", "4").returncode, 0)

    def test_help_shows_an_example(self):
        self.assertIn("tessera explain --shape mimo-v2.5-pro --ranks 8 --drafter", tessera("explain", "--help").stdout)


class Bench(unittest.TestCase):
    """That every figure is there; what they are is no test's business."""

    def points(self, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/out.json", f"{folder}/out.svg"]
            done = tessera("bench", "decode", "--seconds", "0.01", "--repeats", "1", *arguments,
                           "--json", files[0], "--svg", files[1])
            self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
            with open(files[0]) as file:
                found = json.load(file)
            self.chart = xml.etree.ElementTree.parse(files[1])
        self.said = done.stdout
        return found["points"]

    def expect_every_point(self, *source):
        points = self.points(*source, "--rows", "1", "--context", "1024", "8192", "32768", "--threads", "1", "2")
        self.assertEqual([(p["threads"], p["context"]) for p in points],
                         [(t, c) for t in (1, 2) for c in (1024, 8192, 32768)])
        for p in points:
            self.assertTrue(0 < p["ms_per_step"]["low"] <= p["ms_per_step"]["high"] and p["bytes_per_step"] > 0, p)
            self.assertFalse(p["reads_prompt"])
        for one, two in zip(points[:3], points[3:]):  # a row's bits do not depend on the threads
            self.assertEqual(one["logits_hash"], two["logits_hash"])
        names = [text.text for text in self.chart.getroot().iter("{http://www.w3.org/2000/svg}text")]
        for mark in ("1024", "8192", "32768", "1 rows, 1 threads", "1 rows, 2 threads"):
            self.assertIn(mark, names)

    def test_contexts_beyond_the_models_are_measured(self):
        self.expect_every_point("--model", model)
        self.assertIn("context 32768 is beyond the model's 2048: measured", self.said)

    def test_random_weights_of_a_shape(self):
        self.expect_every_point("--synthetic", model + "/config.json")

    def test_a_prompt_is_told_in_tokens(self):
        points = self.points("--model", model, "--rows", "8", "64", "--threads", "2")
        self.assertEqual([p["reads_prompt"] for p in points], [False, True])
        self.assertEqual(self.said.count("tokens/s"), 1)
        self.assertIn("prompt after 64 tokens, 64 at once, 2 threads: ", self.said)
        self.assertNotIn("beyond the model's", self.said)

    def test_refusals_come_first_and_name_the_flag(self):
        for words, *arguments in (["--ranks: 3 ranks: expected 1, 2, 4 or 8", "--ranks", "3"],
                                  ["--rows: Value 65 not in range 1 to 64", "--rows", "65"],
                                  ["--context 1073741824: its keys and values take", "--context", "1073741824"],
                                  ["--synthetic excludes --reference", "--synthetic", "x.json", "--reference"]):
            done = tessera("bench", "decode", *arguments)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done.stderr)
            self.assertIn(words, done.stderr)


class Compare(unittest.TestCase):
    def halves(self, *arguments, code=0):
        """What is said of the target, and of the drafter."""
        done = tessera("compare", "--model", model, "--workers", "2", *arguments)
        self.assertEqual((done.returncode, done.stderr), (code, ""), done.stdout)
        target, _, drafter = done.stdout.partition("\nthe drafter")
        return target, drafter

    def test_target_and_drafter_agree(self):
        for ranks in ("1", "2"):
            target, drafter = self.halves("--ranks", ranks)
            for text, stage in ((target, "tap"), (drafter, "context keys and values"), (drafter, "logits of the block")):
                self.assertIn(f"\n{stage} ", text)
                self.assertIn("bit for bit", text)
                self.assertNotIn("DIFFER", text)

    def test_no_tolerance_names_a_tile_of_each(self):
        target, drafter = self.halves("--tolerance", "0", PROMPT * 3, code=1)
        self.assertIn("FIRST DIFFERENCE: tile", target)
        self.assertIn("FIRST DIFFERENCE: tile", drafter)

    def test_a_target_that_stops_leaves_the_drafter_out(self):
        target, drafter = self.halves("--stop-after", "60", PROMPT)
        self.assertIn("bit for bit", target)
        self.assertEqual(drafter, " is not compared: the target stopped before its last tile\n")

    def test_a_drafter_that_cannot_be_cut_is_left_out(self):
        done = tessera("compare", "--model", model, "--ranks", "4", "--workers", "1")
        self.assertEqual(done.returncode, 0)
        self.assertIn("the drafter is not compared: 6 drafter heads", done.stdout)


class BenchSpeculation(unittest.TestCase):
    """`bench speculation`: the form of what it says, and that it refuses in words; no figure is judged."""

    def bench(self, *arguments):
        return tessera("bench", "speculation", "--model", model, *arguments)

    def test_a_short_run(self):
        with tempfile.TemporaryDirectory() as folder:
            figures, drawing = (os.path.join(folder, name) for name in ("out.json", "out.svg"))
            done = self.bench("--suite", "code", "--prompts", "2", "-n", "16", "--repeats", "1",
                              "--json", figures, "--svg", drawing)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("every text the same in all modes", done.stdout)
            with open(figures, encoding="utf-8") as file:
                figures = json.load(file)
            with open(drawing, encoding="utf-8") as file:
                self.assertTrue(file.read().startswith("<svg "))
        self.assertIn(figures["hash"], done.stdout)
        self.assertLessEqual({"cpu", "compiler", "commit"}, set(figures["origin"]))
        self.assertEqual([(f["suite"], f["temperature"]) for f in figures["found"]], [("code", 0), ("code", 1)])
        for found in figures["found"]:
            off, *others = found["modes"]
            self.assertEqual([off["mode"], *(m["mode"] for m in others)], ["off", "auto", "7"])
            self.assertEqual(off["tokens_per_step"], 1)
            for mode in others:
                self.assertEqual([t["hash"] for t in mode["texts"]], [t["hash"] for t in off["texts"]])
                self.assertIn("against_off", mode)

    def test_the_hash_is_that_of_the_texts(self):
        def hash_of(*arguments):
            done = self.bench("--suite", "edit", "--prompts", "1", "-n", "8", "--repeats", "1", *arguments)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout.split("hash ")[1][:16]

        self.assertEqual(hash_of("--modes", "off"), hash_of("--modes", "3", "auto", "--threads", "1"))
        self.assertNotEqual(hash_of(), hash_of("--seed", "2"))

    def test_cost_by_rows(self):
        done = self.bench("--suite", "prose", "--prompts", "1", "-n", "12", "--cost")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = [line.split() for line in done.stdout.splitlines() if line.startswith("prose")]
        self.assertEqual([row[1] for row in rows], [str(count) for count in range(1, 9)])

    def test_lossless(self):
        done = self.bench("--suite", "prose", "--prompts", "1", "-n", "6", "--lossless")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("every text is the same in all modes", done.stdout)
        self.assertEqual(sum(line.endswith("standard") for line in done.stdout.splitlines()), 7)

    def test_refusals_name_the_fix(self):
        for words, *arguments in (("those known are code, docs, edit, prose, structured", "--suite", "novel"),
                                  ("expected auto, off or 1 to 7", "--modes", "8"),
                                  ("given twice", "--modes", "off", "off"),
                                  ("--suites", "--suites", "/nowhere"),
                                  ("give a smaller -n", "--suite", "code", "-n", "2040"),
                                  ("--temperature", "--temperature", "-1"),
                                  ("excludes", "--cost", "--lossless")):
            done = tessera("--quiet", "bench", "speculation", "--model", model, *arguments)
            self.assertEqual((done.returncode, done.stdout), (2, ""), arguments)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn(words, done.stderr)

    def test_help_has_examples(self):
        done = tessera("bench", "speculation", "--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("Examples:\n  tessera bench speculation", done.stdout)


# ---------------------------------------------------------------------- quantize and eval

E2M1 = [sign * n for sign in (1, -1) for n in (0.0, .5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]


def read_shard(file):
    """{name: (dtype, shape, bytes)} in the order of the file."""
    with open(file, "rb") as stream:
        data = stream.read()
    begin = 8 + int.from_bytes(data[:8], "little")
    entries = {n: e for n, e in json.loads(data[8:begin]).items() if n != "__metadata__"}
    return {n: (e["dtype"], e["shape"], data[begin + e["data_offsets"][0]:begin + e["data_offsets"][1]])
            for n, e in sorted(entries.items(), key=lambda one: one[1]["data_offsets"])}


def write_shard(file, tensors):
    header, at = {}, 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, _, raw in tensors.values():
            stream.write(raw)


def in_bf16(folder):
    """The model with its experts' values in bf16, one shard: a folder to quantise."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.index.json", "model-0*"))
    with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    for key in ("store_dtype", "mxfp4_block_size"):
        del config["quantization_config"][key]
    tensors, made, tables = {}, {}, {}
    for name in sorted(os.listdir(model)):
        if name.endswith(".safetensors"):
            tensors |= read_shard(os.path.join(model, name))
    for name, (dtype, shape, raw) in tensors.items():
        if name.endswith(".weight_scale"):
            continue
        if name + "_scale" in tensors:
            config["quantization_config"]["ignored_layers"].append(name.removesuffix(".weight"))
            scales, out = tensors[name + "_scale"][2], []
            for block, scale in enumerate(scales):
                if scale not in tables:
                    values = [struct.pack("<f", n * 2.0 ** (scale - 127))[2:] for n in E2M1]
                    tables[scale] = [values[pair & 15] + values[pair >> 4] for pair in range(256)]
                out += [tables[scale][pair] for pair in raw[16 * block:16 * block + 16]]
            dtype, shape, raw = "BF16", [shape[0], 2 * shape[1]], b"".join(out)
        made[name] = (dtype, shape, raw)
    write_shard(os.path.join(folder, "model.safetensors"), made)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return tensors


class Quantize(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.folder, cls.original = scratch.name, os.path.join(scratch.name, "bf16")
        cls.published = in_bf16(cls.original)

    def out(self, name):
        return os.path.join(self.folder, name)

    def quantize(self, *arguments, code=0):
        done = tessera("--quiet", "quantize", *arguments)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (code, 0 if code == 0 else 1), done.stderr)
        return done.stdout if code == 0 else done.stderr

    def test_what_was_published_comes_back_byte_for_byte(self):
        said = self.quantize(self.original, self.out("fp4"))
        self.assertIn("480 matrices of experts rounded to MXFP4 (nearest)", said)
        found = read_shard(os.path.join(self.out("fp4"), "model.safetensors"))
        self.assertEqual(found, {name: self.published[name] for name in found})
        self.assertEqual(len(found), len(self.published))
        with open(os.path.join(self.out("fp4"), "config.json"), encoding="utf-8") as ours:
            with open(os.path.join(model, "config.json"), encoding="utf-8") as theirs:
                self.assertEqual(json.load(ours), json.load(theirs))
        self.assertEqual(tessera("inspect", self.out("fp4")).returncode, 0)
        self.assertEqual(run(PROMPT).stdout, tessera("run", "-m", self.out("fp4"), "-n", "12", PROMPT).stdout)

    def test_check_tells_experts_from_the_rest(self):
        self.quantize(self.original, self.out("mse"), "--round", "mse")
        self.assertIn("all but the experts", self.quantize("--check", self.original, self.out("mse")))
        found = tessera("quantize", "--check", self.original, model)
        self.assertEqual(found.returncode, 0, found.stderr)
        experts = next(line.split() for line in found.stdout.splitlines() if line.startswith("experts"))
        self.assertEqual(experts[1:3], ["47185920", "0"])  # the values are the same, in two formats
        shard = os.path.join(self.out("mse"), "model.safetensors")
        tensors = read_shard(shard)
        dtype, shape, raw = tensors["model.norm.weight"]
        tensors["model.norm.weight"] = (dtype, shape, raw[:-1] + bytes([raw[-1] ^ 1]))
        write_shard(shard, tensors)
        found = tessera("--quiet", "quantize", "--check", self.original, self.out("mse"))
        self.assertEqual(found.returncode, 1)
        self.assertIn("more than the experts differs", found.stdout)

    def test_calibrated_needs_its_text(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
            text.write("def add(a, b):\n    return a + b\n")
            text.flush()
            done = tessera("quantize", self.original, self.out("calibrated"), "--round", "calibrated",
                           "--calibrate", text.name)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("never chose", done.stderr)
            self.assertIn("(calibrated)", done.stdout)
            self.quantize("--check", self.original, self.out("calibrated"))
            self.assertIn("need each other", self.quantize(self.original, self.out("x"), "--calibrate", text.name, code=2))
        self.assertIn("need each other", self.quantize(self.original, self.out("x"), "--round", "calibrated", code=2))

    def test_a_kill_at_any_time_costs_no_more_than_time(self):
        for delay in (0, 0.02, 0.05, 0.1, 0.2):
            child = subprocess.Popen([program, "--quiet", "quantize", self.original, self.out("killed"), "--round",
                                      "mse"], stdout=subprocess.DEVNULL)
            time.sleep(delay)
            child.kill()
            child.wait()
            if os.path.exists(self.out("killed")):
                break
        if not os.path.exists(self.out("killed")):
            self.quantize(self.original, self.out("killed"), "--round", "mse")
        self.assertFalse(os.path.exists(self.out("killed.partial")))
        self.quantize(self.original, self.out("whole"), "--round", "mse")
        for name in ("model.safetensors", "config.json"):
            with open(os.path.join(self.out("killed"), name), "rb") as one, \
                    open(os.path.join(self.out("whole"), name), "rb") as other:
                self.assertEqual(one.read(), other.read(), name)

    def test_refusals_are_one_line(self):
        for words, *arguments in (("MXFP4 already", model, self.out("x")),
                                  ("exists already", self.original, self.folder),
                                  ("/nowhere", "/nowhere", self.out("x")),
                                  ("--experts", self.original, self.out("x"), "--experts", "int4"),
                                  ("out is required", self.original)):
            self.assertIn(words, self.quantize(*arguments, code=2))
            self.assertFalse(os.path.exists(self.out("x")))

    def test_speed_is_told_against_reading(self):
        done = tessera("bench", "quantize", "--mib", "4", "--repeats", "1")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"read \+ written.*: \d+ % of that")


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words += data


class Eval(unittest.TestCase):
    TEXT = "def greet(name):\n    return f'<b>&\"{name}\"</b>'\n\n\nfor i in range(10):\n    print(i)\n" * 4

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = scratch.name
        self.text = self.write("a.txt", self.TEXT)

    def write(self, name, text):
        file = os.path.join(self.folder, name)
        with open(file, "w", encoding="utf-8") as stream:
            stream.write(text)
        return file

    def eval(self, *arguments):
        found = os.path.join(self.folder, "found.json")
        done = tessera("--quiet", "eval", model, *arguments, "--json", found)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        with open(found, encoding="utf-8") as file:
            found = json.load(file)
        self.assertIn(found["sentence"], done.stdout)
        return found

    def test_perplexity_is_the_references(self):
        fast = self.eval(self.text)["texts"][0]
        slow = self.eval(self.text, "--engine", "reference")["texts"][0]
        self.assertEqual(fast["tokens"], slow["tokens"])
        self.assertAlmostEqual(fast["perplexity"]["value"] / slow["perplexity"]["value"], 1, delta=0.01)
        # All bytes but the first token's ("def") are foreseen.
        self.assertEqual(fast["bytes"], len(self.TEXT) - 3)
        bits = math.log2(fast["perplexity"]["value"]) * fast["tokens"] / fast["bytes"]
        self.assertAlmostEqual(fast["bits_per_byte"]["value"], bits, places=9)
        self.assertLess(fast["perplexity"]["value"], 8)

    def test_a_model_does_not_differ_from_itself(self):
        texts = self.eval(self.text, "--against", model)["texts"][0]
        self.assertEqual((texts["kl_mean"]["value"], texts["logit_gap_max"], texts["top1_agreement"]["value"]), (0, 0, 1))
        self.assertEqual(texts["cost"], {"value": 0, "low": 0, "high": 0})

    def test_windows_forget_what_was_before(self):
        long, short = (self.eval(self.text, "--window", w)["texts"][0] for w in ("512", "16"))
        self.assertEqual(long["tokens"], short["tokens"])
        self.assertGreater(short["perplexity"]["value"], 1.1 * long["perplexity"]["value"])

    def test_a_changed_model_is_told_and_the_page_is_whole(self):
        page = os.path.join(self.folder, "page.html")
        noisy = os.path.join(self.folder, "noisy")
        shutil.copytree(model, noisy)  # a model that differs: its final norm is halved in places
        for name in os.listdir(noisy):
            shard = os.path.join(noisy, name)
            if name.endswith(".safetensors") and "model.norm.weight" in (tensors := read_shard(shard)):
                dtype, shape, raw = tensors["model.norm.weight"]
                tensors["model.norm.weight"] = (dtype, shape, raw[:200] + bytes(200) + raw[400:])
                write_shard(shard, tensors)
        found = self.eval(self.text, "code", "--against", noisy,
                          "--tokens", "300", "--html", page)
        self.assertEqual([t["name"] for t in found["texts"]], ["a", "code", "all"])
        everything = found["texts"][-1]
        self.assertGreater(everything["kl_mean"]["value"], 0.01)
        self.assertLess(everything["top1_agreement"]["value"], 1)
        self.assertLess(everything["cost"]["low"], everything["cost"]["high"])
        self.assertEqual(sum(p["tokens"] for p in everything["kl_by_place"]), everything["tokens"])
        self.assertEqual(found["worst"], sorted(found["worst"], key=lambda w: -w["kl"]))
        with open(page, encoding="utf-8") as file:
            text = file.read()
        parsed = Page(text)
        self.assertIn(found["sentence"], parsed.words)
        tags = {tag for tag, _ in parsed.tags}
        self.assertLessEqual({"svg", "table", "mark", "blockquote"}, tags)
        self.assertTrue(tags.isdisjoint({"script", "link", "img", "b"}), tags)  # <b> is the text's own
        self.assertNotRegex(text, r"(src|href)=")
        for worst in found["worst"]:
            self.assertIn(worst["before"], parsed.words)

    def test_tasks_are_answered_exactly(self):
        answer = run(PROMPT, tokens=12).stdout
        line = answer.strip("\n").split("\n")[0]
        tasks = [{"prompt": PROMPT, "expected": answer[:8]}, {"prompt": PROMPT, "expected": answer[:8] + "?"},
                 {"prompt": PROMPT, "expected": answer[:answer.index(line) + len(line)], "stop": line[-1:] + "\n"},
                 {"prompt": PROMPT, "expected": answer[:6], "stop": [answer[6:9]]}]
        file = self.write("tasks.jsonl", "".join(json.dumps(task) + "\n" for task in tasks))
        found = self.eval(file, "--against", model)
        self.assertEqual([t["right"] for t in found["tasks"][0]["tasks"]], [True, False, False, True])
        self.assertEqual((found["tasks"][0]["right"], found["tasks"][0]["right_against"]), (0.5, 0.5))
        self.assertIn("answers 50.0 % of 4 tasks of tasks exactly", found["sentence"])

    def test_refusals_are_one_line(self):
        bad = self.write("bad.jsonl", '{"text": "a"}\n{"text": 3}\n')
        empty = self.write("empty.txt", "")
        for words, *arguments in (("bad.jsonl:2", bad), ("is empty", empty), ("neither a file nor a suite", "novel"),
                                  ("cannot be read", "/nowhere.txt"), ("suites is required",),
                                  ("--window", self.text, "--window", "1"),
                                  ("/nowhere", self.text, "--against", "/nowhere")):
            done = tessera("--quiet", "eval", model, *arguments)
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1), done.stderr)
            self.assertIn(words, done.stderr)

    def test_help_has_examples(self):
        for command in ("eval", "quantize"):
            self.assertIn("Examples:\n  tessera " + command, tessera(command, "--help").stdout)


class Interrupt(unittest.TestCase):
    def test_ctrl_c_during_an_answer_gives_130(self):
        child = subprocess.Popen([program, "run", "--model", model, "-n", "2000", PROMPT],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertNotEqual(child.stdout.read(1), b"")
        child.send_signal(signal.SIGINT)
        _, aside = child.communicate(timeout=DEADLINE_S)
        self.assertEqual(child.returncode, 130, aside)
        self.assertIn(b"interrupted", aside)


class Terminal:
    """A session in a terminal of its own, its state in `state`; or another `command` there."""

    def __init__(self, state, *arguments, command=None):
        self.seen = b""
        self.status = None
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            try:
                os.environ.update(XDG_STATE_HOME=state, TERM="xterm")
                command = command or [program, "run", "--model", model, *arguments]
                os.execvp(command[0], command)
            finally:  # only one of the two may go on with the tests
                os._exit(127)

    def send(self, keys):
        os.write(self.terminal, keys)

    def wait_for(self, words):
        """Everything up to `words`, which must still come."""
        end = time.monotonic() + DEADLINE_S
        while words not in self.seen:
            piece = self.read(end)
            if not piece:
                raise AssertionError(f"{words!r} did not come: {self.seen!r}")
            self.seen += piece
        before, self.seen = self.seen.split(words, 1)
        return before

    def wait_for_prompt(self):
        """The prompt, and the line editor ready: it draws first and then takes the keys raw."""
        self.wait_for(b"> ")
        end = time.monotonic() + DEADLINE_S
        while termios.tcgetattr(self.terminal)[3] & termios.ICANON:
            if time.monotonic() > end:
                raise AssertionError("the line editor does not take keys")
            time.sleep(0.01)

    def read(self, end):
        ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
        try:
            return os.read(self.terminal, 4096) if ready else b""
        except OSError:  # the other side has closed
            return b""

    def exit_code(self):
        while self.read(time.monotonic() + DEADLINE_S):
            pass
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        return self.status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.status is None:
            os.kill(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        os.close(self.terminal)


class Interactive(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.state = scratch.name
        self.history = os.path.join(self.state, "tessera", "history")

    def test_a_line_is_answered_and_ctrl_d_leaves(self):
        expected = run(PROMPT, tokens=6).stdout
        with Terminal(self.state, "-n", "6") as session:
            session.wait_for_prompt()
            session.send(PROMPT.encode() + b"\n")
            answer = session.wait_for(b"6 tokens at").replace(b"\r\n", b"\n").decode()
            self.assertIn(expected, answer)
            session.wait_for_prompt()
            session.send(CTRL_D)
            self.assertEqual(session.exit_code(), 0)

    def test_history_is_kept(self):
        for line in (b"import os", b"import sys"):
            with Terminal(self.state, "-n", "2") as session:
                session.wait_for_prompt()
                session.send(line + b"\n")
                session.wait_for(b"hash")
                session.wait_for_prompt()
                session.send(CTRL_D)
                self.assertEqual(session.exit_code(), 0)
        with open(self.history, encoding="utf-8") as file:
            kept = file.read().replace("\\040", " ")  # the line editor's spelling of a space
        self.assertIn("import os\nimport sys\n", kept)

    def test_ctrl_c_stops_an_answer_and_the_session_goes_on(self):
        with Terminal(self.state, "-n", "2000") as session:
            session.wait_for_prompt()
            for _ in range(2):
                session.send(PROMPT.encode() + b"\n")
                session.wait_for(b"\n")  # its echo
                session.wait_for(b"return")  # of the answer
                session.send(CTRL_C)
                session.wait_for(b"interrupted")
                session.wait_for_prompt()
            session.send(CTRL_D)
            self.assertEqual(session.exit_code(), 0)

    def test_ctrl_c_at_the_prompt_clears_the_line(self):
        with Terminal(self.state, "-n", "2") as session:
            session.wait_for_prompt()
            session.send(b"never to be answered")
            session.wait_for(b"answered")
            session.send(CTRL_C)
            session.wait_for_prompt()
            session.send(CTRL_D)
            self.assertEqual(session.exit_code(), 0)

    def test_ctrl_c_at_the_prompt_is_a_key(self):
        """As a signal it was lost where it came between drawing and waiting for the next key."""
        with Terminal(self.state, "-n", "2") as session:
            session.wait_for_prompt()
            self.assertFalse(termios.tcgetattr(session.terminal)[3] & termios.ISIG)

    def test_a_signal_at_the_prompt_clears_the_line_too(self):
        with Terminal(self.state, "-n", "2") as session:
            session.wait_for_prompt()
            session.send(b"never to be answered")
            session.wait_for(b"answered")
            for _ in range(60):  # one that comes just before the wait is lost: send again
                os.kill(session.child, signal.SIGINT)
                if piece := session.read(time.monotonic() + 5):
                    session.seen += piece
                    break
            session.wait_for_prompt()
            session.send(CTRL_D)
            self.assertEqual(session.exit_code(), 0)

    def test_ctrl_z_stops_the_program_until_it_goes_on(self):
        """Under a shell: alone, the group would be orphaned, and the kernel stops none of those."""
        with Terminal(self.state, command=["bash", "--norc", "--noprofile", "--noediting", "-i"]) as shell:
            shell.send(shlex.join([program, "run", "--model", model, "-n", "2"]).encode() + b"\n")
            shell.wait_for(b"Each line is continued")
            shell.wait_for_prompt()
            shell.send(b"kept")
            shell.wait_for(b"kept")
            shell.send(CTRL_Z)
            shell.wait_for(b"Stopped")
            shell.send(b"fg\n")
            shell.wait_for(b"> kept")
            shell.send(CTRL_C)
            shell.wait_for_prompt()
            shell.send(CTRL_D)
            shell.wait_for(b"bash")  # its prompt
            shell.send(b"exit 7\n")
            self.assertEqual(shell.exit_code(), 7)

    def test_a_character_of_several_bytes_is_one_key(self):
        expected = run("ab", tokens=2).stdout
        with Terminal(self.state, "-n", "2") as session:
            session.wait_for_prompt()
            session.send("aé\x7fb\n".encode())
            self.assertIn(expected, session.wait_for(b"hash").replace(b"\r\n", b"\n").decode())
            session.wait_for_prompt()
            session.send(b"\x1b[A")  # up: the line before
            session.wait_for(b"ab")
            session.send(CTRL_C)
            session.wait_for_prompt()
            session.send(CTRL_D)
            self.assertEqual(session.exit_code(), 0)

    def test_chat_holds_a_conversation(self):
        with Terminal(self.state, "--chat", "-n", "4") as session:
            session.wait_for_prompt()
            for question in (b"What is a list?\n", b"And a set?\n"):
                session.send(question)
                session.wait_for(b"hash")
                session.wait_for_prompt()
            session.send(CTRL_D)
            self.assertEqual(session.exit_code(), 0)


if __name__ == "__main__":
    program, model = (os.path.abspath(path) for path in sys.argv[1:3])
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
