"""semkv: the KV cache of a long-context language model as an inverted file.

Cache is the way in for numpy and torch CPU tensors (docs/python.md), semkv.hf for models of Hugging
Face transformers (docs/transformers.md).
"""
import importlib

# Loaded when asked for: with the package installed, every vLLM process imports semkv.vllm, and one
# that does not use semkv need not load the library.
_HOMES = {"Cache": "cache", "Event": "cache", "Sequence": "cache", "Step": "step",
          "SemkvError": "_abi", "POLICIES": "_policy", "POLICY_FIELDS": "_policy"}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name == "__version__":
        abi = importlib.import_module("semkv._abi")
        return abi.ffi.string(abi.lib.semkv_version()).decode()
    if name == "hf":
        return importlib.import_module("semkv.hf")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"semkv.{_HOMES[name]}"), name)


def __dir__():
    return [*__all__, "__version__", "hf"]
