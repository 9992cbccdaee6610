"""The switch's text and the vocabulary that sentences are cut by."""
import types

import pytest

from semkv._abi import lib
from semkv.vllm import is_switched_on
from semkv.vllm.options import from_environment, parse
from semkv._vocabulary import vocabulary_bytes


def test_a_policy_alone_has_its_defaults():
    options = parse("hybrid")
    assert options.name == "hybrid"
    assert (options.policy.budget, options.policy.min_context) == (2048, 4096)
    assert options.threshold == 4096


def test_fields_are_those_of_the_policy():
    options = parse("cluster, budget=512,cluster_size=64, mass_target=0.5, max_rows=3,"
                    "cluster_metric=cosine")
    assert options.policy.cluster_metric == lib.SEMKV_METRIC_COSINE
    assert options.policy.kind == lib.SEMKV_POLICY_CLUSTER
    assert (options.policy.budget, options.policy.cluster_size) == (512, 64)
    assert options.policy.mass_target == pytest.approx(0.5)
    assert options.max_rows == 3


def test_additional_config_wins():
    options = parse("hybrid,budget=512", {"budget": 1024, "policy": "sentence", "force_sparse": 1})
    assert (options.name, options.policy.budget, options.threshold) == ("sentence", 1024, 0)


@pytest.mark.parametrize("text, additional, words", [
    ("hybird", None, ["'hybird'", "hybrid", "cluster"]),
    ("hybrid,budgit=3", None, ["'budgit'", "budget", "max_rows"]),
    ("hybrid,budget", None, ["'budget'", "name=value"]),
    ("hybrid,budget=many", None, ["budget", "'many'", "number"]),
    ("hybrid,copy_gib=-1", None, ["copy_gib", "-1.0"]),
    ("hybrid,max_rows=some", None, ["max_rows", "'some'"]),
    ("hybrid,max_rows=0", None, ["max_rows", "0", "at least 1"]),
    ("hybrid,kind=3", None, ["'kind'"]),
    ("hybrid", {"budget": [1]}, ["budget", "[1]"]),
    ("hybrid", "budget=3", ["must be a dict"]),
])
def test_mistakes_are_named(text, additional, words):
    with pytest.raises(ValueError) as error:
        parse(text, additional)
    for word in words:
        assert word in str(error.value)


def test_the_switch_is_read_from_the_environment(monkeypatch):
    monkeypatch.delenv("SEMKV_VLLM", raising=False)
    assert not is_switched_on()
    monkeypatch.setenv("SEMKV_VLLM", "")
    assert not is_switched_on()
    monkeypatch.setenv("SEMKV_VLLM", "pages,budget=100")
    assert is_switched_on()
    config = types.SimpleNamespace(additional_config={"semkv": {"budget": 200}})
    assert from_environment(config).policy.budget == 200


class FakeTokenizer:
    all_special_ids = [0]

    def __init__(self, tokens):
        self._tokens = tokens

    def __len__(self):
        return len(self._tokens)

    def convert_ids_to_tokens(self, ids):
        return [self._tokens[i] for i in ids]


def test_byte_level_tokens_are_their_bytes():
    # "é" is two bytes, written as two stand-ins; "Ċ" is a line feed.
    tokens = ["<s>", "Ġthe", "Ã©", "Ċ", "。", None, "Â", "."]
    assert vocabulary_bytes(FakeTokenizer(tokens)) == [
        b"", b" the", "é".encode(), b"\n", "。".encode(), b"", b"\xc2", b"."]


def test_sentencepiece_tokens_are_text_and_single_bytes():
    tokens = ["<s>", "▁the", "é", "<0x0A>", "。", "<0xE3>"]
    assert vocabulary_bytes(FakeTokenizer(tokens)) == [
        b"", b" the", "é".encode(), b"\n", "。".encode(), b"\xe3"]
