"""The test pictures of the datasets, whose labels only the evaluation servers have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt.datasets.layouts import label_values, layout_of
from isnet_trt.datasets.picture_set import LabelValues
from isnet_trt.datasets.reading import read_bgr
from isnet_trt.errors import DataError, SettingsError
from isnet_trt.pictures.files import Image
from isnet_trt.recipes import DATASETS, IGNORE
from isnet_trt.settings import Labels

_FOLDERS = {
    "ade20k": ("ADEChallengeData2016/images/testing", "images/testing", "release_test/testing"),
    "cityscapes": ("leftImg8bit/test", "leftImg8bit_trainvaltest/leftImg8bit/test"),
    "lip": ("testing_images", "Testing_images/testing_images"),
}
"""Where the reference's packages or the official archives have them, relative to the dataset's root."""


@dataclass(frozen=True)
class TestPictures:
    """Pictures without truth: every pixel's is `recipes.IGNORE`, so that nothing is counted.

    ``names`` are the paths in the picture folder without the common ending, ``values`` what the label files of the
    other splits hold.
    """

    name: str
    labels: Labels
    names: tuple[str, ...]
    files: tuple[Path, ...]
    values: LabelValues
    split: str = "test"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image, NDArray[np.int16]]:
        """Picture uint8 (H, W, 3) in B, G, R order and (H, W) ignored pixels.

        Raises:
            DataError: the picture cannot be read.
        """
        image = read_bgr(self.files[index])
        return image, np.full(image.shape[:2], IGNORE, np.int16)


def open_test_pictures(name: str, data: Path | None) -> TestPictures:
    """The test split of a dataset; ``data`` as for `isnet_trt.datasets.layouts.open_dataset`.

    Raises:
        SettingsError: the dataset has no unlabelled test pictures.
        DataError: they are not at ``data``.
    """
    if name not in _FOLDERS:
        raise SettingsError(f"{name} has no test pictures without labels; {', '.join(_FOLDERS)} have")
    layout = layout_of(name, "val")
    root = data or Path(layout.root)
    places = [base / place for base in (root, root / layout.root) for place in _FOLDERS[name]]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise DataError(f"{places[0]} is missing: unpack the test pictures too")
    pattern = f"{'*/' if layout.nested else ''}*{layout.image_end}"
    files = tuple(sorted(path for path in folder.glob(pattern) if not path.name.startswith(".")))
    if not files:
        raise DataError(f"{folder} holds no picture {pattern}; unpack it again")
    names = tuple(path.relative_to(folder).as_posix().removesuffix(layout.image_end) for path in files)
    return TestPictures(name, DATASETS[name].labels, names, files, label_values(name))
