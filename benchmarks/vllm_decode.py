#!/usr/bin/env python3
"""Decode attention of one layer in vLLM on the CPU: semkv's select and attend against vLLM's own
kernel, same threads, in turn in one process. What the adapter costs: vllm_overhead.py.

Run it in the environment of `make venv-vllm`. Llama-3-8B shape (32 / 8 heads, 128 channels), bf16,
blocks of 128 tokens in a random order, layers rotated so that no cache holds them. Keys: each token
belongs to one of 512 topics at random, so the members of a list lie scattered.
"""
import argparse
import statistics
import time

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

from semkv._abi import check, ffi, lib, new

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 128
CACHE_BYTES = 1 << 30  # more than any last-level cache here


def pointer(tensor):
    return ffi.cast("void *", tensor.data_ptr())


def int32(tensor):
    return ffi.cast("int32_t *", tensor.data_ptr())


class Layers:
    """Keys, values and queries of some layers, in vLLM's cache and in semkv's."""

    def __init__(self, num_tokens, num_layers, policy, budget, isa):
        self.num_tokens, self.num_layers, self.isa = num_tokens, num_layers, isa
        self.num_blocks = -(-num_tokens // BLOCK)
        generator = torch.Generator().manual_seed(7)
        self.table = torch.randperm(self.num_blocks, generator=generator).int()
        positions = torch.arange(num_tokens)
        self.slots = (self.table[positions // BLOCK] * BLOCK + positions % BLOCK).int()
        self.caches = []
        self._make_context(policy, budget)
        topics = torch.randn(KV_HEADS, 512, DIM, generator=generator)
        for layer in range(num_layers):
            which = torch.randint(512, (num_tokens,), generator=generator)
            noise = torch.randn(num_tokens, KV_HEADS, DIM, generator=generator)
            keys = (topics[:, which].transpose(0, 1) + 0.7 * noise).bfloat16()
            values = torch.randn(num_tokens, KV_HEADS, DIM, generator=generator).bfloat16()
            self._store(layer, keys.contiguous(), values)
        near = topics[:, :8].repeat_interleave(HEADS // KV_HEADS, 0)  # [heads, 8 queries, channels]
        self.queries = (2 * near.transpose(0, 1)).bfloat16().contiguous()
        check(lib.semkv_index(self.context, self.sequence[0]))
        self.out = torch.empty(HEADS, DIM, dtype=torch.bfloat16)

    def _make_context(self, policy_name, budget):
        options = new("semkv_options")
        check(lib.semkv_options_init(options))
        options.num_layers, options.num_heads, options.num_kv_heads = (
            self.num_layers, HEADS, KV_HEADS)
        options.head_dim, options.kv_dtype = DIM, lib.SEMKV_DTYPE_BF16
        options.page_tokens, options.num_pages = BLOCK, self.num_blocks
        options.max_sequence_tokens = self.num_blocks * BLOCK
        options.num_threads, options.engine_pages = torch.get_num_threads(), 1
        made = ffi.new("semkv_context **")
        check(lib.semkv_context_create(options, made))
        self.context = ffi.gc(made[0], lib.semkv_context_destroy)
        # A stop every 25 tokens: sentences of ordinary prose.
        check(lib.semkv_vocabulary_set(self.context, 2, b" word.",
                                       ffi.new("int64_t[]", [0, 5, 6])))
        self.sequence = ffi.new("semkv_sequence *")
        check(lib.semkv_sequence_create(self.context, 0, self.sequence))
        policy = new("semkv_policy")
        check(lib.semkv_policy_init(policy, lib.semkv_policy_kind(policy_name.encode())))
        policy.budget, policy.force_sparse, policy.dense_layers = budget, 1, 0
        check(lib.semkv_sequence_set_policy(self.context, self.sequence[0], policy))
        ids = (torch.arange(self.num_tokens) % 25 == 24).int()
        check(lib.semkv_sequence_append_pages(self.context, self.sequence[0], self.num_tokens,
                                              int32(ids), self.num_blocks, int32(self.table)))
        made = ffi.new("semkv_plan **")
        check(lib.semkv_plan_create(self.context, 1, budget, made))
        self.plan = ffi.gc(made[0], lib.semkv_plan_destroy)

    def _store(self, layer, keys, values):
        cache = torch.zeros(self.num_blocks, KV_HEADS, 2 * BLOCK, DIM, dtype=torch.bfloat16)
        key_cache, value_cache = cache.chunk(2, dim=2)
        ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, self.slots.long(),
                                       self.isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")
        self.caches.append((key_cache, value_cache))
        args = new("semkv_write_args")
        args.dtype, args.num_tokens = lib.SEMKV_DTYPE_BF16, self.num_tokens
        args.slots, args.k, args.v = int32(self.slots), pointer(keys), pointer(values)
        check(lib.semkv_write_kv(self.context, layer, args))

    def stock(self, i):
        """One call of vLLM's kernel; its schedule is made once a step, not once a layer."""
        key_cache, value_cache = self.caches[i % self.num_layers]
        lengths = torch.tensor([self.num_tokens], dtype=torch.int32)
        start = torch.tensor([0, 1], dtype=torch.int32)
        if i % self.num_layers == 0 or not hasattr(self, "_schedule"):
            self._schedule = ops.cpu_attn_get_scheduler_metadata(
                num_reqs=1, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM,
                seq_lens=lengths, dtype=torch.bfloat16, query_start_loc=start, causal=True,
                sliding_window_size=-1, isa=self.isa, enable_kv_split=True, dynamic_causal=None,
                kv_cache_dtype="auto")
        ops.cpu_attention_with_kv_cache(
            query=self.queries[i % 8][None], key_cache=key_cache, value_cache=value_cache,
            output=self.out[None], query_start_loc=start, seq_lens=lengths, scale=DIM**-0.5,
            causal=True, alibi_slopes=None, sliding_window=-1, block_table=self.table[None],
            softcap=0, scheduler_metadata=self._schedule, s_aux=None, dynamic_causal=None,
            k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto")

    def semkv(self, i):
        if i % self.num_layers == 0:
            check(lib.semkv_plan_step(self.plan, 1, self.sequence, ffi.NULL))
        args = new("semkv_attend_args")
        args.dtype, args.q, args.out = (lib.SEMKV_DTYPE_BF16, pointer(self.queries[i % 8]),
                                        pointer(self.out))
        check(lib.semkv_select(self.plan, i % self.num_layers, args))
        check(lib.semkv_attend(self.plan, i % self.num_layers, args))


def time_pairs(layers, num_pairs):
    """Milliseconds of each call, in turn: (stock, semkv)."""
    times = ([], [])
    for i in range(num_pairs):
        for call, list_of in zip((layers.stock, layers.semkv), times):
            start = time.perf_counter()
            call(i)
            list_of.append(1e3 * (time.perf_counter() - start))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--policy", default="hybrid")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vector", action="store_true",
                        help="beside vLLM's vector kernel, also where there is AMX")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    isa = "vec" if arguments.vector else _get_attn_isa(torch.bfloat16, BLOCK, DIM)
    if isa == "amx":
        torch.cpu._init_amx()  # asks Linux for the tiles; in an engine oneDNN has done so
    print(f"vLLM's kernel: {isa}; {arguments.threads} thread(s), {arguments.policy}, budget "
          f"{arguments.budget}")
    print("context    stock ms   semkv ms   semkv / stock: least   median")
    for num_tokens in arguments.contexts:
        bytes_per_layer = 4 * num_tokens * KV_HEADS * DIM
        layers = Layers(num_tokens, max(2, -(-CACHE_BYTES // bytes_per_layer)), arguments.policy,
                        arguments.budget, isa)
        time_pairs(layers, layers.num_layers)
        stock, semkv = time_pairs(layers, 10 * layers.num_layers)
        pairs = statistics.median(b / a for a, b in zip(stock, semkv))
        print(f"{num_tokens:7d} {min(stock):11.3f} {min(semkv):10.3f} "
              f"{min(semkv) / min(stock):22.3f} {pairs:8.3f}", flush=True)


if __name__ == "__main__":
    main()
