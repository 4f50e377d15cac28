"""Convert JSON to dataclasses, strictly: the type hints of the dataclasses are the schema."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from isnet_trt.errors import SettingsError, first_few

_DEEPEST = 32
"""Levels of objects and lists within a field without a schema."""
_LARGEST = 2**63
_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number", bool: "a boolean"}


class FieldError(ValueError):
    """One field of a JSON document is not what its schema says; the message names it."""


def decode(kind: Any, data: Any, where: str = "") -> Any:
    """``data`` (of `json.loads`) as a value of type ``kind``; ``where`` is its field name in messages.

    ``kind`` is a dataclass, str, int, float, bool, ``T | None``, a Literal, ``tuple[T, ...]``, ``tuple[A, B]``,
    ``dict[str, T]`` or Any. Nothing is converted but lists to tuples and integers to float fields.

    Raises:
        FieldError: a field is missing, unknown, of the wrong type or has a value that its dataclass refuses, a number
            is not finite or beyond 64 bits, a string is no Unicode text, or a field of type Any is nested too deeply.
    """
    if kind is Any:
        return _any(data, where, 0)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if data is None else decode(next(a for a in arguments if a is not type(None)), data, where)
    if origin is Literal:
        if data not in arguments:
            names = ", ".join(map(repr, arguments))
            raise FieldError(f"{_field(where)} is {reprlib.repr(data)}; it must be one of {names}")
        return data
    if origin is tuple:
        return _tuple(arguments, data, where)
    _expect(origin or kind, data, where)
    if origin is dict:
        for name in data:
            _check_value(name, f"a name in {_field(where)}")
        return {name: decode(arguments[1], item, _join(where, name)) for name, item in data.items()}
    _check_value(data, _field(where))
    return kind(data)


def _any(data: Any, where: str, depth: int) -> Any:
    """Check what lies in a field without a schema."""
    if depth > _DEEPEST:
        raise FieldError(f"{_field(where)} is nested more than {_DEEPEST} levels deep")
    if isinstance(data, dict):
        for name, item in data.items():
            _check_value(name, f"a name in {_field(where)}")
            _any(item, _join(where, name), depth + 1)
    elif isinstance(data, list):
        for number, item in enumerate(data):
            _any(item, f"{where}[{number}]", depth + 1)
    else:
        _check_value(data, _field(where))
    return data


def _check_value(data: Any, field: str) -> None:
    """Raise FieldError for numbers and strings that JSON has and programs have not."""
    # 1e999 is JSON and becomes infinity.
    if isinstance(data, float) and not math.isfinite(data):
        raise FieldError(f"{field} is no finite number")
    if isinstance(data, int) and not -_LARGEST <= data < _LARGEST:
        raise FieldError(f"{field} is a number beyond 64 bits")
    # "\ud800" is JSON too, and no library takes it.
    if isinstance(data, str) and not data.isascii() and any("\ud800" <= c <= "\udfff" for c in data):
        raise FieldError(f"{field} holds lone surrogates, which are no Unicode text")


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(dict, data, where)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if missing := sorted(fields.keys() - data.keys()):
        raise FieldError(f"{_field(where)} lacks {', '.join(missing)}")
    if unknown := sorted(data.keys() - fields.keys()):
        raise FieldError(f"{_field(where)} has unknown entries: {first_few(unknown)}")
    hints = typing.get_type_hints(kind)
    values = {name: decode(hints[name], data[name], _join(where, name)) for name in fields}
    try:
        return kind(**values)
    except SettingsError as error:
        raise FieldError(f"{_field(where)}: {error}") from None


def _tuple(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    _expect(list, data, where)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(data)
    if len(kinds) != len(data):
        raise FieldError(f"{_field(where)} has {len(data)} entries instead of {len(kinds)}")
    return tuple(decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _expect(kind: type, data: Any, where: str) -> None:
    # type() and not isinstance(): True is an int in Python, but not in JSON.
    if type(data) is not kind and not (kind is float and type(data) is int):
        actual, expected = _NAMES.get(type(data), "null"), _NAMES.get(kind, kind.__name__)
        raise FieldError(f"{_field(where)} must be {expected}, but is {actual}")


def _field(where: str) -> str:
    return f"field {where!r}" if where else "the manifest"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
