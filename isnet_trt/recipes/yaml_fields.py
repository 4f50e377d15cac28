"""Read a small YAML file strictly: every wrong key or value is an error with file, key and value."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from isnet_trt.errors import SettingsError, needs

T = TypeVar("T")


class Fields:
    """The keys of one file; `take` and `get` read them, `finish` refuses those that were not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _read(path)
        self._taken: list[str] = []

    def take(self, key: str, expected: str, convert: Callable[[Any], T]) -> T:
        """The value of a required key.

        Raises:
            SettingsError: it is missing, or ``convert`` raised ValueError; ``expected`` describes the value.
        """
        if key not in self._data:
            raise SettingsError(f"{self.path}: the key {key!r} is missing; it is {expected}")
        self._taken.append(key)
        value = self._data[key]
        try:
            return convert(value)
        except ValueError as error:
            reason = f" ({error})" if str(error) else ""
            raise SettingsError(f"{self.path}: {key}: {value!r} is not {expected}{reason}") from None

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
                near = difflib.get_close_matches(str(key), self._taken, 1)
                advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._taken)}"
                raise SettingsError(f"{self.path}: the key {key!r} is unknown; {advice}")


def _read(path: Path) -> dict[Any, Any]:
    with needs(f"reading {path}", "train"):
        import yaml

    class Strict(yaml.SafeLoader):
        """Refuses a key that is there twice, of which PyYAML silently takes the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
            if twice is not None:
                raise SettingsError(f"{path}: the key {twice!r} is there twice")
            return super().construct_mapping(node, deep)

    try:
        data = yaml.load(path.read_text("utf-8"), Strict)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected keys and values such as 'name: …', found {type(data).__name__}")
    return data


def text(value: Any) -> str:
    """Convert to text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def whole(low: int, high: int = 2**31) -> Callable[[Any], int]:
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
        result = float(value)
        if not low <= result <= high:
            raise ValueError
        return result

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
