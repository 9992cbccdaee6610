"""Order of calls, close and release: what is out of order raises and changes nothing."""
import gc
import re
import subprocess
import sys

import numpy as np
import pytest
from small_model import HEAD_DIM, HEADS, LAYERS, make_cache, make_kv, make_q, prefill

import semkv


def raises(kind, text):
    return pytest.raises(kind, match=re.escape(text))


def test_closing_twice_and_use_after(rng):
    k, v = make_kv(rng, 10)
    cache = make_cache()
    sequence = cache.sequence()
    prefill(sequence, k, v)
    step = cache.step([sequence])
    cache.close()
    cache.close()
    for call in (cache.sequence, cache.stats, cache.explain, cache.events, sequence.fork,
                 sequence.index, sequence.observe, lambda: len(sequence), lambda: sequence.info,
                 lambda: sequence.append(1), lambda: sequence.write(0, k[0], v[0]),
                 lambda: cache.step([sequence]), lambda: step.reason(0), step.selected,
                 lambda: step.attend(0, make_q(rng, 1)[0])):
        with pytest.raises(RuntimeError):
            call()
    with raises(RuntimeError, "the cache is closed"):
        cache.stats()
    step.close()
    sequence.release()


def test_use_after_release(rng):
    with make_cache() as cache:
        sequence = cache.sequence()
        number = sequence.id
        sequence.release()
        sequence.release()
        for call in (lambda: sequence.append(1), sequence.fork, lambda: cache.step([sequence])):
            with raises(RuntimeError, f"sequence {number} was released"):
                call()


def test_sequences_that_are_dropped_give_their_pages_back(rng):
    k, v = make_kv(rng, 500)
    with make_cache(max_tokens=1024, max_sequences=2) as cache:
        for _ in range(20):
            prefill(cache.sequence(), k, v)
            gc.collect()
        assert cache.stats()["pages_used"] == 0


def test_sequences_keep_their_cache():
    sequence = make_cache().sequence()
    gc.collect()
    assert sequence.append(3) == range(3)


def test_a_step_locks_its_sequences(rng):
    k, v = make_kv(rng, 100)
    with make_cache() as cache:
        sequence = cache.sequence()
        prefill(sequence, k, v)
        step = cache.step([sequence])
        for name, call in (("append", lambda: sequence.append(1)), ("release", sequence.release),
                           ("fork", sequence.fork), ("index", sequence.index),
                           ("set_policy", lambda: sequence.set_policy(budget=512)),
                           ("step", lambda: cache.step([sequence]))):
            with raises(RuntimeError, f"{name}: sequence {sequence.id} is in a step"):
                call()
        step.close()
        step.close()
        with raises(RuntimeError, "the step has ended"):
            step.reason(0)
        dropped = cache.step([sequence])
        del dropped
        gc.collect()
        sequence.append(1)


def test_tokens_must_be_written_in_every_layer(rng):
    k, v = make_kv(rng, 100)
    with make_cache() as cache:
        sequence = cache.sequence()
        with raises(RuntimeError, "nothing was appended"):
            sequence.write(0, k[0], v[0])
        sequence.append(100)
        sequence.write(0, k[0], v[0])
        text = f"the last 100 tokens of sequence {sequence.id} were written in 1 of {LAYERS} layers"
        for call in (lambda: sequence.append(1), sequence.index, sequence.observe, sequence.fork):
            with raises(RuntimeError, text):
                call()
        q = make_q(rng, 1)
        with cache.step([sequence]) as step:
            step.attend(0, q[0])
            with raises(RuntimeError, "were not written in layer 1"):
                step.attend(1, q[1])
        sequence.write(1, k[1], v[1])
        sequence.index()
        with raises(RuntimeError, "nothing was appended"):
            sequence.write(0, k[0], v[0])


def test_two_steps_at_once(rng):
    """Steps over different sequences each have a plan; a larger step later makes plans grow."""
    k, v = make_kv(rng, 50)
    q = make_q(rng, 1)[0]
    with make_cache() as cache:
        sequences = [cache.sequence() for _ in range(4)]
        for sequence in sequences:
            prefill(sequence, k, v)
        with cache.step(sequences[:1]) as first, cache.step(sequences[1:2]) as second:
            np.testing.assert_array_equal(first.attend(0, q), second.attend(0, q))
        with cache.step(sequences) as all_four:
            out = all_four.attend(0, np.repeat(q, 4, axis=0))
        np.testing.assert_array_equal(out[0], out[3])


def test_a_failed_step_leaves_sequences_usable(rng):
    k, v = make_kv(rng, 50)
    with make_cache() as cache, make_cache() as other:
        sequence = cache.sequence()
        prefill(sequence, k, v)
        with raises(semkv.SemkvError, "row 0 has 51 queries, its sequence has 50 tokens"):
            cache.step([sequence], num_queries=[51])
        for arguments, text in ((([],), "a step of 0 sequences"),
                                (([sequence], [1, 1]), "num_queries has 2 numbers for 1 sequences"),
                                (([sequence, sequence],), "which is in the step already"),
                                (([other.sequence()],), "row 0 is a sequence of another cache")):
            with raises(ValueError, text):
                cache.step(*arguments)
        with cache.step([sequence]) as step:
            assert step.reason(0) == "short_context"
            with raises(semkv.SemkvError, "row 0 has no selection"):
                step.selected()
            with raises(semkv.SemkvError, "layer 9 is not in [0, 2)"):
                step.attend(9, np.zeros((1, HEADS, HEAD_DIM), np.float32))
        sequence.append(1)


def test_arguments_refused():
    with raises(semkv.SemkvError, "head_dim"):
        make_cache(head_dim=72)
    with raises(ValueError, "dtype is int8, must be one of float32"):
        make_cache(dtype="int8")
    with raises(ValueError, "policy is 'fastest', must be one of dense, hybrid"):
        make_cache(policy="fastest")
    with raises(ValueError, "page_tokens is 0 and max_tokens 16384"):
        make_cache(page_tokens=0)
    with raises(TypeError, "no policy field is called buget; known are budget, sinks"):
        make_cache(buget=7)
    with raises(ValueError, "policy field cluster_metric is 'l1', must be cosine, l2"):
        make_cache(cluster_metric="l1")
    with raises(TypeError, "policy field budget is 1.5"):
        make_cache(budget=1.5)
    with make_cache(max_tokens=64, max_sequences=1) as cache:
        with raises(semkv.SemkvError, "budget is 20, must hold sinks + recent"):
            cache.sequence(budget=20)
        with raises(semkv.SemkvError, "vocabulary"):
            cache.sequence("hybrid")
        sequence = cache.sequence()
        with pytest.raises(semkv.SemkvError) as error:
            cache.sequence()
        assert error.value.code == 8 and "RESOURCE_EXHAUSTED" in str(error.value)
        with pytest.raises(semkv.SemkvError):
            sequence.append(65)
        assert len(sequence) == 0


@pytest.mark.parametrize("ending", ["", "raise SystemExit(0)", "del cache", "step.__exit__()"])
def test_exit_with_everything_open(ending):
    """An interpreter that ends with a cache, a sequence and a step still there ends quietly."""
    program = f"""
import semkv
cache = semkv.Cache(num_layers=1, num_heads=2, num_kv_heads=1, head_dim=64, max_tokens=64)
sequence = cache.sequence()
sequence.append(5)
step = cache.step([sequence])
globals()["again"] = [cache, step, sequence]
{ending}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
