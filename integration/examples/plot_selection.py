#!/usr/bin/env python3
"""Plots which positions of a synthetic context each KV head attends to while it decodes.

The context is a run of topics, each a direction that its keys share; the query asks for a few of
them in turn. Every dot is a selected token: the sinks at the bottom, the recent tokens at the top,
and between them the lists that the query asked for.

Usage: plot_selection.py [--policy cluster] [--budget 512] [--steps 96] [--output selection.png]
"""
import argparse

import numpy as np

import semkv

KV_HEADS, HEAD_DIM, TOPIC_TOKENS = 2, 64, 128


def synthetic_context(rng, tokens):
    """Keys and values [tokens, KV_HEADS, HEAD_DIM], and the topics' directions."""
    topics = rng.standard_normal((tokens // TOPIC_TOKENS + 1, KV_HEADS, HEAD_DIM))
    noise = rng.standard_normal((tokens, KV_HEADS, HEAD_DIM))
    k = np.repeat(topics, TOPIC_TOKENS, axis=0)[:tokens] + 0.7 * noise
    return k.astype(np.float32), rng.standard_normal(k.shape).astype(np.float32), topics


def decode(arguments, rng):
    """Selected tokens as a boolean array [KV_HEADS, tokens, steps]."""
    tokens, steps = arguments.tokens, arguments.steps
    k, v, topics = synthetic_context(rng, tokens + steps)
    asked = rng.integers(0, tokens // TOPIC_TOKENS, 6)
    selected = np.zeros((KV_HEADS, tokens + steps, steps), bool)
    with semkv.Cache(num_layers=1, num_heads=KV_HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM,
                     max_tokens=tokens + steps, policy=arguments.policy, budget=arguments.budget,
                     force_sparse=True) as cache:
        sequence = cache.sequence()
        sequence.append(tokens)
        sequence.write(0, k[:tokens], v[:tokens])
        sequence.index()
        for i in range(steps):
            at = sequence.append(1)[0]
            sequence.write(0, k[at:at + 1], v[at:at + 1])
            topic = topics[asked[i * len(asked) // steps]]
            q = (topic + 0.3 * rng.standard_normal(topic.shape)).astype(np.float32)[None]
            with cache.step([sequence]) as step:
                step.select(0, q)
                step.attend(0, q)
                for head in range(KV_HEADS):
                    selected[head, step.selected(0, head), i] = True
            sequence.observe()
        print(cache.explain(), end="")
    return selected


def plot(selected, arguments, pyplot):
    figure, axes = pyplot.subplots(1, KV_HEADS, figsize=(11, 6), sharey=True, layout="constrained")
    for head, axis in enumerate(axes):
        axis.imshow(selected[head], origin="lower", aspect="auto", cmap="Blues",
                    interpolation="nearest")
        axis.set(title=f"KV head {head}", xlabel="decode step")
    axes[0].set_ylabel("position in the context")
    figure.suptitle(f"policy {arguments.policy}, budget {arguments.budget} of {arguments.tokens} "
                    "tokens: what was attended")
    figure.savefig(arguments.output, dpi=130)
    print(f"wrote {arguments.output}")


def load_pyplot():
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("plot_selection.py needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")  # draws into a file, needs no screen
    from matplotlib import pyplot
    return pyplot


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="cluster", help="one that needs no vocabulary")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", default="selection.png")
    arguments = parser.parse_args()
    pyplot = load_pyplot()
    print(f"seed {arguments.seed}")
    plot(decode(arguments, np.random.default_rng(arguments.seed)), arguments, pyplot)


if __name__ == "__main__":
    main()
