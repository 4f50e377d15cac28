"""Predicted label maps as files in the dataset's own label values, as an evaluation server wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.files import make_folder
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.pictures.files import write_png


class LabelWriter:
    """Writes ``folder/NAME.png`` with the values that the dataset's own label files would hold.

    Cityscapes gets its label ids (road 7, …), ADE20K and COCO-Stuff 1..K, LIP and the drawn scenes 0..K−1.
    """

    def __init__(self, folder: Path, pictures: Labelled) -> None:
        """Make the folder.

        Raises:
            SettingsError: it cannot be made, or a file of the dataset would be replaced.
        """
        _check_inputs(folder, pictures)
        self.folder = make_folder(folder, "--export")
        self._values = stored_values(pictures)

    def __call__(self, name: str, labels: NDArray[np.unsignedinteger]) -> None:
        """Write one picture's labels, each file whole or not at all.

        Raises:
            SettingsError, ImageError: the folder or the file cannot be written.
        """
        path = self.folder / f"{name}.png"
        make_folder(path.parent, "--export")
        write_png(path, self._values[labels])


def _check_inputs(folder: Path, pictures: Labelled) -> None:
    files = [file for both in getattr(pictures, "files", ()) for file in (both if isinstance(both, tuple) else (both,))]
    inputs = {file.resolve() for file in files}
    for name in pictures.names:
        path = folder / f"{name}.png"
        if path.resolve() in inputs:
            raise SettingsError(f"{path} is a file of the dataset and would be replaced; choose another --export")


def stored_values(pictures: Labelled) -> NDArray[np.unsignedinteger]:
    """Training id -> stored value (the smallest where there are several), uint8 or uint16 (K,)."""
    values = getattr(pictures, "values", None)
    ids = range(pictures.labels.count)
    if values is None:
        found = {number: number for number in ids}
    else:
        found = {number: value for value, number in sorted(values.ids.items(), reverse=True)}
    table = np.array([found[number] for number in ids])
    return table.astype(np.uint8 if table.max() < 256 else np.uint16)
