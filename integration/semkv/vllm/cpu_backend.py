"""vLLM's CPU attention with sparse decode rows: the stock backend, writer and layout stay, and serve
prefill, short rows and every row that semkv does not know; long decode rows go to semkv.

The stock layout (transposed or tiled keys) cannot be gathered by token, so semkv keeps its own
plain-row copy of each block, under the same block ids (group.py).

Source of the seam: vLLM's AttentionBackend, Impl and MetadataBuilder classes (0.32).
"""
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from semkv.vllm.group import Group
from semkv.vllm.rows import RowsBuilder, RowsImpl


class SemkvCpuBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls():
        return SemkvCpuImpl

    @staticmethod
    def get_builder_cls():
        return SemkvCpuBuilder


class SemkvCpuBuilder(RowsBuilder, CPUAttentionMetadataBuilder):
    group_class = Group


class SemkvCpuImpl(RowsImpl, CPUAttentionBackendImpl):
    pass
