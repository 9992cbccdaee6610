"""What a user sets: one switch, and fields of struct semkv_policy.

The switch is the environment variable SEMKV_VLLM, read in every process that vLLM starts:
    SEMKV_VLLM=hybrid                         a policy
    SEMKV_VLLM="hybrid,budget=1024"           and fields of its policy, or limits of this adapter
Fields may also stand in vLLM's own configuration, where they win:
    --additional-config '{"semkv": {"budget": 1024, "min_context": 8192}}'
"""
import dataclasses
import os

from semkv._abi import check, ffi, lib, new

SWITCH = "SEMKV_VLLM"

# Of semkv_policy: what it is for is the kind's own name, and tests alone force rows sparse.
_NOT_SET = ("struct_size", "kind")


@dataclasses.dataclass
class Options:
    """policy: struct semkv_policy, checked by the library when the first sequence is made."""

    policy: object
    copy_gib: float = 0.0  # most memory of the plain-row copy; 0: as much as vLLM's own KV cache
    max_rows: int = 64  # rows of one step that are decoded sparsely; more fall back

    @property
    def name(self):
        return ffi.string(lib.semkv_policy_name(self.policy.kind)).decode()

    @property
    def threshold(self):
        """Rows of at most so many tokens are attended by vLLM's own backend."""
        if self.policy.force_sparse:
            return 0
        return max(self.policy.budget, self.policy.min_context)


def is_switched_on():
    return bool(os.environ.get(SWITCH))


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


def _number(key, value, kind):
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"semkv: {key} is {value!r}, must be {kind.__name__}") from None


def parse(text, additional=None):
    """Options of the switch's text and the `semkv` part of additional_config.

    Raises ValueError that names the field for an unknown policy, an unknown field or a value that
    is no number; ranges are the library's to check.
    """
    name, fields = _pairs(text)
    if additional is not None and not isinstance(additional, dict):
        raise ValueError(f"additional_config['semkv'] is {additional!r}, must be a dict")
    fields.update(additional or {})
    name = fields.pop("policy", name)
    kind = lib.semkv_policy_kind(str(name).encode())
    if kind < 0:
        known = [ffi.string(lib.semkv_policy_name(i)).decode()
                 for i in range(lib.SEMKV_NUM_POLICIES)]
        raise ValueError(f"semkv: unknown policy {name!r}; known: {', '.join(known)}")
    policy = new("semkv_policy")
    check(lib.semkv_policy_init(policy, kind))
    options = Options(policy)
    of_policy = {field: kind.type.cname
                 for field, kind in ffi.typeof("semkv_policy").fields if field not in _NOT_SET}
    for key, value in fields.items():
        if key in of_policy:
            setattr(policy, key, _number(key, value, float if of_policy[key] == "float" else int))
        elif key == "copy_gib":
            options.copy_gib = _number(key, value, float)
        elif key == "max_rows":
            options.max_rows = _number(key, value, int)
        else:
            known = sorted([*of_policy, "copy_gib", "max_rows"])
            raise ValueError(f"semkv: unknown option {key!r}; known: {', '.join(known)}")
    if options.copy_gib < 0 or options.max_rows < 1:
        raise ValueError(f"semkv: copy_gib is {options.copy_gib}, must not be negative; max_rows is "
                         f"{options.max_rows}, must be at least 1")
    return options


def from_environment(vllm_config):
    additional = vllm_config.additional_config
    return parse(os.environ[SWITCH],
                 additional.get("semkv") if isinstance(additional, dict) else None)
