/* The smallest user of an installed semkv: create, append, write, attend, destroy. */

#include <semkv/semkv.h>
#include <stdio.h>

#define CHECK(call)                                           \
  do {                                                        \
    if ((call) != SEMKV_OK) {                                 \
      fprintf(stderr, "%s: %s\n", #call, semkv_last_error()); \
      return 1;                                               \
    }                                                         \
  } while (0)

int main(void) {
  semkv_options options;
  semkv_context* context = NULL;
  semkv_plan* plan = NULL;
  semkv_sequence sequence = 0;
  int32_t id = 7, slot = -1;
  float q[64] = {0}, k[64] = {0}, v[64], out[64];

  if (semkv_abi_version() != SEMKV_ABI_VERSION) return 1;
  for (int i = 0; i < 64; ++i) v[i] = (float)i;
  CHECK(semkv_options_init(&options));
  options.num_layers = options.num_heads = options.num_kv_heads = 1;
  options.head_dim = 64;
  options.num_pages = 4;
  options.max_sequence_tokens = 64;
  options.num_threads = 1;
  CHECK(semkv_context_create(&options, &context));
  CHECK(semkv_plan_create(context, 1, 64, &plan));
  CHECK(semkv_sequence_create(context, 0, &sequence));
  CHECK(semkv_sequence_append(context, sequence, 1, &id, &slot));
  CHECK(semkv_plan_step(plan, 1, &sequence, NULL));

  semkv_write_args write = {
      .struct_size = sizeof(write), .num_tokens = 1, .slots = &slot, .k = k, .v = v};
  CHECK(semkv_write_kv(context, 0, &write));
  semkv_attend_args attend = {.struct_size = sizeof(attend), .q = q, .out = out};
  CHECK(semkv_attend(plan, 0, &attend));
  semkv_plan_destroy(plan);
  semkv_context_destroy(context);
  /* One token: the output is its value. */
  for (int i = 0; i < 64; ++i) {
    if (out[i] != v[i]) return 1;
  }
  printf("semkv %s\n", semkv_version());
  return 0;
}
