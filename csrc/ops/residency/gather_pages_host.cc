#include "csrc/ops/residency/gather_pages.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "csrc/ops/parallel/thread_pool.h"
#include "semkv/types.h"

namespace semkv {
namespace {

// Per task: enough that a task outweighs its dispatch.
constexpr int64_t kTaskBytes = int64_t{64} * 1024;

bool IsInTier(int32_t page, int32_t num_pages) { return page >= 0 && page < num_pages; }

// memcpy is SIMD: there is nothing to be had from another loop.
template <typename Copy>
void ForEachPage(const PageCopyParams& p, ThreadPool& pool, const Copy& copy) {
  const int64_t num_pages = std::clamp(*p.num_pages, 0, std::max(p.max_pages, 0));
  const int64_t task_pages = std::max<int64_t>(1, kTaskBytes / std::max<int64_t>(p.page_bytes, 1));
  pool.Run(CeilDiv(num_pages, task_pages), [&](int64_t task, int) {
    const int64_t end = std::min(num_pages, (task + 1) * task_pages);
    for (int64_t i = task * task_pages; i < end; ++i) {
      const PagePair& pair = p.pages[i];
      if (!IsInTier(pair.home_page, p.num_home_pages)) continue;
      if (!IsInTier(pair.hot_page, p.num_hot_pages)) continue;
      copy(static_cast<char*>(p.home) + pair.home_page * p.page_bytes,
           static_cast<char*>(p.hot) + pair.hot_page * p.page_bytes);
    }
  });
}

bool IsAligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool RunFits(int32_t first, int32_t num_pages, int32_t tier_pages) {
  return first >= 0 && num_pages >= 0 && int64_t{first} + num_pages <= tier_pages;
}

}  // namespace

void GatherPagesHost(const PageCopyParams& params, ThreadPool& pool) {
  ForEachPage(params, pool,
              [&](char* home, char* hot) { std::memcpy(hot, home, params.page_bytes); });
}

void SpillPagesHost(const PageCopyParams& params, ThreadPool& pool) {
  ForEachPage(params, pool,
              [&](char* home, char* hot) { std::memcpy(home, hot, params.page_bytes); });
}

const char* PageCopyCudaUnsupported(const PageCopyParams& p) {
  // Pieces of pages are counted in 32 bits (gather_pages_kernel.cuh).
  constexpr int64_t kMaxBytes = int64_t{1} << 42;
  if (p.page_bytes < 16 || p.page_bytes % 16 != 0) return "page_bytes is not a multiple of 16";
  if (p.max_pages < 0 || p.num_home_pages < 0 || p.num_hot_pages < 0) return "a negative size";
  if (p.max_pages > 0 && p.page_bytes > kMaxBytes / p.max_pages) {
    return "max_pages * page_bytes is above 2^42";
  }
  if (!IsAligned(p.home)) return "the home tier is not aligned to 16 bytes";
  if (!IsAligned(p.hot)) return "the hot pool is not aligned to 16 bytes";
  return nullptr;
}

int32_t CoalescePages(PagePair* pages, int32_t num_pages, PageRun* runs) {
  std::sort(pages, pages + num_pages,
            [](const PagePair& a, const PagePair& b) { return a.home_page < b.home_page; });
  int32_t num_runs = 0;
  for (int32_t i = 0; i < num_pages; ++i) {
    if (num_runs > 0) {
      PageRun& last = runs[num_runs - 1];
      if (pages[i].home_page == last.home_page + last.num_pages &&
          pages[i].hot_page == last.hot_page + last.num_pages) {
        ++last.num_pages;
        continue;
      }
    }
    runs[num_runs++] = {pages[i].home_page, pages[i].hot_page, 1};
  }
  return num_runs;
}

bool PageRunsFit(const PageCopyParams& params, const PageRun* runs, int32_t num_runs) {
  return std::all_of(runs, runs + num_runs, [&](const PageRun& run) {
    return RunFits(run.home_page, run.num_pages, params.num_home_pages) &&
           RunFits(run.hot_page, run.num_pages, params.num_hot_pages);
  });
}

}  // namespace semkv
