"""tessera keys and tessera usage as a person meets them.

Run as: keys_test.py PROGRAM [unittest arguments].
"""

import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

DEADLINE_S = 300
SECRET = re.compile(r"tsk-[A-Za-z0-9_-]{43}\n")
program = None  # from the command line


class Store(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.store = str(Path(self.folder.name) / "store.db")

    def tearDown(self):
        self.folder.cleanup()

    def tessera(self, *arguments, environment=True):
        given = {**os.environ, **({"TESSERA_STORE": self.store} if environment else {})}
        return subprocess.run([program, *arguments], capture_output=True, text=True, env=given, timeout=DEADLINE_S)

    def out(self, *arguments):
        done = self.tessera(*arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def refused(self, words, *arguments, **options):
        done = self.tessera(*arguments, **options)
        self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("tessera: "), done.stderr)
        self.assertIn(words, done.stderr)

    def keys(self):
        return json.loads(self.out("keys", "list", "--json"))


class Keys(Store):
    def test_the_secret_is_printed_once_and_kept_nowhere(self):
        secret = self.out("keys", "create", "--name", "a")
        self.assertRegex(secret, SECRET)
        for arguments in (("list",), ("list", "--json")):
            self.assertNotIn(secret[4:-1], self.out("keys", *arguments))
        for file in Path(self.folder.name).iterdir():
            self.assertNotIn(secret[4:-1].encode(), file.read_bytes())
            self.assertEqual(stat.S_IMODE(file.stat().st_mode) & 0o077, 0, file)

    def test_create_list_revoke(self):
        self.out("keys", "create", "--name", "launch", "--modes", "base,ultraspeed", "--valid-from", "2026-06-09",
                 "--valid-until", "2026-06-23", "--requests-per-minute", "60", "--tokens-per-minute", "100000",
                 "--concurrency", "4")
        self.out("keys", "create", "--name", "plain")
        launch, plain = self.keys()
        self.assertEqual(launch["modes"], {"base": True, "ultraspeed": True})
        self.assertEqual((launch["valid_from"], launch["valid_until"]),
                         ("2026-06-09T00:00:00Z", "2026-06-24T00:00:00Z"))  # the day is included
        self.assertEqual((launch["requests_per_minute"], launch["tokens_per_minute"], launch["concurrency"]),
                         (60, 100000, 4))
        self.assertEqual((plain["modes"], plain["state"]), ({"base": True, "ultraspeed": False}, "valid"))
        self.out("keys", "revoke", "plain")
        self.assertEqual(self.keys()[1]["state"], "revoked")
        self.refused("revoked already", "keys", "revoke", "plain")
        self.refused("no key nobody", "keys", "revoke", "nobody")
        self.out("keys", "revoke", "1")
        self.assertEqual([key["state"] for key in self.keys()], ["revoked", "revoked"])
        table = self.out("keys", "list").splitlines()
        self.assertEqual(len(table), 3)
        self.assertIn("launch", table[1])

    def test_mistakes_are_named(self):
        self.refused("--name is required", "keys", "create")
        self.refused("--store is required", "keys", "list", environment=False)
        self.refused("no such store", "keys", "list")
        self.assertFalse(Path(self.store).exists(), "looking makes no store")
        self.refused("expected base, ultraspeed or both, found fast", "keys", "create", "--name", "a", "--modes", "fast")
        self.refused("--valid-from: expected a day", "keys", "create", "--name", "a", "--valid-from", "soon")
        self.refused("end before it begins", "keys", "create", "--name", "a", "--valid-from", "2026-06-09",
                     "--valid-until", "2026-06-08")
        self.refused("control character", "keys", "create", "--name", "a\nb")
        self.refused("--concurrency", "keys", "create", "--name", "a", "--concurrency", "-1")
        self.out("keys", "create", "--name", "a")
        self.refused("there is a key named a", "keys", "create", "--name", "a")
        Path(self.store + ".txt").write_text("not a database\n" * 100)
        self.refused("not a database", "keys", "list", "--store", self.store + ".txt")


class Usage(Store):
    def add(self, request, key, mode, finished, cost):
        database = sqlite3.connect(self.store)
        database.execute("INSERT INTO ledger VALUES (NULL, ?, ?, ?, 'mini', 100, 40, 7, 1, 2, 3, ?, 0, NULL, "
                         "CAST(strftime('%s', ?) AS INTEGER) * 1000, 'stop')", (request, key, mode, cost, finished))
        database.commit()
        database.close()

    def test_sums_by_day_key_and_mode(self):
        self.out("keys", "create", "--name", "launch")
        self.assertEqual(json.loads(self.out("usage", "--json"))["rows"], [])
        dear = 123_456_789_012_345_678  # picodollars: more digits than a double has
        for i, (key, mode, day, cost) in enumerate((
                (1, "base", "2026-06-09 23:59:59", 1), (1, "base", "2026-06-10 00:00:00", 2),
                (1, "base", "2026-06-10 12:00:00", 4), (1, "ultraspeed", "2026-06-10 12:00:00", dear),
                (0, "base", "2026-06-11 12:00:00", 8))):
            self.add(f"r{i}", key, mode, day, cost)

        def sums(*arguments):
            found = json.loads(self.out("usage", "--json", *arguments))
            self.assertEqual(found["total"]["requests"], sum(row["requests"] for row in found["rows"]))
            return [(row["day"], row["key_name"], row["mode"], row["requests"], row["cost_usd"])
                    for row in found["rows"]]

        first = ("2026-06-09", "launch", "base", 1, "0.000000000001")
        second = [("2026-06-10", "launch", "base", 2, "0.000000000006"),
                  ("2026-06-10", "launch", "ultraspeed", 1, "123456.789012345678")]
        third = ("2026-06-11", "", "base", 1, "0.000000000008")
        self.assertEqual(sums(), [first, *second, third])
        self.assertEqual(sums("--since", "2026-06-10"), [*second, third])
        self.assertEqual(sums("--until", "2026-06-10"), [first, *second])
        self.assertEqual(sums("--since", "2026-06-10", "--until", "2026-06-10"), second)
        self.assertEqual(sums("--since", "2026-06-10T00:00:01Z", "--until", "2026-06-11T11:00Z")[0][3], 1)
        table = self.out("usage").splitlines()
        self.assertEqual(len(table), 6)
        self.assertIn("(no key)", table[4])
        self.assertIn("123456.789012345693", table[5])

    def test_mistakes_are_named(self):
        self.refused("no such store", "usage")
        self.refused("--since: expected a day", "usage", "--since", "June")
        self.refused("later than --since", "usage", "--since", "2026-06-10", "--until", "2026-06-09")


if __name__ == "__main__":
    program = sys.argv.pop(1)
    unittest.main(verbosity=2)
