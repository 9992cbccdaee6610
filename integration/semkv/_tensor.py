"""numpy arrays and torch CPU tensors as the library takes them: a pointer, a dtype and strides.

Nothing is copied and torch is never imported: who passes a torch tensor has imported it.
"""
from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np

from semkv._abi import lib

if TYPE_CHECKING:
    import torch

Array = Union[np.ndarray, "torch.Tensor"]

_DTYPES = {"float32": lib.SEMKV_DTYPE_F32, "float16": lib.SEMKV_DTYPE_F16,
           "bfloat16": lib.SEMKV_DTYPE_BF16}


class Borrowed(NamedTuple):
    """A tensor [tokens, heads, head_dim] as a call of the library sees it."""

    address: int
    dtype: int   # SEMKV_DTYPE_*
    token: int   # strides in elements
    head: int


@functools.lru_cache  # numpy takes longer to name a dtype than the library to attend to a short row
def _dtype_name(dtype: Any) -> str:
    return np.dtype(dtype).name if isinstance(dtype, type) else str(dtype).removeprefix("torch.")


def dtype_code(dtype: Any, name: str) -> int:
    """SEMKV_DTYPE_* of a dtype's name, or of a numpy or torch dtype."""
    text = _dtype_name(dtype)
    if text not in _DTYPES:
        raise ValueError(f"{name} is {text}, must be one of " + ", ".join(_DTYPES))
    return _DTYPES[text]


def is_torch(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def empty_like(array: Array) -> Array:
    """A compact tensor of the same kind, shape and dtype, not initialised."""
    if is_torch(array):
        return sys.modules["torch"].empty(array.shape, dtype=array.dtype)
    return np.empty(array.shape, array.dtype)


def _layout(array: Array, name: str) -> tuple[int, tuple[int, ...]]:
    """Address, and strides in elements, of host memory that can be used as it is."""
    if is_torch(array):
        if array.device.type != "cpu":
            raise ValueError(f"{name} is on device {array.device}, must be on cpu")
        return array.data_ptr(), tuple(array.stride())
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is a {type(array).__name__}, must be a numpy array or torch "
                         "tensor")
    size = array.itemsize
    if not array.dtype.isnative or not array.flags.aligned:
        raise ValueError(f"{name} has dtype {array.dtype.str} and strides of {array.strides} "
                         f"bytes, must be in native byte order and aligned to {size} bytes")
    return array.__array_interface__["data"][0], tuple([s // size for s in array.strides])


def _check_shape(array: Array, name: str, shape: tuple[int, ...]) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {list(array.shape)}, must be {list(shape)}")


def _check_writable(array: Array, name: str, strides: tuple[int, ...]) -> None:
    if not is_torch(array) and not array.flags.writeable:
        raise ValueError(f"{name} is read-only, must be writable")
    if any(stride == 0 and size > 1 for stride, size in zip(strides, array.shape)):
        raise ValueError(f"{name} of shape {list(array.shape)} has strides {list(strides)}, must "
                         "not be 0: its rows would overlap")


def borrow(array: Array, name: str, shape: tuple[int, int, int], *,
           writable: bool = False) -> Borrowed:
    """`array` for one call, which must have `shape`; ValueError says what of it does not fit."""
    address, strides = _layout(array, name)
    _check_shape(array, name, shape)
    dtype = dtype_code(array.dtype, f"the dtype of {name}")
    if strides[2] != 1:
        raise ValueError(f"the head_dim channels of {name} have stride {strides[2]}, must be 1")
    if writable:
        _check_writable(array, name, strides)
    # The stride of a dimension of one may be anything, and zeros would mean compact to the library.
    head = strides[1] if shape[1] > 1 else shape[2]
    token = strides[0] if shape[0] > 1 else shape[1] * shape[2]
    if token == 0 and head == 0:
        raise ValueError(f"{name} has stride 0 over tokens and over heads, one must not be 0")
    return Borrowed(address, dtype, token, head)


def borrow_lse(lse: Array, shape: tuple[int, int]) -> int:
    """The address of a compact float32 tensor of `shape`, which the library fills."""
    address, strides = _layout(lse, "lse")
    _check_shape(lse, "lse", shape)
    if dtype_code(lse.dtype, "the dtype of lse") != lib.SEMKV_DTYPE_F32:
        raise ValueError(f"the dtype of lse is {lse.dtype}, must be float32")
    _check_writable(lse, "lse", strides)
    compact = all(stride == expected or size == 1
                  for stride, expected, size in zip(strides, (shape[1], 1), shape))
    if not compact:
        raise ValueError(f"lse has strides {list(strides)}, must be C-contiguous: [{shape[1]}, 1]")
    return address


def token_ids(ids: Any) -> np.ndarray:
    """Token ids as int32, compact; a copy unless they are that already."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(f"ids have shape {list(array.shape)} and dtype {array.dtype}, "
                         "must be one-dimensional, integer and at least one")
    least, most = int(array.min()), int(array.max())
    if least < -2**31 or most >= 2**31:
        raise ValueError(f"ids are in [{least}, {most}], must fit in 32 bits")
    return np.ascontiguousarray(array, dtype=np.int32)
