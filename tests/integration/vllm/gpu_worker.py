"""A worker of vLLM without an engine, on CPU tensors: real vLLM attention layers, metadata and forward
context over caches in the layouts of GPUs.

FlashAttention's and Triton's classes are 0.32's own. Their kernels cannot run on a CPU: the two that
they call, a writer and a paged attention, are torch here (stub_kernels). OldLayer does what the layers
of vLLM up to 0.28 did, whose classes are not at hand.
"""
import dataclasses
import types

import torch
from engine_process import MODEL
from kv_caches import layer_caches
from vllm.config import set_current_vllm_config
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionImpl, CommonAttentionMetadata
from vllm.v1.attention.backends import flash_attn, triton_attn
from vllm.v1.kv_cache_interface import FullAttentionSpec

from semkv.vllm import group, gpu_backend

HEADS, KV_HEADS, DIM, TOKENS = 4, 2, 64, 16


def dense(query, keys, values, scale):
    """Causal attention of the last tokens; [tokens, heads, channels], keys and values [all tokens, KV
    heads, channels]."""
    n, length = len(query), len(keys)
    mask = torch.arange(length)[None, :] <= torch.arange(length - n, length)[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        *(rows.transpose(0, 1).float() for rows in (query, keys, values)), attn_mask=mask,
        scale=scale, enable_gqa=True)
    return out.transpose(0, 1).to(query.dtype)


class Kernels:
    """The stock kernels' work in torch; `rows`: contexts of the rows that they attended."""

    def __init__(self):
        self.rows = []

    def attend(self, *, q, k, v, out, cu_seqlens_q, seqused_k, softmax_scale, block_table, **_):
        for row, length in enumerate(seqused_k.tolist()):
            first, end = cu_seqlens_q[row:row + 2].tolist()
            blocks = block_table[row, :-(-length // k.shape[1])].long()
            keys, values = (cache[blocks].flatten(0, 1)[:length] for cache in (k, v))
            out[first:end] = dense(q[first:end], keys, values, softmax_scale)
            self.rows.append(length)

    def write(self, key, value, key_cache, value_cache, slot_mapping, *_):
        is_written = slot_mapping >= 0
        slots = slot_mapping[is_written]
        at = slots // key_cache.shape[1], slots % key_cache.shape[1]
        key_cache[at] = key[:len(slot_mapping)][is_written]
        value_cache[at] = value[:len(slot_mapping)][is_written]


def stub_kernels(monkeypatch):
    kernels = Kernels()
    monkeypatch.setattr(flash_attn, "flash_attn_varlen_func", kernels.attend, raising=False)
    monkeypatch.setattr(flash_attn, "reshape_and_cache_flash", kernels.write, raising=False)
    monkeypatch.setattr(flash_attn, "get_flash_attn_version", lambda *_, **__: 2)
    monkeypatch.setattr(triton_attn, "unified_attention", kernels.attend)
    monkeypatch.setattr(triton_attn, "triton_reshape_and_cache_flash", kernels.write)
    return kernels


def make_config(dtype="float32"):
    return EngineArgs(model=MODEL, enforce_eager=True, max_model_len=2048, dtype=dtype,
                      skip_tokenizer_init=True).create_engine_config()


def old_backend(layout, kernels):
    """A stock backend of vLLM up to 0.28 whose caches are those of `layout` (kv_caches.OLD)."""
    class Impl(AttentionImpl):
        def __init__(self):
            self.num_heads, self.num_kv_heads, self.head_size = HEADS, KV_HEADS, DIM
            self.scale, self.logits_soft_cap, self.attn_type = DIM**-0.5, 0, "decoder"
            self.sliding_window, self.kv_cache_dtype = (-1, -1), "auto"
            self.alibi_slopes = self.sinks = self.kv_sharing_target_layer_name = None

        def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
            kernels.write(key, value, *layout.caches(kv_cache), slot_mapping)

        def forward(self, layer, query, key, value, kv_cache, metadata, output, *_):
            k, v = layout.caches(kv_cache)
            n = metadata.num_actual_tokens
            kernels.attend(q=query[:n], k=k, v=v, out=output[:n],
                           cu_seqlens_q=metadata.query_start_loc, seqused_k=metadata.seq_lens,
                           block_table=metadata.block_table_tensor, softmax_scale=self.scale)
            return output

    class Builder:
        def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
            pass

        def build(self, common_prefix_len, common, fast_build=False):
            return types.SimpleNamespace(**vars(common))

    class Backend:
        get_kv_cache_shape = staticmethod(layout.get_kv_cache_shape)
        get_impl_cls = staticmethod(lambda: Impl)
        get_builder_cls = staticmethod(lambda: Builder)

    return Backend


class OldLayer(Attention):
    def __init__(self, backend, name):
        torch.nn.Module.__init__(self)
        self.attn_backend, self.layer_name, self.impl = backend, name, backend.get_impl_cls()()

    def forward(self, query, key, value):
        context = get_forward_context()
        slots, metadata = context.slot_mapping[self.layer_name], context.attn_metadata[self.layer_name]
        output = torch.empty_like(query)
        self.impl.do_kv_cache_update(self, key, value, self.kv_cache, slots)
        self.impl.forward(self, query, key, value, self.kv_cache, metadata, output)
        return output


@dataclasses.dataclass
class Request:
    """Tokens of one request: ids, blocks, and per layer the keys and values that were computed."""

    prompt: int
    blocks: list
    ids: list = dataclasses.field(default_factory=list)
    kv: dict = dataclasses.field(default_factory=dict)

    def held(self, layer):
        return tuple(torch.cat(parts) for parts in zip(*self.kv[layer]))


class Worker:
    """Layers before `stock`'s, a group, a step at a time.

    caches: function of (spec, number of layers) -> a KV cache per layer.
    """

    def __init__(self, config, stock, caches, num_layers=2, seed=0):
        self.config, self.kernel_width = config, 64
        self.rng = torch.Generator().manual_seed(seed)
        backend = gpu_backend.over(stock)
        names = [f"model.layers.{i}.attn" for i in range(num_layers)]
        context = config.compilation_config.static_forward_context
        context.clear()
        with set_current_vllm_config(config):
            for name in names:
                if hasattr(stock, "get_kv_cache_shape"):
                    context[name] = OldLayer(backend, name)
                else:
                    Attention(HEADS, DIM, DIM**-0.5, num_kv_heads=KV_HEADS, prefix=name,
                              cache_config=config.cache_config, attn_backend=backend)
            self.layers = [context[name] for name in names]
            self.dtype = config.model_config.dtype
            spec = FullAttentionSpec(block_size=TOKENS, num_kv_heads=KV_HEADS, head_size=DIM,
                                     dtype=self.dtype)
            self.builder = backend.get_builder_cls()(spec, names, config, torch.device("cpu"))
        self.group = self.builder.group
        self.bind(caches(spec, num_layers))

    def bind(self, caches):
        for layer, kv_cache in zip(self.layers, caches):
            layer.kv_cache = kv_cache

    def random(self, *shape):
        return torch.randn(shape, generator=self.rng).to(self.dtype)

    def common(self, parts):
        """Metadata of a batch [(request, new tokens)], whose blocks are there already."""
        starts, lengths, slots, tables = [0], [], [], []
        for request, n in parts:
            length = len(request.ids)
            table = torch.tensor(request.blocks, dtype=torch.int32)
            at = torch.arange(length - n, length)
            slots.append(table[at // TOKENS].long() * TOKENS + at % TOKENS)
            starts.append(starts[-1] + n)
            lengths.append(length)
            tables.append(torch.nn.functional.pad(table, (0, self.kernel_width - len(table))))
        start = torch.tensor(starts, dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=start, query_start_loc_cpu=start, num_reqs=len(parts),
            seq_lens=torch.tensor(lengths, dtype=torch.int32), num_actual_tokens=starts[-1],
            max_query_len=max(n for _, n in parts), max_seq_len=max(lengths),
            block_table_tensor=torch.stack(tables), slot_mapping=torch.cat(slots),
            is_prefilling=torch.tensor([len(r.ids) - n < r.prompt for r, n in parts]))

    def step(self, parts, rows=None, padding=0):
        """One forward pass. parts: [(request, new tokens)]; rows: function of (layer, request, n) ->
        queries, keys, values of the new tokens; random if None; padding: tokens beyond the batch, as
        of a captured graph. Returns {(request's place, layer): output [n, heads, channels]}."""
        for request, n in parts:
            request.ids += torch.randint(50, (n,), generator=self.rng).tolist()
        common = self.common(parts)
        metadata = self.builder.build(0, common)
        ids = [i for request, n in parts for i in request.ids[-n:]] + [0] * padding
        group.note_step_ids(torch.tensor(ids, dtype=torch.int32))
        names = [layer.layer_name for layer in self.layers]
        outputs, self.queries = {}, {}
        with set_forward_context(dict.fromkeys(names, metadata), self.config,
                                 slot_mapping=dict.fromkeys(names, common.slot_mapping)):
            for index, layer in enumerate(self.layers):
                out = self._run(index, layer, parts, rows, padding)
                for place, part in enumerate(out):
                    outputs[place, index] = part
        return outputs

    def _run(self, index, layer, parts, rows, padding):
        new = []
        for place, (request, n) in enumerate(parts):
            q, k, v = rows(index, request, n) if rows else (
                self.random(n, HEADS, DIM), self.random(n, KV_HEADS, DIM),
                self.random(n, KV_HEADS, DIM))
            request.kv.setdefault(index, []).append((k, v))
            self.queries[place, index] = q
            new.append((q, k, v))
        pad = [torch.zeros(padding, heads, DIM, dtype=self.dtype)
               for heads in (HEADS, KV_HEADS, KV_HEADS)]
        q, k, v = (torch.cat([*tokens, zeros]) for tokens, zeros in zip(zip(*new), pad))
        out = layer(q, k, v).view(-1, HEADS, DIM)[:len(q) - padding]
        return out.split([n for _, n in parts])

    def check(self, parts, outputs, tolerance=1e-5):
        """Every output is dense attention over what its request holds."""
        for (place, index), out in outputs.items():
            request, _ = parts[place]
            wanted = dense(self.queries[place, index], *request.held(index), DIM**-0.5)
            torch.testing.assert_close(out, wanted, atol=tolerance, rtol=tolerance)


def new_caches(layout, num_blocks=64, padding=0):
    """`caches` of a Worker: by vLLM's own allocator in KVCacheLayout `layout`."""
    def caches(spec, num_layers):
        if padding:
            spec = dataclasses.replace(spec, page_size_padded=spec.page_size_bytes + padding)
        return layer_caches(spec, layout, num_blocks, num_layers)
    return caches
