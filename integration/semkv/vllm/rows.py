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
        self.is_planned = False
        self.num_sparse = 0  # rows that semkv serves
        self.sparse = None  # their token indices; None if they are the whole batch
        self.dense = None  # token indices of the other rows of a batch that has both
        self.dense_metadata = None

    def plan(self, slot_mapping, kv_cache):
        self.is_planned = True
        common = self._common
        group = self._builder.group
        group.begin_step(slot_mapping[:common.num_actual_tokens], kv_cache)
        rows = group.plan(common)
        self.num_sparse = len(rows)
        if len(rows) in (0, common.num_reqs):
            return
        others = torch.ones(common.num_reqs, dtype=torch.bool)
        others[rows] = False
        self.dense_metadata = self._builder.build_rows(common, others.nonzero().flatten())
        self.sparse = common.query_start_loc[rows].long()
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

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output,
                output_scale=None, output_block_scale=None):
        if attn_metadata is not None and hasattr(layer, "semkv_place") and self._run(
                layer, attn_metadata, query, key, value, kv_cache, output):
            return output
        # The stock cache holds every token, so this serves at any time.
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output,
                               output_scale, output_block_scale)

    def _run(self, layer, metadata, query, key, value, kv_cache, output):
        """semkv's part of a layer; False if stock attention has to serve all rows."""
        place, step = layer.semkv_place, getattr(metadata, "semkv_step", None)
        group = place.group
        if step is None:
            # Writes would go by unseen from now on.
            group.turn_off("attention metadata of another builder")
            return False
        if not step.is_planned:
            step.plan(metadata.slot_mapping, kv_cache)
        if step.num_sparse == 0:
            group.write(place.index, key, value)
            return False
        rows = output if output.dim() == 3 else output.view(-1, self.num_heads, self.head_size)
        if step.sparse is None:
            return group.run_layer(place.index, key, value, query, rows, self.scale,
                                   self.logits_soft_cap)
        out = torch.empty((step.num_sparse, self.num_heads, self.head_size), dtype=output.dtype)
        if not group.run_layer(place.index, key, value, query[step.sparse], out, self.scale,
                               self.logits_soft_cap):
            return False
        rows[step.sparse] = out
        out = torch.empty((len(step.dense), self.num_heads, self.head_size), dtype=output.dtype)
        super().forward(layer, query[step.dense], key, value, kv_cache, step.dense_metadata, out)
        rows[step.dense] = out
        return True
