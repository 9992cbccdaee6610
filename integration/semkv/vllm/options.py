"""What a user sets: one switch, and fields of struct semkv_policy.

The switch is the environment variable SEMKV_VLLM, read in every process that vLLM starts:
    SEMKV_VLLM=hybrid                         a policy
    SEMKV_VLLM="hybrid,budget=1024"           and fields of its policy, or limits of this adapter
Fields may also stand in vLLM's own configuration, where they win:
    --additional-config '{"semkv": {"budget": 1024, "min_context": 8192}}'
"""
import dataclasses
import os

from semkv._abi import ffi, lib
from semkv._policy import POLICY_FIELDS, changed, make_policy
from semkv.vllm import SWITCH


@dataclasses.dataclass
class Options:
    policy: object  # struct semkv_policy; ranges are the library's to check
    copy_gib: float = 0.0  # most memory of the plain-row copy; 0: as much as vLLM's own KV cache
    max_rows: int = 64  # rows of one step that are decoded sparsely; more fall back
    report: str = ""  # a file that explain() is written to while requests run; "": none

    @property
    def name(self):
        return ffi.string(lib.semkv_policy_name(self.policy.kind)).decode()

    @property
    def threshold(self):
        """Rows of at most so many tokens are attended by vLLM's own backend."""
        if self.policy.force_sparse:
            return 0
        return max(self.policy.budget, self.policy.min_context)


_LIMITS = {"copy_gib": float, "max_rows": int}


def _pairs(text):
    """("hybrid", {"budget": "1024"}) of "hybrid,budget=1024"."""
    name, *rest = [part.strip() for part in text.split(",")]
    pairs = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{SWITCH}: {part!r} is not of the form name=value")
        pairs[key.strip()] = value.strip()
    return name, pairs


def _value(value):
    """Numbers are numbers wherever they were written; other text may name a choice."""
    for kind in (int, float):
        try:
            return kind(value) if isinstance(value, str) else value
        except ValueError:
            pass
    return value


def _limit(field, value):
    try:
        number = _LIMITS[field](value)
    except (TypeError, ValueError):
        raise ValueError(f"semkv: {field} is {value!r}, must be a number") from None
    if number < 0 or (field == "max_rows" and number < 1):
        raise ValueError(f"semkv: {field} is {number}, must be "
                         + ("at least 1" if field == "max_rows" else "at least 0"))
    return number


def parse(text, additional=None):
    """Options of the switch's text and the `semkv` part of additional_config.

    Raises ValueError that names the field, for an unknown policy, an unknown field or a value of
    the wrong kind.
    """
    name, fields = _pairs(text)
    if additional is not None and not isinstance(additional, dict):
        raise ValueError(f"additional_config['semkv'] is {additional!r}, must be a dict")
    fields.update(additional or {})
    limits = {field: _limit(field, fields.pop(field)) for field in _LIMITS if field in fields}
    limits["report"] = str(fields.pop("report", ""))
    policy = make_policy(fields.pop("policy", name))
    unknown = sorted(set(fields) - set(POLICY_FIELDS))
    if unknown:
        raise ValueError(f"semkv: unknown option {', '.join(map(repr, unknown))}; known: policy, "
                         + ", ".join([*_LIMITS, "report", *POLICY_FIELDS]))
    try:
        policy = changed(policy, {field: _value(value) for field, value in fields.items()})
    except (TypeError, OverflowError) as error:
        raise ValueError(f"semkv: {error}") from None
    return Options(policy, **limits)


def from_environment(vllm_config):
    additional = vllm_config.additional_config
    return parse(os.environ[SWITCH],
                 additional.get("semkv") if isinstance(additional, dict) else None)
