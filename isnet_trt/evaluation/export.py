"""Predicted label maps as files in the dataset's own label values, as an evaluation server expects them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.pictures.files import make_folder, refuse_inputs, write_png


class LabelWriter:
    """Writes ``folder/NAME.png`` with the values that the dataset's own label files would hold.

    Cityscapes gets its label ids (road 7, …), ADE20K and COCO-Stuff 1..K, LIP and the drawn scenes 0..K−1.
    """

    def __init__(self, folder: Path, pictures: Labelled) -> None:
        """Create the folder.

        Raises:
            SettingsError: it cannot be created, or a file of the dataset would be replaced.
        """
        self.folder = folder
        files = pictures.files if isinstance(pictures, PictureSet) else ()
        refuse_inputs(map(self._path, pictures.names), [file for pair in files for file in pair if file], "--export")
        make_folder(folder, "--export")
        self._values = stored_values(pictures)

    def __call__(self, name: str, labels: NDArray[np.unsignedinteger]) -> None:
        """Write the labels of one picture; the file appears whole or not at all.

        Raises:
            SettingsError, ImageError: the folder or the file cannot be written.
        """
        path = self._path(name)
        make_folder(path.parent, "--export")
        write_png(path, self._values[labels])

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.png"


def stored_values(pictures: Labelled) -> NDArray[np.unsignedinteger]:
    """Training id -> stored value (the smallest where there are several), uint8 or uint16 (K,)."""
    count = pictures.labels.count
    stored = pictures.values.ids if isinstance(pictures, PictureSet) else {number: number for number in range(count)}
    by_id = {number: value for value, number in sorted(stored.items(), reverse=True)}
    table = np.array([by_id[number] for number in range(count)])
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)
