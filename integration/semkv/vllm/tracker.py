"""Which semkv sequence a row of an engine's batch is, told from its block table alone.

vLLM gives an attention backend no request id. A row is known again by its blocks: it goes on with
the sequence that had exactly its blocks and its length after the last step. A block gets new
content when its first slot is written; that ends the sequences over the old one. A row that matches
none (its first decode step, after a preemption, after steps that went elsewhere) gets a new
sequence over the keys that are in its blocks already. It takes over the lists that another one has
built of the same blocks: those of ended requests too, whose last blocks are the first to be reused,
so of a sequence that is cut short what comes before stays as a donor of lists. A prompt that comes
in chunks has such a donor too, whose lists are built as it comes.

Token ids are kept by slot as they come by, so a prefix-cache hit, whose tokens are never computed
again, has them too.
"""
import collections

import numpy as np

from semkv._abi import check, ffi, lib, new

# Why a row is left to the engine's own attention; counted in Tracker.refused.
UNWRITTEN = "a block was not written through the layer"
NO_ROOM = "more rows than max_rows"


def _int32(array):
    return ffi.from_buffer("int32_t[]", array)


class _Tracked:
    """One sequence and the blocks it is made of."""

    def __init__(self, sequence, max_blocks):
        self.sequence = sequence
        self.num_tokens = 0
        self.blocks = np.empty(max_blocks, np.int32)
        self.num_blocks = 0
        self.num_sealed = 0  # tokens in full segments that lists were built of, at least
        self.is_prompt = False  # of a prompt that was still coming
        self.step = -1

    @property
    def last_block(self):
        return int(self.blocks[self.num_blocks - 1]) if self.num_blocks else -1

    def add_blocks(self, blocks):
        end = self.num_blocks + len(blocks)
        self.blocks[self.num_blocks:end] = blocks
        self.num_blocks = end


class Tracker:
    """Sequences of one context whose pages are the engine's blocks.

    context: semkv_context with engine_pages; owned by the caller, must outlive the tracker.
    policy: struct semkv_policy of every sequence.
    holds: function of block ids that tells whether they hold what was last written to them; None
      if nobody else writes them (no KV connector).
    """

    def __init__(self, context, policy, num_blocks, block_tokens, max_sequences, max_tokens,
                 holds=None):
        self._holds = holds
        self._context = context
        self._policy = policy
        self._block_tokens = block_tokens
        self._max_blocks = -(-max_tokens // block_tokens)
        self._max_sequences = max_sequences
        self._ids = np.full(num_blocks * block_tokens, -1, np.int32)
        self._fill = np.zeros(num_blocks, np.int32)  # slots written since the first one was
        self._by_last_block = {}  # block of a sequence's last token -> [_Tracked]
        self._holders = collections.defaultdict(set)  # block -> sequences that have it
        self._all = set()
        self._step = 0
        self.adopted = 0
        self.continued = 0
        self.shared_tokens = 0
        self.prompt_tokens = 0  # whose lists were built while their prompt came
        self.sparse_blocks = 0  # that the engine's prefix cache offered to a new sequence
        self._tag, self._info = new("semkv_page_tag"), new("semkv_sequence_info")
        self._one_id, self._one_block = ffi.new("int32_t[1]"), ffi.new("int32_t[1]")
        self.refused = collections.Counter()

    def note_writes(self, slots, ids):
        """`slots`, int32 array [n], negative: none, are about to be written, those of a block in
        ascending order; `ids`, int array [n] or None."""
        if len(slots) and slots.min() < 0:
            ids = None if ids is None else ids[slots >= 0]
            slots = slots[slots >= 0]
        blocks, offsets = np.divmod(slots, self._block_tokens)
        if not offsets.all():
            self._start_content(np.unique(blocks[offsets == 0]))
        self._ids[slots] = -1 if ids is None else ids
        self._fill[blocks] = offsets + 1  # of a block's several the last one stays

    def _start_content(self, blocks):
        touched = set().union(*(self._holders.get(block, ()) for block in blocks.tolist()))
        for tracked in touched:
            self._end_before(tracked, blocks)
        check(lib.semkv_pages_forget(self._context, len(blocks), _int32(blocks)))
        self._fill[blocks] = 0

    def _end_before(self, tracked, new_blocks):
        """Ends a sequence some of whose blocks get new content; a donor keeps the full segments
        before the first of them."""
        held = tracked.blocks[:tracked.num_blocks]
        num_tokens = int(np.flatnonzero(np.isin(held, new_blocks))[0]) * self._block_tokens
        num_tokens -= num_tokens % self._policy.segment_tokens
        if num_tokens > 0 and len(self._all) < self._max_sequences:
            # Not filed: no row goes on with it.
            donor = self._make(held[:-(-num_tokens // self._block_tokens)].copy(), num_tokens)
            if self._share_lists(donor, tracked) == 0:
                self._release(donor)
        self._release(tracked)

    def sequences_for(self, rows):
        """One semkv sequence per row, its current token appended, or None where there is none.

        rows: [(block table, int32 array; number of tokens, the current one included)].
        """
        self._step += 1
        # Sequences that go on are found before new ones may push out what was not seen yet.
        found = [self._take(table, length - 1) for table, length in rows]
        result = []
        for (table, length), tracked in zip(rows, found):
            if tracked is None:
                tracked = self._adopt(table, length - 1)
            if tracked is not None:
                self._append_current(tracked, table, length)
            result.append(None if tracked is None else tracked.sequence)
        return result

    def seal_prompt(self, table, num_tokens):
        """Builds the lists of a prompt's full segments that are in their blocks, so that its first
        decode step has only the rest to build. `table`, int32 array: its block table; `num_tokens`:
        of it that are in their blocks."""
        segment = self._policy.segment_tokens
        # What comes after a token tells whether it ends a sentence.
        full = (num_tokens - 1) // segment * segment
        if full <= 0:
            return
        blocks = self._blocks(table, num_tokens)
        if self._donor(blocks)[1] >= full or not self._are_written(blocks, num_tokens) \
                or not self._has_room():
            return
        donor, _ = self._donor(blocks)  # another one may have made room
        tracked = self._make(blocks, num_tokens)
        tracked.is_prompt = True
        before = self._take_lists(tracked, donor)
        check(lib.semkv_observe(self._context, tracked.sequence))
        check(lib.semkv_sequence_info_get(self._context, tracked.sequence, self._info))
        tracked.num_sealed = self._info.num_indexed
        self.prompt_tokens += tracked.num_sealed - before
        if tracked.num_sealed == 0:  # of a policy without segments
            self._release(tracked)

    def _blocks(self, table, num_tokens):
        return np.ascontiguousarray(table[:-(-num_tokens // self._block_tokens)], np.int32)

    def _are_written(self, blocks, num_tokens):
        """Were the first `num_tokens` slots of these blocks written through the layer?"""
        needed = np.full(len(blocks), self._block_tokens, np.int32)
        if len(blocks):
            needed[-1] = num_tokens - (len(blocks) - 1) * self._block_tokens
        return not np.any(self._fill[blocks] < needed) and (
            self._holds is None or self._holds(blocks))

    def _take(self, table, num_tokens):
        """The sequence that stood at exactly these tokens, its last step's token observed."""
        last = int(table[(num_tokens - 1) // self._block_tokens]) if num_tokens > 0 else -1
        for tracked in self._by_last_block.get(last, ()):
            n = tracked.num_blocks
            if (tracked.num_tokens == num_tokens and tracked.step < self._step
                    and (tracked.blocks[:n] == table[:n]).all()
                    and (self._holds is None or self._holds(tracked.blocks[:n]))):
                check(lib.semkv_observe(self._context, tracked.sequence))
                tracked.step = self._step
                self.continued += 1
                return tracked
        return None

    def _adopt(self, table, num_tokens):
        """A new sequence over `num_tokens` tokens that are in their blocks already."""
        blocks = self._blocks(table, num_tokens)
        if not self._are_written(blocks, num_tokens):
            self.refused[UNWRITTEN] += 1
            return None
        if not self._has_room():
            self.refused[NO_ROOM] += 1
            return None
        self.sparse_blocks += sum(self._is_sparse(block) for block in blocks.tolist())
        donor, _ = self._donor(blocks)
        tracked = self._make(blocks, num_tokens)
        self._file(tracked)
        self._take_lists(tracked, donor)
        if num_tokens:
            check(lib.semkv_index(self._context, tracked.sequence))
            tracked.num_sealed = num_tokens - num_tokens % self._policy.segment_tokens
        self.adopted += 1
        return tracked

    def _take_lists(self, tracked, donor):
        """Shares `donor`'s lists, None: nobody's. Tokens up to which there are lists now."""
        if donor is None:
            return 0
        shared = self._share_lists(tracked, donor)
        if donor.is_prompt and shared == donor.num_sealed:
            self._release(donor)  # the prompt went on, or another one has all that it had
        else:
            self.shared_tokens += shared
        return shared

    def _is_sparse(self, block):
        """Was some token of this block computed by sparse attention?"""
        check(lib.semkv_pages_get_tag(self._context, block, self._tag))
        return self._tag.provenance == lib.SEMKV_PROVENANCE_SPARSE

    def _make(self, blocks, num_tokens):
        """A sequence over the first `num_tokens` tokens of `blocks`, without lists."""
        sequence = ffi.new("semkv_sequence *")
        check(lib.semkv_sequence_create(self._context, 0, sequence))
        tracked = _Tracked(sequence[0], self._max_blocks)
        tracked.step = self._step
        self._all.add(tracked)
        check(lib.semkv_sequence_set_policy(self._context, tracked.sequence, self._policy))
        if num_tokens:
            size = self._block_tokens
            slots = (blocks[:, None] * size + np.arange(size, dtype=np.int32)).ravel()[:num_tokens]
            self._append(tracked, self._ids[slots], blocks)
        return tracked

    def _share_lists(self, tracked, donor):
        """Tokens up to which `tracked` has `donor`'s lists now."""
        shared = ffi.new("int32_t *")
        check(lib.semkv_sequence_share_lists(self._context, tracked.sequence, donor.sequence,
                                             shared))
        tracked.num_sealed = shared[0]
        return shared[0]

    def _donor(self, blocks):
        """(the sequence, None: there is none, with lists of most tokens of these blocks: they serve
        there too; how many tokens at least, in full segments)."""
        best, most = None, (-1, -1)
        for tracked in self._holders.get(int(blocks[0]), ()) if len(blocks) else ():
            n = min(tracked.num_blocks, len(blocks))
            differs = np.flatnonzero(tracked.blocks[:n] != blocks[:n])
            common = (int(differs[0]) if len(differs) else n) * self._block_tokens
            best, most = max((best, most), (tracked, (min(tracked.num_sealed, common), common)),
                             key=lambda pair: pair[1])
        return best, max(most[0], 0)

    def _append_current(self, tracked, table, length):
        index, offset = divmod(length - 1, self._block_tokens)
        block = int(table[index])
        self._one_id[0] = self._ids[block * self._block_tokens + offset]
        self._one_block[0] = block
        check(lib.semkv_sequence_append_pages(self._context, tracked.sequence, 1, self._one_id,
                                              offset == 0, self._one_block))
        tracked.num_tokens += 1
        if offset == 0:
            self._unfile(tracked)
            tracked.add_blocks([block])
            self._holders[block].add(tracked)
            self._file(tracked)

    def _file(self, tracked):
        self._by_last_block.setdefault(tracked.last_block, []).append(tracked)

    def _unfile(self, tracked):
        held = self._by_last_block.get(tracked.last_block, [])
        if tracked in held:
            held.remove(tracked)
            if not held:
                del self._by_last_block[tracked.last_block]

    def _append(self, tracked, ids, blocks):
        check(lib.semkv_sequence_append_pages(
            self._context, tracked.sequence, len(ids), _int32(np.ascontiguousarray(ids)),
            len(blocks), _int32(blocks)))
        tracked.num_tokens += len(ids)
        tracked.add_blocks(blocks)
        for block in blocks.tolist():
            self._holders[block].add(tracked)

    def _has_room(self):
        """Is there room for one more? Ends the sequence that was not seen for longest if need be."""
        if len(self._all) < self._max_sequences:
            return True
        oldest = min(self._all, key=lambda tracked: tracked.step)
        if oldest.step == self._step:
            return False
        self._release(oldest)
        return True

    def _release(self, tracked):
        check(lib.semkv_sequence_release(self._context, tracked.sequence))
        for block in set(tracked.blocks[:tracked.num_blocks].tolist()):
            self._holders[block].discard(tracked)
            if not self._holders[block]:
                del self._holders[block]
        self._unfile(tracked)
        self._all.remove(tracked)
