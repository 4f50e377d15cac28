"""Reads the files of a dataset: pictures, label maps as PNG or MATLAB matrices, lists of names."""

from __future__ import annotations

import importlib.util
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import DataError, ImageError, SettingsError, install_hint
from isnet_trt.files import is_missing, regular_file_bytes
from isnet_trt.pictures.files import Image, max_pixels, picture_bytes, read_image

_LARGEST_LIST = 1 << 28
RawLabels = NDArray[np.integer]
_COLOUR = ("RGB", "RGBA")
_LOSSY = ("JPEG", "MPO")
_NARROW_GREY = {2: 85, 4: 17}
"""Bits of a grey PNG -> what Pillow (like OpenCV) multiplies its values by to fill a byte."""


def check_packages(name: str, label_suffix: str) -> None:
    """Raise `SettingsError` if the package that reads the label files of dataset ``name`` is missing."""
    package = "scipy" if label_suffix == ".mat" else "PIL"
    if importlib.util.find_spec(package) is None:
        raise SettingsError(f"reading {name} needs {package}; {install_hint('train')}")


def read_bgr(path: Path) -> Image:
    """A picture as uint8 (H, W, 3) in B, G, R order, read as for prediction (`isnet_trt.pictures.files.read_image`).

    Raises DataError if the file is missing, no picture, or cut off.
    """
    try:
        image = read_image(path)
    except ImageError as error:
        raise DataError(str(error)) from None
    return np.ascontiguousarray(image[..., ::-1])


def read_labels(path: Path) -> RawLabels:
    """The stored label values (H, W) of a PNG, or of the matrix ``S`` of a MATLAB file (``.mat``).

    Raises DataError if the file is missing, damaged, or not one whole number per pixel.
    """
    if is_missing(path):
        raise DataError(f"{path}: there is no such label file; unpack the annotations again")
    return _read_matrix(path) if path.suffix == ".mat" else _read_png(path)


def _read_png(path: Path) -> RawLabels:
    """Read by Pillow, which gives the indices of a paletted PNG; OpenCV converts them to luminance."""
    from PIL import Image as Pillow

    try:
        content = picture_bytes(path)
    except ImageError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: not a label picture that can be read ({reason})") from None
    try:
        with Pillow.open(io.BytesIO(content)) as picture:
            mode, values, lossy = picture.mode, np.asarray(picture), picture.format in _LOSSY
    except Exception as error:  # a damaged file makes the reader raise anything
        raise DataError(f"{path}: not a label picture that can be read ({error}); unpack or copy it again") from None
    if lossy:
        raise DataError(f"{path}: JPEG changes the values of labels; store them as PNG, from the originals")
    if mode in _COLOUR and (values[..., :1] == values[..., 1:3]).all():
        return values[..., 0]
    if mode not in ("L", "P", "1", "I", "I;16"):
        raise DataError(
            f"{path}: a label picture has one number per pixel (grey or palette), this one is {mode}; "
            "convert it to class numbers"
        )
    if mode == "L":
        return values // np.uint8(_NARROW_GREY.get(_grey_bits(content), 1))
    return values if values.dtype == np.uint8 else values.astype(np.int32)


def _grey_bits(content: bytes) -> int:
    """Bits per pixel of a grey PNG, from its header; 0 for any other file."""
    return content[24] if content.startswith(b"\x89PNG") and content[25] == 0 else 0


def _read_matrix(path: Path) -> RawLabels:
    from scipy.io import loadmat, whosmat

    stream = io.BytesIO(regular_file_bytes(path, max_pixels() * 8, DataError))
    try:
        if any(math.prod(shape) > max_pixels() for name, shape, _ in whosmat(stream) if name == "S"):
            raise ValueError(f"the matrix 'S' has more than {max_pixels()} elements")
        content: dict[str, Any] = loadmat(stream, variable_names=["S"])
    except Exception as error:  # a damaged file makes the reader raise anything
        raise DataError(f"{path}: not a MATLAB file that can be read ({error}); unpack or copy it again") from None
    matrix = content.get("S")
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "uif":
        raise DataError(f"{path}: it holds no label matrix 'S' (height x width numbers)")
    if matrix.dtype.kind == "f" and not (matrix == np.round(matrix)).all():
        raise DataError(f"{path}: the matrix 'S' has values that are no whole numbers")
    # Clipped: a conversion would map 2³² to 0.
    return np.clip(matrix, -1, np.iinfo(np.int32).max).astype(np.int32)


def read_ids(path: Path) -> tuple[str, ...]:
    """The names in a list file, one a line, without header and suffix; blank lines are skipped.

    Raises DataError if the file cannot be read, is empty, or names something twice.
    """
    try:
        text = regular_file_bytes(path, _LARGEST_LIST, DataError).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the list cannot be read ({error}); save it as UTF-8") from None
    ids = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not ids:
        raise DataError(f"{path}: the list is empty; unpack it again, or remove it to take all pictures of the folder")
    if len(set(ids)) < len(ids):
        twice = max(ids, key=Counter(ids).__getitem__)
        raise DataError(f"{path}: {twice!r} is listed twice, {len(ids) - len(set(ids))} lines too many in all")
    return ids
