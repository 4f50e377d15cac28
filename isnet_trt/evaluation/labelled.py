"""Labelled sets by name: the four datasets and one's own from disk, and the demo model's held-out drawn scenes."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError
from isnet_trt.pictures.files import Image
from isnet_trt.recipes import DEMO_LABELS, is_described
from isnet_trt.settings import Labels, Size

SCENES = "scenes"
TEST = "test"
"""The split whose truth only the datasets' servers have."""
SCENE_COUNT = 12
"""Drawn scenes that are scored unless told otherwise, as many as training scores."""
SCENE_SIZE: Size = (512, 1024)
FIRST_SCENE = 9_000_000
"""Seed of the first held-out scene (`isnet_trt.training.data.scenes`, which needs torch)."""


class Labelled(Protocol):
    """Pictures with their truth.

    ``labels`` are the classes, ``names`` one unique name per picture. A picture is uint8 (H, W, 3) in B, G, R order,
    its truth (H, W) whole numbers: classes 0..K−1, anything else counts for nothing.
    """

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def labels(self) -> Labels: ...

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.integer]]: ...


@dataclass(frozen=True)
class DrawnScenes:
    """The first ``count`` held-out street scenes of the demo model, drawn when they are asked for."""

    count: int = SCENE_COUNT
    size: Size = SCENE_SIZE
    name: str = SCENES
    split: str = "held out"
    labels: Labels = DEMO_LABELS

    @functools.cached_property
    def names(self) -> Sequence[str]:
        """The seeds."""
        return [f"scene_{FIRST_SCENE + index}" for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.uint8]]:
        """Picture and exact labels of one scene."""
        from isnet_trt.training.scenes import draw_scene

        scene = draw_scene(FIRST_SCENE + index, *self.size)
        return np.ascontiguousarray(scene.image[..., ::-1]), scene.labels


def open_labelled(name: str, data: Path | None, split: str, limit: int | None = None) -> Labelled:
    """The set called ``name``: ``scenes``, one of the four datasets, or the path of a YAML file.

    Of `TEST` pictures no pixel has a truth.

    Only for the drawn scenes does ``limit`` matter here: it says how many there are.

    Raises:
        SettingsError: there is no such set, or a package for reading it is missing.
        DataError: it is not, or not whole, at ``data``.
    """
    if name == SCENES:
        if data is not None:
            raise SettingsError(f"--data {data}: the drawn scenes need no folder; leave it out, or name a dataset")
        return DrawnScenes(limit or SCENE_COUNT)
    missing = [package for package in _packages(name) if importlib.util.find_spec(package) is None]
    if missing:
        raise SettingsError(f"reading {name} needs {', '.join(missing)}; pip install 'isnet_trt[train]'")
    if split == TEST:
        from isnet_trt.evaluation.unlabelled import open_test_pictures

        return open_test_pictures(name, data)
    from isnet_trt.datasets.layouts import open_dataset

    return open_dataset(name, data, split)


def _packages(name: str) -> tuple[str, ...]:
    if name == "cocostuff10k":
        return ("scipy",)
    return ("PIL", "yaml") if is_described(name) else ("PIL",)


def check_labels(labels: Labels, pictures: Labelled, model: str) -> None:
    """Whether a model's classes are those of the set, by number and name.

    Raises:
        SettingsError: they are not; ``model`` is its path, for the message.
    """
    wanted = pictures.labels
    if labels.count != wanted.count:
        raise SettingsError(
            f"{model} has {labels.count} classes ({_begin(labels)}) but {pictures.name} has {wanted.count} "
            f"({_begin(wanted)}): evaluate it on the dataset that it was trained for"
        )
    for number, (has, needs) in enumerate(zip(labels.names, wanted.names, strict=True)):
        if has != needs:
            raise SettingsError(
                f"class {number} is {has!r} in {model} but {needs!r} in {pictures.name}: the label sets differ, "
                "so the figures would mean nothing"
            )


def _begin(labels: Labels) -> str:
    return ", ".join(labels.names[:3]) + (", …" if labels.count > 3 else "")
