"""Where a token's key and value are in the KV cache tensor that vLLM hands to a layer, for backends
whose caches hold plain rows (FlashAttention, Triton).

Which dimension is which is asked of the backend, strides are read from the tensor, and what comes
out is compared once with what vLLM's own writer wrote: layouts have changed with most versions,
and hybrid models stride their caches differently from what the backend says.

    up to 0.28    backend.get_kv_cache_shape(blocks, block tokens, KV heads, head_dim): its order of
                  dimensions is that of the tensor, whatever the memory's (get_kv_cache_stride_order)
    from 0.29 on  the KV cache spec states the shape; the memory's order is vLLM's KVCacheLayout
"""
import dataclasses
from typing import NamedTuple, Optional

import torch

from semkv._abi import ffi, new

_NAMES = ("blocks", "block tokens", "KV heads", "head_dim")
_NUM_BLOCKS = 3  # to ask for a shape with; any number would do


class LayoutError(ValueError):
    """vLLM's KV cache is not made of rows that can be borrowed; the text says which."""


class Geometry(NamedTuple):
    """What a layer's KV cache must hold, whatever its layout."""

    block_tokens: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype


class Dims(NamedTuple):
    """Which dimension of a layer's KV cache tensor is which. kv: that of size 2, keys before values;
    None: the channels of a token's key are followed by those of its value."""

    block: int
    token: int
    head: int
    channel: int
    kv: Optional[int]


def stated_shape(backend, spec):
    """The function that gives the shape of a layer's KV cache, in elements, for (blocks, block
    tokens, KV heads, head_dim), by the hooks that `backend`, an AttentionBackend class, has.

    spec: the layers' KV cache spec, as a metadata builder is given it.
    """
    # A plugin's backend may have the hooks of both; vLLM calls those that it knows itself.
    if not hasattr(backend, "supported_kv_cache_layouts"):
        return backend.get_kv_cache_shape
    from vllm.v1.kv_cache_interface import compute_layer_kv_cache_shape_bytes

    def shape(num_blocks, block_tokens, num_kv_heads, head_dim):
        asked = dataclasses.replace(spec, block_size=block_tokens, num_kv_heads=num_kv_heads,
                                    head_size=head_dim, head_size_v=head_dim)
        *outer, num_bytes = compute_layer_kv_cache_shape_bytes(asked, num_blocks)
        return (*outer, num_bytes // asked.dtype.itemsize)

    return shape


def find_dims(shape_of, geometry):
    """Dims of the layout that `shape_of` (see stated_shape) states.

    Each of the four sizes is doubled in turn: the dimension that doubles with it is its own.
    LayoutError if none or several do, or one is not of the size that was asked for: sizes that are
    combined in one dimension, scales or padding beside the channels.
    """
    sizes = (_NUM_BLOCKS, *geometry[:3])
    try:
        shape = tuple(shape_of(*sizes))
        doubled = [tuple(shape_of(*sizes[:i], 2 * sizes[i], *sizes[i + 1:])) for i in range(4)]
    except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise LayoutError(f"the backend states no shape for {sizes[1]} block tokens, {sizes[2]} KV "
                          f"heads and head_dim {sizes[3]}: {error}") from error
    found = []
    for name, size, other in zip(_NAMES, sizes, doubled):
        dims = [dim for dim in range(len(shape)) if other[dim] != shape[dim]]
        if len(dims) != 1:
            raise LayoutError(f"{len(dims)} dimensions of the KV cache {list(shape)} depend on the "
                              f"number of {name}, must be 1")
        found.append(dims[0])
    return _named(shape, found, sizes)


def _named(shape, found, sizes):
    """Dims of a shape whose dimension found[i] depends on sizes[i] alone, and on nothing else's."""
    if len(set(found)) != 4:
        raise LayoutError(f"dimensions {found} of the KV cache {list(shape)} are those of "
                          f"{', '.join(_NAMES)}, must be four different ones")
    others = [dim for dim in range(len(shape)) if dim not in found]
    is_joined = not others
    if not is_joined and [shape[dim] for dim in others] != [2]:
        raise LayoutError(f"the KV cache {list(shape)} has dimensions of sizes "
                          f"{[shape[dim] for dim in others]} beside {', '.join(_NAMES)}, must be "
                          "one of size 2 for keys and values")
    wanted = (*sizes[:3], sizes[3] * (2 if is_joined else 1))
    for name, dim, size in zip(_NAMES, found, wanted):
        if shape[dim] != size:
            raise LayoutError(f"the KV cache {list(shape)} has size {shape[dim]} in the dimension of "
                              f"{name}, must be {size}")
    return Dims(*found, kv=None if is_joined else others[0])


def rows_of(kv_cache, dims, geometry):
    """Keys and values of a layer's KV cache, two views [blocks, block tokens, KV heads, head_dim] of
    its memory.

    LayoutError if the tensor is not on the CPU, has another dtype or other sizes, or channels that
    are not contiguous.
    """
    block_tokens, num_kv_heads, head_dim, dtype = geometry
    if kv_cache.device.type != "cpu":
        raise LayoutError(f"the KV cache is on {kv_cache.device}, must be on cpu: the plugin "
                          "makes no contexts in device memory yet")
    if kv_cache.dtype != dtype:
        raise LayoutError(f"the KV cache is of {kv_cache.dtype}, must be of {dtype}")
    channels = head_dim * (2 if dims.kv is None else 1)
    num_dims = 4 if dims.kv is None else 5
    if kv_cache.dim() != num_dims:
        raise LayoutError(f"the KV cache {list(kv_cache.shape)} has {kv_cache.dim()} dimensions, the "
                          f"backend stated {num_dims}")
    for name, dim, size in zip(_NAMES[1:] + ("keys and values",), dims[1:],
                               (block_tokens, num_kv_heads, channels, 2)):
        if dim is not None and kv_cache.shape[dim] != size:
            raise LayoutError(f"the KV cache {list(kv_cache.shape)} has size {kv_cache.shape[dim]} in "
                              f"dimension {dim} ({name}), must be {size}")
    if kv_cache.stride(dims.channel) != 1:
        raise LayoutError(f"the channels of the KV cache are {kv_cache.stride(dims.channel)} elements "
                          "apart, must be 1")
    if dims.kv is None:
        return kv_cache.permute(dims[:4]).split(head_dim, dim=-1)
    return kv_cache.permute(dims.kv, *dims[:4]).unbind(0)


def kv_view(layer, keys, values):
    """struct semkv_kv_view of `layer`, whose rows are `keys` and `values` (see rows_of). It borrows
    their memory; the library refuses rows that overlap."""
    view = new("semkv_kv_view")
    view.layer = layer
    view.k, view.v = (ffi.cast("void *", rows.data_ptr()) for rows in (keys, values))
    view.k_page, view.k_token, view.k_head, _ = keys.stride()
    view.v_page, view.v_token, view.v_head, _ = values.stride()
    return view


def _bits(tensor):
    """As integers: a NaN that was written is the same NaN when read."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.dtype.itemsize])


def check_written(keys, values, key, value, slots):
    """Compares rows (see rows_of) with what vLLM's writer has just put into them.

    key, value: [tokens, KV heads, head_dim], of the rows' dtype; slots: int64 [tokens], block * block
    tokens + offset, negative: not written.
    LayoutError if they differ: the rows are not where the layout says, or not as they are.
    """
    is_written = slots >= 0
    blocks = torch.div(slots[is_written], keys.shape[1], rounding_mode="floor")
    offsets = slots[is_written] % keys.shape[1]
    for name, rows, given in (("keys", keys, key), ("values", values, value)):
        read, wrote = rows[blocks, offsets], given[:len(slots)][is_written]
        same = (_bits(read) == _bits(wrote)).flatten(1).all(1)
        if not bool(same.all()):
            raise LayoutError(f"{name} of {int((~same).sum())} tokens of {len(same)} read back from "
                              "the KV cache are not those that vLLM wrote")
