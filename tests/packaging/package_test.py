"""The packages as who gets them: unpacked, installed, started, used, removed, in a root with nothing else.

Run as: package_test.py PROGRAM [unittest arguments]. Needs root and namespaces of its own (unshare); says
so and exits 77, which ctest takes for skipped, where it has none. There is no systemd inside: the unit's
command is run as its user, on a file system that is read-only where the unit says so.
"""

import filecmp
import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
import unittest
from pathlib import Path

from clean_root import CleanRoot

ROOT = Path(__file__).resolve().parent.parent.parent
SKIPPED, INSIDE = 77, "--inside"
DEADLINE_S = 60
STATE = "var/lib/tessera"

program = None  # from the command line
folder = None   # of this test, gone at the end


def package(out, umask=0o022, **environment):
    done = subprocess.run([ROOT / "scripts/package", "--binary", program, "--out", out], capture_output=True, text=True,
                          umask=umask, env={**os.environ, **environment})
    if done.returncode:
        raise AssertionError(done.stderr)
    return [Path(line) for line in done.stdout.splitlines()]


def raise_loopback():
    with socket.socket() as sock:
        request = struct.pack("16sh14x", b"lo", 1)  # IFF_UP
        fcntl.ioctl(sock, 0x8914, request)          # SIOCSIFFLAGS


def read_unit(path):
    """Setting -> its values, in order."""
    found = {}
    for line in path.read_text().splitlines():
        if line and line[0] not in "#[":
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def request(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=DEADLINE_S)
    connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
    try:
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


class Packages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.archive, cls.deb = package(folder / "first")
        (folder / "root").mkdir()
        cls.root = CleanRoot(folder / "root")

    def test_1_the_same_tree_gives_the_same_bytes(self):
        again = package(folder / "second", 0o077, LC_ALL="C.UTF-8", TZ="Asia/Tokyo")
        for one, other in zip((self.archive, self.deb), again):
            self.assertTrue(filecmp.cmp(one, other, shallow=False), f"{one.name} differs from one packing to the next")
        shutil.rmtree(folder / "second")

    def test_2_the_archive_runs_wherever_it_lies(self):
        root = self.root
        self.assertNotIn("libstdc++6", root.packages)  # else it would prove nothing
        subprocess.run(["tar", "-C", root.path / "opt", "-xf", self.archive], check=True)
        (unpacked,) = (root.path / "opt").iterdir()
        self.assertTrue((unpacked / "LICENSE").exists())
        for library in (unpacked / "lib").iterdir():
            self.assertFalse(library.name.startswith(("libc.", "libm.", "ld-")), library)
        self.assertTrue((unpacked / "share/doc/tessera/licences/libstdc++6").exists())
        done = root.run(f"/opt/{unpacked.name}/bin/tessera", "run", "def f():", "-n", "8")
        self.assertNotEqual(done.stdout, "")
        self.assertIn("tessera-mini", done.stderr)
        unpacked.rename(root.path / "srv/elsewhere")
        self.assertEqual(root.run("/srv/elsewhere/bin/tessera", "run", "def f():", "-n", "8").stdout, done.stdout)
        found = json.loads(root.run("/srv/elsewhere/bin/tessera", "doctor", "--json").stdout)
        self.assertTrue(found["healthy"])
        shutil.rmtree(root.path / "srv/elsewhere")

    def test_3_the_package_serves_and_leaves_nothing(self):
        root = self.root
        depends = subprocess.run(["dpkg-deb", "--field", self.deb, "Depends"], capture_output=True, text=True, check=True)
        root.add(root.needs(depends.stdout.strip()))
        shutil.copy(self.deb, root.path / "tmp/tessera.deb")
        before = root.listing()
        for _ in range(2):  # the second time is an upgrade to itself
            root.run("dpkg", "--install", "/tmp/tessera.deb")
        self.assertEqual(root.run("dpkg", "--verify", "tessera").stdout, "")
        self.assertIn("def", root.run("tessera", "run", "class A:\n    ", "-n", "8").stdout)

        unit = read_unit(root.path / "lib/systemd/system/tessera.service")
        settings = tomllib.loads((root.path / "etc/tessera/serve.toml").read_text())
        self.assertGreater(int(unit["TimeoutStopSec"][0]), settings["limits"]["drain_s"])
        self.serve(unit, settings["store"])

        root.run("dpkg", "--remove", "tessera")
        self.assertFalse((root.path / "usr/bin/tessera").exists())
        self.assertTrue((root.path / "etc/tessera/serve.toml").exists())
        self.assertTrue((root.path / STATE / "tessera.db").exists())
        root.run("dpkg", "--purge", "tessera")
        self.assertEqual(root.listing(), before)

    def serve(self, unit, store):
        root, user = self.root, unit["User"][0]
        self.assertEqual(unit["Type"], ["notify"])
        self.assertEqual(unit["ProtectSystem"], ["strict"])
        state = root.path / "var/lib" / unit["StateDirectory"][0]
        # The package makes it as the unit would, so that a key can be made before the first start.
        self.assertEqual(state.stat().st_mode & 0o777, int(unit["StateDirectoryMode"][0], 8))
        self.assertEqual(root.run("stat", "-c", "%U:%G", f"/{STATE}").stdout.strip(), f"{user}:{unit['Group'][0]}")
        # The same tree once more, read-only but for the state, with /proc and /dev in it.
        subprocess.run(["mount", "--rbind", root.path, root.path], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", root.path], check=True)
        subprocess.run(["mount", "--bind", state, state], check=True)
        subprocess.run(["mount", "-o", "remount,bind,rw", state], check=True)
        self.assertNotEqual(root.run("touch", "/etc/written", check=False).returncode, 0)

        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--no-new-privs", "--inh-caps=-all",
                   "--bounding-set=-all"]
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        told.bind("\0tessera-package-test")
        told.settimeout(DEADLINE_S)
        self.addCleanup(told.close)
        service = subprocess.Popen(root.command(*as_user, *unit["ExecStart"][0].split()), stderr=subprocess.PIPE, text=True,
                                   env={"PATH": "/usr/sbin:/usr/bin", "NOTIFY_SOCKET": "@tessera-package-test",
                                        "WATCHDOG_USEC": "400000"})
        try:
            self.assertEqual(told.recv(64), b"READY=1")
            self.assertEqual(told.recv(64), b"WATCHDOG=1")
            self.assertEqual(request("GET", "/health")[0], 200)
            status, body = request("POST", "/v1/completions",
                                   {"model": "tessera-mini", "prompt": "def add(a, b):", "max_tokens": 4})
            self.assertEqual(status, 200, body)
            self.assertNotEqual(json.loads(body)["choices"][0]["text"], "")
            root.run("tessera", "doctor", "--server", "http://127.0.0.1:8080")

            key = root.run(*as_user, "tessera", "keys", "create", "--store", store, "--name", "alice").stdout.strip()
            until = time.monotonic() + DEADLINE_S  # a running server looks for new keys now and then
            while request("GET", "/v1/models")[0] != 401 and time.monotonic() < until:
                time.sleep(0.1)
            self.assertEqual(request("GET", "/v1/models")[0], 401)
            self.assertGreater(len(key), 20)
        except BaseException:
            service.kill()
            print(service.communicate()[1])
            raise
        service.send_signal(signal.SIGTERM)
        log = service.communicate(timeout=DEADLINE_S)[1]
        self.assertEqual(service.returncode, 0, log)
        messages = []
        while not messages or messages[-1] == b"WATCHDOG=1":
            messages.append(told.recv(64))
        self.assertEqual(messages[-1], b"STOPPING=1")
        used = root.run(*as_user, "tessera", "usage", "--store", store, "--json").stdout
        self.assertEqual(json.loads(used)["total"]["requests"], 1)
        subprocess.run(["umount", "--recursive", root.path], check=True)


def unavailable():
    """Why this cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    tried = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "true"], capture_output=True, text=True)
    if tried.returncode:
        return tried.stderr.strip()
    for tool in ("patchelf", "dpkg-shlibdeps", "setpriv", "chroot"):
        if not shutil.which(tool):
            return f"{tool} is not installed: scripts/install brings what is needed"
    return ""


def main():
    global program, folder
    if INSIDE not in sys.argv:
        why = unavailable()
        if why:
            print(f"package_test: skipped: {why}")
            return SKIPPED
        with tempfile.TemporaryDirectory(prefix="tessera-package-") as own:
            # The namespaces end with the process, and all mounts and processes with them.
            return subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", sys.executable,
                                   __file__, INSIDE, own, *sys.argv[1:]]).returncode
    _, _, own, program, *rest = sys.argv
    folder = Path(own)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder], check=True)
    raise_loopback()
    return unittest.main(argv=[sys.argv[0], *rest], failfast=True)


if __name__ == "__main__":
    sys.exit(main())
