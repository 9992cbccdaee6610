#!/usr/bin/env python3
"""A decode step of transformers with semkv against the stock one, in turn in one process, and what
the step costs that moves keys and values into semkv.

Run it in the environment of `make venv-vllm`, which has transformers too. A random Llama of 4 layers,
8 query and 8 KV heads of 128 channels, float32; a step is a whole forward, weights included.
"""
import argparse
import pathlib
import statistics
import time

import semkv.hf
import torch
import transformers

MB = 1e6


def make_model():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=1024, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=8, head_dim=128, max_position_embeddings=1 << 17)
    return transformers.LlamaForCausalLM(config).eval()


def memory(name):
    """VmRSS or VmHWM of this process, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


class Decoding:
    """A model and the cache of a prompt."""

    def __init__(self, num_tokens):
        self.model, self.cache, self.num_tokens = make_model(), None, num_tokens

    def prefill(self):
        ids = (torch.arange(self.num_tokens) * 7 % 997)[None]
        for part in ids.split(512, dim=1):
            self.cache = self.model(part, past_key_values=self.cache, use_cache=True,
                                    logits_to_keep=1).past_key_values

    def step(self):
        """Milliseconds."""
        start = time.perf_counter()
        self.model(torch.tensor([[1]]), past_key_values=self.cache)
        return 1e3 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=6144)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--policy", default="cluster")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    stock, sparse = Decoding(arguments.context), Decoding(arguments.context)
    stock.prefill()
    with semkv.hf.enable(sparse.model, arguments.policy, budget=arguments.budget, min_context=1,
                         dense_layers=0) as handle:
        sparse.prefill()
        kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in stock.cache.layers)
        before = memory("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        moving = sparse.step()
        print(f"{arguments.context} tokens, {kept / MB:.0f} MB of keys and values, "
              f"{arguments.policy}, budget {arguments.budget}, {arguments.threads} thread(s)")
        print(f"the step that moves: {moving:.0f} ms; peak {(memory('VmHWM') - before) / MB:+.0f} MB, "
              f"afterwards {(memory('VmRSS') - before) / MB:+.0f} MB")
        pairs = [(stock.step(), sparse.step()) for _ in range(arguments.steps)]
        assert handle.stats()["forwards"]["served"] == 1 + arguments.steps
    least = [min(times) for times in zip(*pairs)]
    median = statistics.median(mine / theirs for theirs, mine in pairs)
    print(f"a decode step: stock {least[0]:.2f} ms, semkv {least[1]:.2f} ms; semkv / stock "
          f"{least[1] / least[0]:.3f} of the least, {median:.3f} median of pairs")


if __name__ == "__main__":
    main()
