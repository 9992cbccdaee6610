#!/usr/bin/env python3
"""Dense decode attention of torch and, where it can be imported, FlashInfer, on the shapes of
semkv_bench --gpu: Llama-3-8B's layer, bfloat16, layers rotated so that no cache holds them, CUDA
graphs. With an argument, the times as JSON go there. Says in a line what is not there.
"""
import json
import statistics
import sys

HEADS, KV_HEADS, DIM = 32, 8, 128
SHAPES = ((1, 8192), (1, 32768), (1, 131072), (1, 1048576), (8, 32768), (8, 131072))  # rows, tokens
MOST_BYTES = 32 << 30
MOST_LAYERS = 32


def time_graph(torch, launch, layers):
    """Microseconds of launch(layer), median of 15 replays of a graph of all layers."""
    launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in range(layers):
            launch(layer)
    times = []
    for i in range(18):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(1e3 * begin.elapsed_time(end) / layers)
    return statistics.median(times)


def launches(torch, flashinfer, rows, q, kv):
    """(name, launch) of everything that serves the shape."""
    def attend(layer):
        return torch.nn.functional.scaled_dot_product_attention(q, kv[layer][0], kv[layer][1],
                                                                enable_gqa=True)

    yield f"torch {torch.__version__} scaled_dot_product_attention", attend
    if flashinfer is not None and rows == 1:
        yield (f"flashinfer {flashinfer.__version__} single_decode_with_kv_cache",
               lambda layer: flashinfer.single_decode_with_kv_cache(
                   q[0, :, 0], kv[layer][0, 0], kv[layer][1, 0], kv_layout="HND",
                   use_tensor_cores=True))


def measure(torch, flashinfer, rows, tokens):
    layer_bytes = 2 * rows * KV_HEADS * tokens * DIM * 2
    layers = max(1, min(MOST_LAYERS, MOST_BYTES // layer_bytes))
    q = torch.randn(rows, HEADS, 1, DIM, dtype=torch.bfloat16, device="cuda")
    kv = [torch.randn(2, rows, KV_HEADS, tokens, DIM, dtype=torch.bfloat16, device="cuda")
          for _ in range(layers)]
    for name, launch in launches(torch, flashinfer, rows, q, kv):
        try:
            us = time_graph(torch, launch, layers)
        except Exception as error:  # one library's kernel may refuse a shape
            print(f"{name}, {rows} x {tokens} tokens: {error}")
            continue
        print(f"{name}, {rows} x {tokens} tokens: {us:.1f} us", flush=True)
        yield {"name": name, "rows": rows, "tokens": tokens, "us": us}


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
    times = []
    for rows, tokens in SHAPES:
        times += measure(torch, flashinfer, rows, tokens)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as file:
            json.dump(times, file)


if __name__ == "__main__":
    main()
