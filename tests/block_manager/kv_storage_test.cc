#include "block_manager/kv_storage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace semkv {
namespace {

KvShape SmallShape() {
  return {.num_pages = 3,
          .page_tokens = 4,
          .num_layers = 2,
          .num_kv_heads = 2,
          .head_dim = 8,
          .dtype = DType::kFloat16};
}

// A view of [num_pages, page_tokens, num_kv_heads, head_dim] keys, and values beside them (vLLM's
// NHD layout).
KvView TokenMajorView(const KvShape& shape, void* k, void* v) {
  KvView view;
  view.k = k;
  view.v = v;
  view.k_head = view.v_head = shape.head_dim;
  view.k_token = view.v_token = shape.num_kv_heads * shape.head_dim;
  view.k_page = view.v_page = shape.page_tokens * view.k_token;
  view.page_tokens = shape.page_tokens;
  view.num_pages = shape.num_pages;
  view.dtype = shape.dtype;
  return view;
}

int64_t Elements(const KvShape& shape) {
  return int64_t{shape.num_pages} * shape.page_tokens * shape.num_kv_heads * shape.head_dim;
}

TEST(KvStorageTest, OwnedRowsTileTheAllocationWithoutOverlap) {
  const KvShape shape = SmallShape();
  absl::StatusOr<KvStorage> storage = KvStorage::Allocate(shape);
  ASSERT_TRUE(storage.ok()) << storage.status();
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    const KvView& view = storage->view(layer);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.k) % 64, 0u);
    const int64_t v_base =
        (static_cast<char*>(view.v) - static_cast<char*>(view.k)) / DTypeBytes(shape.dtype);
    std::vector<int64_t> rows;
    for (int32_t slot = 0; slot < shape.num_pages * shape.page_tokens; ++slot) {
      for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
        EXPECT_EQ(v_base + ValueOffset(view, slot, head),
                  KeyOffset(view, slot, head) + shape.head_dim);
        rows.push_back(KeyOffset(view, slot, head));
        rows.push_back(v_base + ValueOffset(view, slot, head));
      }
    }
    std::sort(rows.begin(), rows.end());
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i], static_cast<int64_t>(i) * shape.head_dim);
    }
    EXPECT_EQ(static_cast<int64_t>(rows.size()) * shape.head_dim, 2 * Elements(shape));
  }
}

TEST(KvStorageTest, OwnedMemoryIsZeroAndSurvivesAMove) {
  absl::StatusOr<KvStorage> storage = KvStorage::Allocate(SmallShape());
  ASSERT_TRUE(storage.ok());
  const KvStorage moved = *std::move(storage);
  const uint16_t* first = static_cast<const uint16_t*>(moved.view(1).k);
  EXPECT_TRUE(
      std::all_of(first, first + 2 * Elements(moved.shape()), [](uint16_t x) { return x == 0; }));
}

// The copy must move the named tokens of every layer, head, keys and values, and not a byte more.
void ExpectCopiesExactly(const KvStorage& storage, std::vector<std::vector<uint16_t>*> buffers) {
  uint16_t next = 1;
  for (std::vector<uint16_t>* buffer : buffers) {
    for (uint16_t& x : *buffer) x = next++;
  }
  std::vector<std::vector<uint16_t>> expected;
  for (std::vector<uint16_t>* buffer : buffers) expected.push_back(*buffer);
  const KvShape& shape = storage.shape();
  const auto expected_at = [&](const void* base, int64_t offset) -> uint16_t* {
    for (size_t i = 0; i < buffers.size(); ++i) {
      const uint16_t* at = static_cast<const uint16_t*>(base) + offset;
      if (at >= buffers[i]->data() && at < buffers[i]->data() + buffers[i]->size()) {
        return &expected[i][at - buffers[i]->data()];
      }
    }
    return nullptr;
  };
  const int32_t src = 2, dst = 0, num_tokens = 3;
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    const KvView& view = storage.view(layer);
    for (int32_t token = 0; token < num_tokens; ++token) {
      for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
        const int32_t from = src * shape.page_tokens + token;
        const int32_t to = dst * shape.page_tokens + token;
        for (int32_t d = 0; d < shape.head_dim; ++d) {
          *expected_at(view.k, KeyOffset(view, to, head) + d) =
              *expected_at(view.k, KeyOffset(view, from, head) + d);
          *expected_at(view.v, ValueOffset(view, to, head) + d) =
              *expected_at(view.v, ValueOffset(view, from, head) + d);
        }
      }
    }
  }
  storage.CopyPage(src, dst, num_tokens);
  for (size_t i = 0; i < buffers.size(); ++i) EXPECT_EQ(*buffers[i], expected[i]) << "buffer " << i;
}

TEST(KvStorageTest, CopiesAPageOfBorrowedTokenMajorMemory) {
  const KvShape shape = SmallShape();
  std::vector<uint16_t> k[2], v[2];
  absl::StatusOr<KvStorage> storage = KvStorage::Borrow(shape, KvAccess::kHost);
  ASSERT_TRUE(storage.ok());
  for (int32_t layer = 0; layer < 2; ++layer) {
    k[layer].resize(Elements(shape));
    v[layer].resize(Elements(shape));
    EXPECT_FALSE(storage->is_complete());
    const KvView view = TokenMajorView(shape, k[layer].data(), v[layer].data());
    ASSERT_TRUE(storage->SetView(layer, view).ok());
  }
  EXPECT_TRUE(storage->is_complete());
  ExpectCopiesExactly(*storage, {&k[0], &v[0], &k[1], &v[1]});
}

TEST(KvStorageTest, CopiesAPageOfBorrowedInterleavedMemory) {
  const KvShape shape = SmallShape();
  std::vector<uint16_t> kv[2];
  absl::StatusOr<KvStorage> storage = KvStorage::Borrow(shape, KvAccess::kHost);
  absl::StatusOr<KvStorage> owned = KvStorage::Allocate(shape);
  ASSERT_TRUE(storage.ok() && owned.ok());
  for (int32_t layer = 0; layer < 2; ++layer) {
    kv[layer].resize(2 * Elements(shape));
    KvView view = owned->view(layer);  // the same strides, over memory that can be compared
    view.k = kv[layer].data();
    view.v = kv[layer].data() + shape.head_dim;
    ASSERT_TRUE(storage->SetView(layer, view).ok());
  }
  ExpectCopiesExactly(*storage, {&kv[0], &kv[1]});
}

TEST(KvStorageTest, RefusesAViewThatDoesNotFit) {
  const KvShape shape = SmallShape();
  std::vector<uint16_t> k(Elements(shape)), v(Elements(shape));
  absl::StatusOr<KvStorage> storage = KvStorage::Borrow(shape, KvAccess::kHost);
  ASSERT_TRUE(storage.ok());
  const KvView good = TokenMajorView(shape, k.data(), v.data());
  std::vector<KvView> bad(9, good);
  bad[0].k = nullptr;
  bad[1].v = nullptr;
  bad[2].num_pages = 4;
  bad[3].page_tokens = 8;
  bad[4].dtype = DType::kFloat32;
  bad[5].k_token = shape.head_dim;     // as k_head: tokens over heads
  bad[6].v_page = good.v_page - 1;     // pages overlap
  bad[7].k_head = shape.head_dim - 1;  // heads overlap
  bad[8].v_page = INT64_MAX / 2;
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_EQ(storage->SetView(0, bad[i]).code(), absl::StatusCode::kInvalidArgument) << i;
  }
  EXPECT_EQ(storage->SetView(2, good).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(storage->num_layers_set(), 0);
  EXPECT_TRUE(storage->SetView(0, good).ok());
  EXPECT_EQ(storage->SetView(0, good).code(), absl::StatusCode::kAlreadyExists);
}

TEST(KvStorageTest, RefusesShapesOutOfRangeByName) {
  const auto code = [](auto change) {
    KvShape shape = SmallShape();
    change(shape);
    return CheckKvShape(shape).code();
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](KvShape&) {}), absl::StatusCode::kOk);
  EXPECT_EQ(code([](KvShape& s) { s.page_tokens = 1; }), absl::StatusCode::kOk);
  EXPECT_EQ(code([](KvShape& s) { s.page_tokens = 1024; }), absl::StatusCode::kOk);
  EXPECT_EQ(code([](KvShape& s) { s.page_tokens = 2048; }), invalid);
  EXPECT_EQ(code([](KvShape& s) { s.page_tokens = 12; }), invalid);
  EXPECT_EQ(code([](KvShape& s) { s.num_pages = 0; }), invalid);
  EXPECT_EQ(code([](KvShape& s) { s.num_layers = -1; }), invalid);
  EXPECT_EQ(code([](KvShape& s) { s.head_dim = 0; }), invalid);
  EXPECT_EQ(code([](KvShape& s) { s.num_kv_heads = 0; }), invalid);
  EXPECT_EQ(code([](KvShape& s) { s.dtype = static_cast<DType>(4); }), invalid);
  // 2^29 pages of 4 tokens: one slot more than int32 holds.
  EXPECT_EQ(code([](KvShape& s) { s.num_pages = 1 << 29; }), invalid);
  EXPECT_EQ(code([](KvShape& s) {
              s.num_pages = (1 << 29) - 1;
              s.num_kv_heads = s.head_dim = INT32_MAX;
            }),
            invalid);
}

// Which no code of the host reads.
TEST(KvStorageTest, AByteANumberIsForADeviceAlone) {
  KvShape shape = SmallShape();
  shape.dtype = DType::kFloat8E4M3;
  EXPECT_EQ(CheckKvShape(shape).code(), absl::StatusCode::kOk);
  EXPECT_EQ(KvStorage::Allocate(shape).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KvStorage::Borrow(shape, KvAccess::kHost).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KvStorage::Borrow(shape, KvAccess::kDevice).status().code(), absl::StatusCode::kOk);
}

TEST(KvStorageTest, MemoryThatTheSystemDoesNotHaveIsResourceExhausted) {
  KvShape shape = SmallShape();
  shape.num_pages = (1 << 29) - 1;
  shape.num_kv_heads = 1 << 15;
  shape.head_dim = 1 << 12;
  EXPECT_EQ(KvStorage::Allocate(shape).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace semkv
