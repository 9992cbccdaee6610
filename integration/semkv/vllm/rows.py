"""What semkv does with the rows of a step, whichever stock attention backend it stands before: the
stock builder and implementation serve prefill, short rows and every row that semkv does not know;
long decode rows go to the group (group.py).

RowsBuilder and RowsImpl are mixed in before vLLM's classes, whose methods they call by super().

Source of the seam: vLLM's AttentionImpl and AttentionMetadataBuilder classes (0.32).
"""
import dataclasses

import torch
from vllm.utils.torch_utils import is_quantized_kv_cache
from vllm.v1.attention.backend import AttentionType


class RowsBuilder:
    group_class = None  # Group or a subclass

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device, **more):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device, **more)
        self.group = self.group_class.of_layers(kv_cache_spec, layer_names, vllm_config)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        metadata.semkv_step = Step(self, common_attn_metadata)
        return metadata

    def build_rows(self, common, rows):
        """Stock metadata of some rows of a batch, as if it held no others."""
        lengths = common.naive_query_lens()[rows]
        start = torch.zeros(len(rows) + 1, dtype=common.query_start_loc.dtype)
        torch.cumsum(lengths, 0, out=start[1:])
        seq_lens = common.seq_lens[rows]
        # fast_build makes no schedule: FlashAttention's is in one buffer, and the whole batch's stays.
        return super().build(0, dataclasses.replace(
            common, query_start_loc=start, query_start_loc_cpu=start, seq_lens=seq_lens,
            num_reqs=len(rows), num_actual_tokens=int(start[-1]),
            max_query_len=int(lengths.max()), max_seq_len=int(seq_lens.max()),
            block_table_tensor=common.block_table_tensor[rows]), True)


class Step:
    """What one forward pass does with each row; decided in its first layer, when the ids of its
    tokens are known."""

    def __init__(self, builder, common):
        self._builder = builder
        self._common = common
        self._is_planned = False
        self.sparse = None  # token indices of sparse rows; None: no row is sparse
        self.dense = None  # token indices of the others, None: all rows are sparse
        self.dense_metadata = None

    def plan(self):
        if self._is_planned:
            return
        self._is_planned = True
        common = self._common
        rows = self._builder.group.plan(
            common.query_start_loc.numpy(), common.seq_lens.numpy(),
            common.block_table_tensor.numpy(), common.num_reqs,
            None if common.is_prefilling is None else common.is_prefilling.numpy())
        if len(rows) == 0:
            return
        start = common.query_start_loc
        self.sparse = start[rows].long()
        others = torch.ones(common.num_reqs, dtype=torch.bool)
        others[rows] = False
        if not others.any():
            return
        self.dense_metadata = self._builder.build_rows(common, others.nonzero().flatten())
        is_dense = torch.ones(common.num_actual_tokens, dtype=torch.bool)
        is_dense[self.sparse] = False
        self.dense = is_dense.nonzero().flatten()


class RowsImpl:
    def unsupported(self):
        """Why semkv leaves this layer alone, or None."""
        if self.attn_type != AttentionType.DECODER:
            return f"attention of type {self.attn_type}"
        if self.sliding_window not in (-1, (-1, -1)):  # -1 on the CPU, (left, right) on GPUs
            return f"sliding window {self.sliding_window}"
        if self.alibi_slopes is not None:
            return "ALiBi"
        if self.sinks is not None:
            return "learned sinks"
        if is_quantized_kv_cache(self.kv_cache_dtype):
            return f"KV cache of dtype {self.kv_cache_dtype}"
        if self.kv_sharing_target_layer_name is not None:
            return "KV shared with another layer"
        return None

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)
        place = getattr(layer, "semkv_place", None)
        if place is not None:
            place.group.write(place.index, key, value, slot_mapping, kv_cache)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output,
                output_scale=None, output_block_scale=None):
        place = getattr(layer, "semkv_place", None)
        step = getattr(attn_metadata, "semkv_step", None)
        if place is not None and step is not None:
            step.plan()
        if place is None or step is None or step.sparse is None or not self._forward_sparse(
                place, query, step, output):
            # The stock cache holds every token, so this serves at any time.
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output,
                                   output_scale, output_block_scale)
        if step.dense is not None:
            self._forward_dense(layer, query, key, value, kv_cache, step, output)
        return output

    def _forward_sparse(self, place, query, step, output):
        """The sparse rows of a step; False if semkv could not serve them."""
        rows = output.view(-1, self.num_heads, self.head_size)
        if step.dense is None:
            n = len(step.sparse)
            return place.group.attend(place.index, query[:n], rows[:n], self.scale,
                                      self.logits_soft_cap)
        out = torch.empty((len(step.sparse), self.num_heads, self.head_size), dtype=output.dtype)
        if not place.group.attend(place.index, query[step.sparse], out, self.scale,
                                  self.logits_soft_cap):
            return False
        rows[step.sparse] = out
        return True

    def _forward_dense(self, layer, query, key, value, kv_cache, step, output):
        rows = output.view(-1, self.num_heads, self.head_size)
        out = torch.empty((len(step.dense), self.num_heads, self.head_size), dtype=output.dtype)
        super().forward(layer, query[step.dense], key, value, kv_cache, step.dense_metadata, out)
        rows[step.dense] = out
