"""What the benchmark commands share: options, pictures, bundles, and how a run prints, records and ends."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import results, sections
from benchmarks.synthetic import filled_checkpoint
from isnet_trt import cli
from isnet_trt.bundle import Bundle, read_bundle
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import BundleError, ImageError, SettingsError
from isnet_trt.pictures.files import read_image
from isnet_trt.pictures.finding import find_images
from isnet_trt.settings import Size

PICTURE = Path(__file__).parents[1] / "export" / "pictures" / "coffee.jpg"
Gaps = list[results.Record]
EXIT_STATUS = """

Exit status: 0 all was measured, 1 something could not be (the rest was, and the gap is named), 2 nothing could be."""


def add_common(parser: argparse.ArgumentParser, rounds: int = 0, out_needed: bool = False) -> None:
    """``--threads`` and ``--out``, and ``--rounds`` where there is a default of it."""
    if rounds:
        text = f"timed rounds (default: {rounds})"
        parser.add_argument("--rounds", type=cli.positive, default=rounds, help=text)
    parser.add_argument("--threads", type=cli.threads, default=usable_cores(), help="CPU threads (default: all cores)")
    parser.add_argument("--out", type=Path, metavar="FILE", required=out_needed, help="write the result as JSON")


def add_bundles(parser: argparse.ArgumentParser) -> None:
    """The bundles to measure."""
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="folders made by isnet_trt.build")


def add_images(parser: argparse.ArgumentParser, size: Size) -> None:
    """``--images`` and ``--image-size``."""
    parser.add_argument("--images", nargs="+", metavar="PATH", help="picture files or folders (default: one built in)")
    default = f"the built-in one to {size[0]} {size[1]}, others as they are"
    add_image_size(parser, f"resize the pictures to this (default: {default})")
    parser.set_defaults(default_size=size)


def add_image_size(parser: argparse.ArgumentParser, text: str, default: Size | None = None) -> None:
    """``--image-size H W``."""
    parser.add_argument("--image-size", nargs=2, type=cli.side, default=default, metavar=("H", "W"), help=text)


def finish(records: Sequence[results.Record], gaps: Gaps, out: Path | None, measured: bool | None = None) -> int:
    """Print the records, name the gaps, write the result; the exit status of the command.

    0: all was measured; 1: something was not (a gap, or a contender that is not timed); 2: nothing was. ``measured``
    says whether there is a figure at all, by default whether there is a record.
    """
    if records:
        print(sections.text(records), end="\n\n")
    for gap in gaps:
        print(f"not measured: {gap['what']}: {gap['why']}", file=sys.stderr)
    if out:
        results.write(out, results.result(records, gaps))
    if not (bool(records) if measured is None else measured):
        return cli.ERROR
    refused = any(c["status"] != "timed" for record in records for c in record.get("contenders", ()))
    return cli.FAILED if gaps or refused else 0


def pictures(
    images: Sequence[str] | None, size: Size | None, default: Size, gaps: Gaps
) -> list[tuple[str, NDArray[np.uint8]]]:
    """(name, uint8 (H, W, 3) RGB) of every picture that can be read; the others go to ``gaps``.

    Raises:
        ImageError: there is no picture, or none can be read.
    """
    if images is None:
        return [(PICTURE.name, _resized(read_image(PICTURE), size or default))]
    readable = []
    for source in find_images(images):
        try:
            image = source.read()
        except ImageError as error:
            gaps.append(results.gap(f"picture {source.name}", str(error)))
            continue
        readable.append((source.name, _resized(image, size) if size else image))
    if not readable:
        raise ImageError("none of the pictures can be read: " + "; ".join(gap["why"] for gap in gaps))
    return readable


def _resized(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def read_bundles(folders: Sequence[Path], gaps: Gaps) -> list[Bundle]:
    """The bundles that can be read and belong to the first one's recipe; the others go to ``gaps``.

    Raises:
        SettingsError: none is left.
    """
    bundles: list[Bundle] = []
    for folder in folders:
        try:
            bundle = read_bundle(folder, verify=False)
        except BundleError as error:
            gaps.append(results.gap(f"bundle {folder}", str(error)))
            continue
        first, recipe = (bundles or [bundle])[0].manifest.recipe, bundle.manifest.recipe
        if recipe == first:
            bundles.append(bundle)
        else:
            why = f"it is of recipe {recipe}, the first of {first}; measure it alone"
            gaps.append(results.gap(f"bundle {folder}", why))
    if not bundles:
        raise SettingsError("no bundle can be measured: " + "; ".join(gap["why"] for gap in gaps))
    return bundles


def named(bundles: Sequence[Bundle]) -> dict[str, Bundle]:
    """The bundles by name: engine and precision, and the folder's name or a number where two are alike."""
    plain = [f"isnet_trt {b.manifest.engine.kind} {b.manifest.precision}" for b in bundles]
    names = [n if plain.count(n) == 1 else f"{n} ({Path(b.folder).name})" for n, b in zip(plain, bundles, strict=True)]
    numbered = [n if names.count(n) == 1 else f"{n} #{i + 1}" for i, n in enumerate(names)]
    return dict(zip(numbered, bundles, strict=True))


def weights(option: str | None) -> results.Record:
    """What a record says of its weights, where ``--ckpt`` tells it."""
    return {"weights": "synthetic"} if option == "filled" else {}


@contextmanager
def checkpoint(option: str | None, recipe: str) -> Iterator[Path | None]:
    """The checkpoint file that ``--ckpt`` names; ``filled`` makes a temporary one with synthetic weights.

    Raises:
        SettingsError: there is no such file, or there are no synthetic weights for the recipe.
    """
    if option == "filled":
        with tempfile.TemporaryDirectory() as folder:
            yield filled_checkpoint(recipe, Path(folder) / "filled.pth")
        return
    if option is not None and not Path(option).is_file():
        raise SettingsError(f"--ckpt {option}: there is no such file")
    yield Path(option) if option else None
