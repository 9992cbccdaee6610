// The cases of gather_pages and spill, which every form runs.

#ifndef SEMKV_TESTS_OPS_RESIDENCY_GATHER_PAGES_CASES_H_
#define SEMKV_TESTS_OPS_RESIDENCY_GATHER_PAGES_CASES_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/ops/residency/gather_pages.h"

namespace semkv::testing {

// Pages [num_pages, max_pages) of the list are valid pairs too, which must not be copied.
struct GatherPagesCase {
  int64_t page_bytes;
  int32_t num_home_pages, num_hot_pages, max_pages, num_pages;
};

inline std::string Name(const GatherPagesCase& c) {
  return "page bytes " + std::to_string(c.page_bytes) + " home " +
         std::to_string(c.num_home_pages) + " hot " + std::to_string(c.num_hot_pages) + " list " +
         std::to_string(c.max_pages) + " count " + std::to_string(c.num_pages);
}

struct GatherPagesProblem {
  static constexpr size_t kGuardBytes = 64;  // behind each tier

  GatherPagesProblem(const GatherPagesCase& c, std::mt19937_64& rng) : num_pages{c.num_pages} {
    home.resize(c.num_home_pages * c.page_bytes + kGuardBytes);
    hot.resize(c.num_hot_pages * c.page_bytes + kGuardBytes);
    for (std::vector<uint8_t>* tier : {&home, &hot}) {
      for (uint8_t& byte : *tier) byte = static_cast<uint8_t>(rng());
    }
    const auto shuffled = [&](int32_t n) {
      std::vector<int32_t> ids(n);
      std::iota(ids.begin(), ids.end(), 0);
      std::shuffle(ids.begin(), ids.end(), rng);
      return ids;
    };
    const std::vector<int32_t> from = shuffled(c.num_home_pages), to = shuffled(c.num_hot_pages);
    pages.resize(c.max_pages);
    for (int32_t i = 0; i < c.max_pages; ++i) pages[i] = {from[i], to[i]};
    params.page_bytes = c.page_bytes;
    params.num_home_pages = c.num_home_pages;
    params.num_hot_pages = c.num_hot_pages;
    params.max_pages = c.max_pages;
    Bind();
  }

  // Pairs of which one page is in no tier: far below, just below, just behind, far behind.
  void AddForeignPages(std::mt19937_64& rng) {
    for (PagePair& pair : pages) {
      if (rng() % 3 != 0) continue;
      const bool is_home = rng() % 2 == 0;
      const int32_t end = is_home ? params.num_home_pages : params.num_hot_pages;
      const int32_t foreign[] = {-1, INT32_MIN, end, INT32_MAX};
      (is_home ? pair.home_page : pair.hot_page) = foreign[rng() % 4];
    }
  }

  // After a copy of the problem, whose params are of the original.
  void Bind() {
    params.home = home.data();
    params.hot = hot.data();
    params.pages = pages.data();
    params.num_pages = num_pages.data();
  }

  // Pages that are copied.
  int64_t NumCopied() const {
    return std::count_if(pages.begin(),
                         pages.begin() + std::clamp(num_pages[0], 0, params.max_pages),
                         [&](const PagePair& pair) {
                           return pair.home_page >= 0 && pair.home_page < params.num_home_pages &&
                                  pair.hot_page >= 0 && pair.hot_page < params.num_hot_pages;
                         });
  }

  PageCopyParams params;
  std::vector<uint8_t> home, hot;
  std::vector<PagePair> pages;
  std::vector<int32_t> num_pages;
};

// Pages of 16 tokens of 64 to 256 channels in 16 bits, and sizes that are no whole piece of 4 KiB.
inline std::vector<GatherPagesCase> GatherPagesCases() {
  std::vector<GatherPagesCase> cases;
  for (int64_t page_bytes : {4096, 5120, 6144, 8192, 16384, 16, 48, 4112, 8176}) {
    cases.push_back({page_bytes, 37, 29, 20, 17});
  }
  for (int32_t num_pages : {0, -1, 1, 20, 21, INT32_MAX, INT32_MIN}) {
    cases.push_back({1024, 37, 29, 20, num_pages});
  }
  cases.push_back({512, 300, 280, 270, 270});
  cases.push_back({512, 4, 4, 0, 3});
  return cases;
}

inline GatherPagesCase RandomGatherPagesCase(std::mt19937_64& rng) {
  const int32_t max_pages = static_cast<int32_t>(rng() % 40);
  return {16 * (1 + static_cast<int64_t>(rng() % 600)), max_pages + static_cast<int32_t>(rng() % 9),
          max_pages + static_cast<int32_t>(rng() % 9), max_pages, static_cast<int32_t>(rng() % 45)};
}

}  // namespace semkv::testing

#endif  // SEMKV_TESTS_OPS_RESIDENCY_GATHER_PAGES_CASES_H_
