"""semkv in transformers comes and goes without a trace, and refuses what it cannot do by name."""
import copy
import gc
import weakref

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import semkv  # noqa: E402
import semkv.hf  # noqa: E402
from hf_models import (  # noqa: E402
    EVERYTHING,
    difference,
    generate,
    make_ids,
    make_model,
)


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


def test_disable_restores_what_was_there():
    for attention in ("sdpa", "eager"):
        model, inputs = make_model("llama", attention), make_ids(100)
        before, stock = copy.deepcopy(model.config), generate(model, inputs)
        handle = semkv.hf.enable(model, **EVERYTHING)
        assert difference(generate(model, inputs), stock) > 0
        assert semkv.hf.explain(model) == handle.explain()
        semkv.hf.disable(model)
        handle.disable()
        assert model.config == before and model.config._attn_implementation == attention
        assert not model.model._forward_pre_hooks and "generate" not in vars(model)
        assert difference(generate(model, inputs), stock) == 0
        with pytest.raises(ValueError, match="not enabled in this LlamaForCausalLM"):
            semkv.hf.explain(model)


def test_nothing_is_kept_after_generate(llama):
    with semkv.hf.enable(llama, **EVERYTHING) as handle:
        for _ in range(2):
            result = generate(llama, make_ids(300, 200), num_beams=2)
            assert handle.stats()["caches"] == 1 and handle.stats()["pages_used"] > 0
            # Without the collector: a prompt's memory must not wait for it.
            gc.disable()
            del result
            assert handle.stats()["caches"] == handle.stats()["pages_used"] == 0
            gc.enable()
        assert handle.stats()["steps"] == 22


def test_a_model_that_is_gone_is_not_held():
    model = make_model("llama")
    semkv.hf.enable(model, **EVERYTHING)
    generate(model, make_ids(50))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_moved_cache_holds_one_copy(llama):
    with semkv.hf.enable(llama, **EVERYTHING):
        cache = generate(llama, make_ids(100)).past_key_values
        assert all(layer.keys is None and layer.values is None for layer in cache.layers)
        assert cache.get_seq_length() == 111


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, words", [
    (dict(policy="hybird"), ["'hybird'", "hybrid"]),
    (dict(policy="cluster", budget=10), ["budget is 10", "sinks"]),
    (dict(policy="sentence"), ["sentence", "vocabulary"]),
    (dict(policy="sentencekv"), ["vocabulary"]),
    (dict(policy="cluster", max_tokens=0), ["max_tokens is 0", "at least 1"]),
])
def test_mistakes_in_the_options_are_named(llama, options, words):
    with pytest.raises(ValueError) as error:
        semkv.hf.enable(llama, **options)
    for word in words:
        assert word in str(error.value)
    assert llama.config._attn_implementation == "sdpa"


def test_an_unknown_field_is_named(llama):
    with pytest.raises(TypeError, match="budgit"):
        semkv.hf.enable(llama, "cluster", budgit=3)


def t5():
    shape = dict(vocab_size=50, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**shape))


def flex():
    model = make_model("llama")
    model.config._attn_implementation = "flex_attention"
    return model


@pytest.mark.parametrize("make, words", [
    (lambda: make_model("mistral", sliding_window=32), ["DynamicSlidingWindowLayer"]),
    (lambda: make_model("llama", head_dim=32), ["head_dim is not 64", "head_dim 32"]),
    (lambda: make_model("gpt_oss", "eager", layer_types=["full_attention"] * 3,
                        num_local_experts=2, num_experts_per_tok=1), ["learned sinks"]),
    (lambda: make_model("deepseek_v3", kv_lora_rank=32, q_lora_rank=None, qk_rope_head_dim=32,
                        qk_nope_head_dim=32, v_head_dim=32, first_k_dense_replace=3), ["MLA"]),
    (lambda: make_model("llama").to("meta"), ["device meta", "cpu"]),
    (lambda: make_model("llama").double(), ["float64", "float32"]),
    (t5, ["encoder-decoder"]),
    (flex, ["'flex_attention'", "'sdpa'"]),
])
def test_models_that_cannot_be_served_are_refused(make, words):
    model = make()
    stock = model.config._attn_implementation
    with pytest.raises(ValueError) as error:
        semkv.hf.enable(model, "cluster")
    for word in words:
        assert word in str(error.value)
    assert model.config._attn_implementation == stock


def test_enabling_twice_is_refused(llama):
    with semkv.hf.enable(llama, "cluster"):
        with pytest.raises(ValueError, match="already"):
            semkv.hf.enable(llama, "cluster")


def test_a_failure_within_a_step_gives_up_that_cache_alone(llama, monkeypatch):
    inputs = make_ids(100)
    with semkv.hf.enable(llama, **EVERYTHING) as handle:
        right = generate(llama, inputs)
        cache = transformers.DynamicCache()
        attend, calls = semkv.Step.attend, []

        def fail_once(self, *arguments, **options):
            calls.append(1)
            if len(calls) == 5:
                raise semkv.SemkvError(13, "INTERNAL", "out of order")
            return attend(self, *arguments, **options)

        monkeypatch.setattr(semkv.Step, "attend", fail_once)
        with pytest.raises(semkv.SemkvError, match="INTERNAL: out of order"):
            generate(llama, inputs, past_key_values=cache)
        with pytest.raises(RuntimeError, match="given up: SemkvError: INTERNAL: out of order"):
            llama(torch.tensor([[3]]), past_key_values=cache)
        assert difference(generate(llama, inputs), right) == 0
        del cache
        gc.collect()  # the exceptions hold frames
        assert handle.stats()["caches"] == 1  # of `right`


def test_a_forward_that_was_interrupted_gives_up_its_cache(llama):
    def interrupt(module, args):
        raise KeyboardInterrupt

    with torch.no_grad(), semkv.hf.enable(llama, **EVERYTHING):
        cache = generate(llama, make_ids(100)).past_key_values
        hook = llama.model.layers[1].mlp.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            llama(torch.tensor([[3]]), past_key_values=cache)
        hook.remove()
        with pytest.raises(RuntimeError, match="a forward ended before its last layer"):
            llama(torch.tensor([[3]]), past_key_values=cache)


def test_a_pool_that_is_too_small_names_both_numbers(llama):
    with semkv.hf.enable(llama, **EVERYTHING, max_tokens=104):
        with pytest.raises(semkv.SemkvError, match="104 tokens and 1 more, at most 104"):
            generate(llama, make_ids(100), max_new_tokens=20)


def test_what_a_moved_cache_cannot_do_is_refused(llama):
    inputs, token = make_ids(100), torch.tensor([[3]])
    with torch.no_grad(), semkv.hf.enable(llama, **EVERYTHING):
        cache = generate(llama, inputs).past_key_values
        with pytest.raises(RuntimeError, match=r"crop\(-2\)"):
            cache.crop(-2)
        with pytest.raises(RuntimeError, match="output_attentions"):
            llama(token, past_key_values=cache, output_attentions=True)
        with pytest.raises(RuntimeError, match=r"attention_mask of \[1, 7\] for 1 rows of 111"):
            llama(token, past_key_values=cache, attention_mask=torch.ones((1, 7)))
        mask = torch.ones((1, 112))
        mask[0, :4] = 0
        with pytest.raises(ValueError, match="shows 107 earlier tokens of row 0.* with 111"):
            llama(token, past_key_values=cache, attention_mask=mask)
        with pytest.raises(ValueError, match="2 rows, but the cache has 1"):
            llama(token.expand(2, 1), past_key_values=cache)
        with torch.enable_grad(), pytest.raises(RuntimeError, match="gradients are wanted"):
            llama(token, past_key_values=cache)
        llama(token, past_key_values=cache)  # none of this has harmed it
    with torch.no_grad(), pytest.raises(RuntimeError, match="which was disabled"):
        llama(token, past_key_values=cache)
    with torch.no_grad(), semkv.hf.enable(llama, **EVERYTHING):
        with pytest.raises(RuntimeError, match="another model, or before semkv was disabled"):
            llama(token, past_key_values=cache)


def test_another_attention_while_enabled_is_refused(llama):
    with semkv.hf.enable(llama, **EVERYTHING):
        llama.set_attn_implementation("eager")
        with pytest.raises(RuntimeError, match="'eager' while semkv is enabled"):
            generate(llama, make_ids(20))
    assert llama.config._attn_implementation == "sdpa"
