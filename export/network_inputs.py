"""Network inputs made from images: those that the parity gate and comparisons use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import named, printable
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import read_image
from isnet_trt.pictures.finding import SUFFIXES, pictures_in
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.settings import Preprocess, Size

PICTURES = Path(__file__).parent / "pictures"
"""Folder of the built-in images."""
_LONG_SIDE = 256
"""Longer side of the built-in images at the gate: enough for every path of the network, seconds for ResNet-50."""


@dataclass(frozen=True)
class NetworkInput:
    """A name and normalised pixels, float32 (1, 3, H, W), and the file that they come from."""

    name: str
    pixels: NDArray[np.float32]
    file: Path | None = None

    @classmethod
    def from_image(
        cls, name: str, image: NDArray[np.uint8], preprocess: Preprocess, file: Path | None = None
    ) -> NetworkInput:
        """Normalise an RGB image (H, W, 3) that has its final size."""
        planes = normalise(image, preprocess).transpose(2, 0, 1)[None]
        return cls(name, np.ascontiguousarray(planes), file)


def load_inputs(
    preprocess: Preprocess,
    images: Path | Sequence[Path] | None = None,
    size: Size | None = None,
    limit: int | None = None,
) -> list[NetworkInput]:
    """Load ``images`` (a file, a folder, files) through the recipe's test resize, or the built-in ones without them.

    With ``size`` every image is resized to that (height, width), for engines of one static shape. Only the first
    ``limit`` are read.

    Raises:
        SettingsError: the folder ``images`` holds no image.
        ImageError: one of them cannot be read, or is too narrow for the resize.
    """
    return list(itertools.islice(_inputs(preprocess, images, size), limit))


def _inputs(preprocess: Preprocess, images: Path | Sequence[Path] | None, size: Size | None) -> Iterator[NetworkInput]:
    for path in _files(images or PICTURES):
        image = read_image(path)
        if size:
            image = scaled(image, size)
        elif images:
            try:
                image = resize(image, preprocess)
            except ImageError as error:
                raise ImageError(named(path, error)) from None
        else:
            factor = _LONG_SIDE / max(image.shape[:2])
            image = scaled(image, (round(image.shape[0] * factor), round(image.shape[1] * factor)))
        yield NetworkInput.from_image(printable(path.name), image, preprocess, path)


def scaled(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _files(images: Path | Sequence[Path]) -> Sequence[Path]:
    if not isinstance(images, Path):
        return images
    if not images.is_dir():
        return [images]
    if not (files := pictures_in(images)):
        raise SettingsError(f"{images}: no pictures for the parity gate there ({', '.join(sorted(SUFFIXES))})")
    return files
