"""semkv: the KV cache of a long-context language model as an inverted file."""
from semkv._abi import SemkvError

__all__ = ["SemkvError"]
