"""A KV connector fills blocks behind the layers' back: semkv's copy lacks them, or holds what was
there before, and their rows must go to stock vLLM."""
import pytest

pytest.importorskip("vllm")

LENGTH = 1024
# Blocks of 128 tokens: so few that a request gets those of the one before.
FEW = dict(num_gpu_blocks_override=9, max_model_len=LENGTH, max_num_batched_tokens=LENGTH)


def with_connector(path):
    return dict(FEW, kv_transfer_config={
        "kv_connector": "ExampleConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(path)}})


def ids(engine, prompt):
    [found] = engine.generate([prompt], max_tokens=20)
    return found["ids"]


def test_blocks_that_a_connector_filled_are_left_to_stock_vllm(engines, report_ids, tmp_path):
    prompt, other = report_ids[:900], report_ids[4000:4950]
    stock = ids(engines(**FEW), prompt)
    # Another process computes the prompt and stores it.
    assert ids(engines(**with_connector(tmp_path)), prompt) == stock
    engine = engines(f"hybrid,budget={LENGTH},force_sparse=1", **with_connector(tmp_path))

    def counts():
        [group] = engine.report()["groups"]
        assert group["off"] is None
        return group["counts"].get("sparse", 0), sum(group["refused"].values())

    assert ids(engine, prompt) == stock
    sparse, refused = counts()
    assert sparse == 0 and refused > 0, "blocks that were never written through the layer"
    ids(engine, other)
    sparse, now_refused = counts()
    assert sparse > 0 and now_refused == refused, "the connector has nothing of this prompt"
    assert ids(engine, prompt) == stock
    assert counts()[0] == sparse and counts()[1] > refused, "blocks that held another prompt"
