"""Read a small YAML file strictly: every wrong key or value is an error with file, key and value."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from isnet_trt.errors import IsnetError, SettingsError, needs
from isnet_trt.files import regular_file_bytes

T = TypeVar("T")
_LARGEST_FILE = 2**20
"""Bytes."""
_MOST_VALUES = 100_000
_DEEPEST = 16
_MERGE = "tag:yaml.org,2002:merge"
"""``<<``, a key that may give way to others."""
_LONGEST_TEXT, _LONGEST_SHOWN = 4096, 200


class Fields:
    """The keys of one file; `take` and `get` read them, `finish` refuses those that were not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = str(path)
        self._data = _read(path)
        self._taken: list[str] = []

    def below(self, key: str, data: Any) -> Fields:
        """The keys of a mapping that is the value ``data`` of ``key``.

        Raises:
            SettingsError: ``data`` is not a mapping.
        """
        if not isinstance(data, dict):
            raise SettingsError(f"{self._place}: {key}: {shown(data)} is not a mapping of keys to values")
        fields = copy.copy(self)
        fields._place, fields._data, fields._taken = f"{self._place}: {key}", data, []
        return fields

    @property
    def keys(self) -> tuple[Any, ...]:
        """All keys, read or not."""
        return tuple(self._data)

    def take(self, key: str, expected: str, convert: Callable[[Any], T]) -> T:
        """The value of a required key.

        Raises:
            SettingsError: it is missing, or ``convert`` raised ValueError; ``expected`` describes the value.
        """
        if key not in self._data:
            raise SettingsError(f"{self._place}: the key {key!r} is missing; it is {expected}")
        self._taken.append(key)
        value = self._data[key]
        try:
            return convert(value)
        except ValueError as error:
            reason = f" ({error})" if str(error) else ""
            raise SettingsError(f"{self._place}: {key}: {shown(value)} is not {expected}{reason}") from None

    def get(self, key: str, default: T, expected: str, convert: Callable[[Any], T]) -> T:
        """The value of an optional key."""
        if key in self._data:
            return self.take(key, expected, convert)
        self._taken.append(key)
        return default

    def finish(self) -> None:
        """Raise SettingsError if the file has keys that were not read."""
        for key in self._data:
            if key not in self._taken:
                near = difflib.get_close_matches(shown(key).strip("'"), self._taken, 1)
                advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._taken)}"
                raise SettingsError(f"{self._place}: the key {shown(key)} is unknown; {advice}")


def _read(path: Path) -> dict[Any, Any]:
    with needs(f"reading {path}", "train"):
        import yaml
    content = regular_file_bytes(path, _LARGEST_FILE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise SettingsError(f"{path} is not UTF-8 text ({reason}); save it as UTF-8") from None
    loader = _strict_loader(yaml, path)
    try:
        _check_extent(yaml, text, loader, path)
        data = yaml.load(text, loader)
    except yaml.YAMLError as error:
        tabs = "; indent with spaces, not with tabs" if "\t" in text else ""
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}{tabs}") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected keys and values such as 'name: …', found {type(data).__name__}")
    return data


def _strict_loader(yaml: Any, path: Path) -> Any:
    """PyYAML's safe loader, which executes nothing; it refuses a key that is there twice."""

    class Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C: ten times as fast
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            keys = [key for key, _ in pairs if key.tag != _MERGE]
            mapping = super().construct_mapping(node, deep)  # first: it refuses keys that cannot be hashed
            seen: set[Any] = set()
            for key in (self.construct_object(key, deep=True) for key in keys):
                if key in seen:
                    raise SettingsError(f"{path}: the key {shown(key)} is there twice")
                seen.add(key)
            return mapping

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except IsnetError:
                raise
            # Python's own errors, for values such as 2024-13-41 and !!int "".
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
                kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
                reason = f"line {line}: {shown(node.value)} is no {kind}; put it in quotes"
                raise SettingsError(f"{path}: {reason}") from None

    return Strict


def _check_extent(yaml: Any, text: str, loader: Any, path: Path) -> None:
    """Refuse nesting and aliases (``*name``) that would take the process's stack, memory or time.

    The events are read one by one, before anything is constructed from them.
    """
    sizes: dict[str, int] = {}  # of anchored values, with all that their aliases stand for
    open_values: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise SettingsError(f"{path}: *{event.anchor} stands for nothing, or for what it is part of")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            if len(getattr(event, "value", "")) > _LONGEST_TEXT:
                raise SettingsError(f"{path}: line {event.start_mark.line + 1}: longer than {_LONGEST_TEXT} letters")
            total += 1
            open_values.append((event.anchor, total))
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            anchor, start = open_values.pop()
            if anchor is not None:
                sizes[anchor] = total - start + 1
        if total > _MOST_VALUES:
            raise SettingsError(f"{path} has more than {_MOST_VALUES} values, counting those that *aliases repeat")
        if len(open_values) > _DEEPEST:
            raise SettingsError(f"{path} is nested more than {_DEEPEST} deep")


def shown(value: Any) -> str:
    """``value`` for a message, cut where it is long."""
    try:
        full = repr(value)
    except ValueError:  # Python refuses to print numbers of more than 4,300 digits
        full = "a number of thousands of digits"
    return full if len(full) <= _LONGEST_SHOWN else f"{full[:_LONGEST_SHOWN]}…"


def text(value: Any) -> str:
    """Convert to text that is not empty and that files and other programs take."""
    if not isinstance(value, str) or not value:
        raise ValueError
    if "\0" in value or (not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise ValueError("it has a NUL or half a surrogate pair")
    return value


def whole(low: int, high: int) -> Callable[[Any], int]:
    """A converter to a whole number within low..high."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return convert


def number(low: float, high: float) -> Callable[[Any], float]:
    """A converter to a number within low..high, also one that YAML reads as text (``1e-3``)."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        try:
            result = float(value)
        except (ValueError, OverflowError):  # the latter for whole numbers beyond 1.8e308
            raise ValueError from None
        if not low <= result <= high:  # nor NaN
            raise ValueError
        return result

    return convert


def choice(*names: str) -> Callable[[Any], Any]:
    """A converter to one of ``names``."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError
        return value

    return convert


def triple(convert_item: Callable[[Any], T]) -> Callable[[Any], tuple[T, T, T]]:
    """A converter to three values: a list of three, or one value for all."""

    def convert(value: Any) -> tuple[T, T, T]:
        values = value if isinstance(value, list) else [value] * 3
        if len(values) != 3:
            raise ValueError
        return convert_item(values[0]), convert_item(values[1]), convert_item(values[2])

    return convert


def pair(convert_item: Callable[[Any], T]) -> Callable[[Any], tuple[T, T]]:
    """A converter to a list of two."""

    def convert(value: Any) -> tuple[T, T]:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError
        return convert_item(value[0]), convert_item(value[1])

    return convert


def flag(value: Any) -> bool:
    """Convert to a truth value."""
    if not isinstance(value, bool):
        raise ValueError
    return value
