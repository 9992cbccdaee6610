#!/usr/bin/env python3
"""Writes question sets for evaluation, one document a line, as JSON.

  {"id": "facts4-2048-1-0", "kind": "facts4", "filler": "generated" or "real", "tokens": 1994,
   "text": "...", "questions": [{"question": "\\nQuestion: What is ...? Answer: The ... is",
   "answer": " 7413.", "tokens_after": 512}, ...]}

To ask: token 0, then the tokens of text, then those of question; the answer is right when greedy
decoding writes exactly the tokens of answer. tokens and tokens_after (from the end of the fact to
the end of the text) are approximate when no tokenizer is at hand. Every second document has real
documentation text of this machine as filler (generated where there is none), so only the other
half is the same on every machine; real text is not to be passed on.

Needs Python; the tokenizers package, if installed, makes the token counts exact.
"""
import argparse
import json
import os
import sys

TOOLS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(TOOLS, "train_model"))

import documents  # noqa: E402
import real_text  # noqa: E402

MODEL = os.path.join(TOOLS, "..", "models", "semkv-tiny")
CHARACTERS_PER_TOKEN = {"none": 3.7, "generated": 4.9, "real": 2.7}  # by filler, roughly


def token_counter(path):
    """-> count(text, filler), exact if the tokenizers package is there."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        print("no tokenizers package: token counts are approximate", file=sys.stderr)
        return lambda text, filler: max(1, round(len(text) / CHARACTERS_PER_TOKEN[filler]))
    tokenizer = Tokenizer.from_file(path)
    return lambda text, filler: len(tokenizer.encode(text).ids)


def make_document(kind, tokens, seed, index, count, real, restated):
    """-> the fields of one line."""
    use_real = real and index % 2
    name = "none" if kind.startswith("dense") else "real" if use_real else "generated"
    text, asked = documents.evaluation_document(
        kind, tokens, f"{seed} {index}", lambda piece: count(piece, name),
        real if use_real else None)
    questions = [dict(question=item.fact.prompt(restated), answer=item.fact.value + ".",
                      tokens_after=item.tokens_after) for item in asked]
    return dict(id=f"{kind}-{tokens}-{seed}-{index}", kind=kind, filler=name,
                tokens=1 + count(text, name), text=text, questions=questions)


def main():
    parser = argparse.ArgumentParser(
        description="Write evaluation documents as JSON lines.",
        epilog="kinds: " + "; ".join(f"{k}: {v}" for k, v in documents.EVALUATION_KINDS.items()))
    parser.add_argument("--kind", required=True, choices=documents.EVALUATION_KINDS)
    parser.add_argument("--tokens", type=int, required=True,
                        help="length of a document with one question and its answer")
    parser.add_argument("--documents", type=int, required=True, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bare", action="store_true",
                        help="questions without the beginning of the answer's sentence")
    parser.add_argument("--generated", action="store_true", help="generated filler only")
    parser.add_argument("--tokenizer", default=os.path.join(MODEL, "tokenizer.json"))
    parser.add_argument("--out", help="file (default: standard output)")
    arguments = parser.parse_args()
    real = None
    if not arguments.generated and not arguments.kind.startswith("dense"):
        real = real_text.RealFiller(real_text.passages("validation", 1_000_000))
        if not real:
            print("no documentation text found: generated filler only", file=sys.stderr)
            real = None
    count = token_counter(arguments.tokenizer)
    out = open(arguments.out, "w") if arguments.out else sys.stdout
    for index in range(arguments.documents):
        fields = make_document(arguments.kind, arguments.tokens, arguments.seed, index, count, real,
                               not arguments.bare)
        out.write(json.dumps(fields) + "\n")
    if out is not sys.stdout:
        out.close()


if __name__ == "__main__":
    main()
