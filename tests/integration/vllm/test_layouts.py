"""Where a token's key and value are in the KV caches of vLLM's GPU backends: what layouts.py finds by
the backend's hooks and the tensor's strides, against vLLM's own indexing of each layout."""
import itertools
import random

import numpy as np
import pytest
from seeds import SEED, SOAK

torch = pytest.importorskip("torch")

from kv_caches import (  # noqa: E402  after torch, which these need
    OLD,
    BlocksFirst,
    Joined,
    SplitFirst,
    allocate,
    layer_caches,
    stride_as_hybrid,
)

from semkv._abi import ffi  # noqa: E402
from semkv.vllm import layouts  # noqa: E402

BLOCKS, TOKENS, HEADS, DIM = SIZES = 5, 16, 3, 4
GEOMETRY = layouts.Geometry(TOKENS, HEADS, DIM, torch.float32)


def mark(cache, first):
    """A number of its own for every element of keys or values, from `first` on."""
    cache.copy_(torch.arange(first, first + cache.numel()).view(cache.shape).float())


def read(base, offset):
    return np.frombuffer(ffi.buffer(ffi.cast("float *", base) + offset, 4 * DIM), np.float32)


def check_all(kv_cache, caches, dims):
    """Marks everything through vLLM's view, reads it through semkv_kv_view's addresses."""
    blocks, tokens = caches[0].shape[:2]
    mark(caches[0], 0)
    mark(caches[1], caches[0].numel())
    view = layouts.kv_view(7, *layouts.rows_of(kv_cache, dims, GEOMETRY._replace(block_tokens=tokens)))
    assert view.layer == 7
    for block, token, head in itertools.product(range(blocks), range(tokens), range(HEADS)):
        wanted = (np.ravel_multi_index((block, token, head, 0), (blocks, tokens, HEADS, DIM))
                  + np.arange(DIM))
        k = read(view.k, block * view.k_page + head * view.k_head + token * view.k_token)
        v = read(view.v, block * view.v_page + head * view.v_head + token * view.v_token)
        assert (k == wanted).all(), (block, token, head)
        assert (v == wanted + caches[0].numel()).all(), (block, token, head)


def stated(backend):
    return layouts.find_dims(layouts.stated_shape(backend, None), GEOMETRY)


@pytest.mark.parametrize("backend", OLD)
@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_every_row_up_to_0_28(backend, order):
    kv_cache = allocate(backend, order, *SIZES)
    check_all(kv_cache, backend.caches(kv_cache), stated(backend))


def test_hybrid_models_stride_otherwise_than_stated():
    kv_cache = stride_as_hybrid(allocate(SplitFirst, "NHD", *SIZES))
    check_all(kv_cache, SplitFirst.caches(kv_cache), stated(SplitFirst))


@pytest.mark.parametrize("seed", range(SEED, SEED + 20 * SOAK))
@pytest.mark.parametrize("backend", OLD)
def test_every_row_of_any_order_and_padding(backend, seed):
    """The dimensions in any order in memory, gaps between the rows of any of them."""
    rng = random.Random(seed)
    shape = backend.get_kv_cache_shape(BLOCKS, TOKENS, HEADS, DIM)
    order = rng.sample(range(len(shape) - 1), len(shape) - 1)
    strides, span = [1] * len(shape), shape[-1] + rng.randrange(4)
    for dim in order:
        strides[dim], span = span, span * shape[dim] + rng.choice([0, 0, 1, 32])
    first = rng.randrange(9)
    kv_cache = torch.zeros(first + span).as_strided(shape, strides, first)
    check_all(kv_cache, backend.caches(kv_cache), stated(backend))


def test_dims_do_not_depend_on_sizes_that_are_alike():
    """Two blocks of two tokens of two heads of two channels: sizes tell nothing."""
    for backend, dims in [(BlocksFirst, (0, 2, 3, 4, 1)), (Joined, (0, 2, 1, 3, None))]:
        found = layouts.find_dims(layouts.stated_shape(backend, None), GEOMETRY._replace(
            block_tokens=2, num_kv_heads=2, head_dim=2))
        assert found == layouts.Dims(*dims)


REFUSED = {
    "old CPU cache, tokens and channels in one": (
        lambda b, t, h, d: (2, b, h, t * d), ["[1, 3, 2, 3]", "four different ones"]),
    "MLA, no heads": (lambda b, t, h, d: (b, t, d), ["0 dimensions", "KV heads"]),
    "NVFP4, keys and values are heads": (
        lambda b, t, h, d: (b, 2 * h, t, d), ["size 6", "KV heads", "must be 3"]),
    "a scale beside the channels": (
        lambda b, t, h, d: (b, h, t, 2 * (d + 4)), ["size 16", "head_dim", "must be 8"]),
    "transposed keys": (
        lambda b, t, h, d: (2, b, h, d // 2, t, 2), ["[2, 2]", "one of size 2"]),
    "three of something": (lambda b, t, h, d: (3, b, t, h, d), ["sizes [3]", "of size 2"]),
    "keys and values both apart and joined": (
        lambda b, t, h, d: (2, b, t, h, 2 * d), ["size 8", "head_dim", "must be 4"]),
    "heads in two dimensions": (
        lambda b, t, h, d: (2, b, t, h, h, d), ["2 dimensions", "KV heads"]),
    "blocks and tokens in one": (
        lambda b, t, h, d: (2, b * t, h, d), ["four different ones"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stated_shapes_that_are_no_rows(name):
    shape_of, words = REFUSED[name]
    with pytest.raises(layouts.LayoutError) as error:
        layouts.find_dims(shape_of, GEOMETRY)
    assert all(word in str(error.value) for word in words), error.value


def test_a_backend_that_states_nothing():
    with pytest.raises(layouts.LayoutError, match="8 block tokens.*multiple of 16"):
        layouts.find_dims(SplitFirst.get_kv_cache_shape, GEOMETRY._replace(block_tokens=8))


def tensors_that_do_not_fit():
    shape = SplitFirst.get_kv_cache_shape(BLOCKS, TOKENS, HEADS, DIM)
    sizes = {"block tokens": 2, "KV heads": 3, "head_dim": 4, "keys and values": 0}
    for name, dim in sizes.items():
        other = list(shape)
        other[dim] += 1
        yield torch.zeros(other), [f"size {other[dim]}", name, f"must be {shape[dim]}"]
    yield torch.zeros(shape[1:]), ["4 dimensions", "stated 5"]
    yield torch.zeros(*shape, 2)[..., 0], ["2 elements apart", "must be 1"]
    yield torch.zeros(shape, dtype=torch.uint8), ["torch.uint8", "torch.float32"]
    yield torch.zeros(shape, dtype=torch.float8_e4m3fn), ["float8_e4m3fn", "torch.float32"]
    yield torch.zeros(shape, device="meta"), ["on meta", "must be on cpu", "device memory"]


@pytest.mark.parametrize("kv_cache, words", list(tensors_that_do_not_fit()))
def test_tensors_that_do_not_fit(kv_cache, words):
    with pytest.raises(layouts.LayoutError) as error:
        layouts.rows_of(kv_cache, stated(SplitFirst), GEOMETRY)
    assert all(word in str(error.value) for word in words), error.value


def written(swap):
    """Rows of a cache into which tokens of several blocks were written, and what was written."""
    kv_cache = allocate(SplitFirst, "HND", *SIZES)
    slots = torch.tensor([3, -1, 20, 79, 0])
    key, value = torch.randn(2, len(slots) + 2, HEADS, DIM).unbind(0)  # padded beyond the slots
    key[0, 0, 0] = float("nan")
    caches = SplitFirst.caches(kv_cache)
    for cache, given in zip(reversed(caches) if swap else caches, (key, value)):
        for slot, rows in zip(slots.tolist(), given):
            if slot >= 0:
                cache[slot // TOKENS, slot % TOKENS] = rows
    return (*layouts.rows_of(kv_cache, stated(SplitFirst), GEOMETRY), key, value, slots)


def test_what_was_written_is_compared():
    keys, values, key, value, slots = written(swap=False)
    layouts.check_written(keys, values, key, value, slots)
    values[4, 15, 2, 3] += 1
    with pytest.raises(layouts.LayoutError, match="values of 1 tokens of 4"):
        layouts.check_written(keys, values, key, value, slots)


def test_values_before_keys_are_noticed():
    with pytest.raises(layouts.LayoutError, match="keys of 4 tokens of 4"):
        layouts.check_written(*written(swap=True))


# vLLM from 0.29 on: its own specs and allocator.

def spec_of(block_tokens=TOKENS, **more):
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    return FullAttentionSpec(block_size=block_tokens, num_kv_heads=HEADS, head_size=DIM,
                             dtype=torch.float32, **more)


def backends():
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
    return [FlashAttentionBackend, TritonAttentionBackend]


def all_layouts():
    interface = pytest.importorskip("vllm.v1.kv_cache_interface")
    return list(interface.KVCacheLayout)


def dims_0_29(spec):
    found = [layouts.find_dims(layouts.stated_shape(backend, backend.customize_spec(spec)), GEOMETRY)
             for backend in backends()]
    assert found[0] == found[1]
    return found[0]


def check_layers(caches, dims):
    for kv_cache in caches:
        # As FlashAttentionImpl and TritonAttentionImpl of 0.32 take it apart.
        check_all(kv_cache, kv_cache.transpose(1, 2).split(DIM, dim=-1), dims)


def test_every_row_of_every_layout_of_0_29():
    pytest.importorskip("vllm")
    assert len(all_layouts()) == 6
    for layout in all_layouts():
        check_layers(layer_caches(spec_of(), layout, BLOCKS), dims_0_29(spec_of()))


def test_padded_pages_and_pages_of_others_between():
    """Hybrid models: a page is as large as that of a layer of another kind, and blocks hold others'."""
    pytest.importorskip("vllm")
    padded = spec_of(page_size_padded=spec_of().page_size_bytes + 256)
    tried = [layout for layout in all_layouts() if layout.is_block_compact]
    assert len(tried) >= 4
    for layout in tried:
        gap = 512 if layout.is_block_outermost else 0
        check_layers(layer_caches(padded, layout, BLOCKS, gap=gap), dims_0_29(padded))


def test_blocks_that_are_split_for_the_kernel():
    pytest.importorskip("vllm")
    spec = spec_of(4 * TOKENS)
    for layout in [layout for layout in all_layouts() if layout.name in ("LBHNC", "LBNHC")]:
        caches = layer_caches(spec, layout, BLOCKS, kernel_block_tokens=TOKENS)
        assert caches[0].shape[0] == 4 * BLOCKS
        check_layers(caches, dims_0_29(spec.copy_with_new_block_size(TOKENS)))


def test_quantised_caches_of_0_29_are_refused():
    pytest.importorskip("vllm")
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
    from vllm.v1.kv_cache_interface import KVQuantMode
    spec = TritonAttentionBackend.customize_spec(
        spec_of(kv_quant_mode=KVQuantMode.INT8_PER_TOKEN_HEAD))
    with pytest.raises(layouts.LayoutError, match="0 dimensions.*head_dim"):
        layouts.find_dims(layouts.stated_shape(TritonAttentionBackend, spec), GEOMETRY)
    packed = spec_of(num_head_slots=2 * HEADS)
    with pytest.raises(layouts.LayoutError, match="0 dimensions.*KV heads"):
        layouts.find_dims(layouts.stated_shape(TritonAttentionBackend, packed), GEOMETRY)
