"""Options and inputs that several benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from isnet_trt import cli
from isnet_trt.bundle import Bundle, read_bundle
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import BundleError, ImageError, SettingsError
from isnet_trt.pictures.files import find_images, read_image
from isnet_trt.settings import Size

PICTURE = Path(__file__).parents[1] / "export" / "pictures" / "coffee.jpg"
Named = tuple[str, NDArray[np.uint8]]


def add_common(parser: argparse.ArgumentParser) -> None:
    """``--threads`` and ``--out``."""
    parser.add_argument("--threads", type=cli.positive, default=usable_cores(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")


def add_images(parser: argparse.ArgumentParser, size: Size) -> None:
    """``--images`` and ``--image-size``."""
    parser.add_argument("--images", nargs="+", metavar="PATH", help="picture files or folders (default: one built in)")
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=cli.positive,
        metavar=("H", "W"),
        help=f"resize the pictures to this (default: the built-in one to {size[0]} {size[1]}, others as they are)",
    )
    parser.set_defaults(default_size=size)


def pictures(images: Sequence[str] | None, size: Size | None, default: Size, gaps: list[results.Record]) -> list[Named]:
    """(name, uint8 (H, W, 3)) of every picture that can be read; what cannot be goes to ``gaps``.

    Raises:
        ImageError: there is no picture, or none can be read.
    """
    if images is None:
        return [(PICTURE.name, _resized(read_image(PICTURE), size or default))]
    found = list(_read(find_images(images), size, gaps))
    if not found:
        raise ImageError("none of the pictures can be read: " + "; ".join(g["why"] for g in gaps))
    return found


def _read(paths: Sequence[Path], size: Size | None, gaps: list[results.Record]) -> Iterator[Named]:
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            gaps.append(results.gap(f"picture {path.name}", str(error)))
            continue
        yield path.name, _resized(image, size) if size else image


def _resized(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def bundles(folders: Sequence[Path], gaps: list[results.Record]) -> list[Bundle]:
    """The bundles that can be read and belong to the first one's recipe; the others go to ``gaps``.

    Raises:
        SettingsError: none is left.
    """
    found: list[Bundle] = []
    for folder in folders:
        try:
            bundle = read_bundle(folder, verify=False)
        except BundleError as error:
            gaps.append(results.gap(f"bundle {folder}", str(error)))
            continue
        if found and bundle.manifest.recipe != found[0].manifest.recipe:
            why = f"it is of recipe {bundle.manifest.recipe}, the first of {found[0].manifest.recipe}; measure it alone"
            gaps.append(results.gap(f"bundle {folder}", why))
            continue
        found.append(bundle)
    if not found:
        raise SettingsError("no bundle can be measured: " + "; ".join(g["why"] for g in gaps))
    return found


def bundle_names(found: Sequence[Bundle]) -> list[str]:
    """A name for each bundle: engine and precision, and the folder's name where two are alike."""
    plain = [f"isnet_trt {b.manifest.engine.kind} {b.manifest.precision}" for b in found]
    names = [n if plain.count(n) == 1 else f"{n} ({Path(b.folder).name})" for n, b in zip(plain, found, strict=True)]
    return [n if names.count(n) == 1 else f"{n} #{i + 1}" for i, n in enumerate(names)]
