"""Read a pickle as data: nothing that it names is imported, called or given memory beyond its own size.

`pickletools` of the standard library splits the pickle; the instructions are interpreted here, of all protocols.
Containers, numbers, strings and bytes become themselves, tensors become `StoredTensor`, numpy's numbers Python's.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from typing import Any

import torch

from isnet_trt.training.stand_ins import NumpyType, called, checked_key, kind_of, named
from isnet_trt.training.stored import LARGEST_INT, Opaque, PickleError, Storage, StoredTensor

LARGEST = 64 << 20
"""Bytes of a pickle. Published models have 0.2 MB: names, shapes and settings, but no values."""
_MOST_WORK = 1_000_000
"""Instructions and copied items of a pickle: seconds of work, 0.3 GB at most. Published models need 30,000."""


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
                target[checked_key(key)] = value
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
            target.update(map(checked_key, items))
        elif not isinstance(target, Opaque):
            raise PickleError(f"appends to {kind_of(target)}")

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("has a damaged pickle")
        self.stack.append(named(f"{module.replace('__builtin__', 'builtins')}.{name}"))

    def call(self) -> None:
        function, arguments = self.pop_all(2)
        if not isinstance(arguments, tuple):
            raise PickleError("has a damaged pickle")
        # The functions copy: a few instructions could copy one long list a million times.
        self.spend(sum(len(item) for item in arguments if isinstance(item, list | tuple | set | dict)))
        self.spend(sum(len(item) // 64 for item in arguments if isinstance(item, str | bytes)))
        self.stack.append(called(function, arguments))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, NumpyType) and isinstance(state, tuple) and len(state) > 1:
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
    if not (type(start) is type(count) is int and 0 <= start < LARGEST_INT and 0 <= count < LARGEST_INT):
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
    "FROZENSET": lambda m, _: _push(m, {checked_key(item) for item in m.items()}),
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
