"""What every holder of a semkv_context asks of it: the cache and the engines' adapters."""
from __future__ import annotations

from typing import Any

import numpy as np

from semkv._abi import check, ffi, lib, new


def set_vocabulary(context: Any, vocabulary: list[bytes]) -> None:
    """The bytes that each token id decodes to."""
    offsets = np.zeros(len(vocabulary) + 1, np.int64)
    np.cumsum([len(token) for token in vocabulary], out=offsets[1:])
    check(lib.semkv_vocabulary_set(context, len(vocabulary), b"".join(vocabulary),
                                   ffi.from_buffer("int64_t[]", offsets)))


def fields(struct: Any) -> dict[str, Any]:
    """A struct of the library as a dict."""
    return {name: getattr(struct, name) for name, _ in ffi.typeof(struct).item.fields
            if name not in ("struct_size", "reserved")}


def stats(context: Any) -> dict[str, Any]:
    """struct semkv_stats; "layer_rows" is a dict by reason."""
    struct = new("semkv_stats")
    check(lib.semkv_stats_get(context, struct))
    found = fields(struct)
    found["layer_rows"] = {
        ffi.string(lib.semkv_row_reason_name(reason)).decode(): struct.layer_rows[reason]
        for reason in range(lib.SEMKV_NUM_ROW_REASONS)}
    return found


def explain(context: Any) -> str:
    length = ffi.new("size_t *")
    check(lib.semkv_explain(context, ffi.NULL, 0, length))
    text = ffi.new("char[]", length[0] + 1)
    check(lib.semkv_explain(context, text, length[0] + 1, length))
    return ffi.string(text).decode()
