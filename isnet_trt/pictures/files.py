"""Picture files: find, read and write them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import ImageError
from isnet_trt.files import printable, write_file

Image = NDArray[np.uint8]
"""A picture, (H, W, 3) RGB unless stated otherwise."""
SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""The files that are taken from a folder; a file given by name is tried whatever its suffix."""


def read_image(path: str | os.PathLike[str]) -> Image:
    """A picture file as uint8 (H, W, 3) RGB.

    Read by OpenCV with its defaults, as the reference does: EXIF orientation applied, grey and palette expanded,
    alpha dropped, 16 bits reduced to 8.

    Raises:
        ImageError: there is no such file, or OpenCV cannot decode it.
    """
    if not Path(path).is_file():
        raise ImageError(f"{path}: there is no such picture file")
    try:
        image = _decoded(os.fspath(path))
    except cv2.error as error:
        raise ImageError(f"{path}: OpenCV cannot read it ({error.err}); convert it or make it smaller") from None
    if image is None:
        raise ImageError(f"{path}: not a picture that OpenCV can read; it is damaged, empty or no image file")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _decoded(path: str) -> Any:
    """The file decoded by OpenCV, or None where it cannot be.

    OpenCV's Python module ends the process on a name that is no Unicode (``caf\\xe9.jpg`` from a Latin-1 system).
    """
    if printable(path) == path:
        return cv2.imread(path, cv2.IMREAD_COLOR)
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    return cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None


def find_images(arguments: Iterable[str]) -> list[Path]:
    """The picture files that ``arguments`` (files, folders, globs) mean, each once, in order, missing files too.

    Raises ImageError if a folder or glob holds no picture.
    """
    images: dict[Path, None] = {}  # a set that keeps the order
    for argument in arguments:
        if Path(argument).is_dir():
            matches = pictures_in(Path(argument))
        elif glob.has_magic(argument) and not Path(argument).exists():
            names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
            matches = [Path(name) for name in names if Path(name).is_file()]
        else:
            matches = [Path(argument)]
        if not matches:
            raise ImageError(f"{argument}: no pictures there ({', '.join(sorted(SUFFIXES))} are looked for in folders)")
        images.update(dict.fromkeys(matches))
    return list(images)


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by their suffixes, sorted; not those in its subfolders."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir())


def write_png(path: Path, pixels: NDArray[np.unsignedinteger]) -> None:
    """Write ``pixels``, uint8 or uint16 (H, W) or uint8 (H, W, 3) BGR, as PNG; ImageError if that fails."""
    write_file(path, cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes(), ImageError)
