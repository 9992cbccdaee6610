// semkv.h: sequences, pages and the catalog.

#include "csrc/api/c_api.h"
#include "csrc/api/policy.h"
#include "csrc/status_macros.h"

using semkv::c_api::CopyIn;
using semkv::c_api::CopyOut;
using semkv::c_api::GuardContext;

namespace {

absl::Status CheckNotNull(const void* pointer, const char* name) {
  if (pointer != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is null"));
}

absl::Status CheckPages(int32_t num_pages, const int32_t* pages) {
  if (num_pages < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_pages is ", num_pages, ", must be at least 0"));
  }
  return num_pages == 0 ? absl::OkStatus() : CheckNotNull(pages, "pages");
}

}  // namespace

extern "C" {

int semkv_sequence_create(semkv_context* context, uint64_t salt, semkv_sequence* sequence) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckNotNull(sequence, "sequence"));
    SEMKV_ASSIGN_OR_RETURN(*sequence, c.CreateSequence(salt));
    return absl::OkStatus();
  });
}

int semkv_sequence_set_policy(semkv_context* context, semkv_sequence sequence,
                              const semkv_policy* policy) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(semkv::c_api::CheckStructSize(policy, "policy"));
    const bool has_kind = policy->struct_size >= 2 * sizeof(uint32_t);
    const bool known = has_kind && semkv::PolicyName(policy->kind) != nullptr;
    semkv_policy copy = semkv::DefaultPolicy(known ? policy->kind : SEMKV_POLICY_HYBRID);
    SEMKV_RETURN_IF_ERROR(CopyIn(policy, "policy", &copy));
    return c.SetPolicy(sequence, copy);
  });
}

int semkv_sequence_share_prefix(semkv_context* context, semkv_sequence sequence, int32_t num_tokens,
                                const int32_t* ids, int32_t* num_shared) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckNotNull(ids, "ids"));
    SEMKV_RETURN_IF_ERROR(CheckNotNull(num_shared, "num_shared"));
    if (num_tokens < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("num_tokens is ", num_tokens, ", must be at least 1"));
    }
    SEMKV_ASSIGN_OR_RETURN(*num_shared,
                           c.SharePrefix(sequence, absl::MakeConstSpan(ids, num_tokens)));
    return absl::OkStatus();
  });
}

int semkv_sequence_append(semkv_context* context, semkv_sequence sequence, int32_t num_tokens,
                          const int32_t* ids, int32_t* slots) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    if (num_tokens < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("num_tokens is ", num_tokens, ", must be at least 1"));
    }
    return c.Append(sequence, num_tokens, ids, slots);
  });
}

int semkv_sequence_append_pages(semkv_context* context, semkv_sequence sequence, int32_t num_tokens,
                                const int32_t* ids, int32_t num_pages, const int32_t* pages) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    if (num_tokens < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("num_tokens is ", num_tokens, ", must be at least 1"));
    }
    SEMKV_RETURN_IF_ERROR(CheckPages(num_pages, pages));
    return c.AppendPages(sequence, num_tokens, ids, absl::MakeConstSpan(pages, num_pages));
  });
}

int semkv_sequence_share_lists(semkv_context* context, semkv_sequence sequence, semkv_sequence from,
                               int32_t* num_shared) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckNotNull(num_shared, "num_shared"));
    SEMKV_ASSIGN_OR_RETURN(*num_shared, c.ShareLists(sequence, from));
    return absl::OkStatus();
  });
}

int semkv_sequence_fork(semkv_context* context, semkv_sequence sequence, semkv_sequence* fork) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckNotNull(fork, "fork"));
    SEMKV_ASSIGN_OR_RETURN(*fork, c.Fork(sequence));
    return absl::OkStatus();
  });
}

int semkv_sequence_release(semkv_context* context, semkv_sequence sequence) {
  return GuardContext(context, [&](semkv::Context& c) { return c.Release(sequence); });
}

int semkv_sequence_length(semkv_context* context, semkv_sequence sequence, int32_t* num_tokens) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckNotNull(num_tokens, "num_tokens"));
    SEMKV_ASSIGN_OR_RETURN(semkv::IndexedSequence * state, c.FindSequence(sequence));
    *num_tokens = state->num_tokens;
    return absl::OkStatus();
  });
}

int semkv_sequence_block_table(semkv_context* context, semkv_sequence sequence, int32_t* pages,
                               int32_t capacity, int32_t* num_pages) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckNotNull(num_pages, "num_pages"));
    SEMKV_RETURN_IF_ERROR(c.FindSequence(sequence).status());
    const absl::Span<const int32_t> table = c.SequencePages(sequence);
    *num_pages = static_cast<int32_t>(table.size());
    if (capacity < *num_pages) {
      return absl::OutOfRangeError(
          absl::StrCat("room for ", capacity, " pages, the sequence has ", *num_pages));
    }
    if (!table.empty()) SEMKV_RETURN_IF_ERROR(CheckNotNull(pages, "pages"));
    std::copy(table.begin(), table.end(), pages);
    return absl::OkStatus();
  });
}

int semkv_write_kv(semkv_context* context, int32_t layer, const semkv_write_args* args) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    semkv_write_args copy = {};
    SEMKV_RETURN_IF_ERROR(CopyIn(args, "args", &copy));
    return c.WriteKv(layer, copy);
  });
}

int semkv_pages_get_tag(semkv_context* context, int32_t page, semkv_page_tag* tag) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_ASSIGN_OR_RETURN(const semkv_page_tag found, c.GetPageTag(page));
    return CopyOut(found, "tag", tag);
  });
}

int semkv_pages_forget(semkv_context* context, int32_t num_pages, const int32_t* pages) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_RETURN_IF_ERROR(CheckPages(num_pages, pages));
    return c.ForgetPages(absl::MakeConstSpan(pages, num_pages));
  });
}

int semkv_index(semkv_context* context, semkv_sequence sequence) {
  return GuardContext(context, [&](semkv::Context& c) { return c.Index(sequence); });
}

int semkv_observe(semkv_context* context, semkv_sequence sequence) {
  return GuardContext(context, [&](semkv::Context& c) { return c.Observe(sequence); });
}

int semkv_sequence_info_get(semkv_context* context, semkv_sequence sequence,
                            semkv_sequence_info* info) {
  return GuardContext(context, [&](semkv::Context& c) -> absl::Status {
    SEMKV_ASSIGN_OR_RETURN(const semkv_sequence_info found, c.SequenceInfo(sequence));
    return CopyOut(found, "info", info);
  });
}

}  // extern "C"
