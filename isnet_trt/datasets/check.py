"""``python -m isnet_trt.training.data check``: read every picture and label map, count classes, draw samples."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from isnet_trt import cli
from isnet_trt.datasets.check_page import Section, html, page
from isnet_trt.datasets.coverage import Coverage, doubts, shared_pictures
from isnet_trt.datasets.layouts import LAYOUTS, SPLITS, open_dataset
from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.errors import DataError, SettingsError, first_few
from isnet_trt.files import make_folder, refuse_inputs, write_file
from isnet_trt.metrics import percent
from isnet_trt.pictures.files import encode_result
from isnet_trt.recipes import IGNORE
from isnet_trt.settings import Size, short_name, size_text

_LISTED = 20
_COMMON = 8
_SUFFIXES = (".html", ".png", ".jpg", ".jpeg", ".webp")
"""Of the page; the first two are written by default."""

_DESCRIPTION = """Look through a dataset before training on it.

Opens the dataset as training does, reads every picture with its labels (files that cannot be read, sizes that differ,
label values out of range), counts the classes, reports classes that never occur and ignored values that may be meant as
a class, and writes a page with the counts and samples under their labels' colours."""

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
    targets = _targets(arguments.out, datasets[0].name)
    files = [file for dataset in datasets for pair in dataset.files for file in pair if file]
    refuse_inputs(targets, files, "--out")
    make_folder(targets[0].parent, "--out")
    findings = [examine(dataset, arguments.limit, arguments.workers) for dataset in datasets]
    if len(datasets) == len(SPLITS):
        findings[0].doubts += shared_pictures(*datasets)
    layout = LAYOUTS.get(arguments.name)
    for dataset, of_split in zip(datasets, findings, strict=True):
        cli.echo(report(dataset, of_split, layout.complete[dataset.split] if layout else None))
    _write_pages(datasets, findings, arguments.samples, targets)
    return cli.FAILED if any(of_split.problems or of_split.doubts for of_split in findings) else 0


def _targets(out: Path | None, name: str) -> list[Path]:
    """The files of the page: the one named if its suffix is of a format, or with both suffixes; SettingsError."""
    if out is not None and out.suffix:
        if out.suffix.lower() not in _SUFFIXES:
            raise SettingsError(f"--out {out}: the page is written as {', '.join(_SUFFIXES)}; choose one as suffix")
        return [out]
    out = out or Path(f"{name}_check")
    return [out.with_name(out.name + suffix) for suffix in _SUFFIXES[:2]]


def _write_pages(datasets: list[PictureSet], findings: list[Findings], samples: int, targets: list[Path]) -> None:
    sections = []
    for dataset, of_split in zip(datasets, findings, strict=True):
        chosen = [of_split.usable[i] for i in spread(len(of_split.usable), samples)]
        facts = [f"{len(dataset)} pictures, {len(of_split.usable) + len(of_split.problems)} read", *of_split.facts()]
        sections.append(Section(dataset, of_split, facts, of_split.complaints(), chosen))
    pairs = [(section.dataset, index) for section in sections for index in section.samples]
    for target in targets:
        if target.suffix.lower() == ".html":
            write_file(target, html(sections).encode(), DataError)
        elif pairs:
            write_file(target, encode_result(page(pairs), target.suffix), DataError)
        else:
            continue
        cli.echo(f"samples: {target}")


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
    about = "the page: .html, or .png, .jpg, .webp with samples only (default: NAME_check.html and NAME_check.png)"
    add("--out", type=Path, metavar="FILE", help=about)
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

    def facts(self) -> list[str]:
        """Sizes of the pictures, and the share of ignored pixels."""
        if not self.usable:
            return []
        small, large = (pick(self.sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
        sizes = dict.fromkeys(size_text(size) for size in (small, large))
        return [
            f"sizes:   {' to '.join(sizes)} (height x width)",
            f"ignored: {percent(self.ignored / self.total, 1)} % of the pixels",
        ]

    def complaints(self) -> list[str]:
        """What is wrong, a line each; of many pictures the first."""
        listed = [f"cannot be used: {problem}" for problem in self.problems[:_LISTED]]
        more = len(self.problems) - _LISTED
        listed += [f"… and {more} more"] if more > 0 else []
        return listed + [f"wrong as a whole: {doubt}" for doubt in self.doubts]


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
    lines += [f"  {line}" for line in findings.facts()]
    lines += _classes(dataset, findings) if findings.usable else []
    return "\n".join([*lines, *(f"  {line}" for line in findings.complaints())])


def _classes(dataset: PictureSet, findings: Findings) -> Iterator[str]:
    names = [short_name(name) for name in dataset.labels.names]
    yield "  pixels   pictures  most common classes"
    for c in np.argsort(-findings.pixels, kind="stable")[:_COMMON]:
        if findings.pixels[c]:
            yield f"  {percent(findings.pixels[c] / findings.total, 1):>6} % {findings.pictures[c]:8}  {names[c]}"
    absent = [names[c] for c in np.flatnonzero(findings.pixels == 0)]
    if absent:
        yield f"  absent:  {len(absent)} of {dataset.labels.count} classes: {first_few(absent, _LISTED)}"
