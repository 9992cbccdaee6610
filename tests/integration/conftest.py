"""Fixtures of the Python tests. SEMKV_TEST_SEED=N repeats a run; pytest's first lines name it."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import seeds
import semkv
from semkv import _abi

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "models" / "semkv-tiny")
SEED = int(os.environ.get("SEMKV_TEST_SEED", "20251121"))


def pytest_report_header():
    return [f"semkv {semkv.__version__}: {_abi.LIBRARY_PATH}", f"SEMKV_TEST_SEED={SEED}"]


def pytest_terminal_summary(terminalreporter):
    """What tests recorded: figures that say more than "passed"."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, value in report.user_properties:
                terminalreporter.write_line(f"{report.nodeid}: {name}: {value}")


@pytest.fixture
def rng():
    return np.random.default_rng(SEED)


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
                    "--tokens", "4000", "--documents", str(5 * seeds.SOAK), "--seed", str(seeds.SEED),
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
