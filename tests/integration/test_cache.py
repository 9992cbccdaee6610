"""Cache, Sequence and Step against attention in plain numpy."""
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import semkv
from small_model import (HEADS, KV_HEADS, LAYERS, VOCABULARY, attention, make_cache, make_ids,
                         make_kv, make_q, prefill, write)

SPARSE = {"budget": 256, "force_sparse": True}
TOLERANCE = 1e-5
# sentencekv hides tokens, whatever the budget.
REACH_ALL = ["hybrid", "sentence", "cluster", "pages", "quest", "window", "clusterkv"]


def selections(step, row=0):
    return [step.selected(row, head) for head in range(KV_HEADS)]


def test_dense_attention_is_softmax(rng):
    k, v = make_kv(rng, 300)
    q = make_q(rng, 300)
    with make_cache(policy="dense") as cache:
        sequence = cache.sequence()
        assert sequence.append(300) == range(300)
        write(sequence, k, v)
        lse = np.empty((300, HEADS), np.float32)
        with cache.step([sequence], num_queries=[300]) as step:
            for layer in range(LAYERS):
                out = step.attend(layer, q[layer], lse=lse, scale=0.2, logit_cap=5.0)
                for token in (0, 1, 17, 299):  # causal: token t sees t + 1 rows
                    want, want_lse = attention(q[layer, token], k[layer, :token + 1],
                                               v[layer, :token + 1], scale=0.2, logit_cap=5.0)
                    np.testing.assert_allclose(out[token], want, atol=TOLERANCE)
                    np.testing.assert_allclose(lse[token], want_lse, atol=TOLERANCE)


@pytest.mark.parametrize("policy", REACH_ALL)
def test_budget_above_the_context_is_dense(rng, policy):
    k, v = make_kv(rng, 2000)
    q = make_q(rng, 1)
    with make_cache(policy=policy, budget=4096, force_sparse=True, vocabulary=VOCABULARY) as cache:
        sequence = cache.sequence()
        prefill(sequence, k, v, make_ids(rng, 2000))
        with cache.step([sequence]) as step:
            for layer in range(LAYERS):
                assert step.reason(layer) == "sparse"
                step.select(layer, q[layer])
                out = step.attend(layer, q[layer])
                want, _ = attention(q[layer, 0], k[layer], v[layer])
                np.testing.assert_allclose(out[0], want, atol=TOLERANCE)


@pytest.mark.parametrize("policy", ["hybrid", "sentence", "cluster", "pages", "quest", "window"])
def test_selection_and_attention_over_it(rng, policy):
    n, sinks, recent = 3000, 16, 32
    k, v = make_kv(rng, n)
    q = make_q(rng, 1)
    with make_cache(policy=policy, vocabulary=VOCABULARY, **SPARSE) as cache:
        sequence = cache.sequence()
        prefill(sequence, k, v, make_ids(rng, n))
        with cache.step([sequence]) as step:
            for layer in range(LAYERS):
                step.select(layer, q[layer])
                chosen = selections(step)
                for positions in chosen:
                    assert positions.dtype == np.int32
                    assert np.all(np.diff(positions) > 0)
                    assert len(positions) == 256
                    assert set(range(sinks)) | set(range(n - recent, n)) <= set(positions)
                out = step.attend(layer, q[layer])
                want, _ = attention(q[layer, 0], k[layer], v[layer], positions=chosen)
                np.testing.assert_allclose(out[0], want, atol=TOLERANCE)
                at_once = step.attend(layer, q[layer], select=True)
                assert np.array_equal(at_once, out) and all(
                    np.array_equal(a, b) for a, b in zip(selections(step), chosen))
                full = step.attend(layer, q[layer], dense=True)
                want, _ = attention(q[layer, 0], k[layer], v[layer])
                np.testing.assert_allclose(full[0], want, atol=TOLERANCE)


def test_one_call_selects_and_attends(rng):
    k, v = make_kv(rng, 1000)
    q = make_q(rng, 1)
    with make_cache(policy="cluster", **SPARSE) as cache:
        sequence = cache.sequence()
        prefill(sequence, k, v)
        with cache.step([sequence]) as step:
            with pytest.raises(semkv.SemkvError, match="semkv_select"):
                step.attend(0, q[0])
            out = step.attend(0, q[0], select=True)
            want, _ = attention(q[0, 0], k[0], v[0], positions=selections(step))
            np.testing.assert_allclose(out[0], want, atol=TOLERANCE)


def test_selection_finds_the_keys_that_matter(rng):
    """40 keys in the middle of the context point along the query."""
    k, v = make_kv(rng, 3000)
    q = make_q(rng, 1)
    k[:, 1400:1440] = 4.0 * q[:, :, ::HEADS // KV_HEADS]
    with make_cache(**SPARSE) as cache:
        sequence = cache.sequence()
        prefill(sequence, k, v)
        with cache.step([sequence]) as step:
            step.select(0, q[0])
            for positions in selections(step):
                assert set(range(1400, 1440)) <= set(positions)


def test_several_sequences_in_a_batch(rng):
    """Rows of different lengths and policies, one of them with several queries."""
    lengths, queries = [2500, 70, 1800], [1, 5, 1]
    tensors = [make_kv(rng, n) for n in lengths]
    q = make_q(rng, sum(queries))
    with make_cache(**SPARSE) as cache:
        sequences = [cache.sequence(), cache.sequence("dense"),
                     cache.sequence("quest", budget=128, force_sparse=True)]
        for sequence, (k, v) in zip(sequences, tensors):
            prefill(sequence, k, v)
        with cache.step(sequences, num_queries=queries) as step:
            assert [step.reason(0, row) for row in range(3)] == ["sparse", "dense_policy", "sparse"]
            for layer in range(LAYERS):
                step.select(layer, q[layer])
                out = step.attend(layer, q[layer])
                for row, at in ((0, 0), (2, 6)):
                    k, v = tensors[row]
                    want, _ = attention(q[layer, at], k[layer], v[layer],
                                        positions=selections(step, row))
                    np.testing.assert_allclose(out[at], want, atol=TOLERANCE)
                for i in range(5):
                    want, _ = attention(q[layer, 1 + i], *(x[layer, :66 + i] for x in tensors[1]))
                    np.testing.assert_allclose(out[1 + i], want, atol=TOLERANCE)


def test_decode_folds_tokens_into_the_lists(rng):
    n, steps = 1500, 400
    k, v = make_kv(rng, n + steps)
    q = make_q(rng, steps)
    ids = make_ids(rng, n + steps)
    with make_cache(vocabulary=VOCABULARY, **SPARSE) as cache:
        sequence = cache.sequence()
        prefill(sequence, k[:, :n], v[:, :n], ids[:n])
        for i in range(steps):
            at = n + i
            assert sequence.append(ids[at:at + 1]) == range(at, at + 1)
            with cache.step([sequence]) as step:
                for layer in range(LAYERS):
                    sequence.write(layer, k[layer, at:at + 1], v[layer, at:at + 1])
                    step.select(layer, q[layer, i:i + 1])
                    out = step.attend(layer, q[layer, i:i + 1])
                    want, _ = attention(q[layer, i], k[layer, :at + 1], v[layer, :at + 1],
                                        positions=selections(step))
                    np.testing.assert_allclose(out[0], want, atol=TOLERANCE)
            sequence.observe()
        assert len(sequence) == n + steps
        assert sequence.info["num_tokens"] == n + steps
        kinds = {event.kind for event in cache.events()}
        assert {"segment_sealed", "sentences_closed"} <= kinds
        assert cache.events() == []


def test_threads_with_a_sequence_each(rng):
    n, steps = 1200, 30
    tensors = [(*make_kv(rng, n + steps), make_q(rng, steps)) for _ in range(4)]

    def decode(cache, k, v, q):
        sequence = cache.sequence()
        prefill(sequence, k[:, :n], v[:, :n])
        for i in range(steps):
            at = n + i
            sequence.append(1)
            write(sequence, k[:, at:at + 1], v[:, at:at + 1])
            with cache.step([sequence]) as step:
                step.select(1, q[1, i:i + 1])
                out = step.attend(1, q[1, i:i + 1])
                chosen = selections(step)
            sequence.observe()
        return out, chosen

    with make_cache(**SPARSE) as cache, ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda each: decode(cache, *each), tensors))
    for (k, v, q), (out, chosen) in zip(tensors, results):
        want, _ = attention(q[1, -1], k[1], v[1], positions=chosen)
        np.testing.assert_allclose(out[0], want, atol=TOLERANCE)


def test_fork_leaves_its_parent_alone(rng):
    k, v = make_kv(rng, 1001)
    other_k, other_v = make_kv(rng, 1001)
    q = make_q(rng, 1)
    with make_cache(policy="dense", page_tokens=16) as cache:
        parent = cache.sequence()
        prefill(parent, k[:, :1000], v[:, :1000])
        child = parent.fork()
        assert (len(child), child.policy) == (1000, parent.policy)
        for sequence, (new_k, new_v) in ((child, (other_k, other_v)), (parent, (k, v))):
            sequence.append(1)
            write(sequence, new_k[:, 1000:], new_v[:, 1000:])
        with cache.step([parent, child]) as step:
            out = step.attend(0, np.concatenate([q[0], q[0]]))
        want, _ = attention(q[0, 0], k[0], v[0])
        np.testing.assert_allclose(out[0], want, atol=TOLERANCE)
        want, _ = attention(q[0, 0], np.concatenate([k[0, :1000], other_k[0, 1000:]]),
                            np.concatenate([v[0, :1000], other_v[0, 1000:]]))
        np.testing.assert_allclose(out[1], want, atol=TOLERANCE)
        parent.release()
        assert len(child) == 1001


def test_share_prefix(rng):
    k, v = make_kv(rng, 200)
    ids = make_ids(rng, 200)
    with make_cache(policy="dense", vocabulary=VOCABULARY) as cache:
        prefill(first := cache.sequence(), k, v, ids)
        assert cache.sequence(salt=7).share_prefix(ids) == 0
        second = cache.sequence()
        shared = second.share_prefix(ids)
        assert shared == 192 and len(second) == 192  # whole pages of 16
        second.append(ids[shared:])
        write(second, k[:, shared:], v[:, shared:])
        q = make_q(rng, 1)
        with cache.step([first, second]) as step:
            out = step.attend(1, np.concatenate([q[1], q[1]]))
        np.testing.assert_allclose(out[0], out[1], atol=TOLERANCE)
        assert cache.stats()["prefix_hit_tokens"] == 192


def test_set_policy_changes_the_budget_and_keeps_lists(rng):
    k, v = make_kv(rng, 2000)
    q = make_q(rng, 1)
    with make_cache(**SPARSE) as cache:
        sequence = cache.sequence()
        prefill(sequence, k, v)
        lists = sequence.info["num_lists"]
        for budget in (512, 128):
            sequence.set_policy(budget=budget)
            assert sequence.info["num_lists"] == lists
            with cache.step([sequence]) as step:
                step.select(0, q[0])
                assert len(step.selected()) == budget
        sequence.set_policy(per_query_head=True)
        with cache.step([sequence]) as step:
            step.select(0, q[0])
            assert len(step.selected(head=HEADS - 1)) == 128
        sequence.set_policy("clusterkv", budget=128)
        assert sequence.policy["cluster_metric"] == 1
        sequence.set_policy("cluster", cluster_metric="cosine")
        assert sequence.policy["cluster_metric"] == 1 and sequence.policy["budget"] == 2048


def test_sentencekv_keeps_part_of_the_prompt(rng):
    n, queries = 1200, 32
    k, v = make_kv(rng, n)
    q = make_q(rng, queries)
    with make_cache(vocabulary=VOCABULARY, query_window=queries) as cache:
        sequence = cache.sequence("sentencekv", budget=128, force_sparse=True)
        sequence.append(make_ids(rng, n))
        write(sequence, k, v)
        with cache.step([sequence], num_queries=[queries]) as step:
            for layer in range(LAYERS):
                step.attend(layer, q[layer])
        sequence.index()
        assert sequence.info["num_hidden"] == n - 3 * 128
        with cache.step([sequence]) as step:
            step.select(0, q[0, :1])
            assert len(step.selected(head=HEADS - 1)) <= n


def test_stats_and_explain(rng):
    k, v = make_kv(rng, 2000)
    q = make_q(rng, 1)
    with make_cache(**SPARSE) as cache:
        sequence = cache.sequence()
        prefill(sequence, k, v)
        with cache.step([sequence]) as step:
            for layer in range(LAYERS):
                step.select(layer, q[layer])
                step.attend(layer, q[layer])
        stats = cache.stats()
        assert stats["steps"] == 1
        assert stats["layer_rows"]["sparse"] == LAYERS
        assert stats["attended_tokens"] == LAYERS * KV_HEADS * 256
        text = cache.explain()
        assert f"sequence {sequence.id}: 2000 tokens, policy cluster, budget 256" in text
