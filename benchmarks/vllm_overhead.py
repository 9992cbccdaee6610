#!/usr/bin/env python3
"""What the vLLM adapter itself costs, in microseconds: per layer, and once per decode step. It is
the time of its methods less the time in the library's select and attend; the library's own copy of a
token's keys and values counts as the adapter's.

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
    from semkv.vllm.cpu_backend import SemkvCpuImpl
    from semkv.vllm.rows import Step
    prompts = [{"prompt_token_ids": [(7 * i + 13 * row) % 2000 + 2
                                     for i in range(arguments.context)]}
               for row in range(arguments.rows)]
    engine = llm.llm_engine
    for row, prompt in enumerate(prompts):
        engine.add_request(str(row), prompt, SamplingParams(
            max_tokens=arguments.steps + 200, temperature=0, ignore_eos=True))
    [used] = group._groups
    while used.stats().get("steps", 0) < 50:  # prefill, and the step that builds the lists
        engine.step()
    stock = Timed(CPUAttentionBackendImpl, "forward")
    ours = Timed(SemkvCpuImpl, "forward")
    once = Timed(Step, "plan")
    before = used.stats()
    for _ in range(arguments.steps):
        engine.step()
    after = used.stats()
    steps = after["steps"] - before["steps"]
    library = {name: 1e-9 * (after[name] - before[name])
               for name in ("select_ns", "attend_ns", "index_ns")}
    # Lists grow (index_ns) inside of Step.plan, selection and attention outside.
    per_step = once.seconds - library["index_ns"]
    per_layer = (ours.seconds - stock.seconds - once.seconds - library["select_ns"]
                 - library["attend_ns"])
    print(f"{arguments.rows} row(s): per layer {1e6 * per_layer / steps / used._num_layers:.1f} us, "
          f"per step {1e6 * per_step / steps:.1f} us; library per layer "
          f"{1e6 * sum(library.values()) / steps / used._num_layers:.1f} us")


if __name__ == "__main__":
    main()
