"""semkv: the KV cache of a long-context language model as an inverted file.

Cache is the way in for numpy and torch CPU tensors (docs/python.md).
"""
from semkv._abi import SemkvError, ffi, lib
from semkv._policy import POLICIES, POLICY_FIELDS
from semkv.cache import Cache, Event, Sequence
from semkv.step import Step

__all__ = ["POLICIES", "POLICY_FIELDS", "Cache", "Event", "SemkvError", "Sequence", "Step"]
__version__ = ffi.string(lib.semkv_version()).decode()
