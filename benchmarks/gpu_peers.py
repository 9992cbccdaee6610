#!/usr/bin/env python3
"""Dense decode attention of torch and, where it can be imported, FlashInfer, on the shapes of
semkv_bench --gpu: one row of Llama-3-8B's layer, bfloat16, layers rotated so that no cache holds
them, CUDA graphs. Says in a line what is not there."""
import statistics

HEADS, KV_HEADS, DIM, LAYERS = 32, 8, 128, 32


def time_graph(torch, launch):
    """Microseconds of launch(layer), median of 15 replays of a graph of all layers."""
    launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(LAYERS):
            launch(layer)
    times = []
    for i in range(18):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(1e3 * begin.elapsed_time(end) / LAYERS)
    return statistics.median(times)


def main():
    try:
        import torch
    except ImportError:
        print("torch: cannot be imported")
        return
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__}: no GPU")
        return
    try:
        import flashinfer
    except ImportError:
        flashinfer = None
        print("flashinfer: cannot be imported")
    for tokens in (8192, 32768, 131072):
        q = torch.randn(1, HEADS, 1, DIM, dtype=torch.bfloat16, device="cuda")
        kv = [torch.randn(2, 1, KV_HEADS, tokens, DIM, dtype=torch.bfloat16, device="cuda")
              for _ in range(LAYERS)]
        us = time_graph(torch, lambda layer: torch.nn.functional.scaled_dot_product_attention(
            q, kv[layer][0], kv[layer][1], enable_gqa=True))
        print(f"torch {torch.__version__} scaled_dot_product_attention, {tokens} tokens: "
              f"{us:.1f} us")
        if flashinfer is not None:
            us = time_graph(torch, lambda layer: flashinfer.single_decode_with_kv_cache(
                q[0, :, 0], kv[layer][0, 0], kv[layer][1, 0], kv_layout="HND",
                use_tensor_cores=True))
            print(f"flashinfer {flashinfer.__version__} single_decode_with_kv_cache, "
                  f"{tokens} tokens: {us:.1f} us")
        del kv


if __name__ == "__main__":
    main()
