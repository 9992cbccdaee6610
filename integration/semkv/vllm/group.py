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
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from semkv import _context
from semkv._abi import SemkvError, check, ffi, lib, new, packer
from semkv._policy import most_attended
from semkv._tensor import dtype_code
from semkv.vllm import options as semkv_options
from semkv.vllm.rows import RowsImpl
from semkv.vllm.tracker import Tracker
from semkv._vocabulary import vocabulary_bytes

logger = init_logger("vllm.semkv")

_groups = weakref.WeakSet()
_others = {}  # name of a layer -> the attention backend that serves it instead of semkv's
_step_ids = None  # ids of the tokens of the forward pass that runs now


def note_step_ids(ids):
    """Called with the input ids, or None, before every forward pass of the model; None after it."""
    global _step_ids
    _step_ids = ids


def note_layers(vllm_config):
    """Called when the KV cache is there: logs how many layers are left to vLLM, and why."""
    layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
    _others.clear()
    _others.update((name, f"attention backend {layer.get_attn_backend().get_name()}")
                   for name, layer in layers.items()
                   if not isinstance(getattr(layer, "impl", None), RowsImpl))
    left = collections.Counter(_others.values())
    for group in _groups:
        if group.config is vllm_config:
            left.update(group.left.values())
    for reason, count in left.items():
        logger.warning("semkv: %d of %d layers are left to vLLM: %s", count, len(layers), reason)


def explain():
    """What semkv does in this process and why, as text."""
    groups = "\n".join(group.explain() for group in _groups)
    return groups + _name_left(_others) or "semkv: no attention layers yet\n"


def _name_left(left):
    return "".join(f"layer {name}: left to vLLM, {reason}\n" for name, reason in left.items())


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

    def __init__(self, num_blocks, block_tokens):
        self._samples = torch.zeros((num_blocks, min(self._NUM, block_tokens)), dtype=torch.float32)
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
    borrows = 0  # 1: attention reads the engine's own rows, there is no copy (borrowed.py)

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
        self.left = left  # layer name -> why it is vLLM's alone
        self.config = vllm_config
        self._options = semkv_options.from_environment(vllm_config)
        self._dtype = vllm_config.model_config.dtype
        self._dtype_code = dtype_code(self._dtype, "the model's dtype")
        self._block_tokens = kv_cache_spec.block_size
        self._context = self._plan = self._tracker = self._samples = None
        self._plan_rows = 0
        self._is_limited = False  # the copy has fewer blocks than the engine's cache
        self._counts = collections.Counter()
        self._next_report = 0.0
        # One of each, filled again for every layer: making them takes as long as filling them.
        self._write_args, self._attend_args = new("semkv_write_args"), new("semkv_attend_args")
        self._write_args.dtype = self._attend_args.dtype = self._dtype_code
        self._pack_write = packer(self._write_args, "k", "v", "k_token", "k_head", "v_token",
                                  "v_head")
        self._pack_attend = packer(self._attend_args, "q", "out", "lse", "q_token", "q_head",
                                   "out_token", "out_head", "scale", "logit_cap")
        _groups.add(self)
        if not layers:
            self.off = "no layer that semkv supports"
            return
        self._num_layers = len(layers)
        impl = layers[0].impl
        self._num_heads, self._num_kv_heads = impl.num_heads, impl.num_kv_heads
        self._head_dim = impl.head_size
        if self._block_tokens & (self._block_tokens - 1) or self._block_tokens > 1024:
            # vLLM makes the blocks of hybrid models as large as a state.
            self.turn_off(f"blocks of {self._block_tokens} tokens, must be a power of two up to 1024")
            return
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
            self.turn_off(str(error))

    def _load_vocabulary(self):
        model = self.config.model_config
        if model.skip_tokenizer_init:
            return None
        from transformers import AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(
            model.tokenizer, revision=model.tokenizer_revision,
            trust_remote_code=model.trust_remote_code)
        return vocabulary_bytes(tokenizer)

    def _make_context(self, num_blocks, max_tokens, max_sequences, borrows=0):
        wanted = new("semkv_options")
        check(lib.semkv_options_init(wanted))
        wanted.num_layers, wanted.num_heads = self._num_layers, self._num_heads
        wanted.num_kv_heads, wanted.head_dim = self._num_kv_heads, self._head_dim
        wanted.kv_dtype = self._dtype_code
        wanted.page_tokens, wanted.num_pages = self._block_tokens, num_blocks
        wanted.max_sequences, wanted.max_sequence_tokens = max_sequences, max_tokens
        wanted.num_threads = torch.get_num_threads()
        wanted.engine_pages, wanted.borrow_storage = 1, borrows
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
        if self._options.copy_gib > 0 and not self.borrows:
            most = int(self._options.copy_gib * 2**30) // block_bytes
            self._is_limited = most < num_blocks
            num_blocks = min(num_blocks, most)
        max_tokens = min(self.config.model_config.max_model_len, num_blocks * self._block_tokens)
        # More than rows: requests that have ended keep their lists for those that begin alike.
        max_sequences = self._options.max_rows + 16
        self._context = self._make_context(num_blocks, max_tokens, max_sequences, self.borrows)
        if self.config.kv_transfer_config is not None:
            self._samples = Samples(num_blocks, self._block_tokens)
        self._tracker = Tracker(self._context, self._options.policy, num_blocks,
                                self._block_tokens, max_sequences, max_tokens,
                                holds=self._samples and self._samples.hold)
        self._num_blocks, self._max_tokens = num_blocks, max_tokens
        logger.info("semkv: policy %s, budget %d, %d layers, %s of %d blocks (%.2f GiB)",
                    self._options.name, self._options.policy.budget, self._num_layers,
                    "vLLM's own rows" if self.borrows else "a plain-row copy", num_blocks,
                    num_blocks * block_bytes / 2**30)

    def turn_off(self, reason):
        """From now on stock attention serves every row; it can at any time."""
        self.off = reason
        logger.warning("semkv: off, vLLM's own attention serves every row: %s", reason)

    def begin_step(self, slot_mapping, kv_cache):
        """Before the first layer of a step: its tokens are about to be written."""
        if self.off is not None:
            return
        try:
            if self._context is None:
                self._start(kv_cache.shape[0])
            self._note_writes(slot_mapping)
        except SemkvError as error:
            self.turn_off(str(error))
            return
        if self._samples is not None:
            self._samples.take(self._sampled(kv_cache), self._slots, self._block_tokens)

    def _sampled(self, kv_cache):
        """[blocks, heads, block tokens, channels] of the first layer, in any order within a block."""
        return kv_cache

    def _note_writes(self, slot_mapping):
        slots = slot_mapping.numpy().astype(np.int32)
        if self._is_limited:
            # Blocks beyond a limited copy are never written, so their rows fall back.
            slots[slots >= self._num_blocks * self._block_tokens] = -1
        self._slots = slots
        self._write_args.num_tokens = len(slots)
        self._write_args.slots = ffi.from_buffer("int32_t[]", slots)
        ids = None
        if _step_ids is not None and len(_step_ids) >= len(slots):
            ids = _step_ids.numpy()[:len(slots)]
        self._tracker.note_writes(slots, ids)

    def plan(self, common):
        """The rows of a step that are decoded sparsely, ascending; the step is planned for them.

        common: vLLM's CommonAttentionMetadata, of host tensors.
        """
        if self.off is not None or self._context is None:
            return []
        num_rows = common.num_reqs
        starts = common.query_start_loc_cpu.tolist()
        lengths, tables = common.seq_lens.tolist(), common.block_table_tensor.numpy()
        is_prefilling = [False] * num_rows if common.is_prefilling is None \
            else common.is_prefilling.tolist()
        reasons = [self._refusal(starts[row + 1] - starts[row], lengths[row], tables[row],
                                 is_prefilling[row]) for row in range(num_rows)]
        wanted = [row for row, reason in enumerate(reasons) if reason is None]
        prompts = [row for row, reason in enumerate(reasons)
                   if reason == "prefill" and lengths[row] > self._options.threshold
                   and self._beyond_copy(lengths[row], tables[row]) is None]
        if len(wanted) < num_rows:
            self._counts.update(reason for reason in reasons if reason is not None)
        if len(wanted) > self._options.max_rows:
            self._counts["more rows than max_rows"] += len(wanted) - self._options.max_rows
            wanted = wanted[:self._options.max_rows]
        if self._options.report:
            self._write_report()
        try:
            planned = self._plan_step(wanted, lengths, tables)
            for row in prompts:
                # Its queries of this step are yet to be written.
                self._tracker.seal_prompt(tables[row],
                                          lengths[row] - (starts[row + 1] - starts[row]))
            return planned
        except SemkvError as error:
            self.turn_off(str(error))
            return []

    def _write_report(self):
        """explain() as it was before this step, at most once a second."""
        now = time.monotonic()
        if now < self._next_report:
            return
        self._next_report = now + 1.0
        rank = self.config.parallel_config.rank
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
        return self._beyond_copy(length, table)

    def _beyond_copy(self, length, table):
        """Why the copy cannot hold a row, or None."""
        if length > self._max_tokens:
            return "longer than the copy"
        if self._is_limited and \
                int(table[:-(-length // self._block_tokens)].max()) >= self._num_blocks:
            return "a block beyond the copy"
        return None

    def _plan_step(self, rows, seq_lens, block_table):
        if not rows:
            return []
        found = self._tracker.sequences_for([(block_table[r], seq_lens[r]) for r in rows])
        planned = [row for row, sequence in zip(rows, found) if sequence is not None]
        if not planned:
            return []
        if len(planned) > self._plan_rows:
            self._grow_plan(len(planned))
        sequences = [sequence for sequence in found if sequence is not None]
        check(lib.semkv_plan_step(self._plan, len(sequences), sequences, ffi.NULL))
        self._counts["sparse"] += len(planned)
        return planned

    def _grow_plan(self, num_rows):
        self._plan_rows = min(self._options.max_rows, max(8, 2 * self._plan_rows, num_rows))
        made = ffi.new("semkv_plan **")
        budget = most_attended(self._options.policy, self._max_tokens)
        check(lib.semkv_plan_create(self._context, self._plan_rows, budget, made))
        self._plan = ffi.gc(made[0], lib.semkv_plan_destroy)

    def write(self, index, key, value):
        """Copies the keys and values of a step's tokens of one layer, [n, KV heads, channels]."""
        if self.off is not None:
            return
        try:
            check(lib.semkv_write_kv(self._context, index, self._describe_write(key, value)))
        except SemkvError as error:
            self.turn_off(str(error))

    def run_layer(self, index, key, value, query, out, scale, logit_cap):
        """write(), then selection and attention of the planned rows. query, out: [rows, heads,
        channels]. False if it could not be done; semkv is off then."""
        if self.off is not None:
            return False
        q_token, q_head, q_channel = query.stride()
        out_token, out_head, out_channel = out.stride()
        if q_channel != 1 or out_channel != 1:
            raise ValueError(f"channels of q are {q_channel} and of the output {out_channel} "
                             "elements apart, must be 1")
        self._pack_attend(query.data_ptr(), out.data_ptr(), 0, q_token, q_head, out_token, out_head,
                          scale, logit_cap)
        try:
            check(lib.semkv_run_layer(self._plan, index, self._describe_write(key, value),
                                      self._attend_args))
        except SemkvError as error:
            self.turn_off(str(error))
            return False
        return True

    def _describe_write(self, key, value):
        k_token, k_head, k_channel = key.stride()
        v_token, v_head, v_channel = value.stride()
        if k_channel != 1 or v_channel != 1:
            raise ValueError(f"channels of keys are {k_channel} and of values {v_channel} elements "
                             "apart, must be 1")
        self._pack_write(key.data_ptr(), value.data_ptr(), k_token, k_head, v_token, v_head)
        return self._write_args

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
        lines.extend(_name_left(self.left).splitlines())
        lines.append("rows of steps: " + (", ".join(
            f"{reason} {count}" for reason, count in sorted(self._counts.items())) or "none"))
        if self._tracker is not None:
            refused = sum(self._tracker.refused.values())
            lines.append(f"sequences: made {self._tracker.adopted}, continued "
                         f"{self._tracker.continued} times, lists shared for "
                         f"{self._tracker.shared_tokens} tokens, built for "
                         f"{self._tracker.prompt_tokens} while their prompts came, made of "
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
