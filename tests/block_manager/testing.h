// Block managers over small host memory, for the tests of this room.

#ifndef SEMKV_TESTS_BLOCK_MANAGER_TESTING_H_
#define SEMKV_TESTS_BLOCK_MANAGER_TESTING_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "block_manager/block_manager.h"

namespace semkv::testing {

inline KvShape SmallKvShape(int32_t num_pages, int32_t page_tokens = 4) {
  return {.num_pages = num_pages,
          .page_tokens = page_tokens,
          .num_layers = 2,
          .num_kv_heads = 2,
          .head_dim = 4,
          .dtype = DType::kFloat32};
}

inline std::unique_ptr<BlockManager> MakeManager(int32_t num_pages,
                                                 BlockManagerOptions options = {
                                                     .max_sequences = 8,
                                                     .max_sequence_tokens = 64}) {
  absl::StatusOr<KvStorage> storage = KvStorage::Allocate(SmallKvShape(num_pages));
  if (!storage.ok()) return nullptr;
  absl::StatusOr<std::unique_ptr<BlockManager>> manager =
      BlockManager::Create(options, *std::move(storage));
  return manager.ok() ? *std::move(manager) : nullptr;
}

// Numbers that tell every (value, layer, head, channel, key or value) apart in float32, for values
// below 2^16.
inline float Mark(int32_t value, int32_t layer, int32_t head, int32_t d, bool is_key) {
  return static_cast<float>(value) * 64 + layer * 16 + head * 8 + d * 2 + is_key;
}

inline void WriteToken(const BlockManager& manager, int32_t slot, int32_t value) {
  const KvShape& shape = manager.shape();
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    const KvView view = *manager.View(layer);
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      for (int32_t d = 0; d < shape.head_dim; ++d) {
        static_cast<float*>(view.k)[KeyOffset(view, slot, head) + d] =
            Mark(value, layer, head, d, true);
        static_cast<float*>(view.v)[ValueOffset(view, slot, head) + d] =
            Mark(value, layer, head, d, false);
      }
    }
  }
}

inline bool HoldsToken(const BlockManager& manager, int32_t slot, int32_t value) {
  const KvShape& shape = manager.shape();
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    const KvView view = *manager.View(layer);
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      for (int32_t d = 0; d < shape.head_dim; ++d) {
        if (static_cast<float*>(view.k)[KeyOffset(view, slot, head) + d] !=
                Mark(value, layer, head, d, true) ||
            static_cast<float*>(view.v)[ValueOffset(view, slot, head) + d] !=
                Mark(value, layer, head, d, false)) {
          return false;
        }
      }
    }
  }
  return true;
}

inline std::vector<int32_t> Range(int32_t first, int32_t count) {
  std::vector<int32_t> ids(count);
  for (int32_t i = 0; i < count; ++i) ids[i] = first + i;
  return ids;
}

// Appends tokens with these ids, writes their ids as their values, marks them written.
inline absl::Status AppendWritten(BlockManager& manager, SequenceId sequence,
                                  const std::vector<int32_t>& ids) {
  std::vector<int32_t> slots(ids.size());
  const absl::StatusOr<PageCopy> copy = manager.Append(sequence, ids, absl::MakeSpan(slots));
  if (!copy.ok()) return copy.status();
  for (size_t i = 0; i < ids.size(); ++i) WriteToken(manager, slots[i], ids[i]);
  return manager.MarkWritten(sequence, manager.GetSequence(sequence)->num_tokens);
}

inline std::vector<int32_t> Pages(const BlockManager& manager, SequenceId sequence) {
  const SequenceView view = *manager.GetSequence(sequence);
  return {view.pages, view.pages + view.num_pages};
}

inline int32_t SlotOf(const BlockManager& manager, SequenceId sequence, int32_t position) {
  const int32_t page_tokens = manager.shape().page_tokens;
  return manager.GetSequence(sequence)->pages[position / page_tokens] * page_tokens +
         position % page_tokens;
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_BLOCK_MANAGER_TESTING_H_
