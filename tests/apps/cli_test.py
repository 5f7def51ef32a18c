"""The program as a person meets it: what it prints where, its exit codes, Ctrl-C and Ctrl-D.

Run as: cli_test.py PROGRAM MODEL [unittest arguments]. Answers are a few tokens long and deadlines
generous, so that a sanitized build passes too.
"""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
import unittest
import xml.etree.ElementTree

DEADLINE_S = 300
PROMPT = "def add(a, b):"
CTRL_C, CTRL_D = b"\x03", b"\x04"

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
    """A session in a terminal of its own, its state in `state`."""

    def __init__(self, state, *arguments):
        self.seen = b""
        self.status = None
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            try:
                os.environ.update(XDG_STATE_HOME=state, TERM="xterm")
                os.execv(program, [program, "run", "--model", model, *arguments])
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
