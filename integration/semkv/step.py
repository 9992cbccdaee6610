"""A forward step over a batch of sequences, and the C objects that a cache and its parts share."""
from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from semkv._abi import check, ffi, lib, new
from semkv._policy import most_attended
from semkv._tensor import Array, borrow, borrow_lse, empty_like

if TYPE_CHECKING:
    from semkv.cache import Sequence


@dataclass
class _Plan:
    pointer: Any
    rows: int
    budget: int
    free: bool


class Handles:
    """The library's context and plans of one cache, and whether it is still open."""

    def __init__(self, context: Any, options: Any):
        self._context = context
        self._plans: list[_Plan] = []
        self._plans_lock = threading.Lock()
        self.num_layers = options.num_layers
        self.num_heads = options.num_heads
        self.num_kv_heads = options.num_kv_heads
        self.head_dim = options.head_dim
        self.max_sequence_tokens = options.max_sequence_tokens

    @property
    def closed(self) -> bool:
        return self._context is None

    @property
    def context(self) -> Any:
        if self._context is None:
            raise RuntimeError("the cache is closed")
        return self._context

    def close(self) -> None:
        for plan in self._plans:
            lib.semkv_plan_destroy(plan.pointer)
        self._plans = []
        if self._context is not None:
            lib.semkv_context_destroy(self._context)
        self._context = None

    def take_plan(self, rows: int, budget: int) -> _Plan:
        """A plan with room for `rows` and `budget`, the step's until it sets `free` again. Steps
        mostly follow one another, so one plan serves them all and grows with them."""
        with self._plans_lock:
            return self._take_plan(rows, budget)

    def _take_plan(self, rows: int, budget: int) -> _Plan:
        context = self.context
        free = [plan for plan in self._plans if plan.free]
        for plan in free:
            if plan.rows >= rows and plan.budget >= budget:
                plan.free = False
                return plan
        rows = max([rows] + [plan.rows for plan in free])
        budget = max([budget] + [plan.budget for plan in free])
        for plan in free:
            lib.semkv_plan_destroy(plan.pointer)
            self._plans.remove(plan)
        pointer = ffi.new("semkv_plan **")
        check(lib.semkv_plan_create(context, rows, budget, pointer))
        self._plans.append(_Plan(pointer[0], rows, budget, free=False))
        return self._plans[-1]


class Step:
    """How each row of a batch is attended, and the attention itself; made by Cache.step.

    For every layer: write the new keys and values, select(), attend(). Rows with several queries,
    short rows and dense layers are attended in full (reason() says why); select() then has nothing
    to do for them. The step's sequences cannot be appended to or otherwise changed until it ends:
    leave the `with` block, or close(). A step belongs to one thread.
    """

    def __init__(self, handles: Handles, sequences: list[Sequence], num_queries: list[int] | None):
        self._handles = handles
        self._sequences: list[Sequence] = []
        self._plan: _Plan | None = None
        _check_rows(handles, sequences, num_queries)
        budget = max(most_attended(sequence._policy, handles.max_sequence_tokens)
                     for sequence in sequences)
        plan = handles.take_plan(len(sequences), budget)
        try:
            check(lib.semkv_plan_step(plan.pointer, len(sequences), [s.id for s in sequences],
                                      ffi.NULL if num_queries is None else num_queries))
        except BaseException:
            plan.free = True
            raise
        self._plan, self._sequences = plan, sequences
        for sequence in sequences:
            sequence._step = True
        self._num_tokens = len(sequences) if num_queries is None else sum(num_queries)

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends the step. May be repeated; every other use raises RuntimeError then."""
        if self._plan is not None:
            self._plan.free = True
        for sequence in self._sequences:
            sequence._step = False
        self._plan, self._sequences = None, []

    def _pointer(self) -> Any:
        if self._handles.closed:
            raise RuntimeError("the cache is closed")
        if self._plan is None:
            raise RuntimeError("the step has ended")
        return self._plan.pointer

    def _arguments(self, layer: int, q: Array, scale: float) -> Any:
        for sequence in self._sequences:
            if layer in sequence._unwritten:
                raise RuntimeError(f"the last {len(sequence._slots)} tokens of sequence "
                                   f"{sequence.id} were not written in layer {layer}")
        handles = self._handles
        queries = borrow(q, "q", (self._num_tokens, handles.num_heads, handles.head_dim))
        args = new("semkv_attend_args")
        args.dtype, args.q = queries.dtype, ffi.cast("void *", queries.address)
        args.q_token, args.q_head, args.scale = queries.token, queries.head, scale
        return args

    def select(self, layer: int, q: Array, *, scale: float = 0.0) -> None:
        """Chooses the tokens that the sparse rows attend to in `layer`.

        q: [sum of num_queries, num_heads, head_dim], the rows' queries one after the other.
        scale: of the scores, 0: 1 / sqrt(head_dim). Give attend() the same.
        """
        pointer = self._pointer()
        check(lib.semkv_select(pointer, layer, self._arguments(layer, q, scale)))

    def attend(self, layer: int, q: Array, *, out: Array | None = None, lse: Array | None = None,
               scale: float = 0.0, logit_cap: float = 0.0, dense: bool = False,
               select: bool = False) -> Array:
        """Attention of every row in `layer`; causal among a row's own queries.

        q: as in select().
        out: where the result goes, of q's shape and dtype, any strides, not in q's memory; None: a
            new tensor of q's kind. It is returned.
        lse: float32 [sum of num_queries, num_heads], C-contiguous; gets the log-sum-exp of the
            attended scores.
        logit_cap: scores become logit_cap * tanh(score / logit_cap); 0: they do not.
        dense: attend to everything, whatever the policy; to compare with.
        select: select() first, in the same call of the library.
        Errors: SemkvError if a row is sparse and nothing was selected for this layer.
        """
        pointer = self._pointer()
        args = self._arguments(layer, q, scale)
        out = empty_like(q) if out is None else out
        target = borrow(out, "out", tuple(q.shape), writable=True)
        if target.dtype != args.dtype:
            raise ValueError(f"out has dtype {out.dtype} and q {q.dtype}, must be the same")
        args.out, args.out_token = ffi.cast("void *", target.address), target.token
        args.out_head, args.logit_cap = target.head, logit_cap
        if lse is not None:
            args.lse = ffi.cast("float *", borrow_lse(lse, tuple(q.shape[:2])))
        args.flags = lib.SEMKV_ATTEND_DENSE if dense else 0
        if select:
            check(lib.semkv_run_layer(pointer, layer, ffi.NULL, args))
        else:
            check(lib.semkv_attend(pointer, layer, args))
        return out

    def selected(self, row: int = 0, head: int = 0) -> np.ndarray:
        """Positions that the last select() chose, ascending; int32, a copy.

        head: the KV head, or the query head where the policy has per_query_head.
        Errors: SemkvError if the row is dense in that layer, or nothing was selected.
        """
        positions, count = ffi.new("const int32_t **"), ffi.new("int32_t *")
        check(lib.semkv_select_result(self._pointer(), row, head, positions, count))
        # A row may have no selection of this head: NULL and 0.
        size = count[0] * ffi.sizeof("int32_t")
        return np.frombuffer(ffi.buffer(positions[0], size), np.int32).copy()

    def reason(self, layer: int, row: int = 0) -> str:
        """Why `row` is attended as it is in `layer`: "sparse", or "short_context", "multi_query",
        "dense_layer", "not_indexed", "dense_policy"."""
        reason = ffi.new("int32_t *")
        check(lib.semkv_plan_row(self._pointer(), layer, row, reason))
        return ffi.string(lib.semkv_row_reason_name(reason[0])).decode()


def _check_rows(handles: Handles, sequences: list[Sequence], num_queries: list[int] | None) -> None:
    if not sequences:
        raise ValueError("a step of 0 sequences, must be at least 1")
    if num_queries is not None and len(num_queries) != len(sequences):
        raise ValueError(f"num_queries has {len(num_queries)} numbers for {len(sequences)} "
                         "sequences")
    for row, sequence in enumerate(sequences):
        if sequence._handles is not handles:
            raise ValueError(f"row {row} is a sequence of another cache")
        if any(sequence is other for other in sequences[:row]):
            raise ValueError(f"row {row} is sequence {sequence.id}, which is in the step already")
        sequence._idle_context("step")
