#include "csrc/ops/residency/gather_pages.h"

#include <algorithm>
#include <cstdint>

namespace semkv {
namespace {

template <typename Copy>
void ForEachPage(const PageCopyParams& p, const Copy& copy) {
  for (int32_t i = 0; i < std::min(*p.num_pages, p.max_pages); ++i) {
    const PagePair& pair = p.pages[i];
    if (pair.home_page < 0 || pair.home_page >= p.num_home_pages) continue;
    if (pair.hot_page < 0 || pair.hot_page >= p.num_hot_pages) continue;
    copy(static_cast<char*>(p.home) + pair.home_page * p.page_bytes,
         static_cast<char*>(p.hot) + pair.hot_page * p.page_bytes);
  }
}

}  // namespace

void GatherPagesReference(const PageCopyParams& params) {
  ForEachPage(params,
              [&](char* home, char* hot) { std::copy(home, home + params.page_bytes, hot); });
}

void SpillPagesReference(const PageCopyParams& params) {
  ForEachPage(params,
              [&](char* home, char* hot) { std::copy(hot, hot + params.page_bytes, home); });
}

}  // namespace semkv
