#!/usr/bin/env python3
"""What building lists costs the steps of a prompt that comes in chunks, and the first decode step
after it: milliseconds of every step, with the plugin and, --stock, without.

Run it in the environment of `make venv-vllm`, which has the plugin's entry point.
"""
import argparse
import os
import pathlib
import time

MODEL = pathlib.Path(__file__).resolve().parent.parent / "models" / "semkv-tiny"
DECODED = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=30000)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--stock", action="store_true", help="vLLM without semkv")
    arguments = parser.parse_args()
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="2", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                      HF_HUB_OFFLINE="1")
    if not arguments.stock:
        os.environ["SEMKV_VLLM"] = "hybrid,budget=1024"
    from vllm import LLM, SamplingParams
    longest = arguments.context + DECODED
    # What the model says beyond 16,384 tokens means nothing; its steps take as long.
    engine = LLM(model=str(MODEL), enforce_eager=True, dtype="bfloat16", max_model_len=longest,
                 max_num_batched_tokens=arguments.chunk, enable_prefix_caching=False,
                 hf_overrides={"max_position_embeddings": max(longest, 16384)}).llm_engine
    ids = [(7919 * i + i * i // 31) % 2000 + 2 for i in range(arguments.context)]
    for turn in ("first request", "second request"):  # the first one finds cold code and memory
        engine.add_request(turn, {"prompt_token_ids": ids}, SamplingParams(
            max_tokens=DECODED, temperature=0, ignore_eos=True))
        steps = []
        while engine.has_unfinished_requests():
            begin = time.perf_counter()
            engine.step()
            steps.append(1e3 * (time.perf_counter() - begin))
        # The prompt's last step gives the first token.
        prompt, decode = steps[:1 - DECODED], steps[1 - DECODED:]
        print(f"{turn}: steps of the prompt {' '.join(f'{ms:.0f}' for ms in prompt)} ms, first decode "
              f"step {decode[0]:.0f}, the others {' '.join(f'{ms:.0f}' for ms in decode[1:])}")


if __name__ == "__main__":
    main()
