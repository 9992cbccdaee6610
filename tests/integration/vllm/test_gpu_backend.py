"""The CUSTOM backend's classes over FlashAttention's and Triton's, on CPU tensors in the layouts of
GPUs: no engine, no GPU. The stock kernels are torch (gpu_worker.py says what is real)."""
import random

import pytest
from seeds import SEED, SOAK

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

import gpu_worker  # noqa: E402
from gpu_worker import (  # noqa: E402
    DIM,
    HEADS,
    KV_HEADS,
    TOKENS,
    Request,
    Worker,
    dense,
    make_config,
    new_caches,
    old_backend,
    stub_kernels,
)
from kv_caches import OLD, SplitFirst, allocate, stride_as_hybrid  # noqa: E402
from vllm.v1.attention.backends import flash_attn  # noqa: E402
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend  # noqa: E402
from vllm.v1.attention.backends.registry import (  # noqa: E402
    AttentionBackendEnum,
    register_backend,
)
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend  # noqa: E402
from vllm.v1.kv_cache_interface import KVCacheLayout  # noqa: E402

import semkv.vllm  # noqa: E402
from semkv.vllm import gpu_backend  # noqa: E402

STOCK = [FlashAttentionBackend, TritonAttentionBackend]
NUM_BLOCKS = 64
DENSE = "cluster,budget=2048,force_sparse=1"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors are so small that torch's threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config():
    return make_config()


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setenv("SEMKV_VLLM", DENSE)
    return stub_kernels(monkeypatch)


def old_caches(layout, order, hybrid=False):
    def caches(spec, num_layers):
        made = [allocate(layout, order, NUM_BLOCKS, TOKENS, KV_HEADS, DIM) for _ in range(num_layers)]
        return [stride_as_hybrid(kv_cache) for kv_cache in made] if hybrid else made
    return caches


def workers(config, kernels):
    """A worker for every layout that a stock backend can be given."""
    for stock in STOCK:
        for layout in KVCacheLayout:
            yield layout.name, Worker(config, stock, new_caches(layout))
        yield "padded pages", Worker(config, stock, new_caches(KVCacheLayout.BLNHC, padding=512))
    for layout in OLD:
        for order in layout.orders:
            yield layout.__name__, Worker(config, old_backend(layout, kernels),
                                          old_caches(layout, order))
    yield "hybrid", Worker(config, old_backend(SplitFirst, kernels),
                           old_caches(SplitFirst, "NHD", hybrid=True))


def decode(worker, num_steps, *requests):
    for _ in range(num_steps):
        parts = [(request, 1) for request in requests]
        worker.check(parts, worker.step(parts))


def test_every_layout_is_attended_where_it_is(config, kernels):
    """Two requests, prefilled in chunks, decoded together: every row is dense attention over what its
    request holds, and the stock kernels attend to no decode row."""
    tried = 0
    for name, worker in workers(config, kernels):
        first = Request(100, [5, 0, 17, 33, 2, 40, 8, 9])
        second = Request(37, [63, 1, 20, 3])
        for parts in ([(first, 60)], [(first, 40), (second, 37)]):
            worker.check(parts, worker.step(parts))
        kernels.rows.clear()
        decode(worker, 20, first, second)
        assert worker.group.off is None, (name, worker.group.off)
        assert not worker.builder.supports_draft_decode_metadata_update
        assert kernels.rows == [] and worker.group._counts["sparse"] == 40, name
        stats = worker.group.stats()
        assert stats["layer_rows"]["sparse"] == 80, name
        tried += 1
    assert tried == 2 * 7 + 2 * 3 + 1


def test_nothing_is_copied(config):
    """A key that is changed in vLLM's cache behind the plugin's back is read as it is now."""
    worker = Worker(config, FlashAttentionBackend, new_caches(KVCacheLayout.LBNHC), num_layers=1)
    request = Request(30, [7, 3])
    worker.step([(request, 30)])
    decode(worker, 1, request)
    worker.layers[0].kv_cache[3, 1, 4, DIM:] += 100  # the value of token 20, second KV head
    request.kv[0][0][1][20, 1] += 100
    decode(worker, 1, request)
    assert worker.group.off is None and worker.group._counts["sparse"] == 2


def test_bfloat16():
    worker = Worker(make_config("bfloat16"), TritonAttentionBackend, new_caches(KVCacheLayout.LBHNC))
    request = Request(90, list(range(10)))
    worker.step([(request, 90)])
    for _ in range(10):
        worker.check([(request, 1)], worker.step([(request, 1)]), tolerance=1.6e-2)
    assert worker.group.off is None and worker.group._counts["sparse"] == 10


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("seed", range(SEED, SEED + 3 * SOAK))
def test_decode_rows_beside_prefill(config, kernels, stock, seed):
    """Batches of chunks, several queries and decode rows, padded: the stock kernels get exactly the
    rows that are not decoded."""
    rng = random.Random(seed)
    layout = rng.choice(list(KVCacheLayout))
    worker = Worker(config, stock, new_caches(layout), seed=seed)
    free = rng.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    requests, mixed = [], 0
    for _ in range(40):
        if len(requests) < 4:
            requests.append(Request(rng.randint(2, 90), [free.pop() for _ in range(10)]))
        parts = []
        for request in requests:
            left = request.prompt - len(request.ids)
            parts.append((request, min(left, rng.randint(1, 40)) if left > 0
                          else rng.choice([1, 1, 1, 3])))
        rng.shuffle(parts)
        decoded = [len(r.ids) >= r.prompt and n == 1 for r, n in parts]
        kernels.rows.clear()
        worker.check(parts, worker.step(parts, padding=rng.choice([0, 5])))
        assert sorted(kernels.rows) == sorted(
            2 * [len(r.ids) for (r, _), is_decode in zip(parts, decoded) if not is_decode])
        mixed += any(decoded) and not all(decoded)
        for request in [r for r in requests if len(r.ids) > r.prompt + 20]:
            requests.remove(request)
            free[:0] = rng.sample(request.blocks, len(request.blocks))
    assert worker.group.off is None, f"seed {seed}: {worker.group.off}"
    assert mixed > 10, f"seed {seed}"
    assert not worker.group._tracker.refused


@pytest.mark.parametrize("layout", [KVCacheLayout.LBNHC, KVCacheLayout.BHLNC])
def test_a_small_budget_finds_marked_tokens(config, kernels, layout, monkeypatch):
    """Of 1,000 tokens 128 are attended to, among them those whose keys a query asks for."""
    monkeypatch.setenv("SEMKV_VLLM", "cluster,budget=128,force_sparse=1,recent=16,sinks=4")
    worker = Worker(config, FlashAttentionBackend, new_caches(layout, num_blocks=80))
    worker.kernel_width = 80
    directions = torch.nn.functional.normalize(worker.random(HEADS, DIM), dim=-1)
    marked = {100 + 90 * i: i % KV_HEADS for i in range(9)}

    def rows(index, request, n):
        q = 12 * DIM**0.5 * directions[None].expand(n, HEADS, DIM).clone()
        k, v = 0.1 * worker.random(n, KV_HEADS, DIM), torch.zeros(n, KV_HEADS, DIM)
        first = len(request.ids) - n
        for token, head in marked.items():
            if first <= token < first + n:
                # A KV head's query heads ask for it with the first of their directions.
                k[token - first, head] = directions[head * (HEADS // KV_HEADS)]
                v[token - first, head] = token
        return q, k, v

    request = Request(1000, random.Random(SEED).sample(range(80), 80))
    worker.step([(request, 1000)], rows)
    kernels.rows.clear()
    for _ in range(3):
        outputs = worker.step([(request, 1)], rows)
        for (_, index), out in outputs.items():
            wanted = dense(worker.queries[0, index], *request.held(index), DIM**-0.5)
            for head in range(KV_HEADS):
                query_head = head * (HEADS // KV_HEADS)
                found, full = out[0, query_head].mean().item(), wanted[0, query_head].mean().item()
                assert full > 300 and found == pytest.approx(full, rel=0.02), (index, head)
    stats = worker.group.stats()
    assert kernels.rows == [] and worker.group.off is None
    assert stats["attended_tokens"] <= 128 * stats["selections"]
    assert stats["selections"] == 3 * 2 * KV_HEADS


def test_blocks_that_two_requests_share(config):
    """A prefix-cache hit: the second request's blocks were written for the first."""
    worker = Worker(config, TritonAttentionBackend, new_caches(KVCacheLayout.BLNHC))
    first = Request(70, [4, 9, 2, 30, 31, 32])
    worker.step([(first, 70)])
    second = Request(70, [4, 9, 2, 50, 51, 52], ids=first.ids[:48],
                     kv={i: [tuple(part[:48] for part in first.held(i))] for i in range(2)})
    worker.step([(first, 1), (second, 22)])
    decode(worker, 5, first, second)
    assert worker.group.off is None and worker.group._counts["sparse"] == 1 + 10


def test_blocks_that_a_connector_filled(config, kernels, monkeypatch):
    """With a KV connector configured, a block that is not as the layer wrote it is left alone."""
    monkeypatch.setattr(config, "kv_transfer_config", object())
    for layout in (KVCacheLayout.LBNHC, KVCacheLayout.BHLNC):
        worker = Worker(config, TritonAttentionBackend, new_caches(layout))
        request = Request(40, [1, 2, 3, 4])
        worker.step([(request, 40)])
        decode(worker, 2, request)
        worker.layers[0].kv_cache[2, :, 15, :DIM] += 1  # keys of token 31
        kernels.rows.clear()
        worker.step([(request, 1)])
        assert kernels.rows == [43, 43] and worker.group.off is None
        assert worker.group._counts["sparse"] == 2


def test_the_schedule_of_the_whole_batch_stays(config, monkeypatch):
    """FlashAttention 3 writes its schedule into a buffer that all metadata of a builder share."""
    scheduled = []
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda *_, **__: 3)
    monkeypatch.setattr(flash_attn, "get_scheduler_metadata", raising=False,
                        value=lambda **given: scheduled.append(given["batch_size"]))
    worker = Worker(config, FlashAttentionBackend, new_caches(KVCacheLayout.LBNHC))
    first, second = Request(40, [1, 2, 3, 4]), Request(40, [5, 6, 7, 8])
    worker.step([(first, 40)])
    for _ in range(3):
        parts = [(first, 1), (second, 10)]
        worker.check(parts, worker.step(parts))
    assert scheduled == [1, 2, 2, 2] and worker.group._counts["sparse"] == 3


def test_short_rows_are_the_stock_backend_s(config, kernels, monkeypatch):
    monkeypatch.setenv("SEMKV_VLLM", "cluster,budget=64,min_context=100,recent=16")
    worker = Worker(config, FlashAttentionBackend, new_caches(KVCacheLayout.LBNHC))
    request = Request(90, list(range(10)))
    worker.step([(request, 90)])
    kernels.rows.clear()
    for _ in range(12):
        worker.step([(request, 1)])
    assert kernels.rows == [length for length in range(91, 101) for _ in range(2)]
    assert worker.group._counts["short context"] == 10 and worker.group._counts["sparse"] == 2


def serves_densely(worker, kernels, words):
    """The group is off and says why, and every row is the stock backend's from then on."""
    request = Request(40, [1, 2, 3, 4])
    worker.check([(request, 40)], worker.step([(request, 40)]))
    kernels.rows.clear()
    decode(worker, 3, request)
    assert len(kernels.rows) == 6
    assert all(word in worker.group.off for word in words), worker.group.off


def test_a_cache_that_moves(config, kernels):
    worker = Worker(config, FlashAttentionBackend, new_caches(KVCacheLayout.LBNHC))
    request = Request(40, [1, 2, 3, 4])
    worker.step([(request, 40)])
    decode(worker, 2, request)
    worker.bind([layer.kv_cache.clone() for layer in worker.layers])
    kernels.rows.clear()
    decode(worker, 2, request)
    assert len(kernels.rows) == 4 and "layer 0 was at 0x" in worker.group.off


def test_a_writer_of_another_layout(config, kernels, monkeypatch):
    """Values before keys: nothing that the hooks or strides could tell."""
    class Swapped(SplitFirst):
        @staticmethod
        def caches(kv_cache):
            return SplitFirst.caches(kv_cache)[::-1]

    worker = Worker(config, old_backend(Swapped, kernels), old_caches(Swapped, "NHD"))
    serves_densely(worker, kernels, ["keys of 40 tokens of 40", "not those that vLLM wrote"])


def test_a_shape_that_is_no_rows(config, kernels):
    class Transposed(SplitFirst):
        @staticmethod
        def get_kv_cache_shape(num_blocks, block_size, num_kv_heads, head_size):
            return (2, num_blocks, num_kv_heads, head_size // 8, block_size, 8)

    worker = Worker(config, old_backend(Transposed, kernels), old_caches(SplitFirst, "NHD"))
    serves_densely(worker, kernels, ["one of size 2 for keys and values"])


def test_blocks_of_no_power_of_two(config, kernels, monkeypatch):
    monkeypatch.setattr(gpu_worker, "TOKENS", 48)
    worker = Worker(config, TritonAttentionBackend, new_caches(KVCacheLayout.LBNHC))
    serves_densely(worker, kernels, ["blocks of 48 tokens", "power of two up to 1024"])


@pytest.mark.filterwarnings("ignore:Use of index_put_")
def test_rows_that_overlap(config, kernels):
    caches = old_caches(SplitFirst, "NHD")

    def overlapping(spec, num_layers):
        return [kv_cache.as_strided(kv_cache.shape, (DIM, *kv_cache.stride()[1:]))
                for kv_cache in caches(spec, num_layers)]

    # Each half alone is sound; a block's values are the next block's keys, which only writing shows.
    worker = Worker(config, old_backend(SplitFirst, kernels), overlapping)
    request = Request(40, [1, 2, 3, 4])
    worker.step([(request, 40)])
    assert "not those that vLLM wrote" in worker.group.off

    def one_block(spec, num_layers):
        return [kv_cache.as_strided(kv_cache.shape, (kv_cache.stride(0), 0, *kv_cache.stride()[2:]))
                for kv_cache in caches(spec, num_layers)]

    worker = Worker(config, old_backend(SplitFirst, kernels), one_block)
    worker.step([(Request(40, [1, 2, 3, 4]), 40)])
    assert "a stride of the keys is 0 elements" in worker.group.off


def unsupported(stock, **changed):
    impl = object.__new__(gpu_backend.over(stock).get_impl_cls())
    fields = dict(attn_type="decoder", sliding_window=(-1, -1), alibi_slopes=None, sinks=None,
                  kv_cache_dtype="auto", kv_sharing_target_layer_name=None, dcp_world_size=1,
                  pcp_world_size=1)
    impl.__dict__.update({**fields, **changed})
    return impl.unsupported()


@pytest.mark.parametrize("stock", STOCK)
def test_layers_that_are_left_alone(stock):
    assert unsupported(stock) is None
    for changed, words in [
            (dict(attn_type="encoder_only"), "encoder_only"),
            (dict(sliding_window=(127, 0)), "sliding window (127, 0)"),
            (dict(alibi_slopes=torch.ones(4)), "ALiBi"), (dict(sinks=torch.ones(4)), "sinks"),
            (dict(kv_cache_dtype="fp8"), "fp8"), (dict(kv_cache_dtype="int8_per_token_head"), "int8"),
            (dict(kv_sharing_target_layer_name="other"), "shared"),
            (dict(chunk_lookback=2), "2 looked back"), (dict(dcp_world_size=2), "2 ranks")]:
        assert words in unsupported(stock, **changed)


def test_a_model_with_a_reference_window(config, kernels, monkeypatch):
    monkeypatch.setattr(type(config.model_config), "rswa_window", 128, raising=False)
    worker = Worker(config, FlashAttentionBackend, new_caches(KVCacheLayout.LBNHC))
    assert worker.group.off == "reference sliding window of 128 tokens"


@pytest.mark.parametrize("stock", STOCK)
def test_the_stock_backend_answers_for_layouts_and_support(stock):
    mine = gpu_backend.over(stock)
    assert mine.get_name() == "CUSTOM" and not mine.is_sparse() and not mine.is_mla()
    own = {"get_name", "get_impl_cls", "get_builder_cls"}
    assert own == {name for name in vars(mine) if not name.startswith("_")}
    builder, impl = mine.get_builder_cls(), mine.get_impl_cls()
    assert builder.get_cudagraph_support(None, None).name == "NEVER"
    assert not builder.supports_update_block_table
    assert not impl.fused_output_quant_supported(None, None)
    for fused in ("rope", "qk_norm_rope", "qk_norm_mrope"):
        assert not getattr(impl, f"fused_{fused}_kvcache_supported")(None)


def test_custom_finds_the_class():
    register_backend(AttentionBackendEnum.CUSTOM, "semkv.vllm.gpu_backend.SemkvGpuBackend")
    try:
        assert AttentionBackendEnum.CUSTOM.get_class() is gpu_backend.SemkvGpuBackend
        # This package of vLLM has no FlashAttention kernels.
        assert issubclass(gpu_backend.SemkvGpuBackend, TritonAttentionBackend)
    finally:
        AttentionBackendEnum.CUSTOM.clear_override()


def test_a_gpu_changes_nothing_and_says_why(monkeypatch):
    from vllm.platforms import current_platform
    stock = AttentionBackendEnum.CPU_ATTN.get_path()
    monkeypatch.setattr(semkv.vllm, "_off", None)
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    semkv.vllm.register()
    assert "off, semkv has not been run on a GPU yet" in semkv.vllm.explain()
    assert AttentionBackendEnum.CPU_ATTN.get_path() == stock
    assert not AttentionBackendEnum.CUSTOM.is_overridden()
