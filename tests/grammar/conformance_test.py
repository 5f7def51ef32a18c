"""Every schema of the table, written many times and held against another validator (`jsonschema`).

Run as: conformance_test.py PROGRAM MODEL [--samples 50] [--wild 50]

Twice: by the model through the server at temperature 1.5, with speculation and without, which have to say
the same token for token; and by nobody, every allowed token being as likely as any other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "server"))

import running

TABLE = HERE / "schemas.json"
TOKENS_MAX = 300
# Recursion that nothing draws to an end, a list of a thousand, and a pattern that the model does not come to
# by itself may be cut: of these alone no text has to come to its end.
LONG = {"exactly a thousand", "pattern not anchored", "expressions", "a tree", "anything", "true", "nothing but notes"}


def validators():
    rows = json.loads(TABLE.read_text())["understood"]
    formats = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return {row["name"]: (row["schema"], jsonschema.Draft202012Validator(row["schema"], format_checker=formats))
            for row in rows}


def check(name, text, validator):
    value = json.loads(text)
    problem = jsonschema.exceptions.best_match(validator.iter_errors(value))
    assert problem is None, f"{name}: {problem.message}: {text}"


def wild(program, rows, samples):
    """How many texts were whole, by name."""
    whole = dict.fromkeys(rows, 0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.jsonl"
        subprocess.run([program, "bench", "masks", str(TABLE), "--samples", str(samples), "--samples-file", str(file)],
                       check=True, stdout=subprocess.DEVNULL)
        for line in file.open(encoding="utf-8"):  # not splitlines(): a text may hold other line ends
            sample = json.loads(line)
            check(sample["name"], sample["text"], rows[sample["name"]][1])
            whole[sample["name"]] += 1
    return whole


def ask(server, schema, seed, model):
    reply = server.post("/v1/chat/completions", {
        "model": model, "seed": seed, "temperature": 1.5, "max_tokens": TOKENS_MAX,
        "messages": [{"role": "user", "content": "Write some JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}).json()
    assert "choices" in reply, reply
    choice = reply["choices"][0]
    return choice["finish_reason"], choice["message"]["content"], reply["usage"]["completion_tokens"]


def by_model(rows, samples):
    whole = dict.fromkeys(rows, 0)

    def one(job):
        name, seed = job
        schema, validator = rows[name]
        # The API takes schemas that are objects.
        plain = ask(server, schema if isinstance(schema, dict) else {"anyOf": [schema]}, seed, models[0])
        fast = ask(server, schema if isinstance(schema, dict) else {"anyOf": [schema]}, seed, models[1])
        assert plain == fast, (name, seed, plain, fast)
        if plain[0] == "stop":
            check(name, plain[1], validator)
        return name, plain[0] == "stop"

    with running.Server("--queue-max", "4096") as server:
        models = [model["id"] for model in server.get("/v1/models").json()["data"]]
        with ThreadPoolExecutor(16) as pool:
            for name, ended in pool.map(one, [(name, seed) for seed in range(samples) for name in rows]):
                whole[name] += ended
    return whole


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=50, help="by the model, of each schema")
    parser.add_argument("--wild", type=int, default=50, help="by nobody, of each schema")
    arguments = parser.parse_args()
    running.program, running.model = arguments.program, arguments.model
    rows = validators()
    assert len(rows) >= 60
    for what, whole, samples in (("wild", wild(arguments.program, rows, arguments.wild), arguments.wild),
                                 ("by the model", by_model(rows, arguments.samples), arguments.samples)):
        never = [name for name, count in whole.items() if count == 0 and name not in LONG]
        print(f"{what}: {len(rows)} schemas, {samples} texts of each: {sum(whole.values())} whole and all valid, "
              f"the others cut; none whole of {never}")
        assert len(never) <= (0 if samples >= 20 else 12), never


if __name__ == "__main__":
    main()
