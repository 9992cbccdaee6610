"""Stock vLLM on the CPU, with semkv and without: equal where nothing is to be gained, close where
rows are decoded sparsely. Every engine is a process of its own (engine_process.py)."""
import os

import pytest

from conftest import MODEL
from engine_process import EngineProcess

pytest.importorskip("vllm")

LENGTH = 8192


def start(switch=None, dtype="float32", **engine):
    settings = dict(model=MODEL, enforce_eager=True, max_model_len=LENGTH, dtype=dtype,
                    skip_tokenizer_init=False)
    return EngineProcess(switch, **{**settings, **engine})


def continuations(prompts, switch, dtype):
    with start(switch, dtype) as engine:
        return engine.generate(prompts, max_tokens=40, logprobs=1), engine.report()


@pytest.fixture(scope="module")
def prompts(report_ids):
    return [report_ids[first:first + count]
            for first, count in [(0, 1500), (300, 900), (1000, 40), (0, 2500), (0, 127), (0, 128)]]


@pytest.fixture(scope="module")
def stock(prompts):
    return {dtype: continuations(prompts, None, dtype)[0] for dtype in ("float32", "bfloat16")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_short_contexts_are_stock_vllm_to_the_bit(prompts, stock, dtype):
    found, report = continuations(prompts, f"hybrid,budget=512,min_context={LENGTH}", dtype)
    assert found == stock[dtype]
    [group] = report["groups"]
    assert set(group["counts"]) == {"prefill", "short context"}, report["text"]


def test_a_budget_above_the_context_is_dense_attention(prompts, stock):
    found, report = continuations(prompts, f"hybrid,budget={LENGTH},force_sparse=1", "float32")
    for mine, theirs in zip(found, stock["float32"]):
        assert mine["ids"] == theirs["ids"]
        assert mine["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-3)
    [group] = report["groups"]
    assert set(group["counts"]) == {"prefill", "sparse"}, report["text"]
    assert group["stats"]["layer_rows"][0] > 0 == sum(group["stats"]["layer_rows"][1:])


@pytest.fixture(scope="module")
def stock_answers(facts, tokenizer):
    with start() as engine:
        return answers(engine, facts, tokenizer)


def answers(engine, facts, tokenizer):
    """For each question: is the answer what the model writes?"""
    longest = max(len(tokenizer(answer)["input_ids"]) for _, answer in facts)
    found = engine.generate([ids for ids, _ in facts], max_tokens=longest)
    return [tokenizer.decode(f["ids"]).startswith(answer)
            for f, (_, answer) in zip(found, facts)]


# What a policy must keep of stock's right answers; the others stand beside the default.
@pytest.mark.parametrize("policy, least", [("hybrid", 0.97), ("sentence", 0.9), ("cluster", 0.9),
                                           ("window", None)])
def test_facts_are_found_with_an_eighth_of_the_context(facts, tokenizer, stock_answers, policy,
                                                       least):
    with start(f"{policy},budget=512,force_sparse=1") as engine:
        found = answers(engine, facts, tokenizer)
        report = engine.report()
    right = sum(stock_answers)
    kept = sum(mine and theirs for mine, theirs in zip(found, stock_answers))
    print(f"{policy}: kept {kept} of {right} right answers, {len(facts)} questions")
    assert right > 0.6 * len(facts), "too few questions that dense attention answers"
    if least is None:
        assert kept <= 0.2 * right, "a window cannot know what lies before it"
    else:
        assert kept >= least * right
    [group] = report["groups"]
    assert set(group["counts"]) == {"prefill", "sparse"}, report["text"]
    assert sum(group["stats"]["layer_rows"][1:]) == 0
    assert group["stats"]["attended_tokens"] <= 512 * group["stats"]["selections"]


def test_two_tensor_parallel_workers_answer_alike(facts, tokenizer):
    switch = "hybrid,budget=512,force_sparse=1"
    some = facts[:12]
    with start(switch) as engine:
        one = engine.generate([ids for ids, _ in some], max_tokens=6)
    with start(switch, tensor_parallel_size=2, distributed_executor_backend="mp") as engine:
        two = engine.generate([ids for ids, _ in some], max_tokens=6)
    assert [o["ids"] for o in one] == [t["ids"] for t in two]


def test_nothing_is_replaced_without_the_switch(prompts):
    with start() as engine:
        engine.generate(prompts[:1], max_tokens=2)
        assert "no attention layers" in engine.report()["text"]
        assert "semkv" not in engine.log().replace(os.getcwd(), "").replace(MODEL, "")


@pytest.mark.parametrize("switch, words", [
    ("hybird", ["unknown policy 'hybird'"]),
    ("hybrid,budget=10", ["budget is 10", "16"]),
    ("hybrid,segment_tokens=5", ["segment_tokens is 5"]),
])
def test_a_mistake_in_the_options_ends_the_start(switch, words):
    with pytest.raises(RuntimeError) as error:
        start(switch)
    for word in words:
        assert word in str(error.value)


def test_a_copy_that_is_limited_serves_what_fits(report_ids):
    prompts = [report_ids[:900], report_ids[100:1100], report_ids[3000:3900]]
    block_gib = 2 * 4 * 2 * 64 * 128 * 4 / 2**30
    with start(f"hybrid,budget={LENGTH},force_sparse=1,copy_gib={12.5 * block_gib}") as engine:
        found = engine.generate(prompts, max_tokens=20)
        [group] = engine.report()["groups"]
    with start() as engine:
        assert [f["ids"] for f in found] == [
            f["ids"] for f in engine.generate(prompts, max_tokens=20)]
    assert group["counts"]["a block beyond the copy"] > 0
    assert group["counts"]["sparse"] > 0
