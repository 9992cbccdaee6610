"""Rows found again by their blocks alone: a small paged engine with prefix cache, preemption,
chunked prefill and rewritten slots, against dense attention over what each request really holds.
"""
import functools
import random

import numpy as np
import pytest
from seeds import SEED, SOAK

from semkv._abi import check, ffi, lib, new
from semkv.vllm.tracker import NO_ROOM, UNWRITTEN, Tracker

HEADS, DIM, BLOCK = 2, 64, 8


def make_context(num_blocks, max_sequences):
    options = new("semkv_options")
    check(lib.semkv_options_init(options))
    options.num_layers, options.num_heads, options.num_kv_heads = 1, HEADS, 1
    options.head_dim, options.page_tokens, options.num_pages = DIM, BLOCK, num_blocks
    options.max_sequences, options.max_sequence_tokens = max_sequences, num_blocks * BLOCK
    options.num_threads, options.engine_pages = 1, 1
    made = ffi.new("semkv_context **")
    check(lib.semkv_context_create(options, made))
    return ffi.gc(made[0], lib.semkv_context_destroy)


def make_policy(budget):
    policy = new("semkv_policy")
    check(lib.semkv_policy_init(policy, lib.SEMKV_POLICY_CLUSTER))
    policy.budget, policy.force_sparse, policy.segment_tokens = budget, 1, 1024
    return policy


@functools.lru_cache(maxsize=50000)
def row_of(state):
    return np.random.default_rng(state).standard_normal((2, DIM), np.float32)


def rows_of(ids):
    """Keys and values that depend on all ids up to each token, as a model's do."""
    rows, state = [], 0
    for token in ids:
        state = hash((state, int(token))) & 0xFFFFFFFF
        rows.append(row_of(state))
    return np.array(rows)  # [tokens, key and value, channels]


class Engine:
    """Blocks, a prefix cache over full ones, and what the adapter would call."""

    def __init__(self, num_blocks, max_sequences, budget=None):
        self.context = make_context(num_blocks, max_sequences)
        self.tracker = Tracker(self.context, make_policy(budget or num_blocks * BLOCK), num_blocks,
                               BLOCK, max_sequences, num_blocks * BLOCK)
        made = ffi.new("semkv_plan **")
        check(lib.semkv_plan_create(self.context, 8, num_blocks * BLOCK, made))
        self.plan = ffi.gc(made[0], lib.semkv_plan_destroy)
        self.free = list(range(num_blocks))
        self.cached = {}  # ids of all tokens up to a block's end -> block
        self.users = [0] * num_blocks

    def take_block(self):
        block = self.free.pop(0)
        self.cached = {ids: b for ids, b in self.cached.items() if b != block}
        return block

    def prefix(self, ids):
        blocks = []
        for end in range(BLOCK, len(ids), BLOCK):
            block = self.cached.get(tuple(ids[:end]))
            if block is None:
                break
            blocks.append(block)
        for block in blocks:
            if self.users[block] == 0:
                self.free.remove(block)
            self.users[block] += 1
        return blocks

    def grow(self, blocks, length):
        """Blocks for `length` tokens; False if there are not enough."""
        need = -(-length // BLOCK) - len(blocks)
        if need > len(self.free):
            return False
        for _ in range(need):
            block = self.take_block()
            self.users[block] = 1
            blocks.append(block)
        return True

    def release(self, blocks):
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free.append(block)

    def write(self, blocks, ids, first, end):
        slots = np.array([blocks[t // BLOCK] * BLOCK + t % BLOCK for t in range(first, end)],
                         np.int32)
        self.tracker.note_writes(slots, np.array(ids[first:end], np.int32))
        rows = rows_of(ids[:end])[first:]
        args = new("semkv_write_args")
        args.num_tokens, args.slots = len(slots), ffi.from_buffer("int32_t[]", slots)
        k, v = np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1])
        args.k, args.v = ffi.from_buffer(k), ffi.from_buffer(v)
        check(lib.semkv_write_kv(self.context, 0, args))
        for t in range(first, end):
            if (t + 1) % BLOCK == 0:
                self.cached.setdefault(tuple(ids[:t + 1]), blocks[t // BLOCK])

    def attend(self, sequences, query):
        held = [s for s in sequences if s is not None]
        out = np.empty((len(held), HEADS, DIM), np.float32)
        if held:
            check(lib.semkv_plan_step(self.plan, len(held), held, ffi.NULL))
            args = new("semkv_attend_args")
            args.q, args.out = ffi.from_buffer(query), ffi.from_buffer(out)
            check(lib.semkv_select(self.plan, 0, args))
            check(lib.semkv_attend(self.plan, 0, args))
        return out


def dense(ids, query):
    rows = rows_of(ids)
    scores = query @ rows[:, 0].T / np.sqrt(DIM)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ rows[:, 1]


class Request:
    def __init__(self, ids, engine):
        self.ids = ids
        self.prompt = len(ids)
        self.start(engine)

    def start(self, engine):
        self.blocks = engine.prefix(self.ids)
        self.computed = len(self.blocks) * BLOCK


def step(engine, requests, rng, query_rng, max_chunk):
    """Every request moves on by a chunk of its prompt or a token, or is preempted; decode rows are
    attended and compared."""
    decoding, prompts = [], []
    for request in list(requests):
        before = request.computed
        end = min(len(request.ids), before + rng.randint(1, max_chunk))
        if not engine.grow(request.blocks, end):
            engine.release(request.blocks)  # preempted: starts again, its prefix may be cached
            request.start(engine)
            continue
        is_decode = request.computed == len(request.ids) - 1 and len(request.ids) > request.prompt
        engine.write(request.blocks, request.ids, request.computed, end)
        request.computed = end
        if is_decode:
            decoding.append(request)
        else:
            prompts.append((request, before))
        if end == len(request.ids):
            request.ids.append(rng.randrange(50))
    rows = [(np.array(r.blocks, np.int32), r.computed) for r in decoding]
    sequences = engine.tracker.sequences_for(rows)
    for request, num_tokens in prompts:
        if request.blocks:  # not preempted by one that came later in this step
            engine.tracker.seal_prompt(np.array(request.blocks, np.int32), num_tokens)
    query = query_rng.standard_normal((len(rows), HEADS, DIM)).astype(np.float32)
    kept = [i for i, s in enumerate(sequences) if s is not None]
    out = engine.attend(sequences, np.ascontiguousarray(query[kept]))
    for o, i in zip(out, kept):
        request = decoding[i]
        np.testing.assert_allclose(o, dense(request.ids[:request.computed], query[i]), atol=2e-5)
    return len(kept), len(rows)


def run_schedule(engine, seed, num_steps, max_requests, num_documents, lengths, max_chunk,
                 max_decoded):
    """Requests come, begin like others, and are aborted. (rows that were sparse, all decode rows)."""
    rng, query_rng = random.Random(seed), np.random.default_rng(seed)
    documents = [[rng.randrange(50) for _ in range(lengths[1])] for _ in range(num_documents)]
    requests, sparse, total = [], 0, 0
    for _ in range(num_steps):
        if len(requests) < max_requests and rng.random() < 0.3:
            ids = documents[rng.randrange(num_documents)][:rng.randint(*lengths)]
            requests.append(Request(ids + [rng.randrange(50) for _ in range(rng.randint(0, 9))],
                                    engine))
        if requests and rng.random() < 0.05:
            engine.release(requests.pop(rng.randrange(len(requests))).blocks)
        kept, rows = step(engine, requests, rng, query_rng, max_chunk)
        sparse, total = sparse + kept, total + rows
        for request in [r for r in requests if len(r.ids) > r.prompt + max_decoded]:
            requests.remove(request)
            engine.release(request.blocks)
    return sparse, total


@pytest.mark.parametrize("seed", range(SEED, SEED + 4 * SOAK))
def test_random_schedules_attend_to_what_each_request_holds(seed):
    engine = Engine(num_blocks=24, max_sequences=6)
    sparse, total = run_schedule(engine, seed, num_steps=300, max_requests=4, num_documents=3,
                                 lengths=(5, 60), max_chunk=20, max_decoded=30)
    assert sparse == total > 100, f"seed {seed}: {engine.tracker.refused}"
    assert engine.tracker.continued > total / 2, f"seed {seed}"
    assert engine.tracker.adopted > 10, f"seed {seed}"


@pytest.mark.parametrize("seed", range(SEED, SEED + 2 * SOAK))
def test_long_prompts_in_chunks_are_attended_to_as_they_are(seed):
    """Prompts of one to three segments, whose lists are built while they come."""
    engine = Engine(num_blocks=1000, max_sequences=5)
    sparse, total = run_schedule(engine, seed, num_steps=80, max_requests=3, num_documents=2,
                                 lengths=(900, 3300), max_chunk=700, max_decoded=8)
    assert sparse == total > 30, f"seed {seed}: {engine.tracker.refused}"
    assert engine.tracker.prompt_tokens >= 3 * 1024, f"seed {seed}"
    assert engine.tracker.shared_tokens >= 1024, f"seed {seed}"


def one_request(engine, num_tokens):
    request = Request(list(range(num_tokens)), engine)
    assert engine.grow(request.blocks, num_tokens)
    engine.write(request.blocks, request.ids, request.computed, num_tokens)
    return request


def sequences(engine, *requests):
    return engine.tracker.sequences_for(
        [(np.array(r.blocks, np.int32), len(r.ids)) for r in requests])


def length_of(engine, sequence):
    length = ffi.new("int32_t *")
    check(lib.semkv_sequence_length(engine.context, sequence, length))
    return length[0]


def test_a_block_that_was_never_written_is_refused():
    engine = Engine(8, 2)
    request = Request(list(range(20)), engine)
    assert engine.grow(request.blocks, 20)
    engine.write(request.blocks, request.ids, 8, 20)  # something else filled the first block
    assert sequences(engine, request) == [None]
    assert engine.tracker.refused[UNWRITTEN] == 1


def test_a_block_that_was_only_begun_is_refused():
    engine = Engine(8, 2)
    request = one_request(engine, 20)
    engine.write(request.blocks, request.ids, 0, 5)  # new content, and not all of it seen
    assert sequences(engine, request) == [None]


def test_tokens_that_came_by_another_way_make_a_new_sequence():
    engine = Engine(8, 2)
    request = one_request(engine, 17)
    [first] = sequences(engine, request)
    request.ids += [3, 4, 5]  # several queries in a step: the engine's own attention
    engine.write(request.blocks, request.ids, 17, 20)
    [second] = sequences(engine, request)
    assert second not in (first, None)
    assert length_of(engine, second) == 20


def test_what_is_decoded_joins_the_lists():
    engine = Engine(64, 2, budget=64)
    request = one_request(engine, 100)
    for t in range(100, 400):
        sequences(engine, request)
        request.ids.append(t)
        assert engine.grow(request.blocks, t + 1)
        engine.write(request.blocks, request.ids, t, t + 1)
    [sequence] = sequences(engine, request)
    info = new("semkv_sequence_info")
    check(lib.semkv_sequence_info_get(engine.context, sequence, info))
    assert info.num_tokens == 400
    assert info.num_indexed > 380, "later tokens would be attended as recent ones, if they fit"


def test_blocks_that_somebody_else_filled_are_refused():
    engine = Engine(8, 2)
    request = one_request(engine, 20)
    foreign = set()
    engine.tracker._holds = lambda blocks: not foreign & set(blocks.tolist())
    assert sequences(engine, request) != [None]
    foreign.add(request.blocks[1])
    request.ids.append(3)
    engine.write(request.blocks, request.ids, 20, 21)
    assert sequences(engine, request) == [None]


def test_a_rewritten_block_ends_the_sequences_over_it():
    engine = Engine(8, 2)
    first = one_request(engine, 20)
    [old] = sequences(engine, first)
    engine.release(first.blocks)
    engine.cached.clear()
    engine.free = first.blocks + [b for b in engine.free if b not in first.blocks]
    second = one_request(engine, 20)
    assert second.blocks == first.blocks
    [made] = sequences(engine, second)
    assert made != old
    assert lib.semkv_sequence_release(engine.context, old) == lib.SEMKV_NOT_FOUND


def test_blocks_that_were_decoded_sparsely_are_counted():
    engine = Engine(16, 4)
    first = one_request(engine, 9)
    query = np.zeros((1, HEADS, DIM), np.float32)
    for token in range(9, 33):
        engine.attend(sequences(engine, first), query)
        first.ids.append(token)
        assert engine.grow(first.blocks, token + 1)
        engine.write(first.blocks, first.ids, token, token + 1)
    engine.release(first.blocks)
    second = Request(first.ids[:24] + [1], engine)
    assert len(second.blocks) == 3 and engine.grow(second.blocks, 25)
    engine.write(second.blocks, second.ids, 24, 25)
    sequences(engine, second)
    assert engine.tracker.sparse_blocks == 2, "all but the first, which the prompt filled"


def test_two_rows_with_the_same_blocks_are_two_sequences():
    engine = Engine(8, 4)
    first = one_request(engine, 16)
    second = Request(list(first.ids), engine)
    engine.release(second.blocks)
    second.blocks = list(first.blocks)
    one, two = sequences(engine, first, second)
    assert one != two and None not in (one, two)
    for request in (first, second):  # their blocks were full and equal, the next ones are their own
        request.ids.append(1)
        assert engine.grow(request.blocks, 17)
        engine.write(request.blocks, request.ids, 16, 17)
    assert set(sequences(engine, first, second)) == {one, two}
    assert length_of(engine, one) == length_of(engine, two) == 17


def test_equal_contents_in_other_blocks_are_another_sequence():
    engine = Engine(8, 4)
    first = one_request(engine, 16)
    [one] = sequences(engine, first)
    second = Request(list(first.ids), engine)
    engine.release(second.blocks)
    engine.cached.clear()
    second.blocks, second.computed = [], 0
    assert engine.grow(second.blocks, 8)
    engine.write(second.blocks, second.ids, 0, 8)
    second.blocks.append(first.blocks[1])
    first.ids.append(1)
    second.ids.append(2)
    for request in (second, first):
        assert engine.grow(request.blocks, 17)
        engine.write(request.blocks, request.ids, 16, 17)
    two, again = sequences(engine, second, first)
    assert again == one and two not in (one, None)


@pytest.mark.parametrize("max_sequences, shared", [(4, 1024), (1, 0)])
def test_a_request_takes_the_lists_of_one_that_has_ended(max_sequences, shared):
    engine = Engine(300, max_sequences)
    first = one_request(engine, 1100)
    sequences(engine, first)
    last = first.blocks[-1]
    engine.release(first.blocks)
    engine.free.remove(last)
    engine.free.insert(0, last)  # as vLLM does with a block that is not full
    second = Request(list(range(1090)) + [7] * 12, engine)
    assert engine.grow(second.blocks, 1102) and second.blocks[136] == last
    engine.write(second.blocks, second.ids, second.computed, 1102)
    [sequence] = sequences(engine, second)
    assert engine.tracker.shared_tokens == shared
    query = np.random.default_rng(SEED).standard_normal((1, HEADS, DIM)).astype(np.float32)
    out = engine.attend([sequence], query)
    np.testing.assert_allclose(out[0], dense(second.ids, query[0]), atol=2e-5)


def segments_of(engine):
    """[(sequence, first token, tokens)] of the segments that were sealed since the last call."""
    events = ffi.new("semkv_event[64]")
    count = ffi.new("int32_t *")
    check(lib.semkv_events_drain(engine.context, events, 64, count))
    return [(e.a, e.b, e.c) for e in events[0:count[0]]
            if e.kind == lib.SEMKV_EVENT_SEGMENT_SEALED]


def test_the_first_decode_step_builds_what_the_prompt_left():
    query = np.random.default_rng(SEED).standard_normal((1, HEADS, DIM)).astype(np.float32)
    engines = [Engine(400, 4, budget=256) for _ in range(2)]
    outputs = []
    for engine, is_sealed in zip(engines, (True, False)):
        request = one_request(engine, 2600)
        table = np.array(request.blocks, np.int32)
        built = []
        for computed in (0, 1000, 1024, 1030, 2000, 2049, 2300) if is_sealed else ():
            engine.tracker.seal_prompt(table, computed)
            built += [(computed, first, tokens) for _, first, tokens in segments_of(engine)]
        sinks = engine.tracker._policy.sinks
        assert built == ([(1030, sinks, 1024 - sinks), (2049, 1024, 1024)] if is_sealed else [])
        [sequence] = sequences(engine, request)
        rest = [(first, tokens) for made, first, tokens in segments_of(engine) if made == sequence]
        assert rest[-1] == (2048, 551) and len(rest) == (1 if is_sealed else 3)
        assert engine.tracker.prompt_tokens == (2048 if is_sealed else 0)
        assert engine.tracker.shared_tokens == 0, "nobody else's"
        assert len(engine.tracker._all) == 1, "the prompt's lists are the request's now"
        outputs.append(engine.attend([sequence], query))
    assert (outputs[0] == outputs[1]).all()


def test_lists_of_a_prompt_serve_another_that_begins_alike():
    engine = Engine(600, 4)
    first, second = one_request(engine, 2600), None
    engine.tracker.seal_prompt(np.array(first.blocks, np.int32), 2100)
    segments_of(engine)
    second = Request(first.ids[:1500], engine)
    assert len(second.blocks) == 187 and engine.grow(second.blocks, 1500)
    engine.write(second.blocks, second.ids, second.computed, 1500)
    engine.tracker.seal_prompt(np.array(second.blocks, np.int32), 1490)
    assert segments_of(engine) == []
    sequences(engine, second)
    assert [b for _, b, _ in segments_of(engine)] == [1024]
    sequences(engine, first)  # its own lists are still there, all of them
    assert [b for _, b, _ in segments_of(engine)] == [2048]


def test_prompts_that_cannot_be_sealed_are_left():
    engine = Engine(300, 2)
    request = Request(list(range(1100)), engine)
    assert engine.grow(request.blocks, 1100)
    engine.write(request.blocks, request.ids, 8, 1100)  # something else filled the first block
    engine.tracker.seal_prompt(np.array(request.blocks, np.int32), 1090)
    assert engine.tracker.prompt_tokens == 0
    assert not engine.tracker.refused, "no row was"


def test_lists_of_blocks_with_new_content_are_not_shared():
    engine = Engine(300, 4)
    first = one_request(engine, 1100)
    sequences(engine, first)
    engine.release(first.blocks)
    engine.cached.clear()
    engine.free = first.blocks + [b for b in engine.free if b not in first.blocks]
    second = Request([i + 1 for i in range(1100)], engine)
    assert engine.grow(second.blocks, 1100) and second.blocks == first.blocks
    engine.write(second.blocks, second.ids, 0, 1100)
    sequences(engine, second)
    assert engine.tracker.shared_tokens == 0


def test_the_sequence_not_seen_for_longest_makes_room():
    engine = Engine(16, 2)
    a, b, c = (Request([10 * i + t for t in range(9)], engine) for i in range(3))
    for request in (a, b, c):
        assert engine.grow(request.blocks, 9)
        engine.write(request.blocks, request.ids, 0, 9)
    [first], [second], [third] = (sequences(engine, r) for r in (a, b, c))
    assert lib.semkv_sequence_release(engine.context, first) == lib.SEMKV_NOT_FOUND
    assert None not in (second, third)
    assert sequences(engine, a, b, c)[2] is None, "three rows, room for two"
    assert engine.tracker.refused[NO_ROOM] == 1


def test_a_policy_without_segments_seals_no_prompt():
    engine = Engine(300, 2)
    engine.tracker._policy.kind = lib.SEMKV_POLICY_WINDOW
    request = one_request(engine, 1100)
    engine.tracker.seal_prompt(np.array(request.blocks, np.int32), 1090)
    assert engine.tracker.prompt_tokens == 0 and not engine.tracker._all
