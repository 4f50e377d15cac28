"""``python -m isnet_trt.training.data check``: read every picture and label map, count classes, draw samples."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from isnet_trt import cli
from isnet_trt.datasets.coverage import Coverage, doubts, shared_pictures
from isnet_trt.datasets.layouts import LAYOUTS, SPLITS, open_dataset
from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.errors import DataError, first_few
from isnet_trt.files import make_folder, refuse_inputs
from isnet_trt.metrics import percent
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import Image, write_png
from isnet_trt.pictures.legend import PAPER, pad
from isnet_trt.pictures.overlay import Look, draw
from isnet_trt.recipes import IGNORE
from isnet_trt.settings import Size

_LISTED = 20
_COMMON = 8
_TILE: Size = (260, 360)
"""Largest (height, width) of a picture on the page."""
_LINE = 22
_INK = (30, 30, 30)

_DESCRIPTION = """Look through a dataset before training on it.

Opens the dataset as training does, reads every picture with its labels (files that cannot be read, sizes that differ,
label values out of range), counts the classes, reports classes that never occur and ignored values that may be meant as
a class, and draws a page of samples with their labels."""

_FOLDERS = "\n".join(f"  {name:<14}" + layout.about.replace("\n", "\n" + " " * 16) for name, layout in LAYOUTS.items())
_EPILOG = f"""folders, relative to DIR:
{_FOLDERS}
Id lists ({{train,val}}.txt, {{train,val}}_id.txt) beside them are used; they choose and order the pictures.

examples:
  python -m isnet_trt.training.data check ade20k /data/ADE20k
  python -m isnet_trt.training.data check cityscapes /data/cityscapes --split val --limit 100 --out city.png
  python -m isnet_trt.training.data check my_pictures.yaml

Exit status: 0 all files can be used and the labels are plausible, 1 some cannot or the labels are probably not what is
meant (a class of your own that never occurs, nothing but ignored values, one class only), 2 the dataset cannot be
opened."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = argument_parser().parse_args(argv)
    splits = SPLITS if arguments.split == "both" else (arguments.split,)
    datasets = [open_dataset(arguments.name, arguments.dir, split) for split in splits]
    out = arguments.out or Path(f"{datasets[0].name}_check.png")
    files = [file for dataset in datasets for pair in dataset.files for file in pair if file]
    refuse_inputs([out], files, "--out")
    make_folder(out.parent, "--out")
    findings = [examine(dataset, arguments.limit, arguments.workers) for dataset in datasets]
    if len(datasets) == len(SPLITS):
        findings[0].doubts += shared_pictures(*datasets)
    layout = LAYOUTS.get(arguments.name)
    for dataset, of_split in zip(datasets, findings, strict=True):
        cli.echo(report(dataset, of_split, layout.complete[dataset.split] if layout else None))
    _draw_samples(datasets, findings, arguments.samples, out)
    return cli.FAILED if any(of_split.problems or of_split.doubts for of_split in findings) else 0


def _draw_samples(datasets: list[PictureSet], findings: list[Findings], samples: int, out: Path) -> None:
    chosen = [
        (dataset, of_split.usable[i])
        for dataset, of_split in zip(datasets, findings, strict=True)
        for i in spread(len(of_split.usable), samples)
    ]
    if chosen:
        write_png(out, page(chosen)[..., ::-1])
        cli.echo(f"samples: {out}")


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.training.data", "Tools for training data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    about = "look through a dataset before training on it"
    check = commands.add_parser(
        "check", help=about, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=cli.HelpFormatter
    )
    add = check.add_argument
    add("name", metavar="NAME", help=f"{', '.join(LAYOUTS)}, or a .yaml file of your own data")
    about = "its folder (default: ADE20k, CityScapes, … here; the .yaml's own)"
    add("dir", metavar="DIR", nargs="?", type=Path, help=about)
    add("--split", default="both", choices=("both", *SPLITS), help="which part (default: both)")
    add("--limit", type=cli.positive, metavar="N", help="read N pictures of each part, evenly spaced, not all")
    add("--samples", type=cli.positive, default=4, metavar="N", help="samples to draw of each part (default: 4)")
    add("--out", type=Path, metavar="FILE", help="the page of samples, PNG (default: NAME_check.png)")
    cores = os.cpu_count() or 1
    add("--workers", type=cli.threads, default=cores, metavar="N", help="threads (default: one per core)")
    return parser


@dataclass
class Findings(Coverage):
    """Counts of one split, of its usable pictures.

    ``sizes`` are their (height, width), ``usable`` their indices, ``problems`` a sentence for each of the others.
    ``doubts`` are about the labels as a whole.
    """

    sizes: list[Size] = field(default_factory=list)
    usable: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def examine(dataset: PictureSet, limit: int | None = None, workers: int = 4) -> Findings:
    """Read pictures and labels of a split, all or ``limit`` of them evenly spaced, in ``workers`` threads."""
    classes = dataset.labels.count
    findings = Findings(np.zeros(classes, np.int64), np.zeros(classes, np.int64))
    indices = spread(len(dataset), limit or len(dataset))
    pool = ThreadPoolExecutor(workers)
    try:
        counted = pool.map(lambda index: _count(dataset, index), indices)
        bar = tqdm(counted, f"{dataset.name} {dataset.split}", len(indices), unit="picture", dynamic_ncols=True)
        for index, result in zip(indices, bar, strict=True):
            if isinstance(result, str):
                findings.problems.append(result)
                continue
            findings.add(result[0])
            findings.sizes.append(result[1])
            findings.usable.append(index)
    finally:
        pool.shutdown(cancel_futures=True)
    findings.doubts += doubts(dataset, findings, complete=len(indices) == len(dataset) and not findings.problems)
    return findings


def _count(dataset: PictureSet, index: int) -> tuple[Coverage, Size] | str:
    """Counts and size of one picture; or the problem."""
    try:
        image, label_map = dataset.read(index)
    except DataError as error:
        return str(error)
    labels, stored = label_map or (np.full(image.shape[:2], IGNORE, np.int16), None)
    return Coverage.of(labels, stored, dataset.labels.count), labels.shape


def spread(count: int, number: int) -> list[int]:
    """``number`` indices below ``count`` (all, if there are fewer), evenly spaced from 0 on."""
    number = min(count, number)
    return [i * count // number for i in range(number)]


def report(dataset: PictureSet, findings: Findings, complete: int | None) -> str:
    """The findings in some lines; ``complete`` is the number of pictures of the complete dataset, if it is known."""
    bad = len(findings.problems)
    note = f" (the complete dataset has {complete})" if complete and complete != len(dataset) else ""
    read = len(findings.usable) + bad
    lines = [f"{dataset.name} {dataset.split}: {len(dataset)} pictures{note}, {read} read, {bad} bad"]
    lines += [*_sizes(findings.sizes), *_classes(dataset, findings)] if findings.usable else []
    lines += [f"  cannot be used: {problem}" for problem in findings.problems[:_LISTED]]
    more = bad - _LISTED
    lines += [f"  … and {more} more"] if more > 0 else []
    return "\n".join([*lines, *(f"  wrong as a whole: {doubt}" for doubt in findings.doubts)])


def _sizes(sizes: list[Size]) -> Iterator[str]:
    small, large = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    yield f"  sizes:   {small[0]}x{small[1]} to {large[0]}x{large[1]} (height x width)"


def _classes(dataset: PictureSet, findings: Findings) -> Iterator[str]:
    names = [name.split(",")[0] for name in dataset.labels.names]
    yield f"  ignored: {percent(findings.ignored / findings.total, 1)} % of the pixels"
    yield "  pixels   pictures  most common classes"
    for c in np.argsort(-findings.pixels, kind="stable")[:_COMMON]:
        if findings.pixels[c]:
            yield f"  {percent(findings.pixels[c] / findings.total, 1):>6} % {findings.pictures[c]:8}  {names[c]}"
    absent = [names[c] for c in np.flatnonzero(findings.pixels == 0)]
    if absent:
        yield f"  absent:  {len(absent)} of {dataset.labels.count} classes: {first_few(absent, _LISTED)}"


def page(samples: Sequence[tuple[PictureSet, int]]) -> Image:
    """Samples one below the other, uint8 RGB: the picture, and the picture under its label colours with a legend."""
    rows = [_row(dataset, index) for dataset, index in samples]
    width = max(row.shape[1] for row in rows)
    return np.vstack([pad(row, len(row), width) for row in rows])


def _row(dataset: PictureSet, index: int) -> Image:
    bgr, labels = dataset[index]
    height, width = labels.shape
    factor = min(_TILE[0] / height, _TILE[1] / width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.uint8)[..., ::-1]
    small = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.int16)
    overlay = _overlay(dataset, np.ascontiguousarray(image), small)
    height = max(len(image), len(overlay))
    pair = np.hstack([pad(image, height, _TILE[1] + _LINE // 2), pad(overlay, height)])
    return np.vstack([_caption(f"{dataset.split}: {_file_name(dataset, index)}", pair.shape[1]), pair])


def _file_name(dataset: PictureSet, index: int) -> str:
    """The name of a picture in its set, with the suffix of its file."""
    return dataset.names[index] + dataset.files[index][0].suffix


def _overlay(dataset: PictureSet, image: Image, labels: NDArray[np.int16]) -> Image:
    """``image`` under its labels' colours; ignored pixels are hatched."""
    names, palette = dataset.labels.names, np.array(dataset.labels.palette, np.uint8)
    stored = np.where(labels < 0, np.iinfo(np.uint16).max, labels).astype(np.uint16)
    return draw(image, stored, names, palette, Look(alpha=0.8, void=True))


def _caption(text: str, width: int) -> Image:
    strip = np.full((_LINE, width, 3), PAPER, np.uint8)
    cv2.putText(strip, text, (4, _LINE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)
    return strip
