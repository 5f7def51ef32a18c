"""What a person meets first: tessera alone, doctor, the shells' completion, the manual page.

Run as: first_minutes_test.py PROGRAM MODEL DRIVER [unittest arguments]. DRIVER: the folder of a library in the
place of NVIDIA's (programs/fake_nvml.cpp).
"""

import http.server
import json
import os
import pty
import re
import resource
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

DEADLINE_S = 300
program = model = driver = None  # from the command line


def tessera(*arguments, **more):
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, **more)


def script(shell):
    done = tessera("completion", shell)
    assert done.returncode == 0, done.stderr
    return done.stdout


def help_tree(*path):
    """[(words of a command, its long flags)] of it and all below, from --help alone."""
    text = tessera(*path, "--help").stdout
    flags = re.findall(r"^  (?:-\w,)?(--[\w-]+)", text, re.MULTILINE)
    found = [(path, flags)]
    below = re.search(r"^Subcommands:\n((?:  .*\n)+)", text, re.MULTILINE)
    for name in re.findall(r"^  (\w+)", below[1], re.MULTILINE) if below else []:
        found += help_tree(*path, name)
    return found


class Welcome(unittest.TestCase):
    def test_alone_it_is_short_and_its_commands_are_real(self):
        done = tessera()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertLess(len(done.stdout.splitlines()), 15)
        commands = re.findall(r"^  tessera (\w+)", done.stdout, re.MULTILINE)
        self.assertEqual(len(commands), 3)
        for command in commands:
            self.assertEqual(tessera(command, "--help").returncode, 0)


class Doctor(unittest.TestCase):
    def test_it_finds_this_machine_and_the_bundled_model(self):
        done = tessera("doctor", "--json")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        found = json.loads(done.stdout)
        self.assertTrue(found["healthy"])
        self.assertGreater(found["read_bandwidth"]["bytes_per_second"], 1e8)
        self.assertIn(found["cpu"]["best"], found["cpu"]["kernels"])
        self.assertEqual(found["cores"]["workers"] > 0, True)
        total = int(re.search(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[1]) << 10
        self.assertEqual(found["memory"]["total_bytes"], total)
        self.assertTrue(found["model"]["fits"])
        self.assertGreater(found["model"]["floor_ms_per_token"], 0)
        self.assertGreater(found["published"]["mimo-v2.5-pro"]["stored_bytes"], 500e9)
        for finding in found["findings"]:
            self.assertEqual(finding["verdict"] == "fine", finding["fix"] == "", finding)

    def test_people_get_the_same_findings(self):
        done = tessera("doctor", "--model", model)
        self.assertEqual(done.returncode, 0)
        for word in ("processor", "cores", "memory", "bandwidth", "gpu", "disk", "open files", "tessera-mini"):
            self.assertIn(word, done.stdout)

    def test_a_broken_model_is_told_with_its_fix(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
            (Path(folder) / "model-00002-of-00004.safetensors").unlink()
            done = tessera("doctor", "--model", folder)
            self.assertEqual(done.returncode, 1)
            self.assertIn("model-00002-of-00004.safetensors", done.stdout)
            self.assertIn("tessera inspect", done.stdout)

    def test_few_open_files_are_notable(self):
        def lower():
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

        found = json.loads(tessera("doctor", "--json", preexec_fn=lower).stdout)
        (files,) = [one for one in found["findings"] if one["topic"] == "open files"]
        self.assertEqual(files["verdict"], "notable")
        self.assertIn("--connections-max 50", files["fix"])
        self.assertTrue(found["healthy"])

    def test_cards_are_what_their_driver_tells(self):
        done = tessera("doctor", "--json", env={**os.environ, "LD_LIBRARY_PATH": driver})
        self.assertEqual(done.returncode, 0, done.stderr)
        gpus = json.loads(done.stdout)["gpus"]
        self.assertEqual(gpus["driver"], "570.86.15")
        self.assertEqual([card["address"] for card in gpus["cards"]], ["00000000:19:00.0", "00000000:1A:00.0"])
        self.assertEqual([card["name"] for card in gpus["cards"]], ["Imagined H100", ""])
        self.assertEqual([card["memory_bytes"] for card in gpus["cards"]], [80 << 30, 0])

    def test_a_server_is_ready_loading_or_not_there(self):
        class Health(http.server.BaseHTTPRequestHandler):
            status = 200

            def do_GET(self):
                self.send_response(Health.status if self.path == "/health" else 404)
                self.end_headers()
                self.wfile.write(b'{"status": "x"}')

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            self.assertEqual(tessera("doctor", "--server", url).returncode, 0)
            Health.status = 503
            done = tessera("doctor", "--server", f"http://localhost:{server.server_port}/")
            self.assertEqual(done.returncode, 1)
            self.assertIn("loads or drains", done.stdout)
            server.shutdown()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))  # nobody listens
            done = tessera("doctor", "--server", f"http://127.0.0.1:{sock.getsockname()[1]}")
            self.assertEqual(done.returncode, 1)
            self.assertIn("tessera serve", done.stdout)
        for url in ("localhost:8080", "http://", "https://localhost"):
            done = tessera("doctor", "--server", url)
            self.assertEqual(done.returncode, 2, url)
            self.assertIn("http://HOST:PORT", done.stderr)


class Shell:
    """An interactive shell with the completion loaded. What it would insert is asked of its own line editor."""

    def __init__(self, folder, setup, *words):
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.chdir(folder)
            os.environ.update(TERM="dumb", COLUMNS="4000", ZDOTDIR=str(setup.parent), HISTFILE="")
            os.execvp(words[0], words)
        self.pid, self.seen = pid, ""
        self.wait(r"ready\r?\n")

    def wait(self, pattern):
        until = time.monotonic() + DEADLINE_S
        while not (found := re.search(pattern, self.seen)):
            if not select.select([self.terminal], [], [], max(0, until - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            self.seen += os.read(self.terminal, 65536).decode()
        self.seen = self.seen[found.end():]
        return found

    def complete(self, line):
        """The words that every completion of the line's last word inserts."""
        os.write(self.terminal, line.encode() + b"\x18a\x18p")  # C-x a inserts all, C-x p shows the line
        whole = self.wait(r"<<([^>\n]*)>>\r?\n")[1]
        return whole[line.rfind(" ") + 1:].split()

    def close(self):
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


BASH = r"""PS1=
bind 'set enable-bracketed-paste off'
bind '"\C-xa": insert-completions'
bind -x '"\C-xp": printf "<%s>\n" "<$READLINE_LINE>"; READLINE_LINE='
echo ready
"""
ZSH = r"""PS1= RPS1=
fpath=($ZDOTDIR $fpath)
autoload -Uz compinit
compinit -u -D
zle -C all-matches complete-word _generic
zstyle ':completion:all-matches:*' completer _all_matches _complete
zstyle ':completion:all-matches:*' insert yes
bindkey '^Xa' all-matches
show-line() { zle -I; printf '<%s>\n' "<$BUFFER>"; BUFFER= }
zle -N show-line
bindkey '^Xp' show-line
echo ready
"""


class Completion(unittest.TestCase):
    def check(self, complete):
        """What each shell must offer; `complete` takes a line to the words offered."""
        for line, wanted in (
            ("tessera do", {"doctor"}),
            ("tessera keys ", {"create", "list", "revoke"}),
            ("tessera -q keys cr", {"create"}),
            ("tessera run --specu", {"--speculate"}),
            ("tessera serve --log ", {"plain", "json"}),
            ("tessera run --model here --activations i", {"int8"}),
            ("tessera completion z", {"zsh"}),
            ("tessera run --file te", {"text.txt"}),
        ):
            self.assertEqual(set(complete(line)), wanted, line)
        for line in ("tessera inspect ", "tessera run -m "):  # folders alone
            self.assertEqual({word.rstrip("/") for word in complete(line) if not word.startswith("-")},
                             {"folder"}, line)

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name) / "here"
        (self.folder / "folder").mkdir(parents=True)
        (self.folder / "text.txt").write_text("def add")
        self.scripts = Path(scratch.name)

    def test_bash(self):
        setup = self.scripts / "setup"
        setup.write_text(script("bash") + BASH)
        bash = Shell(self.folder, setup, "bash", "--noprofile", "--rcfile", str(setup), "-i")
        try:
            self.check(bash.complete)
            self.assertEqual(bash.complete("tessera serve --log=j"), ["--log=json"])
            self.assertIn("serve", bash.complete("tessera "))
            self.assertNotIn("man", bash.complete("tessera "))  # hidden from --help too
            self.assertIn("--top-k", bash.complete("tessera run -"))
        finally:
            bash.close()

    @unittest.skipUnless(shutil.which("zsh"), "zsh is not installed")
    def test_zsh(self):
        (self.scripts / "_tessera").write_text(script("zsh"))
        (self.scripts / ".zshrc").write_text(ZSH)
        zsh = Shell(self.folder, self.scripts / ".zshrc", "zsh", "-d", "-i")
        try:
            self.check(lambda line: [word.rstrip("=") for word in zsh.complete(line)])
        finally:
            zsh.close()

    @unittest.skipUnless(shutil.which("fish"), "fish is not installed")
    def test_fish(self):
        (self.scripts / "tessera.fish").write_text(script("fish"))

        def complete(line):
            asked = f'source {self.scripts}/tessera.fish; complete -C "{line}"'
            done = subprocess.run(["fish", "--no-config", "-c", asked], cwd=self.folder, capture_output=True, text=True,
                                  timeout=DEADLINE_S, env={**os.environ, "HOME": str(self.scripts)})
            self.assertEqual(done.stderr, "")
            return [offered.split("\t")[0] for offered in done.stdout.splitlines()]

        self.check(complete)

    def test_every_flag_of_help_is_offered_and_described(self):
        tree = help_tree()
        self.assertGreater(len(tree), 12)
        bash, zsh, fish = script("bash"), script("zsh"), script("fish")
        manual = tessera("man").stdout.replace("\\-", "-")
        for path, flags in tree:
            name = " ".join(("tessera", *path))
            (options,) = re.findall(rf'^    "{name}"\)\n.*\n        options="(.*)"$', bash, re.MULTILINE)
            (function,) = re.findall(rf"^_{name.replace(' ', '__')}\(\) {{\n(.*?)^}}$", zsh, re.MULTILINE | re.DOTALL)
            section = re.search(rf"^\.SS {name}\n(.*?)(?=^\.S[SH])", manual, re.MULTILINE | re.DOTALL)
            if path:
                self.assertTrue(section, name)
            self.assertIn("--help", flags)
            for flag in flags:
                self.assertIn(flag, options.split(), name)
                self.assertRegex(function, rf"'\S*.*{flag}[=\[]", name)
                self.assertRegex(fish, rf'__tessera_at "{name}"\'.* -l {flag[2:]} ')
                if flag != "--help" and path:
                    self.assertIn(f"\\fB{flag}\\fR", section[1], name)


class Manual(unittest.TestCase):
    @unittest.skipUnless(shutil.which("groff"), "groff is not installed")
    def test_groff_warns_of_nothing(self):
        done = subprocess.run(["groff", "-ww", "-man", "-Tutf8", "-Kutf8"], input=tessera("man").stdout,
                              capture_output=True, text=True, timeout=DEADLINE_S)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("tessera serve", done.stdout)

    @unittest.skipUnless(shutil.which("mandoc"), "mandoc is not installed")
    def test_mandoc_finds_no_mistake(self):
        done = subprocess.run(["mandoc", "-Tlint", "-Wwarning"], input=tessera("man").stdout, capture_output=True,
                              text=True, timeout=DEADLINE_S)
        found = [line for line in done.stdout.splitlines() if "missing date" not in line]  # the same bytes every day
        self.assertEqual(found, [])


if __name__ == "__main__":
    program, model, driver = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3]
    unittest.main(argv=[sys.argv[0], *sys.argv[4:]])
