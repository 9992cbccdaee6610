/* A whole life of a cache through semkv.h, in C11, with every return code checked: good calls
 * against a plain dense attention, bad calls against the code and the text they must give. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "semkv/semkv.h"
#include "semkv/semkv.h" /* twice: the guard holds */

enum {
  kLayers = 2,
  kHeads = 4,
  kKvHeads = 2,
  kDim = 64,
  kPages = 64,
  kPageTokens = 16,
  kTokens = 600
};

static int failures = 0;

#define EXPECT(condition)                                                                      \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      fprintf(stderr, "%s:%d: %s is false (last error: %s)\n", __FILE__, __LINE__, #condition, \
              semkv_last_error());                                                             \
      ++failures;                                                                              \
    }                                                                                          \
  } while (0)
#define EXPECT_OK(call) EXPECT((call) == SEMKV_OK)
/* The call fails with `code`, and its text holds `part`. */
#define EXPECT_FAILS(call, code, part)                  \
  do {                                                  \
    EXPECT((call) == (code));                           \
    EXPECT(strstr(semkv_last_error(), (part)) != NULL); \
  } while (0)

static uint64_t random_state = 88172645463325252ULL;
static float Random(void) { /* xorshift64, in [-1, 1) */
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (float)((double)(random_state >> 11) / 4503599627370496.0 - 1.0);
}

typedef struct {
  float k[kLayers][kTokens][kKvHeads][kDim];
  float v[kLayers][kTokens][kKvHeads][kDim];
  float q[kLayers][kTokens][kHeads][kDim];
  int32_t ids[kTokens];
} Model;

static Model model;

static void FillModel(void) {
  float* x = &model.k[0][0][0][0];
  for (size_t i = 0; i < sizeof(model.k) / sizeof(float); ++i) x[i] = Random();
  x = &model.v[0][0][0][0];
  for (size_t i = 0; i < sizeof(model.v) / sizeof(float); ++i) x[i] = Random();
  x = &model.q[0][0][0][0];
  for (size_t i = 0; i < sizeof(model.q) / sizeof(float); ++i) x[i] = 4.0f * Random();
  for (int t = 0; t < kTokens; ++t) model.ids[t] = t % 12 == 11 ? 1 : 0; /* a period every 12 */
}

/* Dense attention of token t over tokens [0, t], or over the given positions. */
static void Attend(int layer, int t, int head, const int32_t* positions, int count, double* out) {
  const int group = kHeads / kKvHeads;
  double score[kTokens], most = -1e30, sum = 0.0;
  for (int i = 0; i < count; ++i) {
    const int at = positions != NULL ? positions[i] : i;
    double s = 0.0;
    for (int c = 0; c < kDim; ++c) {
      s += (double)model.q[layer][t][head][c] * model.k[layer][at][head / group][c];
    }
    score[i] = s / sqrt((double)kDim);
    if (score[i] > most) most = score[i];
  }
  memset(out, 0, kDim * sizeof(double));
  for (int i = 0; i < count; ++i) {
    const int at = positions != NULL ? positions[i] : i;
    const double w = exp(score[i] - most);
    sum += w;
    for (int c = 0; c < kDim; ++c) out[c] += w * model.v[layer][at][head / group][c];
  }
  for (int c = 0; c < kDim; ++c) out[c] /= sum;
}

static void ExpectAttention(int layer, int t, const float* out, const int32_t* const* positions,
                            const int32_t* counts) {
  for (int h = 0; h < kHeads; ++h) {
    double expected[kDim], worst = 0.0;
    const int g = h / (kHeads / kKvHeads);
    Attend(layer, t, h, positions != NULL ? positions[g] : NULL, counts != NULL ? counts[g] : t + 1,
           expected);
    for (int c = 0; c < kDim; ++c) worst = fmax(worst, fabs(expected[c] - out[h * kDim + c]));
    EXPECT(worst <= 1e-5);
  }
}

static semkv_options GoodOptions(void) {
  semkv_options options;
  EXPECT_OK(semkv_options_init(&options));
  options.num_layers = kLayers;
  options.num_heads = kHeads;
  options.num_kv_heads = kKvHeads;
  options.head_dim = kDim;
  options.page_tokens = kPageTokens;
  options.num_pages = kPages;
  options.max_sequence_tokens = kPages * kPageTokens;
  options.num_threads = 2;
  return options;
}

static void TestMeta(void) {
  char version[32];
  snprintf(version, sizeof(version), "%d.%d.%d", SEMKV_VERSION_MAJOR, SEMKV_VERSION_MINOR,
           SEMKV_VERSION_PATCH);
  EXPECT(strcmp(semkv_version(), version) == 0);
  EXPECT(semkv_abi_version() == SEMKV_ABI_VERSION);
  EXPECT(strcmp(semkv_status_name(SEMKV_OK), "OK") == 0);
  EXPECT(strcmp(semkv_status_name(SEMKV_RESOURCE_EXHAUSTED), "RESOURCE_EXHAUSTED") == 0);
  EXPECT(strcmp(semkv_status_name(-77), "UNKNOWN") == 0);
  EXPECT(semkv_supports("host") == 1);
  EXPECT(semkv_supports("cuda") == 0 || semkv_supports("cuda") == 1);
  EXPECT(semkv_supports("head_dim:128") == 1);
  EXPECT(semkv_supports("head_dim:100") == 0);
  EXPECT(semkv_supports("dtype:bf16") == 1);
  EXPECT(semkv_supports("policy:hybrid") == 1);
  EXPECT(semkv_supports("policy:") == 0);
  EXPECT(semkv_supports("teleport") == 0);
  EXPECT(semkv_supports(NULL) == 0);
  for (int32_t kind = 0; kind < SEMKV_NUM_POLICIES; ++kind) {
    semkv_policy policy;
    EXPECT(semkv_policy_kind(semkv_policy_name(kind)) == kind);
    EXPECT_OK(semkv_policy_init(&policy, kind));
    EXPECT(policy.kind == kind && policy.struct_size == sizeof(policy));
  }
  EXPECT(semkv_policy_name(SEMKV_NUM_POLICIES) == NULL);
  EXPECT(semkv_policy_kind("nonsense") == -1);
  EXPECT(semkv_policy_kind(NULL) == -1);
  EXPECT(strcmp(semkv_row_reason_name(SEMKV_ROW_SHORT_CONTEXT), "short_context") == 0);
  EXPECT(semkv_row_reason_name(-1) == NULL);
  EXPECT_FAILS(semkv_policy_init(NULL, 0), SEMKV_INVALID_ARGUMENT, "policy is null");
}

static void TestCreationRefusals(void) {
  semkv_context* context = NULL;
  semkv_options options = GoodOptions();
  EXPECT_FAILS(semkv_context_create(NULL, &context), SEMKV_INVALID_ARGUMENT, "options is null");
  EXPECT_FAILS(semkv_context_create(&options, NULL), SEMKV_INVALID_ARGUMENT, "context is null");
  options.struct_size = 0;
  EXPECT_FAILS(semkv_context_create(&options, &context), SEMKV_INVALID_ARGUMENT, "struct_size");
  options = GoodOptions();
  options.num_heads = 5;
  EXPECT_FAILS(semkv_context_create(&options, &context), SEMKV_INVALID_ARGUMENT, "5");
  options = GoodOptions();
  options.head_dim = 100;
  EXPECT_FAILS(semkv_context_create(&options, &context), SEMKV_UNIMPLEMENTED, "100");
  options = GoodOptions();
  options.page_tokens = 24;
  EXPECT_FAILS(semkv_context_create(&options, &context), SEMKV_INVALID_ARGUMENT, "24");
  options = GoodOptions();
  options.max_sequence_tokens = kPages * kPageTokens + 1;
  EXPECT_FAILS(semkv_context_create(&options, &context), SEMKV_INVALID_ARGUMENT, "1025");
  /* No library has a thousand GPUs, this one perhaps none: what is missing is said. */
  options = GoodOptions();
  options.device = 1000;
  EXPECT(semkv_context_create(&options, &context) != SEMKV_OK);
  EXPECT(strstr(semkv_last_error(), "options.device") != NULL);
  EXPECT(context == NULL);
  semkv_context_destroy(NULL);
  semkv_plan_destroy(NULL);
}

static void SetVocabulary(semkv_context* context) {
  const char bytes[] = " word.";
  const int64_t offsets[] = {0, 5, 6}; /* " word" and "." */
  const int64_t wrong[] = {0, 5, 4};
  EXPECT_FAILS(semkv_vocabulary_set(context, 2, bytes, wrong), SEMKV_INVALID_ARGUMENT, "offsets");
  EXPECT_FAILS(semkv_vocabulary_set(context, 0, bytes, offsets), SEMKV_INVALID_ARGUMENT, "0");
  EXPECT_OK(semkv_vocabulary_set(context, 2, bytes, offsets));
}

static semkv_attend_args AttendArgs(const float* q, float* out, float* lse) {
  semkv_attend_args args = {
      .struct_size = sizeof(args), .dtype = SEMKV_DTYPE_F32, .q = q, .out = out};
  args.lse = lse;
  return args;
}

/* Appends tokens [first, first + n) and runs them through every layer; returns the last layer's
 * out. */
static void RunChunk(semkv_context* context, semkv_plan* plan, semkv_sequence sequence, int first,
                     int n) {
  static int32_t slots[kTokens];
  static float out[kTokens * kHeads * kDim];
  EXPECT_OK(semkv_sequence_append(context, sequence, n, model.ids + first, slots));
  EXPECT_OK(semkv_plan_step(plan, 1, &sequence, &n));
  for (int layer = 0; layer < kLayers; ++layer) {
    semkv_write_args write = {.struct_size = sizeof(write), .num_tokens = n, .slots = slots};
    write.k = model.k[layer][first];
    write.v = model.v[layer][first];
    semkv_attend_args args = AttendArgs(&model.q[layer][first][0][0], out, NULL);
    EXPECT_OK(semkv_run_layer(plan, layer, &write, &args));
    for (int i = 0; i<n; i += n> 8 ? n / 4 : 1) {
      ExpectAttention(layer, first + i, out + i * kHeads * kDim, NULL, NULL);
    }
  }
}

/* A layer in one call gives the bits of the three; what it is refused leaves `out` alone. */
static void ExpectSameInOneCall(semkv_plan* plan, int layer, const semkv_write_args* write,
                                const semkv_attend_args* attend) {
  static float out[kHeads * kDim];
  const int32_t beyond = kPages * kPageTokens;
  semkv_attend_args again = *attend;
  semkv_write_args wrong = *write;
  again.out = out;
  wrong.slots = &beyond;
  memset(out, 0, sizeof(out));
  EXPECT_FAILS(semkv_run_layer(plan, layer, &wrong, &again), SEMKV_OUT_OF_RANGE, "1024");
  EXPECT_FAILS(semkv_run_layer(plan, kLayers, NULL, &again), SEMKV_OUT_OF_RANGE, "layer 2");
  EXPECT_FAILS(semkv_run_layer(plan, layer, write, NULL), SEMKV_INVALID_ARGUMENT, "attend is null");
  EXPECT_FAILS(semkv_run_layer(NULL, layer, write, &again), SEMKV_INVALID_ARGUMENT, "plan");
  for (int i = 0; i < kHeads * kDim; ++i) EXPECT(out[i] == 0.0f);
  EXPECT_OK(semkv_run_layer(plan, layer, write, &again));
  EXPECT(memcmp(out, attend->out, sizeof(out)) == 0);
  memset(out, 0, sizeof(out));
  EXPECT_OK(semkv_run_layer(plan, layer, NULL, &again));
  EXPECT(memcmp(out, attend->out, sizeof(out)) == 0);
}

/* One decode step of a sparse row: what was selected is within the budget, and what was attended is
 * exactly what was selected. */
static void SparseStep(semkv_context* context, semkv_plan* plan, semkv_sequence sequence, int t,
                       int budget) {
  int32_t slot = -1, reason = -1;
  float out[kHeads * kDim], lse[kHeads], dense_lse[kHeads], dense_out[kHeads * kDim];
  EXPECT_OK(semkv_sequence_append(context, sequence, 1, model.ids + t, &slot));
  EXPECT_OK(semkv_plan_step(plan, 1, &sequence, NULL));
  uint64_t key = 1;
  EXPECT_OK(semkv_plan_graph_key(plan, &key));
  EXPECT(key == 0); /* the host has no graphs */
  for (int layer = 0; layer < kLayers; ++layer) {
    const int32_t* positions[kKvHeads];
    int32_t counts[kKvHeads];
    semkv_write_args write = {.struct_size = sizeof(write), .num_tokens = 1, .slots = &slot};
    write.k = model.k[layer][t];
    write.v = model.v[layer][t];
    EXPECT_OK(semkv_write_kv(context, layer, &write));
    EXPECT_OK(semkv_plan_row(plan, layer, 0, &reason));
    EXPECT(reason == SEMKV_ROW_SPARSE);
    semkv_attend_args args = AttendArgs(&model.q[layer][t][0][0], out, lse);
    EXPECT_FAILS(semkv_attend(plan, layer, &args), SEMKV_FAILED_PRECONDITION, "semkv_select");
    EXPECT_OK(semkv_select(plan, layer, &args));
    EXPECT_OK(semkv_attend(plan, layer, &args));
    for (int g = 0; g < kKvHeads; ++g) {
      EXPECT_OK(semkv_select_result(plan, 0, g, &positions[g], &counts[g]));
      EXPECT(counts[g] == (budget < t + 1 ? budget : t + 1));
      for (int i = 1; i < counts[g]; ++i) EXPECT(positions[g][i - 1] < positions[g][i]);
      EXPECT(positions[g][0] == 0 && positions[g][counts[g] - 1] == t);
    }
    ExpectAttention(layer, t, out, positions, counts);
    ExpectSameInOneCall(plan, layer, &write, &args);
    args = AttendArgs(&model.q[layer][t][0][0], dense_out, dense_lse);
    args.flags = SEMKV_ATTEND_DENSE;
    EXPECT_OK(semkv_attend(plan, layer, &args));
    ExpectAttention(layer, t, dense_out, NULL, NULL);
    for (int h = 0; h < kHeads; ++h) EXPECT(lse[h] <= dense_lse[h] + 1e-5f);
  }
  EXPECT_OK(semkv_observe(context, sequence));
}

static void TestPolicyRefusals(semkv_context* context, semkv_sequence sequence) {
  semkv_policy policy;
  EXPECT_OK(semkv_policy_init(&policy, SEMKV_POLICY_HYBRID));
  policy.budget = 30;
  EXPECT_FAILS(semkv_sequence_set_policy(context, sequence, &policy), SEMKV_INVALID_ARGUMENT, "30");
  EXPECT_OK(semkv_policy_init(&policy, SEMKV_POLICY_HYBRID));
  policy.kind = 99;
  EXPECT_FAILS(semkv_sequence_set_policy(context, sequence, &policy), SEMKV_INVALID_ARGUMENT, "99");
  EXPECT_OK(semkv_policy_init(&policy, SEMKV_POLICY_HYBRID));
  policy.mass_target = 1.5f;
  EXPECT_FAILS(semkv_sequence_set_policy(context, sequence, &policy), SEMKV_INVALID_ARGUMENT,
               "1.5");
  EXPECT_OK(semkv_policy_init(&policy, SEMKV_POLICY_HYBRID));
  EXPECT_FAILS(semkv_sequence_set_policy(context, 999, &policy), SEMKV_NOT_FOUND, "999");
}

static void TestLife(void) {
  semkv_context* context = NULL;
  semkv_plan* plan = NULL;
  semkv_sequence first = 0, fork = 0, other = 0;
  semkv_options options = GoodOptions();
  semkv_policy policy;
  semkv_stats stats = {.struct_size = sizeof(stats)};
  semkv_sequence_info info = {.struct_size = sizeof(info)};
  semkv_page_tag tag = {.struct_size = sizeof(tag)};
  semkv_event events[64];
  int32_t length = 0, num_pages = 0, num_events = 0, pages[kPages], num_shared = -1;
  size_t text_length = 0, workspace_bytes = 0;
  char text[4096];

  EXPECT_OK(semkv_context_create(&options, &context));
  SetVocabulary(context);
  EXPECT_FAILS(semkv_plan_create(context, 0, 64, &plan), SEMKV_INVALID_ARGUMENT, "max_rows");
  EXPECT_FAILS(semkv_plan_create(context, 1, 0, &plan), SEMKV_INVALID_ARGUMENT, "max_budget");
  EXPECT_OK(semkv_plan_create(context, 2, 256, &plan));
  uint64_t key = 1;
  EXPECT_FAILS(semkv_plan_graph_key(plan, &key), SEMKV_FAILED_PRECONDITION, "no rows");
  EXPECT_FAILS(semkv_plan_graph_key(plan, NULL), SEMKV_INVALID_ARGUMENT, "key is null");
  EXPECT_OK(semkv_set_stream(context, NULL));
  EXPECT_FAILS(semkv_set_stream(NULL, NULL), SEMKV_INVALID_ARGUMENT, "context is null");
  EXPECT_OK(semkv_plan_workspace(plan, &workspace_bytes));
  void* workspace = aligned_alloc(64, (workspace_bytes + 63) / 64 * 64);
  EXPECT_FAILS(semkv_plan_bind(plan, workspace, workspace_bytes - 1), SEMKV_INVALID_ARGUMENT,
               "too small");
  EXPECT_OK(semkv_plan_bind(plan, workspace, workspace_bytes));
  EXPECT_OK(semkv_sequence_create(context, 42, &first));
  EXPECT(first >= 1);
  TestPolicyRefusals(context, first);
  EXPECT_OK(semkv_policy_init(&policy, SEMKV_POLICY_HYBRID));
  policy.budget = 128;
  policy.force_sparse = 1;
  EXPECT_OK(semkv_sequence_set_policy(context, first, &policy));

  EXPECT_FAILS(semkv_plan_step(plan, 1, &first, NULL), SEMKV_INVALID_ARGUMENT, "queries");
  RunChunk(context, plan, first, 0, 100);
  RunChunk(context, plan, first, 100, 400);
  EXPECT_OK(semkv_index(context, first));
  EXPECT_OK(semkv_sequence_info_get(context, first, &info));
  EXPECT(info.num_tokens == 500 && info.num_segments == 1 && info.num_lists > 0 &&
         info.index_bytes > 0);
  EXPECT_OK(semkv_sequence_fork(context, first, &fork));
  for (int t = 500; t < 600; ++t) SparseStep(context, plan, first, t, policy.budget);
  EXPECT_OK(semkv_sequence_length(context, fork, &length));
  EXPECT(length == 500);
  SparseStep(context, plan, fork, 500,
             policy.budget); /* the parent went on; the fork did not see it */

  EXPECT_OK(semkv_sequence_block_table(context, first, pages, kPages, &num_pages));
  EXPECT(num_pages == (600 + kPageTokens - 1) / kPageTokens);
  EXPECT_FAILS(semkv_sequence_block_table(context, first, pages, 1, &num_pages), SEMKV_OUT_OF_RANGE,
               "1");
  EXPECT_OK(semkv_pages_get_tag(context, pages[0], &tag));
  EXPECT(tag.first_position == 0 && tag.fill == kPageTokens && tag.cluster == -1);
  EXPECT_FAILS(semkv_pages_get_tag(context, kPages, &tag), SEMKV_OUT_OF_RANGE, "64");

  EXPECT_OK(semkv_sequence_create(context, 42, &other));
  EXPECT_OK(semkv_sequence_share_prefix(context, other, 200, model.ids, &num_shared));
  EXPECT(num_shared == 199 / kPageTokens * kPageTokens);
  EXPECT_OK(semkv_sequence_release(context, other));
  EXPECT_OK(semkv_sequence_create(context, 43, &other)); /* another tenant */
  EXPECT_OK(semkv_sequence_share_prefix(context, other, 200, model.ids, &num_shared));
  EXPECT(num_shared == 0);
  EXPECT_FAILS(semkv_sequence_append(context, other, 800, NULL, NULL), SEMKV_RESOURCE_EXHAUSTED,
               "pages");
  EXPECT_OK(semkv_sequence_length(context, other, &length));
  EXPECT(length == 0);

  EXPECT_OK(semkv_stats_get(context, &stats));
  /* 101 steps, in which every layer was attended by hand once and twice in one call. */
  EXPECT(stats.layer_rows[SEMKV_ROW_SPARSE] == 3 * 101 * kLayers);
  EXPECT(stats.attended_tokens == (uint64_t)3 * 101 * kLayers * kKvHeads * policy.budget);
  EXPECT_OK(semkv_explain(context, text, sizeof(text), &text_length));
  EXPECT(strstr(text, "hybrid") != NULL && text_length == strlen(text));
  EXPECT_OK(semkv_explain(context, text, 8, &text_length));
  EXPECT(strlen(text) == 7);
  EXPECT_OK(semkv_events_drain(context, events, 64, &num_events));
  EXPECT(num_events >= 1 && events[0].kind == SEMKV_EVENT_SEGMENT_SEALED && events[0].a == first);

  EXPECT_OK(semkv_sequence_release(context, first));
  EXPECT_FAILS(semkv_sequence_release(context, first), SEMKV_NOT_FOUND, "no sequence");
  EXPECT_OK(semkv_sequence_release(context, fork));
  EXPECT_OK(semkv_context_reset(context));
  EXPECT_FAILS(semkv_sequence_length(context, other, &length), SEMKV_NOT_FOUND, "no sequence");
  semkv_plan_destroy(plan);
  semkv_context_destroy(context);
  free(workspace);
}

static void TestBorrowedStorage(void) {
  static float memory[kLayers][2][kPages][kKvHeads][kPageTokens][kDim];
  semkv_context* context = NULL;
  semkv_plan* plan = NULL;
  semkv_sequence sequence = 0;
  semkv_options options = GoodOptions();
  options.borrow_storage = 1;
  EXPECT_OK(semkv_context_create(&options, &context));
  EXPECT_OK(semkv_plan_create(context, 1, 64, &plan));
  EXPECT_FAILS(semkv_sequence_create(context, 0, &sequence), SEMKV_FAILED_PRECONDITION,
               "semkv_register_kv");
  for (int layer = 0; layer < kLayers; ++layer) {
    semkv_kv_view view = {.struct_size = sizeof(view), .layer = layer};
    view.k = memory[layer][0];
    view.v = memory[layer][1];
    view.k_page = view.v_page = kKvHeads * kPageTokens * kDim;
    view.k_head = view.v_head = kPageTokens * kDim;
    view.k_token = view.v_token = kDim;
    EXPECT_OK(semkv_register_kv(context, &view));
    view.layer = kLayers;
    EXPECT_FAILS(semkv_register_kv(context, &view), SEMKV_OUT_OF_RANGE, "2");
  }
  EXPECT_OK(semkv_sequence_create(context, 0, &sequence));
  RunChunk(context, plan, sequence, 0, 50);
  EXPECT(memory[1][0][0][0][3][5] == model.k[1][3][0][5] ||
         memory[1][0][kPages - 1][0][3][5] == model.k[1][3][0][5]);
  semkv_plan_destroy(plan);
  semkv_context_destroy(context);
}

int main(void) {
  FillModel();
  TestMeta();
  TestCreationRefusals();
  TestLife();
  TestBorrowedStorage();
  printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
