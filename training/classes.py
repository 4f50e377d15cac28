"""The classes that a checkpoint was trained on, noted in the file and compared with those of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isnet_trt.datasets.layouts import label_values
from isnet_trt.errors import CheckpointError, first_few
from isnet_trt.recipes import DATASETS, IGNORE, Recipe, is_described
from isnet_trt.recipes.custom import read_custom

ENTRY = "classes"
"""The entry of a checkpoint that holds them."""
_FIELDS = ("names", "palette", "values")
_LISTED = 5


@dataclass(frozen=True)
class Classes:
    """Names and colours (R, G, B) by training id, and the training id of each stored label value, if it is known."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]
    values: Mapping[int, int] | None

    @classmethod
    def of(cls, recipe: Recipe) -> Classes:
        """The classes of a recipe."""
        values: Mapping[int, int] | None = None
        if is_described(recipe.dataset):
            values = read_custom(Path(recipe.dataset)).values
        elif recipe.dataset in DATASETS:
            values = label_values(recipe.dataset).ids
        used = None if values is None else {value: number for value, number in values.items() if number != IGNORE}
        return cls(recipe.labels.names, recipe.labels.palette, used)

    @classmethod
    def noted(cls, content: Any, path: Path) -> Classes | None:
        """The classes noted in a checkpoint's content; None if there are none, or another tool's entry of this name.

        Raises:
            CheckpointError: the entry is not what `entry` wrote.
        """
        entry = content.get(ENTRY) if isinstance(content, Mapping) else None
        if not isinstance(entry, Mapping) or set(entry) != set(_FIELDS):
            return None
        match [entry[field] for field in _FIELDS]:
            case [list() as names, list() as palette, dict() | None as values] if (
                all(isinstance(name, str) for name in names)
                and all(isinstance(colour, list) and all(type(c) is int for c in colour) for colour in palette)
                and len(names) == len(palette)
                and all(type(number) is int for pair in (values or {}).items() for number in pair)
            ):
                return cls(tuple(names), tuple(map(tuple, palette)), values)
        raise CheckpointError(f"{path} is damaged: its entry {ENTRY!r} holds no names, colours and label values")

    def entry(self) -> dict[str, Any]:
        """For a checkpoint: plain containers."""
        values = None if self.values is None else dict(self.values)
        return {"names": list(self.names), "palette": [list(colour) for colour in self.palette], "values": values}

    def check(self, recipe: Recipe, path: Path) -> None:
        """Raise CheckpointError, which names them, if the classes of ``recipe`` are not these ones of ``path``."""
        own = Classes.of(recipe)
        found = list(self._differences(own))
        if not found:
            return
        source = recipe.dataset if is_described(recipe.dataset) else f"recipe {recipe.name}"
        more = f"\n  … and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise CheckpointError(
            f"{path} was trained on other classes than those of {source}:\n"
            + "\n".join(f"  {line}" for line in found[:_LISTED])
            + f"{more}\nGive the recipe that it was trained with, or list the classes in the checkpoint's order: "
            f"{first_few(self.names, 200)}. If the checkpoint's own names are wrong, save its weights alone: "
            "torch.save({'model': torch.load(FILE)['model']}, NEW)"
        )

    def _differences(self, other: Classes) -> Iterator[str]:
        """One line for each class that differs in ``other``, a recipe's."""
        if len(self.names) != len(other.names):
            yield (
                f"{len(self.names)} classes in the checkpoint ({first_few(self.names)}), "
                f"{len(other.names)} in the recipe ({first_few(other.names)})"
            )
            return
        for number, (mine, theirs) in enumerate(zip(self.names, other.names, strict=True)):
            if mine != theirs:
                yield f"class {number} is {mine!r} in the checkpoint, {theirs!r} in the recipe"
        if self.names != other.names:
            return
        for name, before, now in zip(self.names, self.palette, other.palette, strict=True):
            if before != now:
                yield f"the colour of {name!r} is {before} in the checkpoint, {now} in the recipe"
        if self.values is not None and other.values is not None:
            yield from self._value_differences(other.values)

    def _value_differences(self, others: Mapping[int, int]) -> Iterator[str]:
        values = self.values or {}
        for value in sorted({*values, *others}):
            mine, theirs = (self._class_name(ids.get(value)) for ids in (values, others))
            if mine != theirs:
                yield f"the stored label value {value} is {mine} in the checkpoint, {theirs} in the recipe"

    def _class_name(self, number: int | None) -> str:
        if number is None:
            return "no class"
        return repr(self.names[number]) if 0 <= number < len(self.names) else f"class {number}"
