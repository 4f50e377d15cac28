"""Read a pickle as data: nothing that it names is imported, called or given memory beyond its own size.

`pickletools` of the standard library splits the pickle; the instructions are interpreted here, of all protocols.
Containers, numbers, strings and bytes become themselves, tensors become `StoredTensor`, numpy's numbers Python's.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

LARGEST = 64 << 20
"""Bytes of a pickle. Published models have 0.2 MB: names, shapes and settings, but no values."""
_MOST_WORK = 1_000_000
"""Instructions and copied items of a pickle: seconds of work, 0.3 GB at most. Published models need 30,000."""
_SCALARS = (str, bytes, int, float, bool, type(None))
_LARGEST_INT = 1 << 60
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


class PickleError(ValueError):
    """The pickle cannot be read as data; the message says why, as the end of a sentence about the file."""


class ForeignObject(PickleError):
    """The pickle names a function or class that would have to be run."""


@dataclass(frozen=True)
class Storage:
    """``count`` elements of a file's storage ``key``, from element ``start`` on."""

    key: str
    dtype: torch.dtype
    count: int
    start: int = 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose values are still in the file: ``offset`` and ``stride`` in elements of ``dtype``."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or not all(type(n) is int and 0 <= n < _LARGEST_INT for n in numbers):
            raise PickleError("has a tensor of an impossible shape")
        room = self.storage.count * self.storage.dtype.itemsize // self.dtype.itemsize
        if self.offset + self.extent > room:
            raise PickleError("has a tensor that reaches beyond its stored values")

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements of the storage from the first to the last of the tensor."""
        steps = zip(self.shape, self.stride, strict=True)
        return 1 + sum((size - 1) * step for size, step in steps) if self.numel else 0

    @property
    def bytes(self) -> int:
        """Memory that reading and copying the tensor takes."""
        return max(self.numel, self.extent) * self.dtype.itemsize


@dataclass(frozen=True)
class Opaque:
    """An object that is not made from the file; ``kind`` is what it was."""

    kind: str


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle names, ``module.name``."""

    text: str


@dataclass
class _NumpyType:
    text: str


def load(stream: io.BytesIO, sizes: dict[str, int] | None = None) -> Any:
    """The object of the next pickle in ``stream``, which is then at the pickle's end.

    ``sizes`` receives the bytes of an element of each storage that the pickle refers to.

    Raises:
        PickleError: it needs functions to be run, is larger than the limits, or asks for impossible tensors.
        Exception: what else a damaged pickle makes the interpreter raise.
    """
    return _Machine(sizes).run(stream)


class _Machine:
    """The stack, the marks in it, and the memo of a pickle."""

    def __init__(self, sizes: dict[str, int] | None) -> None:
        self.sizes = {} if sizes is None else sizes
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.work = 0

    def run(self, stream: io.BytesIO) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            self.spend(1)
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name not in _INSTRUCTIONS:
                raise PickleError(f"uses the pickle instruction {opcode.name}, which no checkpoint needs")
            _INSTRUCTIONS[opcode.name](self, argument)
        raise PickleError("has a pickle without end")

    def spend(self, work: int) -> None:
        self.work += work
        if self.work > _MOST_WORK:
            raise PickleError(f"has a pickle of more than {_MOST_WORK:,} instructions; save the weights alone")

    def items(self) -> list[Any]:
        """Take what is above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise PickleError("has a damaged pickle")
        return self.stack.pop()

    def pop_all(self, count: int) -> tuple[Any, ...]:
        return tuple(self.pop() for _ in range(count))[::-1]

    def drop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Opaque):
            raise PickleError(f"sets items of {kind_of(target)}")

    def dictionary(self, _: Any) -> None:
        pairs = self.items()
        self.stack.append({})
        self.set_items(pairs)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_key, items))
        elif not isinstance(target, Opaque):
            raise PickleError(f"appends to {kind_of(target)}")

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("has a damaged pickle")
        self.stack.append(_named(f"{module.replace('__builtin__', 'builtins')}.{name}"))

    def call(self) -> None:
        function, arguments = self.pop_all(2)
        if not isinstance(arguments, tuple):
            raise PickleError("has a damaged pickle")
        # The functions copy: a few instructions could copy one long list a million times.
        self.spend(sum(len(item) for item in arguments if isinstance(item, list | tuple | set | dict)))
        self.spend(sum(len(item) // 64 for item in arguments if isinstance(item, str | bytes)))
        self.stack.append(_called(function, arguments))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, _NumpyType) and isinstance(state, tuple) and len(state) > 1:
            target.text = f"{state[1]}{target.text}"
        # Attributes of containers (the metadata of a state dict) and of objects that are not made.
        elif not isinstance(target, dict | Opaque | StoredTensor):
            raise PickleError(f"sets attributes of {kind_of(target)}")

    def persistent(self, _: Any) -> None:
        match self.pop():
            case ("storage", torch.dtype() | Opaque() as dtype, str() as key, _, int() as count, *view):
                if isinstance(dtype, torch.dtype):
                    self.sizes[key] = dtype.itemsize
                self.stack.append(_storage(dtype, key, count, view[0] if view else None))
            case _:
                raise PickleError("refers to something else than stored tensors")


def _storage(dtype: torch.dtype | Opaque, key: str, count: int, view: Any) -> Storage | Opaque:
    if isinstance(dtype, Opaque):
        return dtype
    start = 0
    if view is not None:  # (key, first element, elements), in files of torch before 0.4
        _, start, count = view
    if not (type(start) is type(count) is int and 0 <= start < _LARGEST_INT and 0 <= count < _LARGEST_INT):
        raise PickleError("has a storage of an impossible size")
    return Storage(key, dtype, count, start)


_WITH_ARGUMENT = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8"),
)
"""Instructions that put their own argument on the stack."""


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(_WITH_ARGUMENT, _push),
    "NONE": _push,
    "NEWTRUE": lambda m, _: _push(m, True),
    "NEWFALSE": lambda m, _: _push(m, False),
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": _Machine.drop,
    "POP_MARK": lambda m, _: m.items(),
    "DUP": lambda m, _: _push(m, m.stack[-1]),
    "EMPTY_LIST": lambda m, _: _push(m, []),
    "EMPTY_TUPLE": lambda m, _: _push(m, ()),
    "EMPTY_DICT": lambda m, _: _push(m, {}),
    "EMPTY_SET": lambda m, _: _push(m, set()),
    "LIST": lambda m, _: _push(m, m.items()),
    "TUPLE": lambda m, _: _push(m, tuple(m.items())),
    "TUPLE1": lambda m, _: _push(m, m.pop_all(1)),
    "TUPLE2": lambda m, _: _push(m, m.pop_all(2)),
    "TUPLE3": lambda m, _: _push(m, m.pop_all(3)),
    "FROZENSET": lambda m, _: _push(m, {_key(item) for item in m.items()}),
    "DICT": _Machine.dictionary,
    "SETITEM": lambda m, _: m.set_items(list(m.pop_all(2))),
    "SETITEMS": lambda m, _: m.set_items(m.items()),
    "APPEND": lambda m, _: m.extend([m.pop()]),
    "APPENDS": lambda m, _: m.extend(m.items()),
    "ADDITEMS": lambda m, _: m.extend(m.items()),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "GET": lambda m, index: _push(m, m.memo[index]),
    "BINGET": lambda m, index: _push(m, m.memo[index]),
    "LONG_BINGET": lambda m, index: _push(m, m.memo[index]),
    "GLOBAL": lambda m, text: m.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pop_all(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}


def _key(key: Any) -> Hashable:
    """``key``, if it may be one: the hash of nested tuples, or of chosen integers, can take years."""
    parts = key if isinstance(key, tuple) else (key,)
    if all(isinstance(part, _SCALARS) and not (isinstance(part, int) and abs(part) >= _LARGEST_INT) for part in parts):
        return key
    raise PickleError(f"has a dictionary with the key of {kind_of(key)}; save the weights alone")


def kind_of(item: Any) -> str:
    """What an object is, for a message."""
    if isinstance(item, Opaque):
        return f"a {item.kind}"
    names = {StoredTensor: "Tensor", Storage: "storage", _NumpyType: "numpy type", _Name: "function or class"}
    return "a " + names.get(type(item), type(item).__name__)


def _named(name: str) -> Any:
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


def _called(function: Any, arguments: tuple[Any, ...]) -> Any:
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
    if not isinstance(arguments, tuple):
        raise PickleError("has a damaged pickle")
    return _called(function, arguments)


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
    return {_key(key): value for key, value in (pairs[0] if pairs else ())}


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


def _numpy_type(text: Any, *_: Any) -> _NumpyType | Opaque:
    return _NumpyType(text) if isinstance(text, str) and re.fullmatch(r"[biuf?]\d{0,2}", text) else Opaque("numpy type")


def _numpy_number(kind: Any, content: Any = None) -> Any:
    if not isinstance(kind, _NumpyType) or not isinstance(content, bytes):
        return Opaque("numpy value")
    return np.frombuffer(content, np.dtype(kind.text), 1)[0].item()


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return {_key(item) for item in items}


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
