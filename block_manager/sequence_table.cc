#include "block_manager/sequence_table.h"

#include <cstddef>
#include <utility>

namespace semkv {

// The block tables are left uninitialised: their sum is the worst case of every sequence at its
// limit, and memory that is never touched is never backed.
SequenceTable::SequenceTable(int32_t max_sequences, int32_t max_pages)
    : max_pages_(max_pages),
      pages_(std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(max_sequences) *
                                                       max_pages)),
      sequences_(max_sequences),
      times_used_(max_sequences, 0) {
  free_.reserve(max_sequences);
  for (int32_t place = max_sequences - 1; place >= 0; --place) free_.push_back(place);
}

SequenceState* SequenceTable::Create() {
  if (free_.empty()) return nullptr;
  const int32_t place = free_.back();
  free_.pop_back();
  // 31 bits of uses, never 0: ids stay positive.
  times_used_[place] = times_used_[place] == INT32_MAX ? 1 : times_used_[place] + 1;
  SequenceState& sequence = sequences_[place];
  sequence = SequenceState();
  sequence.id = static_cast<int64_t>(times_used_[place]) << 32 | place;
  sequence.pages = pages_.get() + static_cast<int64_t>(place) * max_pages_;
  return &sequence;
}

const SequenceState* SequenceTable::Find(SequenceId id) const {
  const int64_t place = id & UINT32_MAX;
  if (id <= 0 || place >= max_sequences() || sequences_[place].id != id) return nullptr;
  return &sequences_[place];
}

SequenceState* SequenceTable::Find(SequenceId id) {
  return const_cast<SequenceState*>(std::as_const(*this).Find(id));
}

void SequenceTable::Remove(SequenceState* sequence) {
  free_.push_back(static_cast<int32_t>(sequence->id & UINT32_MAX));
  sequence->id = 0;
}

}  // namespace semkv
