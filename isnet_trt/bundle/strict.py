"""Convert JSON to dataclasses, strictly: the type hints of the dataclasses are the schema."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, Union, get_args, get_origin

from isnet_trt.errors import SettingsError

_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a number", bool: "a boolean"}


class FieldError(ValueError):
    """One field of a JSON document is not what its schema says; the message names it."""


def decode(kind: Any, data: Any, where: str = "") -> Any:
    """``data`` (of `json.loads`) as a value of type ``kind``; ``where`` is its field name in messages.

    ``kind`` is a dataclass, str, int, float, bool, ``T | None``, a Literal, ``tuple[T, ...]``, ``tuple[A, B]``,
    ``dict[str, T]`` or Any. Nothing is converted but lists to tuples and integers to float fields.

    Raises:
        FieldError: a field is missing, unknown, of the wrong type or has a value that its dataclass refuses.
    """
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if data is None else decode(next(a for a in arguments if a is not type(None)), data, where)
    if origin is Literal:
        if data not in arguments:
            raise FieldError(f"{_field(where)} is {data!r}; it must be one of {', '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        return _tuple(arguments, data, where)
    _expect(origin or kind, data, where)
    if origin is dict:
        return {name: decode(arguments[1], item, _join(where, name)) for name, item in data.items()}
    return kind(data)


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(dict, data, where)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if missing := sorted(fields.keys() - data.keys()):
        raise FieldError(f"{_field(where)} lacks {', '.join(missing)}")
    if unknown := sorted(data.keys() - fields.keys()):
        raise FieldError(f"{_field(where)} has unknown entries: {', '.join(unknown)}")
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
