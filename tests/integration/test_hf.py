"""Stock transformers on the CPU, with semkv and without: equal where nothing is to be gained, close
where steps are decoded sparsely, and nothing left behind."""
import copy
import pathlib
import re
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import seeds  # noqa: E402
import semkv.hf  # noqa: E402
from hf_models import (  # noqa: E402
    EVERYTHING,
    SLIDING,
    difference,
    forwards,
    generate,
    make_ids,
    make_model,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = str(ROOT / "models" / "semkv-tiny")


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


# ---- equal to stock ----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_short_contexts_are_stock_to_the_bit(kind, dtype, attention):
    model = make_model(kind, attention, dtype)
    for inputs in (make_ids(200), make_ids(150, 30, 1)):
        stock = generate(model, inputs)
        with semkv.hf.enable(model, "cluster", min_context=4096) as handle:
            assert difference(generate(model, inputs), stock) == 0
            assert forwards(handle) == {"prompt or several queries": 1, "short context": 11}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_budget_above_the_context_is_dense_attention(kind, attention, record_property):
    model = make_model(kind, attention)
    for inputs in (make_ids(400), make_ids(250, 30, 1)):
        stock = generate(model, inputs)
        with semkv.hf.enable(model, **EVERYTHING) as handle:
            found = difference(generate(model, inputs), stock)
            rows = handle.stats()["layer_rows"]
            assert rows["sparse"] == sum(rows.values()) == 11 * 3 * len(inputs["input_ids"])
        record_property("logits apart", found)
        assert found < 1e-3


def test_bfloat16_stays_close_to_dense_attention(record_property):
    model, inputs = make_model("llama", dtype="bfloat16"), make_ids(400)
    stock = generate(model, inputs)
    with semkv.hf.enable(model, **EVERYTHING):
        found = generate(model, inputs, max_new_tokens=2)
    # The first logits are the prompt's; the second see the same tokens.
    assert torch.equal(found.sequences[:, :401], stock.sequences[:, :401])
    apart = (found.logits[1] - stock.logits[1]).abs().max().item()
    record_property("logits apart", f"{apart} of {stock.logits[1].abs().max().item()}")
    assert 0 < apart < 0.02 * stock.logits[1].abs().max().item()


def test_a_soft_cap_is_the_models_own():
    """Stock eager attention applies it, stock sdpa does not."""
    changes = dict(SLIDING, attn_logit_softcapping=2.0, query_pre_attn_scalar=16)
    found = {}
    for attention in ("eager", "sdpa"):
        model, inputs = make_model("gemma2", attention, **changes), make_ids(200)
        stock = generate(model, inputs)
        with semkv.hf.enable(model, **EVERYTHING) as handle:
            assert difference(generate(model, inputs), stock) < 1e-3
            assert forwards(handle)["served"] == 11
        found[attention] = stock.logits[1]
    assert not torch.allclose(found["eager"], found["sdpa"], atol=0.01)


def test_sliding_layers_are_left_and_named():
    model, inputs = make_model("gemma3_text", **SLIDING), make_ids(200, 90)
    stock = generate(model, inputs)
    with semkv.hf.enable(model, **EVERYTHING) as handle:
        assert difference(generate(model, inputs), stock) < 1e-3
        assert handle.stats()["layer_rows"]["sparse"] == 11 * 2 * 2
        assert "layer 0: left to transformers, a cache layer of kind DynamicSlidingWindowLayer" \
            in handle.explain()


# ---- rows --------------------------------------------------------------------------------------


def test_a_row_of_a_padded_batch_is_as_if_alone(llama):
    inputs = make_ids(300, 120, 200)
    with semkv.hf.enable(llama, "cluster", budget=64, force_sparse=True) as handle:
        batch = generate(llama, inputs, max_new_tokens=8)
        lengths = [int(n) for n in re.findall(r"sequence \d+: (\d+) tokens", handle.explain())]
        # The last token that was written is not in the cache yet.
        assert sorted(lengths) == [127, 207, 307]
        for row, (ids, mask) in enumerate(zip(inputs["input_ids"], inputs["attention_mask"])):
            alone = generate(llama, {"input_ids": ids[mask.bool()][None]}, max_new_tokens=8)
            assert torch.equal(alone.sequences[0, -8:], batch.sequences[row, -8:])
            for one, other in zip(alone.logits, batch.logits):
                assert torch.allclose(one[0], other[row], atol=1e-3)


def test_equal_rows_at_other_positions_share_nothing(llama):
    ids = make_ids(150)["input_ids"].repeat(2, 1)
    positions = torch.stack([torch.arange(151), 300 + 2 * torch.arange(151)])

    def decode():
        with torch.no_grad():
            past = llama(ids, position_ids=positions[:, :150]).past_key_values
            found = llama(ids[:, :1], position_ids=positions[:, 150:], past_key_values=past)
        return found.logits

    stock = decode()
    with semkv.hf.enable(llama, **EVERYTHING) as handle:
        found = decode()
        assert forwards(handle)["served"] == 1
    assert not torch.allclose(stock[0], stock[1], atol=0.1)
    assert torch.allclose(found, stock, atol=1e-3)


def test_padding_may_be_anywhere(llama):
    inputs = make_ids(100, 100)
    inputs["attention_mask"][1, [0, 7, 8, 50]] = 0
    stock = generate(llama, inputs)
    with semkv.hf.enable(llama, **EVERYTHING):
        assert difference(generate(llama, inputs), stock) < 1e-3


def test_short_rows_beside_a_long_one_are_dense(llama):
    inputs = make_ids(300, 20)
    stock = generate(llama, inputs)
    with semkv.hf.enable(llama, "cluster", budget=256, min_context=256) as handle:
        found = generate(llama, inputs)
        rows = handle.stats()["layer_rows"]
    assert (rows["sparse"], rows["short_context"]) == (33, 33)
    assert torch.equal(found.sequences[1], stock.sequences[1])


def test_rows_are_moved_when_they_have_grown(llama):
    inputs = make_ids(95)
    stock = generate(llama, inputs)
    with semkv.hf.enable(llama, "cluster", budget=64, min_context=100) as handle:
        found = generate(llama, inputs)
        assert forwards(handle) == {"prompt or several queries": 1, "short context": 5, "served": 6}
        assert all(torch.equal(a, b) for a, b in zip(found.logits[:6], stock.logits[:6]))
        assert handle.stats()["attended_tokens"] == 6 * 3 * 2 * 64


# ---- ways to generate --------------------------------------------------------------------------


def test_beams_are_those_of_stock(llama):
    inputs = make_ids(200, 90)
    options = dict(num_beams=4, num_return_sequences=3, max_new_tokens=20, output_scores=True)
    stock = generate(llama, inputs, **options)
    with semkv.hf.enable(llama, **EVERYTHING) as handle:
        found = generate(llama, inputs, **options)
        stats = handle.stats()
        assert stats["layer_rows"]["sparse"] == 19 * 3 * 8
    assert torch.equal(found.sequences, stock.sequences)
    assert torch.allclose(found.sequences_scores, stock.sequences_scores, atol=1e-4)
    assert torch.equal(found.beam_indices, stock.beam_indices)
    # Beams share what they have in common: twice 4 rows of 14 and 7 pages would be 84 pages.
    assert 0 < stats["pages_used"] < 50
    assert stats["pages_copied"] > 0


def test_sampling_with_a_seed_is_that_of_stock(llama):
    inputs = make_ids(150, 80)
    options = dict(do_sample=True, temperature=0.8, top_k=40, num_return_sequences=3)
    torch.manual_seed(seeds.SEED)
    stock = generate(llama, inputs, **options)
    with semkv.hf.enable(llama, **EVERYTHING):
        torch.manual_seed(seeds.SEED)
        found = generate(llama, inputs, **options)
    assert difference(found, stock) < 1e-3
    assert len({tuple(row.tolist()) for row in found.sequences}) > 2


def chat(model, turns, **options):
    """Each turn's prompt is what was said so far and some new tokens."""
    said, answers = torch.zeros((len(turns[0]), 0), dtype=torch.long), []
    for turn in turns:
        said = torch.cat([said, turn], 1)
        result = generate(model, {"input_ids": said, "attention_mask": torch.ones_like(said)},
                          **options)
        options["past_key_values"] = result.past_key_values
        said = result.sequences
        answers.append(result)
    return answers


def test_a_chat_goes_on_with_its_cache(llama):
    turns = [make_ids(n, n)["input_ids"] for n in (150, 40, 1, 30)]
    stock = chat(llama, turns)
    for given in ({}, {"past_key_values": transformers.DynamicCache()}):
        with semkv.hf.enable(llama, **EVERYTHING) as handle:
            found = chat(llama, turns, **given)
            for one, other in zip(found, stock, strict=True):
                assert difference(one, other) < 1e-3
            # What was said in every turn is in lists, but for the last open window.
            assert handle.explain().count("268 tokens, policy cluster, budget 1024, 4 segments") == 2
            assert forwards(handle) == {"prompt or several queries": 1, "served": 44,
                                        "served, several queries": 3}


def test_a_forward_needs_no_generate(llama):
    inputs = make_ids(120)
    with torch.no_grad(), semkv.hf.enable(llama, **EVERYTHING) as handle:
        prompt = llama(**inputs)
        step = {"input_ids": torch.tensor([[5]]), "past_key_values": prompt.past_key_values}
        logits = llama(**step).logits
        prompt = llama.model(inputs["input_ids"])
        hidden = llama.model(**{**step, "past_key_values": prompt.past_key_values})[0]
        assert forwards(handle) == {"prompt or several queries": 2, "served": 2}
    whole = torch.cat([inputs["input_ids"], step["input_ids"]], 1)
    stock = llama(whole).logits[:, -1:]
    assert torch.allclose(logits, stock, atol=1e-3)
    assert torch.allclose(llama.lm_head(hidden), stock, atol=1e-3)


def test_embeddings_instead_of_ids_have_no_sentences(llama):
    inputs = make_ids(120)
    embeds = llama.get_input_embeddings()(inputs["input_ids"])
    stock = generate(llama, {"inputs_embeds": embeds})
    with semkv.hf.enable(llama, **EVERYTHING) as handle:
        assert difference(generate(llama, {"inputs_embeds": embeds}), stock) < 1e-3
        assert forwards(handle)["served"] == 11


@pytest.mark.parametrize("move_first", [False, True])
def test_a_copied_cache_goes_its_own_way(llama, move_first):
    inputs = make_ids(150)
    more = torch.randint(1, 300, (2, 1, 10), generator=torch.Generator().manual_seed(seeds.SEED))
    with semkv.hf.enable(llama, **EVERYTHING):
        first = generate(llama, inputs, max_new_tokens=3 if move_first else 1)
        said = [torch.cat([first.sequences, each], 1) for each in more]
        caches = [copy.deepcopy(first.past_key_values), first.past_key_values]
        found = [generate(llama, {"input_ids": ids}, past_key_values=cache)
                 for ids, cache in zip(said, caches)]
    for ids, each in zip(said, found):
        assert difference(each, generate(llama, {"input_ids": ids})) < 1e-3


def test_rows_can_be_repeated_and_chosen(llama):
    inputs = make_ids(150, 150)
    chosen = torch.tensor([2, 0, 3, 0])
    last = torch.tensor([[3], [5], [3], [9]])

    def steps(wait):
        with torch.no_grad():
            cache = llama(**inputs).past_key_values
            if wait:  # now the cache is moved
                llama(torch.tensor([[1], [2]]), past_key_values=cache)
            cache.batch_repeat_interleave(2)
            cache.batch_select_indices(chosen)
            return llama(last, past_key_values=cache).logits

    for wait in (False, True):
        stock = steps(wait)
        with semkv.hf.enable(llama, **EVERYTHING):
            assert torch.allclose(steps(wait), stock, atol=1e-3)


def test_assisted_generation_stays_with_stock(llama):
    inputs = make_ids(150)
    stock = generate(llama, inputs, prompt_lookup_num_tokens=3)
    with semkv.hf.enable(llama, **EVERYTHING) as handle:
        assert difference(generate(llama, inputs, prompt_lookup_num_tokens=3), stock) == 0
        assert not any(reason.startswith("served") for reason in forwards(handle))


def test_other_caches_stay_with_stock(llama):
    inputs = make_ids(100)
    stock = generate(llama, inputs)
    with semkv.hf.enable(llama, **EVERYTHING) as handle:
        assert difference(generate(llama, inputs, cache_implementation="static"), stock) < 1e-4
        assert torch.equal(generate(llama, inputs, use_cache=False).sequences, stock.sequences)
        cache = llama(**inputs).past_key_values
        llama(torch.tensor([[3]]), past_key_values=cache).logits.sum().backward()
        assert not any(reason.startswith("served") for reason in forwards(handle))
        assert "StaticCache" in handle.explain() and "no cache" in handle.explain()
    llama.zero_grad()


# ---- answers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


def answers(model, documents, tokenizer):
    """For each question: is the answer what the model writes? A document is read once."""
    found = []
    for prompts in documents.values():
        common = torch.tensor([prompts[0][0]])
        while not all(ids[:common.shape[1]] == common[0].tolist() for ids, _ in prompts):
            common = common[:, :-1]
        with torch.no_grad():
            document = model(common, logits_to_keep=1).past_key_values
        for ids, answer in prompts:
            tokens = model.generate(
                torch.tensor([ids]), past_key_values=copy.deepcopy(document), do_sample=False,
                max_new_tokens=len(tokenizer(answer)["input_ids"]))
            found.append(tokenizer.decode(tokens[0, len(ids):]).startswith(answer))
    return found


@pytest.fixture(scope="module")
def documents(facts):
    """{first tokens: [(prompt, answer)]}, so that a document is read once for its questions."""
    found = {}
    for ids, answer in facts[:24 * seeds.SOAK]:
        found.setdefault(tuple(ids[:100]), []).append((ids, answer))
    assert len(found) <= 5 * seeds.SOAK
    return found


@pytest.fixture(scope="module")
def stock_answers(tiny, documents, tokenizer):
    return answers(tiny, documents, tokenizer)


@pytest.mark.parametrize("policy, least", [("hybrid", 0.97), ("window", None)])
def test_facts_are_found_with_an_eighth_of_the_context(tiny, documents, tokenizer, stock_answers,
                                                       policy, least, record_property):
    with semkv.hf.enable(tiny, policy, tokenizer=tokenizer, budget=512,
                         force_sparse=True) as handle:
        found = answers(tiny, documents, tokenizer)
        stats = handle.stats()
    right = sum(stock_answers)
    kept = sum(mine and theirs for mine, theirs in zip(found, stock_answers, strict=True))
    record_property("answers", f"kept {kept} of {right} right ones, {len(found)} questions")
    assert right > 0.6 * len(found), "too few questions that dense attention answers"
    if least is None:
        assert kept <= 0.2 * right, "a window cannot know what lies before it"
    else:
        assert kept >= least * right
    rows = stats["layer_rows"]
    assert 0 < rows["sparse"] == sum(rows.values())
    assert stats["attended_tokens"] <= 512 * stats["selections"]


def test_without_a_tokenizer_hybrid_becomes_cluster(llama):
    with pytest.warns(UserWarning, match="policy cluster instead of hybrid"):
        handle = semkv.hf.enable(llama, budget=512)
    with handle:
        assert handle.policy["policy"] == "cluster" and handle.policy["budget"] == 512


def test_examples_of_the_docs_run():
    text = (ROOT / "docs" / "transformers.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.S | re.M)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True,
                              timeout=300, cwd=ROOT)
        assert done.returncode == 0, done.stderr
