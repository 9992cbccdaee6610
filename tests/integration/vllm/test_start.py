"""What an engine starts with: no switch, mistakes, another vLLM, no library, models that semkv does
not serve. But for mistakes it starts, leaves to stock vLLM what it must, and says why, once."""
import json
import re

import pytest

pytest.importorskip("vllm")

SWITCH = "hybrid,budget=512,force_sparse=1"


@pytest.fixture(scope="module")
def prompts(report_ids):
    return [report_ids[:900], report_ids[300:1400]]


def test_nothing_is_replaced_without_the_switch(engines, prompts):
    engine = engines()
    engine.generate(prompts[:1], max_tokens=2)
    assert "not switched on" in engine.report()["text"]
    assert "vLLM" in engine.log() and "semkv:" not in engine.log()


def test_a_mistake_in_the_options_ends_the_start(engines):
    with pytest.raises(RuntimeError, match="budget is 10, must hold sinks"):
        engines("hybrid,budget=10")


def test_another_version_of_vllm_is_used_with_one_warning(engines, prompts):
    engine = engines(SWITCH, {"SEMKV_TEST_SETUP": "import vllm; vllm.__version__ = '9.8.7'"})
    engine.generate(prompts, max_tokens=4)
    assert engine.log().count("semkv: tested with vLLM 0.32.0, this is 9.8.7") == 1
    [group] = engine.report()["groups"]
    assert group["counts"]["sparse"] > 0 and group["off"] is None


WITHOUT_A_FIELD = """
from vllm.v1.attention.backends import cpu_attn
cpu_attn.CPUAttentionMetadata.__dataclass_fields__.pop("slot_mapping")
"""


@pytest.mark.parametrize("environment, words", [
    ({"SEMKV_LIBRARY": "/nowhere/libsemkv.so"}, "libsemkv.so not found; looked for /nowhere/"),
    ({"SEMKV_TEST_SETUP": WITHOUT_A_FIELD}, "CPUAttentionMetadata has no slot_mapping")])
def test_what_semkv_cannot_build_on_is_named_and_stock_vllm_stays(engines, prompts, environment,
                                                                  words):
    engine, stock = engines(SWITCH, environment), engines()
    assert engine.generate(prompts, max_tokens=12, logprobs=1) == \
        stock.generate(prompts, max_tokens=12, logprobs=1)
    text = engine.report()["text"]
    assert text.startswith("semkv: off, ") and words in text
    assert engine.log().count("semkv: off") == 1 and words in engine.log()


GEMMA = dict(
    model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], num_key_value_heads=2, head_dim=64,
    query_pre_attn_scalar=64, sliding_window=256,
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"])
DEEPSEEK = dict(
    model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"], num_key_value_heads=4,
    kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128,
    first_k_dense_replace=4, n_routed_experts=2)


@pytest.mark.parametrize("model, num_left, reason", [
    (GEMMA, 2, "sliding window 25[56]"), (DEEPSEEK, 4, "attention backend [A-Z]*_MLA")])
def test_layers_that_are_left_to_vllm_are_named(engines, prompts, tmp_path, model, num_left, reason):
    config = dict(vocab_size=8192, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                  num_attention_heads=4, max_position_embeddings=8192, bos_token_id=0, eos_token_id=0,
                  **model)
    (tmp_path / "config.json").write_text(json.dumps(config))
    # vLLM's AMX kernels for MLA know bfloat16 alone.
    arguments = dict(model=str(tmp_path), load_format="dummy", skip_tokenizer_init=True,
                     dtype="bfloat16")
    try:
        engine = engines("cluster,budget=512,force_sparse=1", **arguments)
        engine.generate(prompts, max_tokens=4)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            engines(**arguments).generate(prompts, max_tokens=4)
        pytest.skip("stock vLLM does not serve this model here")
    report = engine.report()
    assert len(re.findall(f"layer .*: left to vLLM, {reason}", report["text"])) == num_left
    logged = re.findall(f"semkv: (.) of 4 layers are left to vLLM: {reason}", engine.log())
    assert logged == [str(num_left)]
    sparse = [group["counts"]["sparse"] for group in report["groups"] if not group["off"]]
    assert bool(sum(sparse)) == (num_left < 4)
