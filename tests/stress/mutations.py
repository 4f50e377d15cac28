"""Mutations of bytes, of trees of dicts and lists, and of files; each is decided by the generator of random numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_NUMBERS = (0, 1, 2, 3, 4, 6, 8, 16, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_DEEP, _INFINITE, _LONG, _WIDE = "@deep", "@infinite", "@long", "@wide"
_SPECIAL = ("missing", "empty", "folder", "fifo", "link to itself", "dead link", "device", "endless device")
_AS_JSON = {
    _DEEP: "[" * 100_000 + "]" * 100_000,
    _INFINITE: "1e999",
    _LONG: "9" * 5000,
    _WIDE: f"[{','.join(['0'] * 100_000)}]",
}
"""Placeholders in trees, and the JSON text that takes their place."""
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        7,
        255,
        256,
        300,
        65536,
        2**31 - 1,
        2**31,
        2**63 - 1,
        2**63,
        -(2**63),
        2**64,
        10**40,
    ),
    *(0.0, -0.0, 0.5, -0.5, 1e-320, 1e59, -1e59, math.inf, -math.inf, math.nan),
    *(
        "",
        "0",
        "x",
        "x" * 300,
        "x" * 100_000,
        "é",
        "\ud800",
        "a\nb",
        "a\0b",
        "\x1b[31m",
        "'; \"$(id)`",
        "..",
        "/dev/zero",
    ),
    *(
        "../model.onnx",
        "model.onnx",
        "onnxruntime",
        "slide",
        "whole",
        [],
        {},
        [[]],
        [{}],
        {"": None},
        [0],
        [0, 0],
        [1, 2],
    ),
)


def mutated_bytes(chance: random.Random, content: bytes, others: Sequence[bytes] = (), header: int = 200) -> bytes:
    """One to three changes; half of them lie in the first ``header`` bytes, where the numbers are."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        reach = min(len(changed), header) if chance.random() < 0.5 else len(changed)
        _change(chance, changed, chance.randrange(max(reach, 1)), others or (content,))
    return bytes(changed)


def _change(chance: random.Random, content: bytearray, position: int, others: Sequence[bytes]) -> None:
    match chance.randrange(8):
        case 0:
            del content[position:]
        case 1:
            content[position : position + 1] = chance.randbytes(1)
        case 2:
            number, width = chance.choice(_NUMBERS), chance.choice((1, 2, 4, 8))
            order = chance.choice(("big", "little"))
            content[position : position + width] = (number % 256**width).to_bytes(width, order)
        case 3:
            del content[position : position + chance.randint(1, 50)]
        case 4:
            content[position:position] = chance.randbytes(chance.randint(1, 50))
        case 5:
            other = chance.choice(others)
            start = chance.randrange(max(len(other), 1))
            content[position : position + 60] = other[start : start + 60]
        case 6:
            content[position:position] = content[position : position + chance.randint(1, 200)]
        case 7:
            if position < len(content):
                content[position] ^= 1 << chance.randrange(8)


def mutated_tree(chance: random.Random, tree: Any, values: Sequence[Any] = VALUES) -> Any:
    """A copy of ``tree`` with one to three entries replaced, left out, added, renamed, doubled or exchanged."""
    changed = _copied(tree)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return changed
        holder, key = chance.choice(places)
        _change_entry(chance, holder, key, places, values)
    return changed


def _copied(tree: Any) -> Any:
    """A copy of the containers; what they hold is the same."""
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list) else tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry as its container and key."""
    pairs: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(tree, dict):
        pairs = iter(list(tree.items()))
    elif isinstance(tree, list):
        pairs = iter(list(enumerate(tree)))
    for key, value in pairs:
        yield tree, key
        yield from _places(value)


def _change_entry(chance: random.Random, holder: Any, key: Any, places: list[Any], values: Sequence[Any]) -> None:
    other = chance.choice(places)
    match chance.randrange(9):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, _copied(holder[key]))
        case 1 | 2 if isinstance(holder, dict):
            holder[chance.choice((f"{key} ", "x", "", str(key).upper(), other[1]))] = holder.pop(key)
        case 3:
            with contextlib.suppress(LookupError):  # it has been left out by an earlier change
                holder[key] = _copied(other[0][other[1]])
        case 4 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = chance.choice((-holder[key], holder[key] + 1, holder[key] * 1e30, float(holder[key])))
        case _:
            holder[key] = _copied(chance.choice(values))


def mutated_json(chance: random.Random, tree: Any) -> bytes:
    """The JSON text of a mutated tree, also with numbers and depths that no tree of Python has."""
    changed = mutated_tree(chance, tree, (*VALUES, *_AS_JSON))
    text = json.dumps(changed, indent=chance.choice((None, 1)))
    for placeholder, value in _AS_JSON.items():
        text = text.replace(json.dumps(placeholder), value)
    return mutated_bytes(chance, text.encode()) if chance.random() < 0.2 else text.encode()


def special_file(chance: random.Random, path: Path) -> str:
    """Put something else than a regular file in the place of ``path``; its kind."""
    kind = chance.choice(
        ("missing", "empty", "folder", "fifo", "link to itself", "dead link", "device", "endless device")
    )
    clear(path)
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link to itself":
            path.symlink_to(path.name)
        case "dead link":
            path.symlink_to("nothing")
        case "device":
            path.symlink_to("/dev/null")
        case "endless device":
            path.symlink_to("/dev/zero")
    return kind


def clear(path: Path) -> None:
    """Remove whatever is at ``path``."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(path: Path, content: bytes) -> None:
    """Write a file in the place of whatever is there."""
    clear(path)
    path.write_bytes(content)
