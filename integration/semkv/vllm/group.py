"""The layers of one KV cache group and the semkv context behind them, in one worker process."""
import collections
import dataclasses
import os
import time
import weakref

import numpy as np
import torch
from vllm.config import get_layers_from_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention

from semkv import _context
from semkv._abi import SemkvError, check, ffi, lib, new
from semkv._policy import most_attended
from semkv._tensor import dtype_code
from semkv.vllm import options as semkv_options
from semkv.vllm.tracker import Tracker
from semkv._vocabulary import vocabulary_bytes

logger = init_logger("vllm.semkv")

_groups = weakref.WeakSet()
_step_ids = None  # ids of the tokens of the forward pass that runs now


def note_step_ids(ids):
    """Called with the input ids, or None, before every forward pass of the model."""
    global _step_ids
    _step_ids = ids


def explain():
    """What semkv does in this process and why, as text."""
    return "\n".join(group.explain() for group in _groups) or "semkv: no attention layers yet\n"


@dataclasses.dataclass
class Place:
    """Which layer of which context an attention layer is."""

    group: "Group"
    index: int


def _pinned_cpus():
    """The CPUs that this process has bound single threads to, as vLLM's workers do."""
    cpus = set()
    for task in os.listdir("/proc/self/task"):
        try:
            allowed = os.sched_getaffinity(int(task))
        except OSError:  # the thread has ended
            continue
        if len(allowed) == 1:
            cpus |= allowed
    return cpus


class Samples:
    """A few bytes of each of the engine's blocks as they were after the last write through the
    layer. A KV connector fills blocks without one; then they differ. Whatever the layout is."""

    _NUM = 32

    def __init__(self, num_blocks):
        self._samples = torch.zeros((num_blocks, self._NUM), dtype=torch.float32)
        self._view = None

    def _read(self, blocks):
        return self._view[blocks].float()

    def take(self, kv_cache, slots, block_tokens):
        # Of [blocks, heads, block_tokens, 2 * channels], whatever order the engine gives to what is
        # inside a block: a view, so that only samples are copied.
        step = max(1, block_tokens // self._NUM)
        self._view = kv_cache[:, 0, ::step, 0][:, :self._NUM]
        blocks = torch.from_numpy(np.unique(slots[slots >= 0] // block_tokens)).long()
        self._samples[blocks] = self._read(blocks)

    def hold(self, blocks):
        blocks = torch.from_numpy(blocks).long()
        return bool(torch.equal(self._read(blocks), self._samples[blocks]))


class Group:
    @classmethod
    def of_layers(cls, kv_cache_spec, layer_names, vllm_config):
        layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
        used, left = [], {}
        for name in layer_names:
            reason = layers[name].impl.unsupported()
            if reason is None:
                used.append(layers[name])
            else:
                left[name] = reason
        group = cls(kv_cache_spec, used, left, vllm_config)
        if used and group.off is None:
            for index, layer in enumerate(used):
                layer.semkv_place = Place(group, index)
        return group

    def __init__(self, kv_cache_spec, layers, left, vllm_config):
        self.off = None  # why nothing is sparse any more
        self._left = left  # layer name -> why it is vLLM's alone
        self._config = vllm_config
        self._options = semkv_options.from_environment(vllm_config)
        self._dtype = vllm_config.model_config.dtype
        self._dtype_code = dtype_code(self._dtype, "the model's dtype")
        self._block_tokens = kv_cache_spec.block_size
        self._context = self._plan = self._tracker = self._samples = None
        self._plan_rows = 0
        self._counts = collections.Counter()
        self._next_report = 0.0
        # One of each, filled again for every layer: making them takes as long as filling them.
        self._write_args, self._attend_args = new("semkv_write_args"), new("semkv_attend_args")
        _groups.add(self)
        if not layers:
            self.off = "no layer that semkv supports"
            return
        self._num_layers = len(layers)
        impl = layers[0].impl
        self._num_heads, self._num_kv_heads = impl.num_heads, impl.num_kv_heads
        self._head_dim = impl.head_size
        self._vocabulary = self._load_vocabulary()
        if self._vocabulary is None and self._options.policy.kind == lib.SEMKV_POLICY_HYBRID:
            logger.warning("semkv: no tokenizer, so no sentences: policy cluster instead of hybrid")
            # Both have the same defaults, so the other fields stand.
            self._options.policy.kind = lib.SEMKV_POLICY_CLUSTER
        # A mistake in the options must be known when the server starts, not at the first request.
        try:
            self._check_policy()
        except SemkvError as error:
            if error.code != lib.SEMKV_UNIMPLEMENTED:
                raise ValueError(f"semkv: {error}") from error
            self._turn_off(str(error))

    def _load_vocabulary(self):
        model = self._config.model_config
        if model.skip_tokenizer_init:
            return None
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(
            model.tokenizer, revision=model.tokenizer_revision,
            trust_remote_code=model.trust_remote_code)
        return vocabulary_bytes(tokenizer)

    def _make_context(self, num_blocks, max_tokens, max_sequences):
        wanted = new("semkv_options")
        check(lib.semkv_options_init(wanted))
        wanted.num_layers, wanted.num_heads = self._num_layers, self._num_heads
        wanted.num_kv_heads, wanted.head_dim = self._num_kv_heads, self._head_dim
        wanted.kv_dtype = self._dtype_code
        wanted.page_tokens, wanted.num_pages = self._block_tokens, num_blocks
        wanted.max_sequences, wanted.max_sequence_tokens = max_sequences, max_tokens
        wanted.num_threads = torch.get_num_threads()
        wanted.engine_pages = 1
        made = ffi.new("semkv_context **")
        # The library's threads inherit this thread's CPUs, which vLLM may have bound to one.
        before = os.sched_getaffinity(0)
        pinned = _pinned_cpus()
        try:
            if len(before) == 1 and pinned:
                os.sched_setaffinity(0, pinned)
            check(lib.semkv_context_create(wanted, made))
        finally:
            os.sched_setaffinity(0, before)
        context = ffi.gc(made[0], lib.semkv_context_destroy)
        if self._vocabulary is not None:
            _context.set_vocabulary(context, self._vocabulary)
        return context

    def _check_policy(self):
        context = self._make_context(1, self._block_tokens, 1)
        sequence = ffi.new("semkv_sequence *")
        check(lib.semkv_sequence_create(context, 0, sequence))
        check(lib.semkv_sequence_set_policy(context, sequence[0], self._options.policy))

    def _start(self, num_blocks):
        """The context, once vLLM has said how many blocks there are."""
        block_bytes = (2 * self._num_layers * self._num_kv_heads * self._head_dim *
                       self._block_tokens * self._dtype.itemsize)
        if self._options.copy_gib > 0:
            num_blocks = min(num_blocks, int(self._options.copy_gib * 2**30) // block_bytes)
        max_tokens = min(self._config.model_config.max_model_len, num_blocks * self._block_tokens)
        # More than rows: requests that have ended keep their lists for those that begin alike.
        max_sequences = self._options.max_rows + 16
        self._context = self._make_context(num_blocks, max_tokens, max_sequences)
        if self._config.kv_transfer_config is not None:
            self._samples = Samples(num_blocks)
        self._tracker = Tracker(self._context, self._options.policy, num_blocks,
                                self._block_tokens, max_sequences, max_tokens,
                                holds=self._samples and self._samples.hold)
        self._num_blocks, self._max_tokens = num_blocks, max_tokens
        logger.info("semkv: policy %s, budget %d, %d layers, a plain-row copy of %d blocks (%.2f GiB)",
                    self._options.name, self._options.policy.budget, self._num_layers, num_blocks,
                    num_blocks * block_bytes / 2**30)

    def _turn_off(self, reason):
        self.off = reason
        logger.warning("semkv: off, vLLM's own attention serves every row: %s", reason)

    def write(self, index, key, value, slot_mapping, kv_cache):
        """Copies the keys and values of a step's tokens of one layer, [n, KV heads, channels]."""
        if self.off is not None:
            return
        try:
            if self._context is None:
                self._start(kv_cache.shape[0])
            if index == 0:
                self._note_writes(slot_mapping)
            args = self._write_args
            args.dtype, args.num_tokens = self._dtype_code, len(self._slots)
            args.slots = self._slots_pointer
            args.k, args.v = _pointer(key), _pointer(value)
            args.k_token, args.k_head = key.stride(0), key.stride(1)
            args.v_token, args.v_head = value.stride(0), value.stride(1)
            check(lib.semkv_write_kv(self._context, index, args))
            if index == 0 and self._samples is not None:
                self._samples.take(kv_cache, self._slots, self._block_tokens)
        except SemkvError as error:
            self._turn_off(str(error))

    def _note_writes(self, slot_mapping):
        global _step_ids
        slots = slot_mapping.numpy().astype(np.int32)
        # Blocks beyond a limited copy are never written, so their rows fall back.
        slots[slots >= self._num_blocks * self._block_tokens] = -1
        self._slots, self._slots_pointer = slots, ffi.from_buffer("int32_t[]", slots)
        ids = None
        if _step_ids is not None and len(_step_ids) >= len(slots):
            ids = _step_ids.numpy()[:len(slots)][slots >= 0]
        _step_ids = None
        self._tracker.note_writes(slots, ids)

    def plan(self, query_start, seq_lens, block_table, num_rows, is_prefilling):
        """The rows of a step that are decoded sparsely, ascending; the step is planned for them."""
        if self.off is not None or self._context is None:
            return []
        wanted = []
        for row in range(num_rows):
            reason = self._refusal(query_start[row + 1] - query_start[row], int(seq_lens[row]),
                                   block_table[row], is_prefilling is not None and is_prefilling[row])
            if reason is not None:
                self._counts[reason] += 1
            elif len(wanted) == self._options.max_rows:
                self._counts["more rows than max_rows"] += 1
            else:
                wanted.append(row)
        self._write_report()
        try:
            return self._plan_step(wanted, seq_lens, block_table)
        except SemkvError as error:
            self._turn_off(str(error))
            return []

    def _write_report(self):
        """explain() as it was before this step, at most once a second."""
        now = time.monotonic()
        if not self._options.report or now < self._next_report:
            return
        self._next_report = now + 1.0
        rank = self._config.parallel_config.rank
        path = self._options.report + (f".{rank}" if rank else "")
        try:
            with open(f"{path}.new", "w") as file:
                file.write(self.explain())
            os.replace(f"{path}.new", path)
        except OSError as error:
            self._options.report = ""
            logger.warning("semkv: no more reports: %s", error)

    def _refusal(self, num_queries, length, table, is_prefilling):
        if num_queries == 0:
            return "padding"
        if is_prefilling:
            return "prefill"
        if num_queries > 1:
            return "several queries"
        if length <= self._options.threshold:
            return "short context"
        if length > self._max_tokens:
            return "longer than the copy"
        if int(table[:-(-length // self._block_tokens)].max()) >= self._num_blocks:
            return "a block beyond the copy"
        return None

    def _plan_step(self, rows, seq_lens, block_table):
        if not rows:
            return []
        found = self._tracker.sequences_for([(block_table[r], int(seq_lens[r])) for r in rows])
        planned = [row for row, sequence in zip(rows, found) if sequence is not None]
        if not planned:
            return []
        self._grow_plan(len(planned))
        sequences = [sequence for sequence in found if sequence is not None]
        check(lib.semkv_plan_step(self._plan, len(sequences), sequences, ffi.NULL))
        self._counts["sparse"] += len(planned)
        return planned

    def _grow_plan(self, num_rows):
        if num_rows <= self._plan_rows:
            return
        self._plan_rows = min(self._options.max_rows, max(8, 2 * self._plan_rows, num_rows))
        made = ffi.new("semkv_plan **")
        budget = most_attended(self._options.policy, self._max_tokens)
        check(lib.semkv_plan_create(self._context, self._plan_rows, budget, made))
        self._plan = ffi.gc(made[0], lib.semkv_plan_destroy)

    def attend(self, index, query, out, scale, logit_cap):
        """Selection and attention of the planned rows. query, out: [rows, heads, channels].
        False if it could not be done; semkv is off then."""
        if self.off is not None:
            return False
        args = self._attend_args
        args.dtype = self._dtype_code
        args.q, args.out = _pointer(query), _pointer(out)
        args.q_token, args.q_head = query.stride(0), query.stride(1)
        args.out_token, args.out_head = out.stride(0), out.stride(1)
        args.scale, args.logit_cap = scale, logit_cap
        try:
            check(lib.semkv_select(self._plan, index, args))
            check(lib.semkv_attend(self._plan, index, args))
        except SemkvError as error:
            self._turn_off(str(error))
            return False
        return True

    def stats(self):
        """The library's counters, semkv_stats, as a dict; empty before the first request."""
        if self._context is None:
            return {}
        return _context.stats(self._context)

    def explain(self):
        lines = [f"semkv in vLLM: policy {self._options.name}, budget "
                 f"{self._options.policy.budget}, rows above {self._options.threshold} tokens"]
        if self.off is not None:
            lines.append(f"off: {self.off}")
        for name, reason in self._left.items():
            lines.append(f"layer {name}: left to vLLM, {reason}")
        lines.append("rows of steps: " + (", ".join(
            f"{reason} {count}" for reason, count in sorted(self._counts.items())) or "none"))
        if self._tracker is not None:
            refused = sum(self._tracker.refused.values())
            lines.append(f"sequences: made {self._tracker.adopted}, continued "
                         f"{self._tracker.continued} times, lists shared for "
                         f"{self._tracker.shared_tokens} tokens, made of "
                         f"{self._tracker.sparse_blocks} blocks that were decoded sparsely, "
                         f"refused {refused}"
                         + "".join(f"; {r} {n}" for r, n in self._tracker.refused.items()))
            rows = self.stats()
            if rows["selections"]:
                lines.append(
                    f"read by sparse rows: {rows['attended_tokens'] / rows['selections']:.1f} tokens "
                    f"per layer and KV head, {rows['kv_bytes_read'] / 1e6:.1f} MB of keys and "
                    f"values, {rows['index_bytes_read'] / 1e6:.1f} MB of lists; "
                    f"{rows['select_ns'] / 1e6:.1f} ms selecting, {rows['attend_ns'] / 1e6:.1f} ms "
                    f"attending, {rows['index_ns'] / 1e6:.1f} ms building lists")
            lines.append(_context.explain(self._context))
        return "\n".join(lines) + "\n"


def _pointer(tensor):
    if tensor.stride(-1) != 1:
        raise ValueError(f"channels of a tensor are {tensor.stride(-1)} elements apart, must be 1")
    return ffi.cast("void *", tensor.data_ptr())
