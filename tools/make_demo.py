#!/usr/bin/env python3
"""Writes the demo: models/demo/harbour_report.txt and models/demo/questions.json.

The report is generated filler with facts spread over it, so long that it needs more than one
segment of 8,192 tokens. Facts are kept only if the small model, reading everything, answers them
right, in both forms, and if the window control (the first 16 and the last 256 tokens) fails on
them: the demo shows what selection keeps, not what the model can do.
"""
import argparse
import json
import os
import sys

TOOLS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(TOOLS, "train_model"))

import documents  # noqa: E402
from evaluate import Scorer  # noqa: E402

ROOT = os.path.join(TOOLS, "..")
TOKENS = 8600
PARAGRAPH = 9  # sentences
FACTS = [  # where in the report (share of its length), the beginning of the sentence, its end
    (.04, "access code", "Marlow harbor", "7413"),
    (.13, "mascot", "Thornwick station", "otter"),
    (.24, "budget code", "Fenby depot", "2958"),
    (.35, "password", "Kelbrook tower", "velvet"),
    (.46, "locker number", "Ashcombe market", "6027"),
    (.57, "guardian", "Oakworth bridge", "falcon"),
    (.68, "serial number", "Pemshaw office", "3841"),
    (.78, "emblem", "Wesley mill", "anchor"),
    (.86, "case number", "Dunford library", "5196"),
    (.92, "keyword", "Yarstead castle", "cobalt"),
]


def make_facts():
    return [(share, documents.simple_fact(f"The {attribute} of the {place} is",
                                          f"What is the {attribute} of the {place}?", " " + value))
            for share, attribute, place, value in FACTS]


def write_report(count, seed):
    """-> text: paragraphs of filler, a fact in some of them."""
    rng = documents.generator("validation", f"demo {seed}")
    facts = make_facts()
    text, tokens, sentences = "", 1, 0
    while tokens < TOKENS:
        opens_paragraph = sentences % PARAGRAPH == 0
        if facts and tokens >= facts[0][0] * TOKENS and not opens_paragraph:
            sentence = documents.sentence_text(facts.pop(0)[1].sentences[0])
        else:
            sentence = documents.filler(rng)
        if opens_paragraph:
            sentence = ("\n\n" if text else "") + sentence.lstrip()
        text += sentence
        sentences += 1
        tokens += count(sentence)
    return text


def main():
    parser = argparse.ArgumentParser(description="Write the demo and check it with the model.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=os.path.join(ROOT, "models", "demo"))
    arguments = parser.parse_args()
    scorer = Scorer(os.path.join(ROOT, "models", "semkv-tiny"))
    text = write_report(lambda piece: len(scorer.encode(piece)), arguments.seed)
    ids = [0] + scorer.encode(text)
    _, cache = scorer.read(ids)
    questions = []
    for share, fact in make_facts():
        answer = fact.value + "."
        right = {f"{'window' if window else 'dense'} {'restated' if restated else 'bare'}":
                 scorer.answers(cache, fact.prompt(restated), answer, window)
                 for window in (False, True) for restated in (True, False)}
        kept = right["dense restated"] and right["dense bare"] and not right["window restated"]
        print("kept" if kept else "left out", fact.question, answer, right)
        if kept:
            questions.append(dict(question=fact.prompt(True), answer=answer,
                                  sentence=documents.sentence_text(fact.sentences[0]).strip(),
                                  depth=share))
    with open(os.path.join(arguments.out, "harbour_report.txt"), "w") as file:
        file.write(text)
    fields = dict(document="harbour_report.txt", tokens=len(ids), questions=questions)
    with open(os.path.join(arguments.out, "questions.json"), "w") as file:
        json.dump(fields, file, indent=1)
        file.write("\n")
    print(f"{len(ids)} tokens, token 0 included; {len(questions)} questions")


if __name__ == "__main__":
    main()
