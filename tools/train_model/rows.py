"""Training rows: token ids, what each token is, and where the model is told it stands.

A batch is a function of (seed, phase, step) alone, so training can stop and go on, and two runs see
the same rows.
"""
import os

import numpy as np
from tokenizers import Tokenizer

import documents
from documents import Kind


class RowMaker:
    """Makes rows of one work folder: tokenizer.json and real_train.txt must be there."""

    def __init__(self, work):
        self.tokenizer = Tokenizer.from_file(os.path.join(work, "tokenizer.json"))
        with open(os.path.join(work, "real_train.txt")) as file:
            texts = [text for text in file.read().split("\0") if text]
        ids = []
        for encoding in self.tokenizer.encode_batch(texts):
            ids += [0] + encoding.ids
        self.real = np.array(ids, np.uint16)
        self.after_period = np.flatnonzero(self.real == self.tokenizer.token_to_id(".")) + 1
        self.encoded = {}

    def encode(self, text):
        ids = self.encoded.get(text)
        if ids is None:
            ids = self.tokenizer.encode(text).ids
            if len(self.encoded) < 200000:
                self.encoded[text] = ids
        return ids

    def batch(self, phase, seed, phase_index, step):
        """-> ids [rows, tokens + 1], kinds [rows, tokens + 1], positions [rows, tokens]."""
        rng = documents.generator("train", f"{seed} {phase_index} {step}")
        numbers = np.random.default_rng([seed, phase_index, step])
        tokens = phase.tokens
        ids = np.zeros((phase.rows, tokens + 1), np.int64)
        kinds = np.zeros((phase.rows, tokens + 1), np.int64)
        positions = np.zeros((phase.rows, tokens), np.int64)
        for row in range(phase.rows):
            if rng.random() < phase.real_rows:
                begin = numbers.integers(len(self.real) - tokens - 1)
                ids[row], kinds[row] = self.real[begin:begin + tokens + 1], Kind.REAL_TEXT
                starts = []
            else:
                written = Row(self, rng, tokens, phase.restated)
                ids[row], kinds[row] = written.ids[:tokens + 1], written.kinds[:tokens + 1]
                starts = [start for start in written.starts if start < tokens]
            positions[row] = spread_positions(tokens, starts, phase, rng, numbers)
        return ids, kinds, positions


class Row:
    """One generated row: documents one after another until it is full.

    A document is a body of facts and filler with some questions in between, then the questions
    that are left.
    """

    def __init__(self, maker, rng, tokens, restated):
        self.maker, self.rng, self.restated = maker, rng, restated
        self.ids, self.kinds, self.starts = [0], [Kind.TEXT], []
        while len(self.ids) < tokens + 1:
            self.write_document(tokens + 1)

    def put(self, pieces):
        """Writes a sentence."""
        self.starts.append(len(self.ids))
        for text, kind in pieces:
            ids = self.maker.encode(text)
            self.ids.extend(ids)
            self.kinds.extend([kind] * len(ids))

    def put_real_filler(self):
        begin = self.rng.choice(self.maker.after_period)
        ids = self.maker.real[begin:begin + self.rng.randrange(12, 60)].tolist()
        self.starts.append(len(self.ids))
        self.ids += ids
        self.kinds += [Kind.REAL_FILLER] * len(ids)
        self.put([(".", Kind.TEXT)])

    def put_question(self, fact):
        self.put(fact.pieces(self.rng.random() < self.restated))

    def write_document(self, end):
        rng = self.rng
        world = documents.World(rng, crowded=rng.random() < .6, forms=rng.random())
        left = end - len(self.ids)
        filler_share = 0 if rng.random() < .4 else rng.choice([.3, .6, .9])
        real_filler = rng.random() < .4
        body_end = len(self.ids) + 1 + int(left * rng.uniform(.35, .75))
        ask_between = rng.random() < .35
        unasked = []
        while len(self.ids) < body_end:
            if rng.random() < filler_share:
                if real_filler:
                    self.put_real_filler()
                else:
                    self.put([(documents.filler(rng), Kind.TEXT)])
            else:
                fact = world.fact()
                unasked.append(fact)
                self.write_fact(world, fact, filler_share > 0)
            if ask_between and unasked and rng.random() < .25:
                self.put_question(unasked.pop(rng.randrange(len(unasked))))
        rng.shuffle(unasked)
        for fact in unasked:
            if len(self.ids) >= end:
                break
            self.put_question(fact)

    def write_fact(self, world, fact, filler):
        """The sentences of a fact, mostly with other sentences between them."""
        apart = len(fact.sentences) > 1 and self.rng.random() < .7
        for sentence in fact.sentences:
            self.put(sentence)
            for _ in range(self.rng.randrange(3) if apart else 0):
                if filler:
                    self.put([(documents.filler(self.rng), Kind.TEXT)])
                else:
                    self.put(world.attribute_fact().sentences[0])


def spread_positions(tokens, starts, phase, rng, numbers):
    """Positions contiguous inside sentences, with random gaps between sentences.

    Rows of at most 2,048 tokens so teach distances up to phase.span; the whole is then shifted by
    a random offset. A share 1 - phase.gaps of the rows has no gaps.
    """
    steps = np.ones(tokens, np.int64)
    steps[0] = 0
    if starts and rng.random() < phase.gaps:
        total = int(np.exp(numbers.uniform(np.log(tokens), np.log(phase.span))))
        count = numbers.integers(1, len(starts) + 1)
        chosen = numbers.choice(starts, count, replace=False)
        shares = numbers.exponential(size=count)
        gaps = ((total - tokens) * shares / shares.sum()).astype(np.int64)
        np.add.at(steps, chosen[chosen > 0], gaps[chosen > 0])
    positions = steps.cumsum()
    return positions + numbers.integers(0, max(1, phase.span - positions[-1]))
