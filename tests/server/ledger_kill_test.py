"""kill -9 at any moment loses no committed row of the ledger and charges none twice.

Run as: ledger_kill_test.py WRITER [unittest arguments]. WRITER (programs/ledger_writer.cpp) records
numbered requests and says which are on disk. It is killed at random moments, from its first
instruction on, and started again a few requests before where it was: a client's retries.
"""

import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path

KILLS = 40
SURVIVES_S_MAX = 0.25
REPEATED = 20  # requests that the next writer records again
writer = None  # from the command line


def run_and_kill(store, first, alive_s):
    """The writer's last word: all requests below it were on disk; `first` if it said nothing."""
    process = subprocess.Popen([writer, store, str(first)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    committed = [first]

    def listen():
        for line in process.stdout:
            if line.endswith("\n"):
                committed.append(int(line))

    listener = threading.Thread(target=listen)
    listener.start()
    time.sleep(alive_s)
    ended_by_itself = process.poll()
    process.kill()
    process.wait()
    listener.join()
    words = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert ended_by_itself is None, f"the writer gave up with {ended_by_itself}: {words}"
    return max(committed)


def price(number):
    """What request `number` costs, in picodollars, from the published list alone."""
    factor = 1 if number % 2 == 0 else 3
    cached, prompt, completion = number % 50, 100 + number % 50, number % 11
    return factor * (cached * 3_600 + (prompt - cached) * 435_000 + completion * 870_000)


def faults(store, committed):
    """What is wrong with the ledger if all requests below `committed` were said to be on disk."""
    database = sqlite3.connect(store)
    found = []
    if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
        found.append("the database is damaged")
    rows = database.execute("SELECT request_id, cost FROM ledger").fetchall()
    database.close()
    numbers = [int(name.removeprefix("request-")) for name, _ in rows]
    if len(set(numbers)) != len(numbers):
        found.append("a request is charged twice")
    missing = set(range(committed)) - set(numbers)
    if missing:
        found.append(f"{len(missing)} committed rows are lost, {min(missing)} the first")
    if any(cost != price(int(name.removeprefix("request-"))) for name, cost in rows):
        found.append("a row has another price")
    return found


class Kill(unittest.TestCase):
    def test_no_committed_row_is_lost_and_none_is_charged_twice(self):
        seed = random.randrange(1 << 32)
        draw = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store.db")
            committed = 0
            for kill in range(KILLS):
                first = max(committed - REPEATED, 0)
                said = run_and_kill(store, first, draw.uniform(0, SURVIVES_S_MAX))
                committed = max(committed, said)
                if Path(store).exists() and committed > 0:
                    self.assertEqual(faults(store, committed), [], f"kill {kill}, seed {seed}")
            self.assertGreater(committed, KILLS, "too few rows to prove anything")

    def test_the_check_sees_lost_doubled_and_altered_rows(self):
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder) / "store.db")
            committed = 0
            while committed < 21:
                committed = max(committed, run_and_kill(store, committed, 1))
            self.assertEqual(faults(store, committed), [])
            self.assertIn("lost", faults(store, committed + 10_000_000)[0])
            database = sqlite3.connect(store)
            with self.assertRaises(sqlite3.IntegrityError):  # the table itself refuses
                database.execute("INSERT INTO ledger SELECT NULL, request_id, key, mode, model, prompt_tokens, "
                                 "cached_tokens, completion_tokens, price_cached, price_input, price_output, cost, "
                                 "received, first_token, finished, ended FROM ledger WHERE request_id='request-3'")
            database.execute("UPDATE ledger SET cost = cost + 1 WHERE request_id = 'request-3'")
            database.commit()
            database.close()
            self.assertEqual(faults(store, committed), ["a row has another price"])


if __name__ == "__main__":
    writer = sys.argv.pop(1)
    unittest.main(verbosity=2)
