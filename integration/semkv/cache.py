"""A KV cache for people without an engine: numpy arrays or torch CPU tensors in, attention out.

    with semkv.Cache(num_layers=2, num_heads=8, num_kv_heads=2, head_dim=64,
                     max_tokens=20_000, budget=1024) as cache:
        sequence = cache.sequence()
        sequence.append(n)                          # prefill
        for layer in range(2):
            sequence.write(layer, k[layer], v[layer])
        sequence.index()
        sequence.append(1)                          # decode, token by token
        with cache.step([sequence]) as step:
            for layer in range(2):
                sequence.write(layer, new_k[layer], new_v[layer])
                step.select(layer, q[layer])
                out = step.attend(layer, q[layer])
        sequence.observe()

Tensors are numpy arrays or torch CPU tensors of float32, float16 or bfloat16 (in numpy:
ml_dtypes'), of shape [tokens, heads, head_dim], rotary position already applied. They are read and
written where they are, by pointer and strides, and never kept; only the channels must be
contiguous, so a transposed view will do. Gradients are not computed.

Errors: ValueError for a tensor or argument that does not fit, TypeError for a policy field that
does not exist, SemkvError for what the library refuses, RuntimeError for calls out of order, such
as any use after close(). All name the quantity and both numbers, and change nothing.

Threads: calls on different sequences may come from different threads; close() when none is running.
"""
from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from semkv import _context
from semkv._abi import SemkvError, check, ffi, lib, new
from semkv._policy import changed, fields_of, make_policy, named_constants
from semkv._tensor import Array, borrow, dtype_code, token_ids
from semkv.step import Handles, Step

_EVENTS = {number: name for name, number in named_constants("SEMKV_EVENT_").items()}


class Event(NamedTuple):
    """Something the cache did on its own account; see Cache.events."""

    kind: str      # "segment_sealed", "sentences_closed", ... as SEMKV_EVENT_* of semkv.h
    sequence: int  # Sequence.id; -1 for "dropped"
    first: int     # first token; -1 for "dropped"
    count: int     # tokens, sentences or windows, by kind; for "dropped" the events lost


class Cache:
    """The keys and values of several sequences in one pool of memory, and their inverted lists.

    num_layers, num_heads, num_kv_heads, head_dim: the model's. head_dim is 64, 80, 96, 128 or 256;
        num_kv_heads divides num_heads.
    max_tokens: tokens of the pool, over all sequences; forks share what they have in common. Every
        sequence takes whole pages. The pool is reserved at once: 2 * num_layers * num_kv_heads *
        head_dim numbers per token.
    dtype: of the pool, "float32", "float16" or "bfloat16" (or numpy's or torch's dtype); what is
        written is converted to it.
    max_sequence_tokens: most tokens of one sequence; default max_tokens.
    num_threads: 0 is all cores.
    query_window: last queries remembered per sequence, layer and head; the policy "sentencekv"
        needs 32.
    vocabulary: a list with the bytes that each token id decodes to, b"" for special tokens. Needed
        for policies that cut sentences.
    policy, policy_fields: what sequences start with. The default is "hybrid" with a vocabulary,
        "cluster" without. Fields are those of struct semkv_policy (semkv.POLICY_FIELDS), such as
        budget=2048, min_context=0, force_sparse=True, cluster_metric="cosine".

    Errors: SemkvError for a geometry that the library lacks or memory that cannot be had.
    """

    def __init__(self, *, num_layers: int, num_heads: int, num_kv_heads: int, head_dim: int,
                 max_tokens: int, dtype: Any = "float32", page_tokens: int = 16,
                 max_sequences: int = 16, max_sequence_tokens: int | None = None,
                 num_threads: int = 0, prefix_sharing: bool = True, query_window: int = 0,
                 vocabulary: list[bytes] | None = None, policy: str | None = None,
                 **policy_fields: Any):
        if page_tokens < 1 or max_tokens < 1:
            raise ValueError(f"page_tokens is {page_tokens} and max_tokens {max_tokens}, "
                             "both must be at least 1")
        policy = policy or ("cluster" if vocabulary is None else "hybrid")
        self._policy = changed(make_policy(policy), policy_fields)
        options = new("semkv_options")
        check(lib.semkv_options_init(options))
        options.num_layers, options.num_heads = num_layers, num_heads
        options.num_kv_heads, options.head_dim = num_kv_heads, head_dim
        options.kv_dtype, options.page_tokens = dtype_code(dtype, "dtype"), page_tokens
        options.num_pages = -(-max_tokens // page_tokens)
        options.max_sequences = max_sequences
        options.max_sequence_tokens = max_tokens if max_sequence_tokens is None \
            else max_sequence_tokens
        options.num_threads, options.query_window = num_threads, query_window
        options.prefix_sharing = prefix_sharing
        context = ffi.new("semkv_context **")
        check(lib.semkv_context_create(options, context))
        self._handles = Handles(context[0], options)
        # Also runs when the interpreter exits, before modules are taken apart.
        self._finalizer = weakref.finalize(self, self._handles.close)
        if vocabulary is not None:
            _context.set_vocabulary(self._handles.context, vocabulary)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Frees everything, also what sequences and steps of the cache hold. May be repeated."""
        self._finalizer()

    def sequence(self, policy: str | None = None, budget: int | None = None, salt: int = 0,
                 **fields: Any) -> Sequence:
        """An empty sequence. `policy` and `fields` as in Sequence.set_policy, from the cache's own.

        salt: prefixes are shared only between sequences of equal salt (a tenant's secret).
        Errors: SemkvError at max_sequences, or if the library refuses the policy.
        """
        start = self._policy if policy is None else make_policy(policy)
        wanted = changed(start, fields if budget is None else {**fields, "budget": budget})
        number = ffi.new("semkv_sequence *")
        check(lib.semkv_sequence_create(self._handles.context, salt, number))
        sequence = Sequence(self, number[0], wanted)
        try:
            check(lib.semkv_sequence_set_policy(self._handles.context, number[0], wanted))
        except SemkvError:
            sequence.release()
            raise
        return sequence

    def step(self, sequences: Iterable[Sequence], num_queries: Iterable[int] | None = None) -> Step:
        """One forward step over a batch: row r is sequences[r], whose last num_queries[r] tokens
        are the step's queries (None: one each). Use it as a context manager, see Step.

        Errors: RuntimeError if a sequence is in another step, ValueError if it is another cache's.
        """
        return Step(self._handles, list(sequences),
                    None if num_queries is None else list(num_queries))

    def stats(self) -> dict[str, Any]:
        """Counters since creation, as struct semkv_stats of semkv.h has them; "layer_rows" is a
        dict by reason."""
        return _context.stats(self._handles.context)

    def explain(self) -> str:
        """What the cache does and why: geometry, each sequence's policy, lists and fallbacks."""
        return _context.explain(self._handles.context)

    def events(self) -> list[Event]:
        """Events since the last call, oldest first; the cache remembers 1,024."""
        room = ffi.new("semkv_event[1025]")
        count = ffi.new("int32_t *")
        check(lib.semkv_events_drain(self._handles.context, room, len(room), count))
        dropped = lib.SEMKV_EVENT_DROPPED
        return [Event(_EVENTS[e.kind], -1, -1, e.a) if e.kind == dropped
                else Event(_EVENTS[e.kind], e.a, e.b, e.c) for e in room[0:count[0]]]


class Sequence:
    """One request's tokens; made by Cache.sequence or fork().

    A token's life: append() makes room, write() brings its keys and values in every layer, index()
    (after prefill) or observe() (after decoded tokens) puts it into the lists. Dropping the object
    releases the sequence.
    """

    def __init__(self, cache: Cache, number: int, policy: Any):
        self._cache = cache                      # lives as long as its sequences
        self._handles = cache._handles
        self._policy = policy
        self._released = False
        self._step = False                       # a step over this sequence is under way
        self._slots = np.empty(0, np.int32)      # of the last append
        self._unwritten: frozenset[int] = frozenset()  # layers that still lack those tokens
        self.id = number
        """The number that events and explain() call the sequence by."""

    def __del__(self) -> None:
        if not self._released and not self._handles.closed:
            self._released = True
            lib.semkv_sequence_release(self._handles.context, self.id)

    def __len__(self) -> int:
        """Tokens appended so far."""
        length = ffi.new("int32_t *")
        check(lib.semkv_sequence_length(self._context(), self.id, length))
        return length[0]

    def _context(self) -> Any:
        if self._released:
            raise RuntimeError(f"sequence {self.id} was released")
        return self._handles.context

    def _idle_context(self, call: str) -> Any:
        if self._step:
            raise RuntimeError(f"{call}: sequence {self.id} is in a step, which must end first")
        return self._context()

    def _written_context(self, call: str) -> Any:
        context = self._idle_context(call)
        if self._unwritten:
            raise RuntimeError(
                f"{call}: the last {len(self._slots)} tokens of sequence {self.id} were written in "
                f"{self._handles.num_layers - len(self._unwritten)} of {self._handles.num_layers} "
                f"layers; layer {min(self._unwritten)} lacks them")
        return context

    def append(self, ids: Any) -> range:
        """Makes room for more tokens; returns their positions.

        ids: token ids, [n] integers; or a number n, then they have no sentences and are not shared.
        Errors: RuntimeError if earlier tokens were not written in every layer; SemkvError if the
        pool has no pages left, or beyond max_sequence_tokens.
        """
        context = self._written_context("append")
        if np.ndim(ids) == 0:
            count, pointer = operator.index(ids), ffi.NULL
        else:
            array = token_ids(ids)
            count, pointer = len(array), ffi.from_buffer("int32_t[]", array)
        slots = np.empty(max(count, 0), np.int32)
        check(lib.semkv_sequence_append(context, self.id, count, pointer,
                                        ffi.from_buffer("int32_t[]", slots)))
        self._slots, self._unwritten = slots, frozenset(range(self._handles.num_layers))
        end = len(self)
        return range(end - count, end)

    def share_prefix(self, ids: Any) -> int:
        """Adopts the longest run of full pages, written and indexed by another sequence of equal
        salt, that equals the beginning of `ids`; returns the number of tokens. One is always left
        to compute. The sequence must be empty; append ids[result:] next.
        """
        context = self._idle_context("share_prefix")
        array = token_ids(ids)
        shared = ffi.new("int32_t *")
        check(lib.semkv_sequence_share_prefix(context, self.id, len(array),
                                              ffi.from_buffer("int32_t[]", array), shared))
        return shared[0]

    def write(self, layer: int, k: Array, v: Array) -> None:
        """Keys and values of the tokens of the last append(), [tokens, num_kv_heads, head_dim],
        converted to the pool's dtype. k and v have the same dtype.

        Errors: RuntimeError if there is nothing to write: no append since index(), observe() or
        fork(); ValueError; SemkvError for a layer that does not exist.
        """
        context = self._context()
        if len(self._slots) == 0:
            raise RuntimeError(f"write: nothing was appended to sequence {self.id} since it was "
                               "created, indexed, observed or forked")
        shape = (len(self._slots), self._handles.num_kv_heads, self._handles.head_dim)
        keys, values = borrow(k, "k", shape), borrow(v, "v", shape)
        if keys.dtype != values.dtype:
            raise ValueError(f"k has dtype {k.dtype} and v {v.dtype}, must be the same")
        args = new("semkv_write_args")
        args.dtype, args.num_tokens = keys.dtype, len(self._slots)
        slots = ffi.from_buffer("int32_t[]", self._slots)
        args.slots = slots
        args.k, args.k_token, args.k_head = ffi.cast("void *", keys.address), keys.token, keys.head
        args.v, args.v_token, args.v_head = ffi.cast("void *", values.address), values.token, \
            values.head
        check(lib.semkv_write_kv(context, layer, args))
        self._unwritten -= {layer}

    def _seal(self) -> None:
        """Written tokens are read by lists or forks now: they stay as they are."""
        self._slots = np.empty(0, np.int32)

    def index(self) -> None:
        """Builds the inverted lists of every token appended so far. Call at the end of prefill.

        Errors: RuntimeError if tokens were not written in every layer; SemkvError, see semkv_index.
        """
        check(lib.semkv_index(self._written_context("index"), self.id))
        self._seal()

    def observe(self) -> None:
        """Folds tokens decoded since the last call into the lists. Call after each decode step.

        Errors: as index().
        """
        check(lib.semkv_observe(self._written_context("observe"), self.id))
        self._seal()

    def fork(self) -> Sequence:
        """A new sequence with the tokens, lists and policy of this one, sharing its pages.

        Errors: RuntimeError if tokens were not written in every layer; SemkvError at max_sequences.
        """
        number = ffi.new("semkv_sequence *")
        check(lib.semkv_sequence_fork(self._written_context("fork"), self.id, number))
        self._seal()
        return Sequence(self._cache, number[0], self._policy)

    def release(self) -> None:
        """Gives the pages back. May be repeated; every other use raises RuntimeError then."""
        if self._released or self._handles.closed:
            return
        check(lib.semkv_sequence_release(self._idle_context("release"), self.id))
        self._released = True

    def set_policy(self, policy: str | None = None, **fields: Any) -> None:
        """Sets how the sequence is indexed and read from now on: a policy by name with its own
        defaults, or (None) the present one, with `fields` changed. Lists that the new policy would
        build otherwise are dropped, call index() again; another budget keeps them.

        Errors: ValueError for an unknown policy, TypeError for an unknown field (it lists the known
        ones), SemkvError for values that the library refuses.
        """
        context = self._idle_context("set_policy")
        wanted = changed(self._policy if policy is None else make_policy(policy), fields)
        check(lib.semkv_sequence_set_policy(context, self.id, wanted))
        self._policy = wanted

    @property
    def policy(self) -> dict[str, Any]:
        """The policy's name under "policy", and every field."""
        return fields_of(self._policy)

    @property
    def info(self) -> dict[str, int]:
        """Tokens, lists and bytes, as struct semkv_sequence_info of semkv.h has them."""
        struct = new("semkv_sequence_info")
        check(lib.semkv_sequence_info_get(self._context(), self.id, struct))
        return _context.fields(struct)
