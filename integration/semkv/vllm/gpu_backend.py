"""vLLM's attention for GPUs with sparse decode rows, to be registered as its CUSTOM backend: the stock
backend, writer and layout stay; semkv reads the stock KV cache where it is (borrowed.py).

Not registered yet (semkv.vllm.register): the cache of an engine on a GPU is device memory, and semkv's
contexts there have not run on a GPU. What is here runs on CPU tensors in the layouts of GPUs.

Source of the seam: vLLM's AttentionBackend, Impl and MetadataBuilder classes (0.32).
"""
from vllm.v1.attention.backend import AttentionCGSupport

from semkv.vllm.borrowed import BorrowedGroup
from semkv.vllm.rows import RowsBuilder, RowsImpl


class _GpuBuilder(RowsBuilder):
    group_class = BorrowedGroup
    # Rows are told apart on the host in each step: no metadata of another group, no captured graph.
    supports_update_block_table = False

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.supports_draft_decode_metadata_update = False  # stock builders set it themselves

    @classmethod
    def get_cudagraph_support(cls, vllm_config, kv_cache_spec):
        return AttentionCGSupport.NEVER


class _GpuImpl(RowsImpl):
    # What semkv computes is not quantised, and what writes keys elsewhere than in
    # do_kv_cache_update would be missed.
    def fused_output_quant_supported(self, quant_key):
        return False

    def fused_rope_kvcache_supported(self):
        return False

    def fused_qk_norm_rope_kvcache_supported(self):
        return False

    def fused_qk_norm_mrope_kvcache_supported(self):
        return False

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        if hasattr(layer, "semkv_place"):
            layer.semkv_place.group.note_written(layer.semkv_place.index, key, value, slot_mapping,
                                                 kv_cache)

    def unsupported(self):
        reason = super().unsupported()
        if reason is None and getattr(self, "chunk_lookback", -1) != -1:
            return f"attention in chunks, {self.chunk_lookback} looked back at"
        ranks = max(self.dcp_world_size, self.pcp_world_size)
        if reason is None and ranks > 1:
            return f"context parallelism over {ranks} ranks"
        return reason


def over(stock):
    """The AttentionBackend class that stands before `stock`, FlashAttention's or Triton's: its name is
    CUSTOM, everything that it says of layouts, shapes and support is the stock backend's."""
    class Builder(_GpuBuilder, stock.get_builder_cls()):
        pass

    class Impl(_GpuImpl, stock.get_impl_cls()):
        pass

    class SemkvGpuBackend(stock):
        @staticmethod
        def get_name():
            return "CUSTOM"

        @staticmethod
        def get_impl_cls():
            return Impl

        @staticmethod
        def get_builder_cls():
            return Builder

    return SemkvGpuBackend


def _stock():
    from vllm.v1.attention.backends.fa_utils import is_flash_attn_varlen_func_available
    if is_flash_attn_varlen_func_available():
        from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
        return FlashAttentionBackend
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
    return TritonAttentionBackend


SemkvGpuBackend = over(_stock())
