#include "block_manager/prefix_table.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstddef>

namespace semkv {
namespace {

// Odd 64-bit constants from the golden ratio and the square roots of two and three.
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
constexpr uint64_t kRootTwo = 0x6a09e667f3bcc909u;
constexpr uint64_t kRootThree = 0xbb67ae8584caa73bu;

// Both halves of the 128-bit product, so that every input bit reaches every output bit.
uint64_t Mix(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

uint64_t PrefixRoot(uint64_t salt) { return Mix(salt ^ kRootThree, kGolden); }

uint64_t PrefixHash(uint64_t parent, absl::Span<const int32_t> ids) {
  uint64_t hash = parent;
  size_t i = 0;
  for (; i + 2 <= ids.size(); i += 2) {
    const uint64_t two = static_cast<uint32_t>(ids[i]) |
                         static_cast<uint64_t>(static_cast<uint32_t>(ids[i + 1])) << 32;
    // The sum keeps the earlier hash alive where the product happens to be zero.
    hash = std::rotl(hash, 23) + Mix(hash ^ two ^ kGolden, kRootTwo);
  }
  if (i < ids.size()) {
    hash = std::rotl(hash, 23) + Mix(hash ^ static_cast<uint32_t>(ids[i]) ^ kGolden, kRootTwo);
  }
  return Mix(hash ^ kRootTwo, kGolden);
}

PrefixTable::PrefixTable(int32_t num_pages, int32_t page_tokens)
    : page_tokens_(page_tokens),
      ids_(static_cast<size_t>(num_pages) * page_tokens),
      keys_(num_pages),
      heads_(std::bit_ceil(static_cast<size_t>(num_pages)), -1),
      next_(num_pages, -1) {}

int32_t PrefixTable::Find(const PrefixKey& key, absl::Span<const int32_t> ids) const {
  for (int32_t page = heads_[Bucket(key.hash)]; page >= 0; page = next_[page]) {
    const PrefixKey& other = keys_[page];
    if (other.hash != key.hash || other.parent != key.parent || other.salt != key.salt ||
        other.page_index != key.page_index) {
      continue;
    }
    const absl::Span<const int32_t> other_ids = this->ids(page);
    if (std::equal(ids.begin(), ids.end(), other_ids.begin(), other_ids.end())) return page;
  }
  return -1;
}

bool PrefixTable::Insert(int32_t page, const PrefixKey& key) {
  if (Find(key, ids(page)) >= 0) return false;
  keys_[page] = key;
  next_[page] = heads_[Bucket(key.hash)];
  heads_[Bucket(key.hash)] = page;
  ++size_;
  return true;
}

void PrefixTable::Remove(int32_t page) {
  int32_t* link = &heads_[Bucket(keys_[page].hash)];
  while (*link != page) {
    assert(*link >= 0);
    link = &next_[*link];
  }
  *link = next_[page];
  next_[page] = -1;
  --size_;
}

}  // namespace semkv
