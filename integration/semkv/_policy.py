"""Policies by name and field. The fields are those of struct semkv_policy, read from semkv.h."""
from __future__ import annotations

from typing import Any

from semkv._abi import check, ffi, lib, new

# Fields that hold a number of a list in semkv.h take its name too: cluster_metric="cosine".
_CHOICES = {"cluster_metric": "SEMKV_METRIC_", "centroid_form": "SEMKV_CENTROID_",
            "variance_term": "SEMKV_VARIANCE_", "group_rank": "SEMKV_RANK_"}

POLICIES = tuple(ffi.string(lib.semkv_policy_name(kind)).decode()
                 for kind in range(lib.SEMKV_NUM_POLICIES))
POLICY_FIELDS = tuple(name for name, _ in ffi.typeof("semkv_policy").fields
                      if name not in ("struct_size", "kind"))


def named_constants(prefix: str) -> dict[str, int]:
    """{"l2": 0, "cosine": 1} for "SEMKV_METRIC_"."""
    return {name.removeprefix(prefix).lower(): getattr(lib, name)
            for name in dir(lib) if name.startswith(prefix)}


def make_policy(name: str) -> Any:
    """struct semkv_policy with the defaults of policy `name`."""
    if name not in POLICIES:
        raise ValueError(f"policy is {name!r}, must be one of " + ", ".join(POLICIES))
    policy = new("semkv_policy")
    check(lib.semkv_policy_init(policy, lib.semkv_policy_kind(name.encode())))
    return policy


def changed(policy: Any, fields: dict[str, Any]) -> Any:
    """A copy of `policy` with `fields` set. What they may be is the library's to check."""
    unknown = sorted(set(fields) - set(POLICY_FIELDS))
    if unknown:
        raise TypeError(f"no policy field is called {', '.join(unknown)}; known are "
                        + ", ".join(POLICY_FIELDS))
    copy = ffi.new("semkv_policy *", policy[0])
    for name, value in fields.items():
        if isinstance(value, str):
            choices = named_constants(_CHOICES[name]) if name in _CHOICES else {}
            if value not in choices:
                raise ValueError(f"policy field {name} is {value!r}, must be "
                                 + (", ".join(choices) if choices else "a number"))
            value = choices[value]
        try:
            setattr(copy, name, value)
        except (TypeError, OverflowError) as error:
            raise type(error)(f"policy field {name} is {value!r}: {error}") from None
    return copy


def most_attended(policy: Any, max_sequence_tokens: int) -> int:
    """Most tokens that a sparse row under `policy` can attend to: a plan's max_budget."""
    if policy.kind == lib.SEMKV_POLICY_DENSE:
        return 1
    if policy.open_beside or policy.warm_up:
        return max_sequence_tokens
    return max(1, min(policy.budget, max_sequence_tokens))


def fields_of(policy: Any) -> dict[str, Any]:
    """{"policy": "hybrid", "budget": 2048, ...}"""
    name = ffi.string(lib.semkv_policy_name(policy.kind)).decode()
    return {"policy": name, **{field: getattr(policy, field) for field in POLICY_FIELDS}}
