"""The rows of a transformers cache: its own tensors until a step is worth it, then sequences."""
from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import semkv.cache

if TYPE_CHECKING:
    from semkv.hf.enabled import Enabled


class _Handed(threading.local):
    """(keys, rows, index) that a layer's cache handed on, for the attention of the same layer."""

    entry: tuple[torch.Tensor, Rows, int] | None = None


handed = _Handed()


class Rows:
    """The rows of one transformers cache, and the semkv sequences they become when it is moved."""

    def __init__(self, enabled: Enabled):
        self.enabled = enabled
        self.is_cropped = False  # by assisted generation; then never moved
        self._ids: torch.Tensor | None = None  # [rows, n], of all forwards before the move
        self._pool: semkv.cache.Cache | None = None
        self._sequences: list[semkv.cache.Sequence] = []
        self._kept: list[Any] = []  # of the present forward, see _kept
        self._counts: list[int] = []
        self._step: Any = None
        self._layers_to_do = 0
        self._broken: str | None = None

    @property
    def is_moved(self) -> bool:
        return self._pool is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> Rows:
        """Forks, which share pages with these rows."""
        self.check_usable()
        copy = memo[id(self)] = Rows(self.enabled)
        copy.is_cropped, copy._ids = self.is_cropped, self._ids
        copy._sequences = [sequence.fork() for sequence in self._sequences]
        copy._pool = self._pool
        return copy

    def check_usable(self) -> None:
        if self._broken is not None:
            raise RuntimeError(f"this cache was given up: {self._broken}")
        if self.is_moved and not self.enabled.is_enabled:
            raise RuntimeError("this cache is in semkv, which was disabled")

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """An error within leaves layers that do not fit together: the cache is given up."""
        try:
            yield
        except BaseException as error:
            self._give_up(f"{type(error).__name__}: {error}")
            raise

    def _give_up(self, why: str) -> None:
        if self._step is not None:
            self._step.close()
        self._step, self._sequences, self._broken, handed.entry = None, [], why, None

    def reset(self) -> None:
        self.__init__(self.enabled)

    def begin(self, cache: Cache, ids: torch.Tensor | None, embeds: torch.Tensor | None,
              mask: torch.Tensor | None, refusal: str | None) -> None:
        """What a forward needs before its first layer: the move, room for its tokens, the step."""
        self.check_usable()
        if self._step is not None:
            self._give_up("a forward ended before its last layer")
            self.check_usable()
        num_rows, new = (ids if embeds is None else embeds).shape[:2]
        layers = [layer for layer in cache.layers if isinstance(layer, Layer)]
        past = layers[0].get_seq_length()
        if refusal is None and mask is not None:
            if tuple(mask.shape) != (num_rows, past + new):
                refusal = (f"an attention_mask of {list(mask.shape)} for {num_rows} rows of {past} "
                           f"+ {new} tokens")
            mask = None if mask.all() else mask.bool()
        if not self.is_moved:
            reason = refusal or self._why_stock(layers, mask, num_rows, past, new)
            if reason is not None:
                self.enabled.count(reason)
                if ids is not None:
                    self._ids = ids if self._ids is None else torch.cat([self._ids, ids], 1)
                return
            pool = self.enabled.make_pool(num_rows, layers[0].keys.dtype)
            with self._all_or_nothing():
                self._move(pool, layers, mask, past)
        elif refusal is not None:
            raise RuntimeError(f"this cache is in semkv, which cannot serve {refusal}")
        self._check_rows(mask, num_rows, past)
        with self._all_or_nothing():
            self._append(ids, mask, past, new)
        self.enabled.count("served" if new == 1 else "served, several queries")

    def _why_stock(self, layers: list[Layer], mask: torch.Tensor | None, num_rows: int, past: int,
                   new: int) -> str | None:
        if self.is_cropped:
            return "a cache that crop() was called on"
        if new > 1 or past == 0:
            return "prompt or several queries"
        longest = past + new if mask is None else int(mask.sum(1).max())
        if longest <= self.enabled.threshold:
            return "short context"
        options = self.enabled.options
        shape = (num_rows, options["num_kv_heads"], past, options["head_dim"])
        for layer in layers:
            for tensor in (layer.keys, layer.values):
                if tuple(tensor.shape) != shape:
                    return f"keys or values of shape {list(tensor.shape)}, not {list(shape)}"
        return None

    def _move(self, pool: semkv.cache.Cache, layers: list[Layer], mask: torch.Tensor | None,
              past: int) -> None:
        """The tensors of every layer become sequences of `pool`."""
        num_rows = layers[0].keys.shape[0]
        kept, counts = _kept(mask, num_rows, 0, past)
        # Some are missing where a forward was given embeddings.
        known = self._ids is not None and self._ids.shape[1] == past
        ids = [self._ids[row, keep].numpy() if known else counts[row]
               for row, keep in enumerate(kept)]

        # Beams and num_return_sequences begin as equal rows: forks of one, indexed once. Equal ids
        # have equal keys unless they stand at other positions (position_ids).
        def is_same(one: int, other: int) -> bool:
            keys = layers[0].keys
            return known and np.array_equal(ids[one], ids[other]) and _are_close(
                keys[one][:, kept[one]], keys[other][:, kept[other]])

        origin = [next((other for other in range(row) if is_same(other, row)), row)
                  for row in range(num_rows)]
        made = {row: pool.sequence() for row in sorted(set(origin))}
        for row, sequence in made.items():
            if counts[row]:
                sequence.append(ids[row])
        for layer in layers:
            for row, sequence in made.items():
                if counts[row]:
                    _write(sequence, layer, layer.keys[row], layer.values[row], kept[row])
            layer.forget_tensors()
        for row, sequence in made.items():
            if counts[row]:
                sequence.index()
        self._sequences = [made[row] if origin[row] == row else made[origin[row]].fork()
                           for row in range(num_rows)]
        self._pool, self._ids = pool, None

    def _check_rows(self, mask: torch.Tensor | None, num_rows: int, past: int) -> None:
        if num_rows != len(self._sequences):
            raise ValueError(f"{num_rows} rows, but the cache has {len(self._sequences)}")
        for row, sequence in enumerate(self._sequences):
            count = past if mask is None else int(mask[row, :past].sum())
            if count != len(sequence):
                raise ValueError(f"the attention_mask shows {count} earlier tokens of row {row}, "
                                 f"but the cache was filled with {len(sequence)}")

    def _append(self, ids: torch.Tensor | None, mask: torch.Tensor | None, past: int,
                new: int) -> None:
        self._kept, self._counts = _kept(mask, len(self._sequences), past, past + new)
        for row, (sequence, keep, count) in enumerate(
                zip(self._sequences, self._kept, self._counts)):
            if count:
                sequence.append(count if ids is None else ids[row, keep].numpy())
        active = [(s, count) for s, count in zip(self._sequences, self._counts) if count]
        self._step = self._pool.step([s for s, _ in active], [count for _, count in active])
        self._layers_to_do = self.enabled.options["num_layers"]

    def write(self, layer: Layer, keys: torch.Tensor, values: torch.Tensor) -> None:
        """The forward's keys and values, [rows, KV heads, n, head_dim], which the attention
        function must be given next."""
        self.check_usable()
        with self._all_or_nothing():
            if self._step is None:
                raise RuntimeError("a layer's cache was filled outside of a forward of its model")
            if handed.entry is not None:
                raise RuntimeError("a layer's keys did not go from its cache to its attention")
            for sequence, keep, count, k, v in zip(self._sequences, self._kept, self._counts, keys,
                                                   values):
                if count:
                    _write(sequence, layer, k, v, keep)
        handed.entry = keys, self, layer.index

    def attend(self, index: int, query: torch.Tensor, scale: float,
               logit_cap: float) -> torch.Tensor:
        """query: [rows, heads, n, head_dim]. Returns [rows, n, heads, head_dim]; padding gets 0."""
        with self._all_or_nothing():
            num_rows, num_heads, new, head_dim = query.shape
            if new == 1 and all(self._counts):
                out = self._attend(index, query[:, :, 0], scale, logit_cap)[:, None]
            else:
                packed = torch.cat([row.transpose(0, 1)[keep]
                                    for row, keep in zip(query, self._kept)])
                parts = self._attend(index, packed, scale, logit_cap).split(self._counts)
                out = query.new_zeros((num_rows, new, num_heads, head_dim))
                for row, keep, part in zip(out, self._kept, parts):
                    row[keep] = part
            self._layers_to_do -= 1
            if self._layers_to_do == 0:
                self._end_step()
            return out

    def _attend(self, index, query, scale, logit_cap):
        return self._step.attend(index, query, scale=scale, logit_cap=logit_cap, select=True)

    def _end_step(self) -> None:
        self._step.close()
        self._step = None
        for sequence, count in zip(self._sequences, self._counts):
            if count > 1:
                sequence.index()
            elif count == 1:
                sequence.observe()

    def rearrange(self, choose: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """`choose` takes the next rows out of a tensor of the present ones. A row that is taken
        again is forked."""
        self.check_usable()
        if not self.is_moved:
            self._ids = None if self._ids is None else choose(self._ids)
            return
        with self._all_or_nothing():
            taken: set[int] = set()
            found = []
            for row in choose(torch.arange(len(self._sequences))).tolist():
                sequence = self._sequences[row]
                found.append(sequence.fork() if row in taken else sequence)
                taken.add(row)
            self._sequences = found  # those left out are released


def _kept(mask: torch.Tensor | None, num_rows: int, first: int,
          last: int) -> tuple[list[Any], list[int]]:
    """Per row, which of tokens [first, last) are no padding, from `first` on: a slice if they are
    one run, else indices; and how many."""
    if mask is None:
        return [slice(0, last - first)] * num_rows, [last - first] * num_rows
    found = [row[first:last].nonzero().flatten() for row in mask]
    counts = [len(kept) for kept in found]
    return [slice(int(kept[0]), int(kept[0]) + n) if n and int(kept[-1] - kept[0]) == n - 1
            else kept for kept, n in zip(found, counts)], counts


def _are_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal but for rounding, which may differ between rows of a batch. Another position turns the
    first pair of channels of every key by a radian or more."""
    return bool((one - other).abs().max() <= 0.02 * other.abs().max())


def _write(sequence: semkv.cache.Sequence, layer: Layer, keys: torch.Tensor, values: torch.Tensor,
           keep: Any) -> None:
    """keys, values: [KV heads, n, head_dim]."""
    sequence.write(layer.index, keys.detach().transpose(0, 1)[keep],
                   values.detach().transpose(0, 1)[keep])


class Layer(DynamicLayer):
    """One layer of a cache: transformers' own until its rows are moved."""

    is_croppable = False

    def __init__(self, rows: Rows, index: int):
        super().__init__()
        self.rows = rows
        self.index = index  # among the layers that semkv serves
        self._length = 0    # tokens per row, padding included; once moved

    def forget_tensors(self) -> None:
        self._length = super().get_seq_length()
        self.keys = self.values = None

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.rows.is_moved:
            return super().update(key_states, value_states, *args, **kwargs)
        self.rows.write(self, key_states, value_states)
        self._length += key_states.shape[-2]
        return key_states, value_states

    def get_seq_length(self):
        return self._length if self.rows.is_moved else super().get_seq_length()

    def reset(self):
        super().reset()
        if self.index == 0:
            self.rows.reset()

    def crop(self, tokens_to_remove):
        if self.rows.is_moved:
            raise RuntimeError(f"crop({tokens_to_remove}): tokens cannot be taken back from a "
                               "cache that is in semkv (assisted generation by this model)")
        self.rows.is_cropped = True
        super().crop(tokens_to_remove)

    def _rearrange(self, choose):
        """choose: takes the next rows out of a tensor of the present ones."""
        # A cache asks its layers one after the other; the rows are those of all layers.
        if self.index == 0:
            self.rows.rearrange(choose)
        if self.keys is not None and super().get_seq_length() > 0:
            self.keys, self.values = choose(self.keys), choose(self.values)

    def reorder_cache(self, beam_idx):
        self._rearrange(lambda rows: rows[beam_idx])

    def batch_repeat_interleave(self, repeats):
        self._rearrange(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices):
        self._rearrange(lambda rows: rows[indices])


def stock_attention(name: str, module: torch.nn.Module) -> Any:
    """The attention function of `module` under the stock implementation `name`, or None."""
    if name == "eager":  # each file of models has its own, which is in no registry
        return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS[name]


def attention_over(name: str) -> Any:
    """An attention function for AttentionInterface: stock `name`, but for keys from semkv."""
    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        if handed.entry is None or handed.entry[0] is not key:
            return stock_attention(name, module)(module, query, key, value, attention_mask,
                                                  scaling=scaling, **kwargs)
        (_, rows, index), handed.entry = handed.entry, None
        # Stock "sdpa" has no soft-cap and ignores it; semkv must not differ.
        logit_cap = kwargs.get("softcap") if name == "eager" else None
        return rows.attend(index, query, scaling or 0.0, logit_cap or 0.0), None

    return attention
