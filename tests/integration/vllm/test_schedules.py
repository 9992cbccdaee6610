"""Random schedules in real vLLM: requests that arrive, share prefixes, are preempted and aborted,
against the same requests one by one."""
import random

import pytest

from seeds import SEED, SOAK
pytest.importorskip("vllm")

SCHEDULES = 20 * SOAK
# Blocks of 128 tokens: too few for all requests of a schedule at once.
LENGTH = 1024
TIGHT = dict(num_gpu_blocks_override=9, max_model_len=LENGTH, max_num_batched_tokens=LENGTH)


def schedule(rng, report_ids, aborts=True):
    requests = []
    starts = [rng.randrange(len(report_ids) - 2000) for _ in range(3)]
    for _ in range(rng.randint(4, 7)):
        first = rng.choice(starts)
        requests.append({"arrives": rng.randrange(12), "max_tokens": rng.randint(4, 60),
                         "prompt": report_ids[first:first + rng.randint(20, 700)],
                         "aborts": rng.randint(1, 6) if aborts and rng.random() < 0.2 else 1 << 30})
    return requests


def schedules(report_ids):
    rng = random.Random(SEED)
    return [schedule(rng, report_ids) for _ in range(SCHEDULES)]


def one_by_one(engine, requests):
    """What each request gets alone, as far as it was let run."""
    return [engine.schedule([dict(r, arrives=0)])["ids"][0] for r in requests]


def common(mine, theirs):
    """An aborted request may have stopped a token earlier or later."""
    n = min(len(mine), len(theirs))
    return mine[:n] == theirs[:n]


@pytest.fixture(scope="module")
def stock(engines, report_ids):
    engine = engines(**TIGHT)
    return [(engine.schedule(s), one_by_one(engine, s)) for s in schedules(report_ids)]


def test_dense_budgets_give_stock_tokens_whatever_the_schedule(engines, report_ids, stock,
                                                               record_property):
    preempted = compared = 0
    engine = engines(f"hybrid,budget={LENGTH},force_sparse=1", **TIGHT)
    for number, (requests, (together, alone)) in enumerate(zip(schedules(report_ids), stock)):
        found = engine.schedule(requests)
        preempted += found["preempted"]
        for mine, theirs, single in zip(found["ids"], together["ids"], alone):
            if common(theirs, single):  # stock agrees with itself
                compared += 1
                assert common(mine, single), f"seed {SEED}, schedule {number}"
    [group] = engine.report()["groups"]
    record_property("requests", f"{compared} compared, {preempted} preempted, {group['counts']}")
    assert preempted > 0, "no schedule was tight"
    assert compared > 3 * SCHEDULES
    assert group["counts"]["sparse"] > 0 and not group["refused"] and group["off"] is None


def test_sparse_rows_do_not_depend_on_their_company(engines, report_ids, record_property):
    same = total = preempted = 0
    engine = engines("hybrid,budget=128,force_sparse=1", **TIGHT)
    for number, requests in enumerate(schedules(report_ids)):
        found, alone = engine.schedule(requests), one_by_one(engine, requests)
        agree = [common(f, a) for f, a in zip(found["ids"], alone)]
        if found["preempted"] == 0:
            assert all(agree), f"seed {SEED}, schedule {number}: {agree}"
        preempted += found["preempted"]
        same, total = same + sum(agree), total + len(agree)
    [group] = engine.report()["groups"]
    record_property("requests", f"{same} of {total} alike, {preempted} preempted")
    assert same >= 0.95 * total
    assert group["counts"]["sparse"] > 0 and not group["refused"] and group["off"] is None
