#!/usr/bin/env python3
"""What selections miss, counted in a real model: steps, layers and query heads in which one token
of the document has much of the attention, and the share of them in which it was not selected.

Run it in the environment of `make venv-vllm`. Documents and questions are those of
tools/make_documents.py; dense attention computes keys and queries (every token of question and
answer is a step), semkv indexes the document and selects at each step. Only selection is
compared, so errors do not add up.
"""
import argparse
import copy
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import semkv
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, DynamicCache

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = 0.4  # of the attention of a query head
CHUNK = 512  # queries whose scores are in memory at once


class Recorder:
    """Keys and queries of every layer's last call, through an attention of plain torch."""

    def __init__(self, path):
        self.layers = {}
        AttentionInterface.register("recorder", self.attend)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.model.set_attn_implementation("recorder")

    def attend(self, module, q, k, v, mask, scaling=None, **_):
        self.layers[module.layer_idx] = q[0], k[0]
        repeat, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
        keys, values = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = []
        for first in range(0, q.shape[2], CHUNK):
            last = min(q.shape[2], first + CHUNK)
            scores = q[:, :, first:last] @ keys[:, :, :past + last].transpose(2, 3) * scaling
            later = torch.arange(past + last) > past + torch.arange(first, last)[:, None]
            weights = scores.masked_fill(later, -torch.inf).softmax(-1)
            out.append(weights @ values[:, :, :past + last])
        return torch.cat(out, 2).transpose(1, 2).contiguous(), None

    @torch.no_grad()
    def run(self, ids, cache):
        """-> queries and keys of `ids`, after what `cache` holds: [heads, tokens, channels]."""
        self.model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1)
        return [(q.clone(), k[:, -len(ids):].clone()) for _, (q, k) in sorted(self.layers.items())]


def rows(keys, first, last):
    return keys[:, first:last].transpose(0, 1).contiguous().numpy()


def vocabulary(tokenizer):
    """The bytes of each token of a byte-level BPE; b"" for special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + i): byte for i, byte in enumerate(others)}
    special = set(tokenizer.all_special_ids)
    return [b"" if i in special else bytes(byte_of[c] for c in token)
            for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))]


def count(cache, document, question, sequence):
    """-> (heavy tokens, those not selected) over the steps of one question."""
    heavy = missed = 0
    fork, length = sequence.fork(), document[0][1].shape[1]
    for t in range(question[0][1].shape[1]):
        fork.append(1)
        with cache.step([fork]) as step:
            for layer, ((_, before), (q, k)) in enumerate(zip(document, question)):
                fork.write(layer, rows(k, t, t + 1), rows(k, t, t + 1))
                step.select(layer, rows(q, t, t + 1))
                repeat = q.shape[0] // k.shape[0]
                keys = torch.cat([before, k[:, :t + 1]], 1).repeat_interleave(repeat, 0)
                scores = (keys @ q[:, t, :, None])[:, :, 0] * q.shape[2] ** -0.5
                weight, position = scores.softmax(-1)[:, :length].max(-1)
                for head in torch.nonzero(weight >= HEAVY)[:, 0].tolist():
                    heavy += 1
                    missed += position[head].item() not in step.selected(0, head // repeat)
        fork.observe()
    return heavy, missed


def measure(policies, fractions, recordings, vocabulary_bytes):
    for fraction in fractions:
        for text in policies:
            name, *fields = text.split(",")
            fields = {key: float(value) if "." in value else int(value)
                      for key, value in (field.split("=") for field in fields)}
            total = np.zeros(2, int)
            for ids, document, questions in recordings:
                (q, k), layers = document[0], len(document)
                with semkv.Cache(num_layers=layers, num_heads=q.shape[0], num_kv_heads=k.shape[0],
                                 head_dim=k.shape[2], max_tokens=len(ids) + 2048,
                                 vocabulary=vocabulary_bytes, policy=name, force_sparse=1,
                                 budget=int(len(ids) * fraction), **fields) as cache:
                    sequence = cache.sequence()
                    sequence.append(np.array(ids, np.int32))
                    for layer, (_, keys) in enumerate(document):
                        sequence.write(layer, rows(keys, 0, len(ids)), rows(keys, 0, len(ids)))
                    sequence.index()
                    for question in questions:
                        total += count(cache, document, question, sequence)
            share = total[1] / max(total[0], 1)
            print(f"{fraction:<9} {text:<34} {total[0]:>7} {share:.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "semkv-tiny"))
    parser.add_argument("--kind", default="facts16")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--budget-fraction", type=float, action="append")
    parser.add_argument("--policy", action="append",
                        help="name[,field=number...], may be repeated [hybrid]")
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        subprocess.run([sys.executable, str(ROOT / "tools" / "make_documents.py"),
                        "--kind", args.kind, "--tokens", str(args.tokens), "--seed", "7",
                        "--documents", str(args.documents), "--out", file.name], check=True)
        documents = [json.loads(line) for line in open(file.name, encoding="utf-8")]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    recorder, recordings = Recorder(args.model), []
    for document in documents:
        ids, cache = [0] + encode(document["text"]), DynamicCache()
        layers = recorder.run(ids, cache)
        questions = [recorder.run(encode(item["question"] + item["answer"]), copy.deepcopy(cache))
                     for item in document["questions"]]
        recordings.append((ids, layers, questions))
    print(f"{args.kind}, {args.tokens} tokens, {args.documents} documents; heavy: {HEAVY} of a "
          f"head's attention on one token\nbudget    {'policy':<34}   heavy missed")
    measure(args.policy or ["hybrid"], args.budget_fraction or [0.125, 0.0625], recordings,
            vocabulary(tokenizer))


if __name__ == "__main__":
    main()
