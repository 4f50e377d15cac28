"""Labelled sets by name: datasets and one's own data from disk, and the demo model's held-out drawn scenes.

And predicted label maps as files in a set's own label values, as an evaluation server expects them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.errors import SettingsError
from isnet_trt.files import make_folder, refuse_inputs
from isnet_trt.pictures.files import Image, write_png
from isnet_trt.recipes import DEMO_LABELS
from isnet_trt.settings import Labels, Size
from isnet_trt.training.scenes import HELD_OUT_COUNT, HELD_OUT_SEED, SCENE_SIZE, draw_scene

SCENES = "scenes"


@dataclass(frozen=True)
class DrawnScenes:
    """The first ``count`` held-out street scenes of the demo model, drawn on indexing."""

    count: int = HELD_OUT_COUNT
    size: Size = SCENE_SIZE
    name: str = SCENES
    split: str = "held out"
    labels: Labels = DEMO_LABELS

    @functools.cached_property
    def names(self) -> Sequence[str]:
        """The seeds."""
        return [f"scene_{HELD_OUT_SEED + index}" for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.uint8]]:
        """Picture and exact labels of one scene."""
        scene = draw_scene(HELD_OUT_SEED + index, *self.size)
        return np.ascontiguousarray(scene.image[..., ::-1]), scene.labels


Labelled = PictureSet | DrawnScenes
"""Pictures with their true labels, of which pixels with other values than 0..K−1 are not counted.

Both have ``name``, ``split``, ``labels`` (the classes) and unique ``names``, one per picture.
"""


def open_labelled(name: str, data: Path | None, split: str, limit: int | None = None) -> Labelled:
    """The set called ``name``: ``scenes``, one of the datasets, or the path of a YAML file.

    Args:
        name: what to open.
        data: the dataset's folder; None for the drawn scenes.
        split: ``train``, ``val``, or ``test`` for pictures whose pixels have no truth.
        limit: number of drawn scenes; has no effect on other sets.

    Raises:
        SettingsError: there is no such set, or a package for reading it is missing.
        DataError: the dataset at ``data`` is missing or incomplete.
    """
    if name != SCENES:
        return open_dataset(name, data, split)
    if data is not None:
        raise SettingsError(f"--data {data}: the drawn scenes need no folder; leave it out, or name a dataset")
    return DrawnScenes(limit or HELD_OUT_COUNT)


def check_labels(labels: Labels, pictures: Labelled, model: str) -> None:
    """Raise SettingsError unless a model's classes are those of the set, by number and name.

    ``model`` is the model's path, for the message.
    """
    expected = pictures.labels
    if labels.count != expected.count:
        raise SettingsError(
            f"{model} has {labels.count} classes ({_begin(labels)}) but {pictures.name} has {expected.count} "
            f"({_begin(expected)}): evaluate it on the dataset that it was trained for"
        )
    for number, (name, expected_name) in enumerate(zip(labels.names, expected.names, strict=True)):
        if name != expected_name:
            raise SettingsError(
                f"class {number} is {name!r} in {model} but {expected_name!r} in {pictures.name}: the label sets "
                "differ, so the figures would mean nothing"
            )


def _begin(labels: Labels) -> str:
    return ", ".join(labels.names[:3]) + (", …" if labels.count > 3 else "")


class LabelWriter:
    """Writes ``folder/NAME.png`` with the values that the dataset's own label files would hold.

    Cityscapes gets its label ids (road 7, …), ADE20K and COCO-Stuff 1..K, LIP and the drawn scenes 0..K−1.
    """

    def __init__(self, folder: Path, pictures: Labelled) -> None:
        """Create the folder; SettingsError if that fails, or if a file of the dataset would be replaced."""
        self.folder = folder
        files = pictures.files if isinstance(pictures, PictureSet) else ()
        refuse_inputs(map(self._path, pictures.names), [file for pair in files for file in pair if file], "--export")
        self._folders = {make_folder(folder, "--export")}
        self._values = _stored_values(pictures)

    def __call__(self, name: str, labels: NDArray[np.unsignedinteger]) -> None:
        """Write the labels of one picture, whole or not at all; SettingsError or ImageError if that fails."""
        path = self._path(name)
        if path.parent not in self._folders:
            self._folders.add(make_folder(path.parent, "--export"))
        write_png(path, self._values[labels])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"


def _stored_values(pictures: Labelled) -> NDArray[np.unsignedinteger]:
    """Training id -> stored value (the smallest where there are several), uint8 or uint16 (K,)."""
    count = pictures.labels.count
    table = np.array([pictures.values.stored[n] if isinstance(pictures, PictureSet) else n for n in range(count)])
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)
