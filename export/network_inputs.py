"""Network inputs made from images: those that the parity gate and comparisons use."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.files import named, printable
from isnet_trt.merging.windows import Padding, padded
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import read_image
from isnet_trt.pictures.finding import SUFFIXES, pictures_in
from isnet_trt.pictures.preprocess import normalise, padding_values, resize
from isnet_trt.settings import NetworkFacts, Preprocess, Size

PICTURES = Path(__file__).parent / "pictures"
"""Folder of the built-in images."""
_PLAIN = NetworkFacts()
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
        cls,
        name: str,
        image: NDArray[np.uint8],
        preprocess: Preprocess,
        file: Path | None = None,
        network: NetworkFacts = _PLAIN,
    ) -> NetworkInput:
        """Normalise an RGB image (H, W, 3) that has its final size, and pad it to a size that ``network`` takes."""
        padding = Padding(network, padding_values(preprocess, network))
        return cls(name, padded(normalise(image, preprocess).transpose(2, 0, 1), padding), file)


def load_inputs(
    preprocess: Preprocess,
    images: Path | Sequence[Path] | None = None,
    size: Size | None = None,
    limit: int | None = None,
    network: NetworkFacts = _PLAIN,
) -> list[NetworkInput]:
    """Load ``images`` (a file, a folder, files) through the recipe's test resize, or the built-in ones without them.

    With ``size`` every image is resized to that (height, width), for engines of one static shape. Only the first
    ``limit`` are read. They are padded to a size that ``network`` takes.

    Raises:
        SettingsError: the folder ``images`` holds no image.
        ImageError: one of them cannot be read, or is too narrow for the resize.
    """
    return list(itertools.islice(_inputs(preprocess, images, size, network), limit))


def _inputs(
    preprocess: Preprocess, images: Path | Sequence[Path] | None, size: Size | None, network: NetworkFacts
) -> Iterator[NetworkInput]:
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
        yield NetworkInput.from_image(printable(path.name), image, preprocess, path, network)


def built_in(preprocess: Preprocess) -> Callable[[Size], NDArray[np.float32]]:
    """The first built-in image, normalised, (1, 3, H, W), at any size (H, W)."""

    @functools.cache
    def picture(size: Size) -> NDArray[np.float32]:
        return load_inputs(preprocess, size=size, limit=1)[0].pixels

    return picture


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
