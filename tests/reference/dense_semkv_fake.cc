// The few functions of semkv.h that the engine calls, dense and in plain loops.
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "semkv/semkv.h"

struct semkv_context {
  semkv_options o;
  std::vector<float> k, v;  // [layer, slot, kv head, dim]
  std::map<semkv_sequence, std::vector<int32_t>> sequences;
  semkv_sequence next = 1;
  int32_t next_slot = 0;
};
struct semkv_plan {
  semkv_context* context;
  std::vector<semkv_sequence> sequences;
  std::vector<int32_t> queries;
};

namespace {
thread_local std::string last_error;
int Fail(int code, const std::string& text) {
  last_error = text;
  return code;
}
}  // namespace

extern "C" {
const char* semkv_last_error(void) { return last_error.c_str(); }
int semkv_options_init(semkv_options* o) {
  *o = {};
  o->struct_size = sizeof(*o);
  o->page_tokens = 16;
  o->max_sequences = 16;
  return 0;
}
int semkv_context_create(const semkv_options* o, semkv_context** context) {
  auto* c = new semkv_context();
  c->o = *o;
  const size_t n =
      size_t(o->num_layers) * o->num_pages * o->page_tokens * o->num_kv_heads * o->head_dim;
  c->k.resize(n);
  c->v.resize(n);
  *context = c;
  return 0;
}
void semkv_context_destroy(semkv_context* c) { delete c; }
int semkv_vocabulary_set(semkv_context*, int32_t, const char*, const int64_t*) { return 0; }
int semkv_sequence_create(semkv_context* c, uint64_t, semkv_sequence* s) {
  *s = c->next++;
  c->sequences[*s].reserve(c->o.max_sequence_tokens);
  return 0;
}
int semkv_sequence_release(semkv_context* c, semkv_sequence s) {
  c->sequences.erase(s);
  if (c->sequences.empty()) c->next_slot = 0;
  return 0;
}
int semkv_sequence_append(semkv_context* c, semkv_sequence s, int32_t n, const int32_t*,
                          int32_t* slots) {
  auto found = c->sequences.find(s);
  if (found == c->sequences.end()) return Fail(5, "no sequence");
  if (c->next_slot + n > c->o.num_pages * c->o.page_tokens) return Fail(8, "pool full");
  for (int32_t i = 0; i < n; ++i) {
    slots[i] = c->next_slot++;
    found->second.push_back(slots[i]);
  }
  return 0;
}
int semkv_sequence_length(semkv_context* c, semkv_sequence s, int32_t* n) {
  auto found = c->sequences.find(s);
  if (found == c->sequences.end()) return Fail(5, "no sequence");
  *n = int32_t(found->second.size());
  return 0;
}
int semkv_sequence_set_policy(semkv_context*, semkv_sequence, const semkv_policy*) { return 0; }
int semkv_policy_init(semkv_policy* p, int32_t) {
  *p = {};
  p->struct_size = sizeof(*p);
  return 0;
}
int semkv_index(semkv_context*, semkv_sequence) { return 0; }
int semkv_observe(semkv_context*, semkv_sequence) { return 0; }
int semkv_write_kv(semkv_context* c, int32_t layer, const semkv_write_args* a) {
  const semkv_options& o = c->o;
  for (int32_t t = 0; t < a->num_tokens; ++t)
    for (int32_t g = 0; g < o.num_kv_heads; ++g)
      for (int32_t d = 0; d < o.head_dim; ++d) {
        const size_t at =
            ((size_t(layer) * o.num_pages * o.page_tokens + a->slots[t]) * o.num_kv_heads + g) *
                o.head_dim +
            d;
        c->k[at] = static_cast<const float*>(a->k)[t * a->k_token + g * a->k_head + d];
        c->v[at] = static_cast<const float*>(a->v)[t * a->v_token + g * a->v_head + d];
      }
  return 0;
}
int semkv_plan_create(semkv_context* c, int32_t, int32_t, semkv_plan** p) {
  *p = new semkv_plan{c, {}, {}};
  (*p)->sequences.reserve(64);
  (*p)->queries.reserve(64);
  return 0;
}
void semkv_plan_destroy(semkv_plan* p) { delete p; }
int semkv_plan_step(semkv_plan* p, int32_t rows, const semkv_sequence* s, const int32_t* n) {
  p->sequences.assign(s, s + rows);
  p->queries.clear();
  for (int32_t r = 0; r < rows; ++r) p->queries.push_back(n != nullptr ? n[r] : 1);
  return 0;
}
int semkv_select(semkv_plan*, int32_t, const semkv_attend_args*) { return 0; }
int semkv_attend(semkv_plan* p, int32_t layer, const semkv_attend_args* a) {
  semkv_context* c = p->context;
  const semkv_options& o = c->o;
  static std::vector<float> s;
  s.reserve(o.max_sequence_tokens);
  int32_t token = 0;
  for (size_t r = 0; r < p->sequences.size(); ++r) {
    const auto& slots = c->sequences[p->sequences[r]];
    for (int32_t i = 0; i < p->queries[r]; ++i, ++token) {
      const int32_t n = int32_t(slots.size()) - p->queries[r] + i + 1;
      for (int32_t h = 0; h < o.num_heads; ++h) {
        const int32_t g = h / (o.num_heads / o.num_kv_heads);
        const float* q = static_cast<const float*>(a->q) + token * a->q_token + h * a->q_head;
        float* out = static_cast<float*>(a->out) + token * a->out_token + h * a->out_head;
        const auto at = [&](int32_t j) {
          return ((size_t(layer) * o.num_pages * o.page_tokens + slots[j]) * o.num_kv_heads + g) *
                 o.head_dim;
        };
        s.resize(n);
        float m = -INFINITY, z = 0;
        for (int32_t j = 0; j < n; ++j) {
          float x = 0;
          for (int32_t d = 0; d < o.head_dim; ++d) x += q[d] * c->k[at(j) + d];
          s[j] = x / std::sqrt(float(o.head_dim));
          m = std::max(m, s[j]);
        }
        for (int32_t d = 0; d < o.head_dim; ++d) out[d] = 0;
        for (int32_t j = 0; j < n; ++j) {
          const float e = std::exp(s[j] - m);
          z += e;
          for (int32_t d = 0; d < o.head_dim; ++d) out[d] += e * c->v[at(j) + d];
        }
        for (int32_t d = 0; d < o.head_dim; ++d) out[d] /= z;
        if (a->lse != nullptr) a->lse[token * o.num_heads + h] = m + std::log(z);
      }
    }
  }
  return 0;
}
}
