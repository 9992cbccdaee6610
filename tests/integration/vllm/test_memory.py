"""Many requests through one engine: semkv adds nothing to what stock vLLM's own memory grows by."""
import random

import pytest

from seeds import SEED, SOAK
from test_schedules import TIGHT, schedule

pytest.importorskip("vllm")

ROUNDS = 400 if SOAK > 1 else 8  # of about 5.5 requests
MIB = 2**20


def growth(engine, report_ids):
    """Bytes of memory between the middle of the rounds and their end, and the number of requests.
    Stock vLLM grows too, by oneDNN's cache of kernels, which is nearly full by then."""
    rng = random.Random(SEED)
    requests, sizes = 0, []
    for _ in range(ROUNDS):
        batch = schedule(rng, report_ids)
        engine.schedule(batch)
        requests += len(batch)
        sizes.append(engine.report()["rss"])
    return sizes[-1] - sizes[ROUNDS // 2], requests


def test_many_requests_grow_the_process_no_more_than_stock_vllm(engines, report_ids,
                                                                record_property):
    engine = engines("hybrid,budget=128,force_sparse=1", **TIGHT)
    mine, requests = growth(engine, report_ids)
    theirs, _ = growth(engines(**TIGHT), report_ids)
    record_property("grew", f"{requests} requests, seed {SEED}: {mine / MIB:+.1f} MiB, "
                            f"stock {theirs / MIB:+.1f} MiB")
    [group] = engine.report()["groups"]
    assert group["counts"]["sparse"] > 0 and group["off"] is None
    assert mine < theirs + 16 * MIB
