"""A model's keys, values and queries at random, and attention over them in plain numpy."""
import numpy as np

import semkv

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 64
# Ids 1 to 49 are words; 0 ends a sentence.
VOCABULARY = [b"."] + [b" w%d" % i for i in range(1, 50)]


def make_cache(**options):
    """A cache of this model; small enough for any machine, two threads."""
    chosen = {"num_layers": LAYERS, "num_heads": HEADS, "num_kv_heads": KV_HEADS,
              "head_dim": HEAD_DIM, "max_tokens": 16384, "num_threads": 2, **options}
    return semkv.Cache(**chosen)


def make_kv(rng, tokens):
    """Keys and values [LAYERS, tokens, KV_HEADS, HEAD_DIM]; float32. Keys come in runs that point
    the same way, so that lists have something to find."""
    shape = (LAYERS, tokens, KV_HEADS, HEAD_DIM)
    topics = rng.standard_normal((LAYERS, tokens // 20 + 1, KV_HEADS, HEAD_DIM))
    k = np.repeat(topics, 20, axis=1)[:, :tokens] + 0.5 * rng.standard_normal(shape)
    return k.astype(np.float32), rng.standard_normal(shape).astype(np.float32)


def make_q(rng, tokens):
    """Queries [LAYERS, tokens, HEADS, HEAD_DIM], float32."""
    return rng.standard_normal((LAYERS, tokens, HEADS, HEAD_DIM)).astype(np.float32)


def make_ids(rng, tokens):
    """Ids of VOCABULARY with a sentence end every 12 tokens or so."""
    return np.where(rng.random(tokens) < 1 / 12, 0, rng.integers(1, 50, tokens))


def write(sequence, k, v):
    for layer in range(LAYERS):
        sequence.write(layer, k[layer], v[layer])


def prefill(sequence, k, v, ids=None):
    """Appends, writes and indexes every token of k and v."""
    sequence.append(k.shape[1] if ids is None else ids)
    write(sequence, k, v)
    sequence.index()


def attention(q, k, v, *, scale=None, logit_cap=0.0, positions=None):
    """Softmax attention of one query [HEADS, HEAD_DIM] over k and v [tokens, KV_HEADS, HEAD_DIM],
    in float64; positions[g] are the rows that KV head g may see. Returns (out, lse)."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[0] // k.shape[1]
    out, lse = np.empty_like(q), np.empty(q.shape[0])
    for head in range(q.shape[0]):
        rows = slice(None) if positions is None else positions[head // group]
        scores = k[rows, head // group] @ q[head] * (scale or q.shape[1] ** -0.5)
        if logit_cap:
            scores = logit_cap * np.tanh(scores / logit_cap)
        weights = np.exp(scores - scores.max())
        lse[head] = np.log(weights.sum()) + scores.max()
        out[head] = weights @ v[rows, head // group] / weights.sum()
    return out, lse
