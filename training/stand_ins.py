"""What stands for the functions and classes that a pickle names: our own versions of the few that are known.

Nothing is imported by name. The functions take any arguments and never give more memory than these have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from isnet_trt.training.stored import LARGEST_INT, ForeignObject, Opaque, PickleError, Storage, StoredTensor

_SCALARS = (str, bytes, int, float, bool, type(None))
_INERT = ("numpy.", "mmcv.", "mmengine.", "lightning", "pytorch_lightning.", "omegaconf.", "torch._utils._rebuild_")
_INERT_NAMES = ("argparse.Namespace", "builtins.getattr", "builtins.list", "builtins.dict", "builtins.int")
"""What training tools store beside the weights; `Opaque` takes its place."""
_DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
"""Element types of the storages in a file. Those of quantised types are missing: their tensors are `Opaque`."""


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names, ``module.name``."""

    text: str


@dataclass
class NumpyType:
    """The type of a numpy number, such as ``f8``; with its byte order once the pickle has set it."""

    text: str


def kind_of(item: Any) -> str:
    """What an object is, for a message."""
    if isinstance(item, Opaque):
        return f"a {item.kind}"
    names = {StoredTensor: "Tensor", Storage: "storage", NumpyType: "numpy type", _Name: "function or class"}
    return "a " + names.get(type(item), type(item).__name__)


def checked_key(key: Any) -> Hashable:
    """``key``, if it may be one: the hash of nested tuples, or of chosen integers, can take years."""
    parts = key if isinstance(key, tuple) else (key,)
    if all(isinstance(part, _SCALARS) and not (isinstance(part, int) and abs(part) >= LARGEST_INT) for part in parts):
        return key
    raise PickleError(f"has a dictionary with the key of {kind_of(key)}; save the weights alone")


def named(name: str) -> Any:
    """What stands for ``module.name``."""
    last = name.rpartition(".")[2]
    if name in _CALLS or name in _TENSORS:
        return _Name(name)
    if name.startswith(("torch.", "torch.cuda.", "torch.storage.")) and last in _STORAGES:
        return _STORAGES[last]
    if name == f"torch.{last}" and last in _DTYPES:
        return _DTYPES[last]
    if name.startswith(_INERT) or name in _INERT_NAMES or name.startswith("torch.per_") or last.endswith("Storage"):
        return Opaque(_KINDS.get(last, name))
    raise ForeignObject(name)


def called(function: Any, arguments: tuple[Any, ...]) -> Any:
    """The result of a function, from our own version of it."""
    if isinstance(function, Opaque):
        return function
    if not isinstance(function, _Name):
        raise PickleError(f"calls {kind_of(function)}")
    if function.text in _TENSORS:
        opaque = next((item for item in arguments if isinstance(item, Opaque)), None)
        return Opaque("tensor of an unknown type") if opaque else _TENSORS[function.text](*arguments)
    return _CALLS[function.text](*arguments)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: Any = None) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise PickleError("has a tensor without stored values")
    return StoredTensor(storage, dtype or storage.dtype, offset, size, stride)


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    if not isinstance(dtype, torch.dtype):
        raise PickleError("has a tensor of an unknown type")
    return _tensor(storage, offset, size, stride, dtype=dtype)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _of_subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    if not isinstance(arguments, tuple) or not (isinstance(function, _Name) and function.text in _TENSORS):
        return Opaque("tensor of an unknown type")
    return called(function, arguments)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
}
_KINDS = {
    "_rebuild_sparse_tensor": "sparse tensor",
    "_rebuild_qtensor": "quantised tensor",
    "_rebuild_meta_tensor_no_storage": "meta tensor, which has no values",
    "_rebuild_nested_tensor": "nested tensor",
    "_reconstruct": "numpy array",
    "_frombuffer": "numpy array",
}


def _ordered(*pairs: Any) -> dict[Any, Any]:
    return {checked_key(key): value for key, value in (pairs[0] if pairs else ())}


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"has text in the encoding {encoding!r:.40}")
    return text.encode("latin-1")


def _bytes(*arguments: Any) -> bytes:
    match arguments:
        case ():
            return b""
        case (bytes() as content,):
            return content
        case (str() as text, str() as encoding):
            return _encoded(text, encoding)
    raise PickleError("has an array of bytes that is not in the file")


def _counter(*arguments: Any) -> dict[Any, Any]:
    return dict(arguments[0]) if arguments and isinstance(arguments[0], dict) else {}


def _numpy_type(text: Any, *_: Any) -> NumpyType | Opaque:
    return NumpyType(text) if isinstance(text, str) and re.fullmatch(r"[biuf?]\d{0,2}", text) else Opaque("numpy type")


def _numpy_number(kind: Any, content: Any = None) -> Any:
    if not isinstance(kind, NumpyType) or not isinstance(content, bytes):
        return Opaque("numpy value")
    return np.frombuffer(content, np.dtype(kind.text), 1)[0].item()


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return {checked_key(item) for item in items}


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Tensor": lambda *_: Opaque("tensor without stored values"),
    "torch.Size": lambda *size: tuple(size[0]) if size and isinstance(size[0], list | tuple) else (),
    "torch.device": lambda *_: Opaque("device"),
    "torch.serialization._get_layout": lambda *_: Opaque("layout"),
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": _counter,
    "_codecs.encode": _encoded,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.complex": complex,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}
