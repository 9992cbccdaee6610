#include "integration/reference/byte_pairs.h"

#include <queue>
#include <tuple>

namespace semkv::reference {

namespace {

// A node of the doubly linked list over the piece. A node that was merged into its left neighbour
// stays in place with id -1.
struct Node {
  int32_t id;
  int32_t previous;
  int32_t next;  // -1: none
};

// A pair that could be merged when it was seen: at node `left`, into `merged`.
struct Candidate {
  int32_t rank;
  int32_t left;
  int32_t merged;
};

// Puts the lowest rank, then the leftmost, on top of std::priority_queue.
struct Later {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return std::tie(a.rank, a.left) > std::tie(b.rank, b.left);
  }
};

}  // namespace

void BytePairs::Merge(std::vector<int32_t>& symbols) const {
  if (symbols.size() < 2) return;
  const int32_t n = static_cast<int32_t>(symbols.size());
  std::vector<Node> nodes(n);
  for (int32_t i = 0; i < n; ++i) nodes[i] = {symbols[i], i - 1, i + 1 < n ? i + 1 : -1};

  std::priority_queue<Candidate, std::vector<Candidate>, Later> queue;
  const auto consider = [&](int32_t left) {
    if (left < 0 || nodes[left].next < 0) return;
    const auto found = merges_.find({nodes[left].id, nodes[nodes[left].next].id});
    if (found == merges_.end()) return;
    queue.push({found->second.rank, left, found->second.merged});
  };
  for (int32_t i = 0; i + 1 < n; ++i) consider(i);

  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Node& left = nodes[top.left];
    if (left.id < 0 || left.next < 0) continue;
    Node& right = nodes[left.next];
    // Either neighbour may have been merged since; the pair there now must still give `merged`.
    const auto found = merges_.find({left.id, right.id});
    if (found == merges_.end() || found->second.merged != top.merged) continue;
    left.id = top.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) nodes[left.next].previous = top.left;
    consider(left.previous);
    consider(top.left);
  }
  symbols.clear();
  for (int32_t i = 0; i >= 0; i = nodes[i].next) symbols.push_back(nodes[i].id);
}

}  // namespace semkv::reference
