// Copies list pages between the home tier and a hot pool: gather, what a step misses, and spill,
// what a sealed segment leaves. A page is `page_bytes` of keys and values of one layer and KV head,
// the same in both tiers: [K, V][page_tokens, head_dim].
//
// Which pages is said by a list that resolve writes and counts, on the device where that is one: no
// host waits to learn it. A pair with a page that its tier does not have is passed over. Pages are
// copied in any order; a page that is written may occur once.
//
// Long runs of neighbours are better copied by the copy engines, which take no multiprocessor
// (docs/kernels/residency.md); CoalescePages finds them where the host has the list.
//
// Source: list-major pages and K next to V are ours (docs/design.md, 1.4); a kernel that reads
// mapped host memory as vLLM's and SGLang's offloading do.

#ifndef SEMKV_OPS_RESIDENCY_GATHER_PAGES_H_
#define SEMKV_OPS_RESIDENCY_GATHER_PAGES_H_

#include <cstdint>

namespace semkv {

class ThreadPool;

// Where one page is in either tier.
struct PagePair {
  int32_t home_page = 0;
  int32_t hot_page = 0;
};

struct PageCopyParams {
  void* home = nullptr;  // [num_home_pages, page_bytes]; page-locked and mapped for the CUDA form
  void* hot = nullptr;   // [num_hot_pages, page_bytes]
  int64_t page_bytes = 0;
  int32_t num_home_pages = 0;
  int32_t num_hot_pages = 0;
  const PagePair* pages = nullptr;     // [max_pages]
  const int32_t* num_pages = nullptr;  // [1]; below 0 is none, above max_pages is max_pages
  int32_t max_pages = 0;
};

// From home to hot, and back. Pages on the threads of `pool`. Allocate nothing.
void GatherPagesHost(const PageCopyParams& params, ThreadPool& pool);
void SpillPagesHost(const PageCopyParams& params, ThreadPool& pool);

// The same one after another: the specification.
void GatherPagesReference(const PageCopyParams& params);
void SpillPagesReference(const PageCopyParams& params);

// Null when the CUDA form takes `params`, else the reason, naming the value: page_bytes a multiple
// of 16, both tiers aligned to 16 bytes.
const char* PageCopyCudaUnsupported(const PageCopyParams& params);

// Pages that are neighbours, in the same order, in both tiers.
struct PageRun {
  int32_t home_page = 0;  // the first
  int32_t hot_page = 0;
  int32_t num_pages = 0;
};

// Sorts `pages` by home page, writes their longest runs to `runs` ([num_pages]) and returns how
// many there are. Allocates nothing.
int32_t CoalescePages(PagePair* pages, int32_t num_pages, PageRun* runs);

// True when every page of every run is in its tier.
bool PageRunsFit(const PageCopyParams& params, const PageRun* runs, int32_t num_runs);

}  // namespace semkv

#endif  // SEMKV_OPS_RESIDENCY_GATHER_PAGES_H_
