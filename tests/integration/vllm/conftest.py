import json
import pathlib
import subprocess
import sys

import pytest

from engine_process import EngineProcess
from seeds import SEED, SOAK

ROOT = pathlib.Path(__file__).resolve().parents[3]
MOST = 6
MODEL = str(ROOT / "models" / "semkv-tiny")


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="session")
def report_ids(tokenizer):
    """A text of 8,613 tokens."""
    return [0] + tokenizer((ROOT / "models" / "demo" / "harbour_report.txt").read_text())["input_ids"]


@pytest.fixture(scope="session")
def facts(tokenizer, tmp_path_factory):
    """[(prompt ids, answer)] on 16 facts each in documents of 4,000 tokens of filler.

    Only answers that are numbers: their digits are tokens of their own. A word is one token, which
    comes of the prefill; no decode step has to find it, so it would tell nothing of sparse rows.
    """
    path = tmp_path_factory.mktemp("documents") / "facts.jsonl"
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_documents.py"), "--kind", "facts16",
                    "--tokens", "4000", "--documents", str(5 * SOAK), "--seed", str(SEED),
                    "--out", str(path)], check=True)
    pairs = []
    for line in path.read_text().splitlines():
        document = json.loads(line)
        for question in document["questions"]:
            if not question["answer"].strip(" .").isdigit():
                continue
            ids = [0] + tokenizer(document["text"] + question["question"])["input_ids"]
            pairs.append((ids, question["answer"]))
    return pairs


@pytest.fixture(scope="session")
def engines():
    """start(switch, environment, **engine arguments): an engine process, kept for tests that ask for
    the same; starting one takes longer than most tests. The one not asked for for longest ends when
    there are more than MOST: each takes 2 GB."""
    running = {}

    def start(switch=None, environment=None, **engine):
        arguments = {"model": MODEL, "enforce_eager": True, "max_model_len": 8192,
                     "dtype": "float32", **engine}
        key = json.dumps([switch, environment, arguments], sort_keys=True)
        process = running.pop(key, None) or EngineProcess(switch, environment, **arguments)
        running[key] = process
        while len(running) > MOST:
            running.pop(next(iter(running))).close()
        return process

    yield start
    for process in running.values():
        process.close()
