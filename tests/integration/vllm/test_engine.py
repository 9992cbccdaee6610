"""Stock vLLM on the CPU, with semkv and without: equal where nothing is to be gained, close where
rows are decoded sparsely."""
import functools
import json
import pathlib
import time

import pytest

from engine_process import MODEL
from seeds import SEED
pytest.importorskip("vllm")
import torch  # noqa: E402  only beside vLLM

LENGTH = 8192  # max_model_len of the engines
NO_AMX = {"SEMKV_TEST_SETUP": "import torch; torch.cpu._is_amx_tile_supported = lambda: False"}


@pytest.fixture(scope="module")
def prompts(report_ids):
    return [report_ids[first:first + count]
            for first, count in [(0, 1500), (300, 900), (1000, 40), (0, 2500), (0, 127), (0, 128)]]


@pytest.mark.parametrize("dtype, environment, weights", [
    ("float32", None, "auto"), ("bfloat16", None, "auto"), ("bfloat16", NO_AMX, "dummy")])
def test_short_contexts_are_stock_vllm_to_the_bit(engines, prompts, dtype, environment, weights):
    kind = {"dtype": dtype, "environment": environment, "load_format": weights}
    engine = engines(f"hybrid,budget=512,min_context={LENGTH}", **kind)
    found = engine.generate(prompts, max_tokens=40, logprobs=1)
    assert found == engines(**kind).generate(prompts, max_tokens=40, logprobs=1)
    report = engine.report()
    has_amx = dtype == "bfloat16" and not environment and torch.cpu._is_amx_tile_supported()
    assert ("amx" in report["kernels"]) == has_amx and len(report["kernels"]) == 1
    [group] = report["groups"]
    assert set(group["counts"]) == {"prefill", "short context"}, report["text"]


@pytest.mark.parametrize("policy", ["hybrid", "quest", "clusterkv"])
def test_a_budget_above_the_context_is_dense_attention(engines, prompts, policy):
    engine = engines(f"{policy},budget={LENGTH},force_sparse=1")
    found = engine.generate(prompts, max_tokens=40, logprobs=1)
    report = engine.report()
    for mine, theirs in zip(found, engines().generate(prompts, max_tokens=40, logprobs=1)):
        assert mine["ids"] == theirs["ids"]
        assert mine["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-3)
    [group] = report["groups"]
    assert set(group["counts"]) == {"prefill", "sparse"}, report["text"]
    assert group["stats"]["layer_rows"].pop("sparse") > 0 == sum(group["stats"]["layer_rows"].values())


def test_sampling_and_salts_are_vllms(engines, prompts):
    """The same prompt three times, in one chunk: vLLM on the CPU cannot repeat a seed otherwise."""
    asked = dict(prompts=[prompts[1][:600]] * 3, max_tokens=20, salts=[None, "a", "b"],
                 temperature=0.7, top_p=0.9, seed=5)
    engine = engines(f"hybrid,budget={LENGTH},force_sparse=1")
    stock = engines()
    found = [[f["ids"] for f in e.generate(**asked)]
             for e in (engine, engine, stock)]  # the second time from the prefix cache
    assert found[0] == found[1] == found[2]
    assert stock.generate(asked["prompts"], max_tokens=20)[0]["ids"] != found[0][0]
    [group] = engine.report()["groups"]
    assert group["counts"]["sparse"] > 0 and group["off"] is None


@pytest.fixture(scope="module")
def stock_answers(engines, facts, tokenizer):
    return functools.cache(lambda dtype: answers(engines(dtype=dtype), facts, tokenizer))


def answers(engine, facts, tokenizer):
    """For each question: is the answer what the model writes?"""
    longest = max(len(tokenizer(answer)["input_ids"]) for _, answer in facts)
    found = engine.generate([ids for ids, _ in facts], max_tokens=longest)
    return [tokenizer.decode(f["ids"]).startswith(answer)
            for f, (_, answer) in zip(found, facts)]


# What a policy must keep of stock's right answers; the others stand beside the default.
@pytest.mark.parametrize("policy, dtype, least", [
    ("hybrid", "float32", 0.97), ("sentence", "float32", 0.9), ("cluster", "float32", 0.9),
    ("window", "float32", None), ("hybrid", "bfloat16", 0.97)])
def test_facts_are_found_with_an_eighth_of_the_context(engines, facts, tokenizer, stock_answers,
                                                       policy, dtype, least, record_property):
    engine = engines(f"{policy},budget=512,force_sparse=1", dtype=dtype)
    found = answers(engine, facts, tokenizer)
    report = engine.report()
    expected = stock_answers(dtype)
    right = sum(expected)
    kept = sum(mine and theirs for mine, theirs in zip(found, expected))
    record_property("answers", f"kept {kept} of {right} right ones, {len(facts)} questions")
    assert right > 0.6 * len(facts), "too few questions that dense attention answers"
    if least is None:
        assert kept <= 0.2 * right, "a window cannot know what lies before it"
    else:
        assert kept >= least * right
    [group] = report["groups"]
    assert set(group["counts"]) == {"prefill", "sparse"}, report["text"]
    rows = group["stats"]["layer_rows"]
    assert group["off"] is None and sum(rows.values()) == rows["sparse"]
    assert group["stats"]["attended_tokens"] <= 512 * group["stats"]["selections"]


def test_lists_of_a_prompt_in_chunks_are_built_while_it_comes(engines, facts, tokenizer,
                                                               stock_answers, record_property):
    """Segments of 1,024 tokens, chunks of at most as many."""
    engine = engines("hybrid,budget=512,force_sparse=1,segment_tokens=1024",
                     max_num_batched_tokens=1024)
    found, expected = answers(engine, facts, tokenizer), stock_answers("float32")
    kept = sum(mine and theirs for mine, theirs in zip(found, expected))
    [group] = engine.report()["groups"]
    record_property("answers", f"kept {kept} of {sum(expected)} right ones")
    record_property("lists", f"of {group['prompt']} tokens built while prompts came, of "
                             f"{group['shared']} shared")
    assert kept >= 0.97 * sum(expected)
    assert group["prompt"] >= 2 * 1024 and group["off"] is None and not group["refused"]


def test_drafts_are_verified_by_stock_vllm(engines, facts):
    """Drafts are what followed the same three tokens before. Some are refused, and their slots are
    written again; rows without one are sparse."""
    drafts = dict(speculative_config={"method": "ngram", "num_speculative_tokens": 3,
                                      "prompt_lookup_max": 3, "prompt_lookup_min": 2})
    prompts = [ids for ids, _ in facts[:4]]
    engine = engines(f"hybrid,budget={LENGTH},force_sparse=1", **drafts)
    found = engine.generate(prompts, max_tokens=40)
    assert [f["ids"] for f in found] == [
        s["ids"] for s in engines(**drafts).generate(prompts, max_tokens=40)]
    [group] = engine.report()["groups"]
    assert group["counts"]["several queries"] > 0 and group["counts"]["sparse"] > 0
    assert group["off"] is None and not group["refused"]


def test_two_tensor_parallel_workers_answer_alike(engines, facts, tmp_path):
    switch = "hybrid,budget=512,force_sparse=1"
    prompts = [ids for ids, _ in facts[:12]]
    report = tmp_path / "report"
    two = engines(f"{switch},report={report}", environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
                  distributed_executor_backend="mp", tensor_parallel_size=2)
    found = two.generate(prompts, max_tokens=24)
    one = engines(switch).generate(prompts, max_tokens=24)
    assert [o["ids"] for o in one] == [t["ids"] for t in found]
    time.sleep(1.1)  # a report is written at most once a second, at the beginning of a step
    two.generate(prompts[:1], max_tokens=1)
    for path in (report, report.with_name("report.1")):
        assert "sparse" in path.read_text().split("rows of steps:")[1].splitlines()[0], path


def test_a_compiled_model_answers_alike(engines, facts, tokenizer):
    """vLLM's default, which takes the other tests too long."""
    switch = "hybrid,budget=512,force_sparse=1"
    compiled = engines(switch, environment={"VLLM_DISABLE_COMPILE_CACHE": "1"}, enforce_eager=False)
    assert answers(compiled, facts[:12], tokenizer) == answers(engines(switch), facts[:12], tokenizer)
    [group] = compiled.report()["groups"]
    assert set(group["counts"]) == {"prefill", "sparse"} and group["off"] is None


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter of random numbers, large enough to change what the model says."""
    torch, files = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    config = json.loads((pathlib.Path(MODEL) / "config.json").read_text())
    rows = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"],
            "v_proj": config["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(SEED)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, heads in rows.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = 0.05 * torch.randn(
                8, config["hidden_size"], generator=generator)
            weights[f"{prefix}.lora_B.weight"] = 0.05 * torch.randn(
                heads * config["head_dim"], 8, generator=generator)
    files.save_file(weights, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "bias": "none",
         "lora_dropout": 0.0, "target_modules": list(rows)}))
    return str(tmp_path)


def test_requests_of_an_adapter_are_told_from_the_models_own(engines, prompts, adapter):
    """The same prompts with the model, the adapter and the model again: dense budgets, so tokens
    are stock's."""
    lora = dict(enable_lora=True, max_lora_rank=8)
    stock = engines(**lora)
    engine = engines(f"hybrid,budget={LENGTH},force_sparse=1", **lora)
    found = []
    for asked in (None, adapter, None):
        expected = stock.generate(prompts, max_tokens=20, lora=asked)
        found.append([f["ids"] for f in engine.generate(prompts, max_tokens=20, lora=asked)])
        assert found[-1] == [e["ids"] for e in expected]
    assert found[0] == found[2] != found[1]
    [group] = engine.report()["groups"]
    assert group["counts"]["sparse"] > 0 and group["off"] is None


def test_a_copy_that_is_limited_serves_what_fits(engines, report_ids):
    prompts = [report_ids[:900], report_ids[100:1100], report_ids[3000:3900]]
    block_gib = 2 * 4 * 2 * 64 * 128 * 4 / 2**30
    engine = engines(f"hybrid,budget={LENGTH},force_sparse=1,copy_gib={12.5 * block_gib}")
    found = engine.generate(prompts, max_tokens=20)
    assert [f["ids"] for f in found] == [
        f["ids"] for f in engines().generate(prompts, max_tokens=20)]
    [group] = engine.report()["groups"]
    assert group["counts"]["a block beyond the copy"] > 0
    assert group["counts"]["sparse"] > 0


def test_a_failure_within_a_step_leaves_it_to_stock_vllm(engines, prompts):
    engine = engines(f"hybrid,budget={LENGTH},force_sparse=1,max_rows=63")  # this test's own
    engine.generate(prompts[:1], max_tokens=2)
    engine.break_selection()
    found = engine.generate(prompts, max_tokens=20)
    assert [f["ids"] for f in found] == [
        f["ids"] for f in engines().generate(prompts, max_tokens=20)]
    [group] = engine.report()["groups"]
    assert group["off"] is not None


def test_blocks_that_a_connector_filled_are_told():
    import numpy as np
    import torch

    from semkv.vllm.group import Samples
    torch.manual_seed(1)
    cache = torch.randn(6, 2, 128, 256).bfloat16()
    samples = Samples(6, 128)
    samples.take(cache, np.array([128, 129, 400, -1]), 128)  # blocks 1 and 3
    assert samples.hold(np.array([1, 3], np.int32))
    cache[3] = torch.randn(2, 128, 256)
    assert samples.hold(np.array([1], np.int32)) and not samples.hold(np.array([1, 3], np.int32))
