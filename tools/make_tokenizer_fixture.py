#!/usr/bin/env python3
"""Writes tests/reference/fixtures/tokenizer_engine.json: small tokenizers of the kinds that the
small model does not use (Llama 3's split, prefix spaces, runs of digits, merges in both notations,
ignore_merges, added tokens of every kind), strings, and the ids that `tokenizers` gives them.

Needs tokenizers. The file is committed; run this only to change it.
"""
import json
import os
import random

import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

TARGET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "reference",
                      "fixtures", "tokenizer_engine.json")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CORPUS = [
    "The quick brown fox doesn't jump over the lazy dog; it's what they've said, and we'll see.",
    "In 2024 there were 1234567 of them, in 1999 only 12.", "naïve café über straße Zürich Ωmega",
    "日本語のテスト 中文测试 한국어", "if (x == 0) { return   x; }\n\n\treturn y;\r\n", "HELLO World hello",
] * 3
STRINGS = [
    "", " ", "  ", "a", " a", "Hello", " Hello", "hello world", "it's IT'S iT'S they'LL 'ſ 'ST",
    "1", "12", "123", "1234", "12345678", "a1b22c333d4444", "²³¹ ½ Ⅷ ٣٤٥ 一二三 𝟘𝟙𝟚𝟛",
    "\n", "\n\n", " \n", "\n ", " \n \n ", "a\n\n b", "a \r\n b\r\r", "x  \n\n  y",
    "...\n\n...\r\n!",
    "a  b   c    d", "a\u00a0b \u00a0c\u00a0 d", "\u180e\u180ea b\u180e c",
    "a\u0085b\u0085\u0085 c",
    "\u2028x\u2029y\u200bz\ufeffw", "\x1c\x1d\x1e\x1f x\x0b\x0cy", "e\u0301\u0302 \u0301x",
    "ﬀ ﬁ ß ẞ İ ı K",
    "👍🏽 👨\u200d👩\u200d👧 x👍y", "日本語のテスト、中文。", "한국어 ᄒ\u1161ᆫ", "مرحبا ١٢٣", "हिन्दी १२३",
    "<|begin|>", "a<|begin|>b", "<|begin|><|begin_of|>", "<|begin", "[MARK]", "x[MARK] [MARK]y",
    "12<|begin|>34", "\U0010ffff\ue000\ufffe", "'s", "''s", "'", "don't'd'",
    "x" * 50, " " * 50 + "x",
    "\n" * 30, "\t\t\tif x:\n\t\t\t\ty", "http://a.b/c?d=e&f=g#h", "__a__ --b=c", "(a)(b)[c]{d}",
    "  'm",
]
RANGES = [(0x20, 0x7e), (0x09, 0x0d), (0x30, 0x39), (0x80, 0x24f), (0x300, 0x36f), (0x370, 0x52f),
          (0x600, 0x66f), (0x900, 0x97f), (0x1680, 0x180f), (0x2000, 0x206f), (0x2150, 0x218f),
          (0x2460, 0x24ff), (0x3000, 0x30ff), (0x4e00, 0x4eff), (0x1d7c0, 0x1d7ff),
          (0x1f300, 0x1f6ff)]


def random_string(rng):
    ranges = rng.sample(RANGES, rng.randrange(1, 5)) + [(0x20, 0x20)]
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(1, 20)))


def trained(pre_tokenizer):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=420, min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return json.loads(tokenizer.to_str())


def added(first_id, content, normalized, special):
    return dict(id=first_id, content=content, single_word=False, lstrip=False, rstrip=False,
                normalized=normalized, special=special)


def kinds():
    llama3 = trained(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    model = llama3["model"]
    model["ignore_merges"] = True
    # Every fifth merge goes, its token stays: reachable only as a whole piece.
    model["merges"] = [" ".join(m) for i, m in enumerate(model["merges"]) if i % 5]
    size = len(model["vocab"])
    llama3["added_tokens"] = [added(size, "<|begin|>", False, True),
                              added(size + 1, "<|begin_of|>", False, True),
                              added(size + 2, "[MARK]", True, False)]

    gpt2 = trained(pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True))
    gpt2["model"]["continuing_subword_prefix"] = ""
    gpt2["model"]["end_of_word_suffix"] = ""
    gpt2["added_tokens"] = [added(size, "<|begin|>", False, True),
                            added(size + 1, "[MARK]", True, False),
                            added(size + 2, "<|begin|>12", True, False)]

    digits = trained(pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)]))
    return dict(llama3=llama3, gpt2=gpt2, digits=digits)


def main():
    rng = random.Random("tokenizer_engine")
    strings = STRINGS + [random_string(rng) for _ in range(150)]
    result = []
    for name, fields in kinds().items():
        tokenizer = Tokenizer.from_str(json.dumps(fields))
        cases = []
        for text in strings:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            cases.append(dict(text=text, ids=ids,
                              decoded=tokenizer.decode(ids, skip_special_tokens=True)))
        result.append(dict(name=name, tokenizer=fields, cases=cases))
    with open(TARGET, "w") as file:
        json.dump(dict(versions=dict(tokenizers=tokenizers.__version__), tokenizers=result), file)
        file.write("\n")


if __name__ == "__main__":
    main()
