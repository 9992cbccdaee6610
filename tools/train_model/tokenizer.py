"""Trains the tokenizer: byte-level BPE, 2,048 entries, single digits.

Every digit is a token of its own, then GPT-2's split, no prefix space. Token 0 is <|bos|>, token 1
<|eos|>; neither is added by itself: whoever makes a prompt puts token 0 first.
"""
import argparse
import os

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import documents

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>"]
VOCABULARY = 2048


def sample_texts(real_texts, seed, generated=3000, real=700):
    """Texts to train on: documentation passages and small generated documents."""
    rng = documents.generator("train", f"tokenizer {seed}")
    texts = rng.sample(real_texts, min(real, len(real_texts)))
    for _ in range(generated):
        world = documents.World(rng, crowded=rng.random() < .6, forms=rng.random())
        parts = []
        for _ in range(8):
            fact = world.fact()
            parts += [documents.sentence_text(sentence) for sentence in fact.sentences]
            parts.append(documents.filler(rng))
            if rng.random() < .5:
                parts.append(documents.sentence_text(fact.pieces(restated=False)))
        texts.append("".join(parts))
    return texts


def train(texts, vocabulary=VOCABULARY):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description="Train the tokenizer.")
    parser.add_argument("--work", required=True, help="folder that real_text.py wrote")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with open(os.path.join(arguments.work, "real_train.txt")) as file:
        real_texts = [text for text in file.read().split("\0") if text]
    tokenizer = train(sample_texts(real_texts, arguments.seed))
    tokenizer.save(os.path.join(arguments.work, "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} entries")


if __name__ == "__main__":
    main()
