#!/usr/bin/env python3
"""What the vLLM adapter itself costs, in microseconds per layer and decode step: the time of its
methods less the time in the library's select and attend and in stock's writer.

Run it in the environment of `make venv-vllm`, which has the plugin's entry point.
"""
import argparse
import os
import pathlib
import time

MODEL = pathlib.Path(__file__).resolve().parent.parent / "models" / "semkv-tiny"


class Timed:
    """Replaces a method by one that adds up its time."""

    def __init__(self, owner, name):
        self.seconds = 0.0
        method = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, name, timed)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1, help="requests decoded together")
    arguments = parser.parse_args()
    os.environ.update(SEMKV_VLLM="hybrid,budget=1024,force_sparse=1", VLLM_CPU_KVCACHE_SPACE="1",
                      VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1")
    from vllm import LLM, SamplingParams
    llm = LLM(model=str(MODEL), enforce_eager=True, max_model_len=16384, dtype="bfloat16")

    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    from semkv.vllm import group
    from semkv.vllm.cpu_backend import SemkvCpuBuilder, SemkvCpuImpl
    prompts = [{"prompt_token_ids": [(7 * i + 13 * row) % 2000 + 2
                                     for i in range(arguments.context)]}
               for row in range(arguments.rows)]
    # The prompts are in vLLM's prefix cache then, and their lists are built.
    llm.generate(prompts, SamplingParams(max_tokens=2, temperature=0, ignore_eos=True))
    stock = [Timed(CPUAttentionBackendImpl, "do_kv_cache_update"),
             Timed(CPUAttentionBackendImpl, "forward")]
    ours = [Timed(SemkvCpuImpl, "do_kv_cache_update"), Timed(SemkvCpuImpl, "forward")]
    build = Timed(SemkvCpuBuilder, "build")
    [used] = group._groups
    before = used.stats()
    llm.generate(prompts, SamplingParams(max_tokens=arguments.steps, temperature=0,
                                         ignore_eos=True))
    after = used.stats()
    library = sum(after[name] - before[name]
                  for name in ("select_ns", "attend_ns", "index_ns")) * 1e-9
    calls = (after["steps"] - before["steps"]) * used._num_layers
    spent = sum(t.seconds for t in ours) - sum(t.seconds for t in stock) - library
    print(f"{arguments.rows} row(s), {calls} layer steps: adapter {1e6 * spent / calls:.1f} us, "
          f"library {1e6 * library / calls:.1f} us per layer and step; "
          f"metadata {1e6 * build.seconds * used._num_layers / calls:.1f} us per step")


if __name__ == "__main__":
    main()
