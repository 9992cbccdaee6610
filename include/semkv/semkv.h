/* semkv: the KV cache of a long-context language model as an inverted file.
 *
 * Keys and values are grouped into inverted lists (sentences, clusters), each with a semantic
 * vector. A decode step scores the vectors against its query, takes the best lists within a token
 * budget and attends only to those tokens, exactly. This header is the library's C ABI and its
 * manual; everything else is internal.
 *
 * THE LIFE OF A CACHE
 *
 *   semkv_options o;  semkv_options_init(&o);       geometry and limits, all fixed at creation
 *   semkv_context_create(&o, &ctx);
 *   semkv_vocabulary_set(ctx, ...);                 once, if sentences are used
 *   semkv_sequence_create(ctx, salt, &seq);
 *
 *   prefill, chunk by chunk:
 *     semkv_sequence_append(ctx, seq, n, ids, slots)          makes room for n tokens
 *     semkv_plan_step(plan, 1, &seq, &n)                      decides how each row is attended
 *     for every layer: semkv_write_kv(...), semkv_attend(plan, layer, &args)
 *   semkv_index(ctx, seq)                                     builds the inverted lists
 *
 *   decode, token by token, any number of sequences in a batch:
 *     semkv_sequence_append(ctx, seq, 1, &id, &slot)
 *     semkv_plan_step(plan, rows, seqs, NULL)
 *     for every layer: semkv_write_kv, semkv_select, semkv_attend
 *     semkv_observe(ctx, seq)                                 folds the new token into the lists
 *
 * CAVEATS
 *
 *   - semkv_index and semkv_observe read keys: write a token's in every layer before.
 *   - Fork a sequence rather than copy it: pages and lists are shared, and copied when written.
 *   - A plan belongs to one thread at a time; calls that name the same sequence must not overlap.
 *     All else may be called from any thread.
 *   - Do not append to a sequence between semkv_plan_step and the last semkv_attend of that step.
 *   - The host backend ignores `stream` and has finished when a function returns. Pass NULL.
 *
 * DEVICE MEMORY (docs/c.md, "On a GPU", has the rest: what is refused, what is not counted)
 *
 * With options.device >= 0 keys, values and lists are in a CUDA device's memory, and so is what
 * these point to: semkv_kv_view k, v; semkv_write_args slots (not checked), k, v; semkv_attend_args
 * q, out, lse. semkv_write_kv, semkv_select, semkv_attend and semkv_run_layer enqueue kernels on
 * `stream`, wait for nothing and may be captured in a CUDA graph (semkv_plan_graph_key). Whatever
 * else touches the device does so on the context's stream (semkv_set_stream): let it be the same,
 * or order them. semkv_index and semkv_select_result wait for it.
 *
 * CONVENTIONS
 *
 *   1. Every function that can fail returns an int: SEMKV_OK (0), or a positive code equal to
 *      absl::StatusCode. semkv_last_error() holds the text of this thread's last failure; it names
 *      the quantity and both numbers. On failure nothing has changed, unless the function says so.
 *   2. Every struct begins with struct_size. Fill structs with their _init function first; fields
 *      beyond the caller's struct_size take their defaults.
 *   3. Objects are opaque. destroy(NULL) does nothing.
 *   4. Pointers passed in are borrowed for the call, unless the function says longer.
 *   5. Shapes are outermost first; strides count elements; a row's head_dim channels are adjacent.
 *   6. Nothing aborts, throws, prints or reads the environment.
 *
 * Sources: SentenceKV (arXiv 2504.00970), ClusterKV (arXiv 2412.03213), Quest (docs/papers.md).
 */

#ifndef SEMKV_SEMKV_H_
#define SEMKV_SEMKV_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SEMKV_EXPORT __attribute__((visibility("default")))
#else
#define SEMKV_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- meta ------------------------------------------------------------------------------------ */

#define SEMKV_VERSION_MAJOR 0
#define SEMKV_VERSION_MINOR 1
#define SEMKV_VERSION_PATCH 0
/* Raised when a program compiled against an older header would misbehave. */
#define SEMKV_ABI_VERSION 1

enum {
  SEMKV_OK = 0,
  SEMKV_INVALID_ARGUMENT = 3,
  SEMKV_NOT_FOUND = 5,
  SEMKV_ALREADY_EXISTS = 6,
  SEMKV_RESOURCE_EXHAUSTED = 8,
  SEMKV_FAILED_PRECONDITION = 9,
  SEMKV_OUT_OF_RANGE = 11,
  SEMKV_UNIMPLEMENTED = 12,
  SEMKV_INTERNAL = 13
};

/* "0.1.0". Static. */
SEMKV_EXPORT const char* semkv_version(void);
/* SEMKV_ABI_VERSION of the library; compare with the header's before anything else. */
SEMKV_EXPORT int32_t semkv_abi_version(void);
/* "OK", "INVALID_ARGUMENT", ...; "UNKNOWN" for a number that is no code. Static, never NULL. */
SEMKV_EXPORT const char* semkv_status_name(int32_t status);
/* Text of this thread's last failing call, valid until the next one; "" if none. */
SEMKV_EXPORT const char* semkv_last_error(void);
/* 1 if this build has the feature, else 0: "host", "cuda" (whether there is a GPU or not),
 * "dtype:f32|f16|bf16|f8e4m3" (the last one as kv_dtype of a device), "head_dim:64|80|96|128|256",
 * "policy:NAME". Unknown names are 0. */
SEMKV_EXPORT int32_t semkv_supports(const char* feature);

/* ---- policies -------------------------------------------------------------------------------- */

enum { SEMKV_DTYPE_F32 = 0, SEMKV_DTYPE_F16 = 1, SEMKV_DTYPE_BF16 = 2, SEMKV_DTYPE_F8_E4M3 = 3 };

/* What is read at a decode step. */
enum {
  SEMKV_POLICY_DENSE = 0,    /* everything */
  SEMKV_POLICY_HYBRID = 1,   /* sentences and clusters ranked jointly, each token once (default) */
  SEMKV_POLICY_SENTENCE = 2, /* sentences */
  SEMKV_POLICY_CLUSTER = 3,  /* k-means clusters of keys */
  SEMKV_POLICY_PAGES = 4,    /* every page of 16 tokens a list, mean key (baseline) */
  SEMKV_POLICY_QUEST = 5,    /* the same with Quest's bound (baseline) */
  SEMKV_POLICY_WINDOW = 6,   /* sinks and recent tokens only (control) */
  SEMKV_POLICY_SENTENCEKV = 7, /* SentenceKV as its paper and code have it (comparison) */
  SEMKV_POLICY_CLUSTERKV = 8,  /* ClusterKV as its paper has it (comparison) */
  SEMKV_NUM_POLICIES = 9
};

enum { SEMKV_METRIC_L2 = 0, SEMKV_METRIC_COSINE = 1 };
enum { SEMKV_CENTROID_INT8 = 0, SEMKV_CENTROID_BF16 = 1, SEMKV_CENTROID_F32 = 2 };
enum { SEMKV_CENTROID_INT4 = 3 };
enum { SEMKV_VARIANCE_BOUNDED = 0, SEMKV_VARIANCE_HALF = 1, SEMKV_VARIANCE_NONE = 2 };
enum { SEMKV_RANK_SHARE_SUM = 0, SEMKV_RANK_SHARE_MAX = 1 };

/* How a sequence is indexed and read. semkv_policy_init fills the defaults of `kind`. */
typedef struct semkv_policy {
  uint32_t struct_size;
  int32_t kind;         /* SEMKV_POLICY_* */
  int32_t budget;       /* tokens attended per (row, KV head) and step, everything included: sinks,
                           lists, recent, current; >= sinks + recent (16 if that is -1). Exceeded only
                           where open_beside or warm_up say so */
  int32_t sinks;        /* first tokens, always attended */
  int32_t recent;       /* last tokens, the current one included, always attended; >= 1; -1: 64, or
                           an eighth of a budget below 512, at least 16; of window: all but the sinks */
  int32_t min_context;  /* shorter rows are attended densely */
  int32_t force_sparse; /* 1: never fall back to dense because a row is short (for tests) */
  int32_t dense_layers; /* first layers attended densely; -1: 2 from 12 layers on, else 0 */
  int32_t cluster_size; /* mean tokens per cluster, default 16; down to half where the context's
                           first segment is too short for 256 clusters (clusterkv: 80, never) */
  int32_t cluster_metric; /* SEMKV_METRIC_* */
  int32_t kmeans_iterations;
  int32_t sentence_min_tokens; /* shorter fragments are merged forward; 1: never */
  int32_t sentence_max_tokens; /* longer sentences are split */
  int32_t centroid_form;       /* SEMKV_CENTROID_*; default INT4 (the papers' modes: F32) */
  int32_t variance_term;       /* SEMKV_VARIANCE_* */
  int32_t group_rank;          /* SEMKV_RANK_*: how the query heads of a KV head are combined */
  int32_t per_query_head;      /* 1: one selection per query head instead of per KV head */
  int32_t mean_query;          /* 1: rank with the mean query of the open sentence (SentenceKV) */
  int32_t estimate_rest;       /* 1: add an estimate of what was scored but not read */
  float mass_target;      /* in (0, 1): stop below the budget once the estimated share of the lists'
                             attention mass reaches it; 0: always fill the budget */
  int32_t segment_tokens; /* tokens partitioned at once, in [1024, 65520]; default 8,192;
                             clusterkv: 65,520, a whole prompt up to that length (offsets within a
                             segment have 16 bits) */
  int32_t open_beside;    /* 1: tokens in no list yet (an unfinished window) are attended beside the
                             budget instead of inside it (ClusterKV) */
  /* SentenceKV alone: */
  float keep_factor; /* floor(keep_factor * budget) tokens of the prompt stay in reach per query
                        head (the paper's r); 0: all. Needs options.query_window and
                        per_query_head. What is out of reach is hidden, not freed */
  int32_t warm_up;   /* steps with at most so many queries in the open sentence attend to all kept
                        and all later tokens, whatever the budget (the paper's code: 1); a step whose
                        own token closes its sentence has none; 0: no such steps */
  float lone_share;  /* in [0, 1): of the clusters, so many hold one token each, the keys farthest
                        from the means of theirs; default 0, of hybrid and cluster 1/4 */
} semkv_policy;

/* Errors: INVALID_ARGUMENT if kind is no policy. */
SEMKV_EXPORT int semkv_policy_init(semkv_policy* policy, int32_t kind);
/* "dense", "hybrid", "sentence", "cluster", "pages", "quest", "window", "sentencekv", "clusterkv";
 * NULL for a number that is no policy. Static. */
SEMKV_EXPORT const char* semkv_policy_name(int32_t kind);
/* The number of a name, or -1. */
SEMKV_EXPORT int32_t semkv_policy_kind(const char* name);

/* ---- life ------------------------------------------------------------------------------------ */

typedef struct semkv_context semkv_context;

/* Geometry and limits. Everything marked required has no default. */
typedef struct semkv_options {
  uint32_t struct_size;
  int32_t num_layers;          /* required */
  int32_t num_heads;           /* required; query heads */
  int32_t num_kv_heads;        /* required; divides num_heads */
  int32_t head_dim;            /* required; 64, 80, 96, 128 or 256 */
  int32_t kv_dtype;            /* of the pool; default F32; F8_E4M3 on a device alone */
  int32_t page_tokens;         /* tokens per page, a power of two in [1, 1024]; default 16 */
  int32_t num_pages;           /* required; pages of the pool */
  int32_t max_sequences;       /* default 16 */
  int32_t max_sequence_tokens; /* required; at most num_pages * page_tokens */
  int32_t num_threads;         /* 0: all cores */
  int32_t borrow_storage;      /* 1: the pool's memory is the engine's (semkv_register_kv) */
  int32_t prefix_sharing;      /* 1: equal prefixes of equal salt share pages (default) */
  int32_t query_window; /* last queries remembered per sequence, layer and query head, as float32,
                           from what semkv_attend is given: SentenceKV's observation window, 32 in
                           the paper; at most 1024; 0 (default): none */
  int32_t engine_pages; /* 1: the engine chooses the pages and shares prefixes itself: append with
                           semkv_sequence_append_pages, say with semkv_pages_forget when a page gets
                           new content; prefix_sharing counts as 0 */
  int32_t device;       /* -1 (default): the host; else a CUDA device's number, see DEVICE MEMORY */
  float k_scale, v_scale; /* number = stored * scale, in an owned pool of F8_E4M3; 0: 1 */
} semkv_options;

SEMKV_EXPORT int semkv_options_init(semkv_options* options);

/* Reserves the pool (unless borrowed) and all bookkeeping. Errors: INVALID_ARGUMENT, UNIMPLEMENTED
 * for a shape that is not compiled in, RESOURCE_EXHAUSTED if the memory cannot be had. */
SEMKV_EXPORT int semkv_context_create(const semkv_options* options, semkv_context** context);
/* Every sequence and plan of the context must be out of use; of a device, destroy plans first. */
SEMKV_EXPORT void semkv_context_destroy(semkv_context* context);
/* Forgets every sequence, every cached prefix and every list. */
SEMKV_EXPORT int semkv_context_reset(semkv_context* context);

/* The device's cudaStream_t for what has no stream argument, from now on; what the last one has
 * runs first. NULL (default): the legacy default stream. It must live as long as it is set. */
SEMKV_EXPORT int semkv_set_stream(semkv_context* context, void* stream);

/* One layer of the pool as memory that the engine owns: key of (page, KV head, token) begins at
 * k + page * k_page + head * k_head + token * k_token, in elements of kv_dtype. */
typedef struct semkv_kv_view {
  uint32_t struct_size;
  int32_t layer;
  void* k;
  void* v;
  int64_t k_page, k_head, k_token;
  int64_t v_page, v_head, v_token;
  float k_scale, v_scale; /* number = stored * scale, of F8_E4M3; 0: 1 */
} semkv_kv_view;

/* Borrows `view` until the context is destroyed. Needs options.borrow_storage.
 * Errors: FAILED_PRECONDITION if the context owns its storage; INVALID_ARGUMENT, of a device also
 * for rows that do not lie at multiples of 16 bytes; OUT_OF_RANGE. */
SEMKV_EXPORT int semkv_register_kv(semkv_context* context, const semkv_kv_view* view);

/* The bytes that each token id decodes to, so that sentence ends can be told from ids: token i is
 * bytes[offsets[i] .. offsets[i + 1]). Empty for special tokens. Computed once, not kept.
 * Errors: INVALID_ARGUMENT; FAILED_PRECONDITION if sequences exist. */
SEMKV_EXPORT int semkv_vocabulary_set(semkv_context* context, int32_t num_tokens, const char* bytes,
                                      const int64_t* offsets);

/* ---- sequences ------------------------------------------------------------------------------- */

typedef int64_t semkv_sequence; /* an id, never reused within a context; >= 1 */

/* An empty sequence under the default policy: hybrid; cluster without semkv_vocabulary_set, for
 * there are no sentences to cut then. Prefixes are shared only between sequences of equal salt (a
 * tenant's secret; 0 is a salt like any other).
 * Errors: RESOURCE_EXHAUSTED at max_sequences; FAILED_PRECONDITION if a layer has no storage. */
SEMKV_EXPORT int semkv_sequence_create(semkv_context* context, uint64_t salt,
                                       semkv_sequence* sequence);
/* Sets how the sequence is indexed and read from now on. Lists that the new policy would build
 * otherwise are dropped, call semkv_index again; another budget keeps them (not sentencekv's).
 * Errors: INVALID_ARGUMENT names the field and both numbers, for example a budget below sinks +
 * recent; FAILED_PRECONDITION if sentences are asked for without semkv_vocabulary_set, or a
 * keep_factor with options.query_window below policy.recent. */
SEMKV_EXPORT int semkv_sequence_set_policy(semkv_context* context, semkv_sequence sequence,
                                           const semkv_policy* policy);
/* Adopts the longest cached run of full pages that equals the beginning of `ids`, at most
 * num_tokens - 1 tokens, so that one is left to compute. The sequence must be empty. */
SEMKV_EXPORT int semkv_sequence_share_prefix(semkv_context* context, semkv_sequence sequence,
                                             int32_t num_tokens, const int32_t* ids,
                                             int32_t* num_shared);
/* Makes room for `num_tokens` more tokens. `ids` may be NULL: then the sequence has no sentences
 * and is not shared. `slots`, [num_tokens], may be NULL. A shared last page is copied first. All or
 * nothing. Errors: NOT_FOUND; RESOURCE_EXHAUSTED if pages run out, or OUT_OF_RANGE beyond
 * max_sequence_tokens. */
SEMKV_EXPORT int semkv_sequence_append(semkv_context* context, semkv_sequence sequence,
                                       int32_t num_tokens, const int32_t* ids, int32_t* slots);
/* The same where the engine chooses the pages (options.engine_pages): `pages`, [num_pages], are
 * those that the tokens need beyond the sequence's last one, in order. Keys and values may be there
 * already; a page may be in other sequences too, and is never copied or written by this call. `ids`
 * may hold -1 for a token that is not known: it closes no sentence.
 * Errors: FAILED_PRECONDITION without options.engine_pages; NOT_FOUND; INVALID_ARGUMENT if it takes
 * another number of pages or an id is not in the pool; OUT_OF_RANGE beyond max_sequence_tokens. */
SEMKV_EXPORT int semkv_sequence_append_pages(semkv_context* context, semkv_sequence sequence,
                                             int32_t num_tokens, const int32_t* ids,
                                             int32_t num_pages, const int32_t* pages);
/* Takes over lists of `from` instead of building them: the full segments (policy.segment_tokens) of
 * the tokens whose pages both sequences begin with. Call between appending and semkv_index, which
 * builds the rest. *num_shared: tokens up to which lists are shared; 0 if there is no full segment
 * in common or the policies build lists differently.
 * Errors: NOT_FOUND; FAILED_PRECONDITION if `sequence` has lists. */
SEMKV_EXPORT int semkv_sequence_share_lists(semkv_context* context, semkv_sequence sequence,
                                            semkv_sequence from, int32_t* num_shared);
/* A new sequence with the tokens, lists and policy of `sequence`, sharing its pages. Its tokens
 * must have been written in every layer. Errors: NOT_FOUND; RESOURCE_EXHAUSTED at max_sequences. */
SEMKV_EXPORT int semkv_sequence_fork(semkv_context* context, semkv_sequence sequence,
                                     semkv_sequence* fork);
SEMKV_EXPORT int semkv_sequence_release(semkv_context* context, semkv_sequence sequence);
SEMKV_EXPORT int semkv_sequence_length(semkv_context* context, semkv_sequence sequence,
                                       int32_t* num_tokens);
/* Writes up to `capacity` page ids and the number of pages of the sequence.
 * Errors: OUT_OF_RANGE if capacity is smaller; *num_pages is then still written. */
SEMKV_EXPORT int semkv_sequence_block_table(semkv_context* context, semkv_sequence sequence,
                                            int32_t* pages, int32_t capacity, int32_t* num_pages);

/* New keys and values of one layer into their slots. */
typedef struct semkv_write_args {
  uint32_t struct_size;
  int32_t dtype; /* of k and v, SEMKV_DTYPE_*, not F8_E4M3; converted to kv_dtype */
  int32_t num_tokens;
  const int32_t* slots; /* [num_tokens]; negative: not written */
  const void* k;        /* [num_tokens, num_kv_heads, head_dim] */
  const void* v;
  int64_t k_token, k_head; /* strides; 0, 0: compact */
  int64_t v_token, v_head;
  void* stream;
} semkv_write_args;

/* Errors: OUT_OF_RANGE for a layer or a slot beyond the pool (nothing is written then). */
SEMKV_EXPORT int semkv_write_kv(semkv_context* context, int32_t layer,
                                const semkv_write_args* args);

/* ---- catalog --------------------------------------------------------------------------------- */

/* How a token's KV came to be. Only EXACT pages are offered to other sequences. */
enum {
  SEMKV_PROVENANCE_EXACT = 0,
  SEMKV_PROVENANCE_SPARSE = 1,
  SEMKV_PROVENANCE_REUSED_SAME_IDS = 2,
  SEMKV_PROVENANCE_FUZZY = 3
};

typedef struct semkv_page_tag {
  uint32_t struct_size;
  int32_t first_sentence; /* id of the first sentence that touches the page, counted from the start
                             of the sequence; -1: not known */
  int32_t num_sentences;
  int32_t cluster;        /* -1: position pages hold tokens of many clusters */
  int32_t first_position; /* -1: the page is empty */
  int32_t fill;           /* tokens in the page */
  int32_t provenance;     /* SEMKV_PROVENANCE_*, the worst of its tokens */
  uint32_t reserved;
  uint64_t generation; /* raised whenever the page gets new content */
} semkv_page_tag;

SEMKV_EXPORT int semkv_pages_get_tag(semkv_context* context, int32_t page, semkv_page_tag* tag);
/* The engine gives these pages new content (options.engine_pages): each gets an empty tag and the
 * next generation. All or nothing. Errors: FAILED_PRECONDITION without options.engine_pages, or
 * while a sequence holds a page; INVALID_ARGUMENT if a page is not in the pool. */
SEMKV_EXPORT int semkv_pages_forget(semkv_context* context, int32_t num_pages,
                                    const int32_t* pages);

/* Builds the inverted lists of every token appended so far, by the sequence's policy: segments of
 * policy.segment_tokens, the last one partial; lists that exist are kept. Call after prefill. With
 * policy.keep_factor it also decides which tokens stay in reach, by the last options.query_window
 * queries that semkv_attend was given in every layer (a fork inherits its parent's): as in the
 * paper, prefill the question before, or what it asks for may be gone. Errors: NOT_FOUND;
 * FAILED_PRECONDITION if storage is not registered, or queries of the window are not known. */
SEMKV_EXPORT int semkv_index(semkv_context* context, semkv_sequence sequence);
/* Folds tokens appended since the last call into the lists (before semkv_index: builds the segments
 * they fill): closed sentences, windows of 320 tokens for clusters, provisional page lists for the
 * rest, so that none is out of reach. policy.segment_tokens of them are repartitioned as one
 * segment while the next 320 come. */
SEMKV_EXPORT int semkv_observe(semkv_context* context, semkv_sequence sequence);

/* ---- step ------------------------------------------------------------------------------------ */

typedef struct semkv_plan semkv_plan;

/* Why a row is attended densely; 0: it is not. */
enum {
  SEMKV_ROW_SPARSE = 0,
  SEMKV_ROW_DENSE_POLICY = 1,  /* the policy is dense */
  SEMKV_ROW_MULTI_QUERY = 2,   /* more than one query token: prefill, draft verification */
  SEMKV_ROW_SHORT_CONTEXT = 3, /* context <= max(budget, min_context) */
  SEMKV_ROW_DENSE_LAYER = 4,   /* one of the policy's dense layers */
  SEMKV_ROW_NOT_INDEXED = 5,   /* semkv_index was not called after prefill */
  SEMKV_ROW_REQUESTED = 6,     /* SEMKV_ATTEND_DENSE */
  SEMKV_NUM_ROW_REASONS = 7
};
/* "sparse", "dense_policy", ...; NULL for a number that is no reason. Static. */
SEMKV_EXPORT const char* semkv_row_reason_name(int32_t reason);

/* A plan holds what one step of up to `max_rows` rows needs, so that a step allocates nothing.
 * max_budget: most tokens that a sparse row attends to, its budget unless that may be exceeded. */
SEMKV_EXPORT int semkv_plan_create(semkv_context* context, int32_t max_rows, int32_t max_budget,
                                   semkv_plan** plan);
SEMKV_EXPORT void semkv_plan_destroy(semkv_plan* plan);
/* Bytes of scratch the plan uses, and a way to give it the caller's memory (64-byte aligned, as
 * large, until the plan is destroyed) instead of its own. UNIMPLEMENTED on a device. */
SEMKV_EXPORT int semkv_plan_workspace(semkv_plan* plan, size_t* bytes);
SEMKV_EXPORT int semkv_plan_bind(semkv_plan* plan, void* workspace, size_t bytes);

/* Decides, on the host, how each row is attended in this step: row r is sequences[r], whose last
 * num_queries[r] tokens (NULL: 1 each) are the step's queries. A row that exceeds its budget
 * (policy.open_beside, policy.warm_up) needs room in max_budget for what it attends to.
 * Errors: OUT_OF_RANGE beyond max_rows or max_budget; NOT_FOUND; INVALID_ARGUMENT. */
SEMKV_EXPORT int semkv_plan_step(semkv_plan* plan, int32_t num_rows,
                                 const semkv_sequence* sequences, const int32_t* num_queries);
/* On a device (on the host: 0): a CUDA graph that was captured at a step of the same key may be
 * replayed for this one, after semkv_plan_step. Keys change with num_rows, the first sparse layer
 * and when lists outgrow their bounds. Errors: FAILED_PRECONDITION if no step is planned. */
SEMKV_EXPORT int semkv_plan_graph_key(semkv_plan* plan, uint64_t* key);
/* Why row `row` is attended as it is at `layer`: SEMKV_ROW_*. */
SEMKV_EXPORT int semkv_plan_row(semkv_plan* plan, int32_t layer, int32_t row, int32_t* reason);

enum {
  SEMKV_ATTEND_DENSE = 1 /* attend to everything, whatever the policy: to compare with */
};

typedef struct semkv_attend_args {
  uint32_t struct_size;
  int32_t dtype; /* of q and out; on a device kv_dtype, or F16 or BF16 beside F8_E4M3 */
  const void* q; /* [sum of num_queries, num_heads, head_dim], rotated */
  void* out;     /* same shape; not used by semkv_select */
  float* lse; /* [sum of num_queries, num_heads] log-sum-exp of the attended scores; may be NULL */
  int64_t q_token, q_head; /* strides; 0, 0: compact */
  int64_t out_token, out_head;
  float scale;     /* 0: 1 / sqrt(head_dim) */
  float logit_cap; /* 0: none */
  uint32_t flags;  /* SEMKV_ATTEND_* */
  void* stream;
} semkv_attend_args;

/* Chooses the tokens that the sparse rows of `layer` attend to. Nothing to do for dense rows. */
SEMKV_EXPORT int semkv_select(semkv_plan* plan, int32_t layer, const semkv_attend_args* args);
/* Attention of every row of the step. Errors: FAILED_PRECONDITION if a row is sparse and
 * semkv_select was not called for this layer and step; OUT_OF_RANGE; INVALID_ARGUMENT. */
SEMKV_EXPORT int semkv_attend(semkv_plan* plan, int32_t layer, const semkv_attend_args* args);
/* A whole layer of a step in one call: semkv_write_kv, unless `write` is NULL, then semkv_select
 * and semkv_attend. Errors: those of the three; what precedes the one that failed is done. */
SEMKV_EXPORT int semkv_run_layer(semkv_plan* plan, int32_t layer, const semkv_write_args* write,
                                 const semkv_attend_args* attend);
/* The last selection of a sparse row: ascending positions, valid until the next semkv_select.
 * `selection`: KV head (or query head, policy.per_query_head).
 * Errors: FAILED_PRECONDITION if the row is dense or nothing was selected. */
SEMKV_EXPORT int semkv_select_result(semkv_plan* plan, int32_t row, int32_t selection,
                                     const int32_t** positions, int32_t* count);

/* ---- observe --------------------------------------------------------------------------------- */

/* Monotonic counters since creation. */
typedef struct semkv_stats {
  uint32_t struct_size;
  uint32_t reserved;
  uint64_t steps;
  uint64_t layer_rows[8];    /* (row, layer) pairs attended, by SEMKV_ROW_* reason */
  uint64_t attended_tokens;  /* per KV head, sparse rows only */
  uint64_t selections;       /* (row, layer, KV head) triples behind attended_tokens */
  uint64_t kv_bytes_read;    /* keys and values, sparse rows */
  uint64_t index_bytes_read; /* semantic vectors and members, sparse rows */
  uint64_t select_ns;
  uint64_t attend_ns; /* decode rows */
  uint64_t prefill_attend_ns;
  uint64_t index_ns; /* semkv_index and semkv_observe */
  uint64_t pages_free, pages_used, pages_cached, pages_copied;
  uint64_t prefix_hit_tokens;
} semkv_stats;
SEMKV_EXPORT int semkv_stats_get(semkv_context* context, semkv_stats* stats);

typedef struct semkv_sequence_info {
  uint32_t struct_size;
  int32_t num_tokens;
  int32_t num_indexed; /* tokens in sealed or open segments */
  int32_t num_segments;
  int64_t num_lists;            /* over all layers, KV heads and partitions */
  int64_t index_bytes;          /* semantic vectors, scales, variances, offsets and members */
  int64_t index_reserved_bytes; /* memory held for them, room for what is decoded included */
  int64_t kv_bytes;             /* the sequence's KV in the pool's dtype */
  int32_t num_hidden; /* prompt tokens out of reach, per layer and query head (keep_factor) */
  int32_t reserved;
} semkv_sequence_info;
SEMKV_EXPORT int semkv_sequence_info_get(semkv_context* context, semkv_sequence sequence,
                                         semkv_sequence_info* info);

/* What the context does and why, as text: backend, geometry, each sequence's policy, lists,
 * fallbacks. Writes at most `capacity` bytes, the final 0 included; *length counts all but it. */
SEMKV_EXPORT int semkv_explain(semkv_context* context, char* text, size_t capacity, size_t* length);

enum {
  SEMKV_EVENT_SEGMENT_SEALED = 1,    /* a = sequence, b = first token, c = number of tokens */
  SEMKV_EVENT_SENTENCES_CLOSED = 2,  /* a = sequence, b = first token of the tail, c = sentences */
  SEMKV_EVENT_WINDOWS_CLUSTERED = 3, /* a = sequence, b = first token of the tail, c = windows */
  SEMKV_EVENT_REPARTITIONED = 4,     /* a = sequence, b = first token, c = number of tokens */
  SEMKV_EVENT_DROPPED = 5            /* a = events lost because nobody drained */
};
typedef struct semkv_event {
  int32_t kind;
  int32_t reserved;
  int64_t a, b, c;
} semkv_event;
/* Moves up to `capacity` events, oldest first, out of the context's ring of 1,024. */
SEMKV_EXPORT int semkv_events_drain(semkv_context* context, semkv_event* events, int32_t capacity,
                                    int32_t* num_events);

#ifdef __cplusplus
}
#endif

#endif /* SEMKV_SEMKV_H_ */
