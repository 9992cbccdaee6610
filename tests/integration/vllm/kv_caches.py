"""KV caches as vLLM makes them for GPU backends, on the CPU: up to 0.28 by the backend's shape and
stride order (hooks of those versions, written down here), from 0.29 on by vLLM's own allocator."""
import torch


class SplitFirst:
    """FlashAttention and Triton up to 0.22."""

    @staticmethod
    def get_kv_cache_shape(num_blocks, block_size, num_kv_heads, head_size, cache_dtype_str="auto"):
        if block_size % 16 != 0:
            raise ValueError("Block size must be a multiple of 16.")
        return (2, num_blocks, block_size, num_kv_heads, head_size)

    orders = {"NHD": (0, 1, 2, 3, 4), "HND": (0, 1, 3, 2, 4)}

    @staticmethod
    def caches(kv_cache):
        """Keys and values, [blocks, tokens, heads, channels], as forward takes them apart."""
        return kv_cache.unbind(0)


class BlocksFirst:
    """FlashAttention and Triton from 0.23 to 0.26, FlashInfer before."""

    @staticmethod
    def get_kv_cache_shape(num_blocks, block_size, num_kv_heads, head_size, cache_dtype_str="auto"):
        return (num_blocks, 2, block_size, num_kv_heads, head_size)

    orders = {"NHD": (0, 1, 2, 3, 4), "HND": (0, 1, 3, 2, 4)}

    @staticmethod
    def caches(kv_cache):
        return kv_cache.unbind(1)


class Joined:
    """FlashAttention and Triton of 0.27 and 0.28."""

    @staticmethod
    def get_kv_cache_shape(num_blocks, block_size, num_kv_heads, head_size, cache_dtype_str="auto"):
        return (num_blocks, num_kv_heads, block_size, 2 * head_size)

    orders = {"NHD": (0, 2, 1, 3), "HND": (0, 1, 2, 3)}

    @staticmethod
    def caches(kv_cache):
        return kv_cache.transpose(1, 2).split(kv_cache.shape[-1] // 2, dim=-1)


OLD = [SplitFirst, BlocksFirst, Joined]


def allocate(backend, order, *sizes, dtype=torch.float32):
    """A KV cache as GPUModelRunner made it up to 0.28: memory in the order NHD or HND, seen in the
    stated one. sizes: blocks, block tokens, KV heads, channels."""
    shape, order = backend.get_kv_cache_shape(*sizes), backend.orders[order]
    inverse = [order.index(i) for i in range(len(order))]
    return torch.zeros([shape[i] for i in order], dtype=dtype).permute(inverse)


def stride_as_hybrid(kv_cache):
    """What vLLM up to 0.22 did to SplitFirst caches of hybrid models: the keys and values of a block
    side by side, which the backend does not know."""
    hidden = kv_cache.shape[2:].numel()
    return kv_cache.as_strided(kv_cache.shape, (hidden, 2 * hidden, *kv_cache.stride()[2:]))


def layer_caches(spec, layout, num_blocks, num_layers=3, kernel_block_tokens=None, gap=0):
    """Caches of the layers of one KV cache group, by vLLM's own allocator; `gap` bytes of others
    between two blocks."""
    from vllm.v1 import kv_cache_interface as interface
    strides = interface.compute_layout_strides(spec, num_blocks, num_layers, layout)
    stride = strides[1] + (gap if strides[1] > strides[0] else 0)
    size = max(strides[0] * num_layers, stride * num_blocks) + gap
    tensor = interface.KVCacheTensor(size=size, layers=list(map(str, range(num_layers))),
                                     layer_stride=strides[0], block_stride=stride, offset=gap)
    raw = torch.zeros(size, dtype=torch.int8)
    return interface.create_kv_cache_views(raw, spec, num_blocks, layout, tensor, kernel_block_tokens)
