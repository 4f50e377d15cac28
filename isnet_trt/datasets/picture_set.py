"""A labelled set of picture files, and how stored label values become training ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from isnet_trt.datasets.reading import RawLabels, read_bgr, read_labels
from isnet_trt.errors import DataError, first_few
from isnet_trt.pictures.files import Image
from isnet_trt.recipes import IGNORE
from isnet_trt.settings import Labels

NOT_ALLOWED = -32768
"""In `LabelValues.table`: a value that no label file may hold."""
_LISTED = 8
Files = tuple[tuple[Path, Path | None], ...]
"""Picture and label file of each picture; None: there are no labels."""


class Source(Protocol):
    """Pictures with their labels by index, as training and evaluation read them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.integer]]:
        """Picture uint8 (H, W, 3) in B, G, R order; labels (H, W), training ids 0..K−1 or `recipes.IGNORE`."""


@dataclass(frozen=True)
class LabelValues:
    """Stored label values (0 and above) -> training ids: ``ids[value]`` is 0..K−1 or `recipes.IGNORE`.

    A value without training id is an error. ``assumed`` are values that are ignored by default, since the user's YAML
    file does not mention them.
    """

    ids: Mapping[int, int]
    assumed: frozenset[int] = frozenset()

    @functools.cached_property
    def stored(self) -> Mapping[int, int]:
        """Stored value by training id, the smallest where there are several."""
        return {number: value for value, number in sorted(self.ids.items(), reverse=True) if number != IGNORE}

    @functools.cached_property
    def table(self) -> NDArray[np.int16]:
        """Training id by stored value, for every byte at least; values that no file may have are `NOT_ALLOWED`."""
        table = np.full(max(255, *self.ids) + 1, NOT_ALLOWED, np.int16)
        for value, number in self.ids.items():
            table[value] = number
        return table

    def apply(self, stored: RawLabels, path: Path) -> NDArray[np.int16]:
        """Training ids int16 of the same shape; ``path`` is for the message.

        Raises DataError, which lists the values without training id and where the first one is.
        """
        if stored.dtype == np.uint8:
            labels = self.table[stored]
        else:
            inside = (stored >= 0) & (stored < len(self.table))
            labels = np.where(inside, self.table[np.where(inside, stored, 0)], NOT_ALLOWED).astype(np.int16)
        bad = labels == NOT_ALLOWED
        if bad.any():
            raise DataError(self._message(stored, bad, path))
        return labels

    def _message(self, stored: RawLabels, bad: NDArray[np.bool_], path: Path) -> str:
        values = np.unique(stored[bad])
        y, x = (int(v) for v in np.argwhere(bad)[0])
        listed = first_few(list(map(str, values)), _LISTED)
        return (
            f"{path}: label value{'s' if len(values) > 1 else ''} {listed} at {int(bad.sum())} of {bad.size} pixels "
            f"(first at row {y}, column {x}); allowed are {_ranges(sorted(self.ids))}; convert "
            "the file, or, in a YAML file of your own, name the value under 'classes' or 'ignore'"
        )


def _ranges(values: list[int]) -> str:
    """Sorted whole numbers as text: ``0..150, 255``."""
    starts = [i for i, v in enumerate(values) if not i or v != values[i - 1] + 1]
    parts = [(values[a], values[b - 1]) for a, b in zip(starts, [*starts[1:], len(values)], strict=True)]
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)


class LabelMap(NamedTuple):
    """Training ids int16 (H, W), and the values (H, W) that the file holds."""

    labels: NDArray[np.int16]
    stored: RawLabels


@dataclass(frozen=True)
class PictureSet:
    """One split of a dataset on disk; files are read on indexing, and the set can be pickled (worker processes).

    Attributes:
        name: the dataset's name, such as ``ade20k``.
        split: ``train``, ``val`` or ``test``.
        labels: class names and colours.
        names: one name per picture, unique, in the order of the index: its path in the image folder without suffix.
        files: picture and label file of each; without label file every pixel is `recipes.IGNORE`.
        values: how the stored label values become training ids.
        own: the user's data, described by a YAML file, of which every class is expected to occur.
    """

    name: str
    split: str
    labels: Labels
    names: tuple[str, ...]
    files: Files
    values: LabelValues
    own: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.int16]]:
        """Picture uint8 (H, W, 3) in B, G, R order; labels int16 (H, W), 0..K−1 or `recipes.IGNORE`.

        Both are new arrays that the caller may write to.

        Raises:
            DataError: a file cannot be read, the sizes differ, or a label value is out of range.
        """
        image, label_map = self.read(index)
        return image, np.full(image.shape[:2], IGNORE, np.int16) if label_map is None else label_map.labels

    def read(self, index: int) -> tuple[Image, LabelMap | None]:
        """Picture and label map, which is None where the set has no label files; errors as on indexing."""
        picture, annotation = self.files[index]
        image = read_bgr(picture)
        if annotation is None:
            return image, None
        stored = read_labels(annotation)
        if image.shape[:2] != stored.shape:
            raise DataError(_sizes_differ(picture, image.shape, annotation, stored.shape))
        return image, LabelMap(self.values.apply(stored, annotation), stored)

    def label_map(self, annotation: Path) -> LabelMap:
        """One of the label files, read without its picture; DataError if it cannot be read or a value is no class."""
        stored = read_labels(annotation)
        return LabelMap(self.values.apply(stored, annotation), stored)


def _sizes_differ(picture: Path, size: tuple[int, ...], annotation: Path, labels: tuple[int, ...]) -> str:
    turned = size[:2] == labels[::-1]
    advice = (
        "the picture is probably turned by its EXIF orientation: store it upright, or turn the labels"
        if turned
        else "the labels must have the picture's size"
    )
    return f"{picture} is {size[0]}x{size[1]} but {annotation} is {labels[0]}x{labels[1]} (height x width): {advice}"
