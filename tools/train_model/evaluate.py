"""Scores a model folder: facts in filler, every sentence a fact, two-hop, perplexity. JSON out.

An answer counts when every token of it and the closing period is the most probable one given the
tokens before it, which is what greedy decoding would write. The document is always read densely;
question and answer then see everything (dense), or, as a control that must fail, the first 16 and
the last 256 tokens only (window). The window control counts only facts that lie outside the window.
"""
import argparse
import json
import math
import os
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

import documents
import real_text
from net import Config, LanguageModel

SINKS, WINDOW = 16, 256
MODES = ("dense_restated", "dense_bare", "window_restated")


class Scorer:
    """A loaded model that reads documents and answers questions about them."""

    def __init__(self, folder):
        with open(os.path.join(folder, "config.json")) as file:
            config = Config.from_hugging_face(json.load(file))
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.model = LanguageModel(config).eval()
        weights = load_file(os.path.join(folder, "model.safetensors"))
        self.model.load_state_dict({name: w.float() for name, w in weights.items()})

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    @torch.no_grad()
    def read(self, ids):
        """Dense prefill; -> (hidden states, cache)"""
        return self.model.model(torch.tensor([ids]), torch.arange(len(ids))[None])

    @torch.no_grad()
    def answers(self, cache, prompt, answer, window):
        """Whether the model writes `answer` after the cached document and `prompt`."""
        prompt, answer = self.encode(prompt), self.encode(answer)
        ids = prompt + answer[:-1]
        past = cache[0][0].shape[2]
        queries = torch.arange(past, past + len(ids))[:, None]
        keys = torch.arange(past + len(ids))[None]
        allowed = keys <= queries
        if window:
            allowed &= (keys < SINKS) | (keys > queries - WINDOW)
        hidden, _ = self.model.model(torch.tensor([ids]), queries.T, cache, allowed)
        written = self.model.logits(hidden[0, len(prompt) - 1:]).argmax(-1)
        return written.tolist() == answer


def questions_cell(scorer, kind, tokens, questions, seed, real):
    """Scores at least `questions` questions of one kind of document; -> dict"""
    results, document, begin = {mode: [] for mode in MODES}, 0, time.time()
    while len(results["dense_restated"]) < questions:
        filler = real if document % 2 else None
        text, asked = documents.evaluation_document(
            kind, tokens, f"{seed} {document}", lambda piece: len(scorer.encode(piece)), filler)
        document += 1
        _, cache = scorer.read([0] + scorer.encode(text))
        for item in asked:
            answer = item.fact.value + "."
            ask = lambda restated, window: scorer.answers(
                cache, item.fact.prompt(restated), answer, window)
            results["dense_restated"].append(ask(True, False))
            results["dense_bare"].append(ask(False, False))
            if item.tokens_after >= WINDOW:
                results["window_restated"].append(ask(True, True))
    filler = "none" if kind.startswith("dense") else "half real" if real else "generated"
    cell = dict(task=kind, tokens=tokens, documents=document, filler=filler,
                seconds=round(time.time() - begin, 1))
    for mode, hits in results.items():
        cell[mode] = dict(right=sum(hits), of=len(hits),
                          share=round(sum(hits) / len(hits), 3) if hits else None)
    return cell


@torch.no_grad()
def perplexity_cell(scorer, tokens, windows, seed, texts):
    """Perplexity per token of validation text: documentation if `texts`, else facts and filler."""
    rng = documents.generator("validation", f"perplexity {tokens} {seed}")
    if texts:
        ids = [i for text in texts for i in [0] + scorer.encode(text)]
    total = count = 0
    for window in range(windows):
        if texts:
            begin = rng.randrange(len(ids) - tokens - 1)
            row = ids[begin:begin + tokens + 1]
        else:
            text, asked = documents.evaluation_document(
                "facts16" if tokens >= 1024 else "facts4", tokens, f"perplexity {seed} {window}",
                lambda piece: len(scorer.encode(piece)))
            text += "".join(item.fact.prompt(True) + item.fact.value + "." for item in asked)
            row = ([0] + scorer.encode(text))[:tokens + 1]
        hidden, _ = scorer.read(row[:-1])
        losses = F.cross_entropy(scorer.model.logits(hidden[0]), torch.tensor(row[1:]),
                                 reduction="sum")
        total, count = total + losses.item(), count + len(row) - 1
    return dict(task="perplexity", text="real" if texts else "generated", tokens=tokens,
                windows=windows, perplexity=round(math.exp(total / count), 2))


def main():
    parser = argparse.ArgumentParser(
        description="Score a model.",
        epilog="kinds: " + "; ".join(f"{k}: {v}" for k, v in documents.EVALUATION_KINDS.items())
               + "; perplexity: count is windows")
    parser.add_argument("--model", required=True, help="folder with config.json and the weights")
    parser.add_argument("--cell", action="append", required=True, metavar="KIND:TOKENS:COUNT",
                        help="for example facts4:4096:100; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--generated", action="store_true", help="generated filler only")
    parser.add_argument("--out", help="JSON file (default: standard output)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scorer = Scorer(arguments.model)
    texts = [] if arguments.generated else real_text.passages("validation")
    real = real_text.RealFiller(texts)
    if not real and not arguments.generated:
        print("no documentation text on this machine: generated filler only", file=sys.stderr)
    cells = []
    for cell in arguments.cell:
        kind, tokens, count = cell.split(":")
        tokens, count = int(tokens), int(count)
        if kind == "perplexity":
            cells += [perplexity_cell(scorer, tokens, count, arguments.seed, part)
                      for part in ([texts] if texts else []) + [[]]]
        else:
            cells.append(questions_cell(scorer, kind, tokens, count, arguments.seed, real or None))
        print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
    report = dict(model=os.path.basename(os.path.normpath(arguments.model)), seed=arguments.seed,
                  window=dict(first=SINKS, last=WINDOW), cells=cells)
    text = json.dumps(report, indent=1) + "\n"
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
