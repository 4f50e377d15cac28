"""``python -m isnet_trt.training.data check``: look through a dataset before training on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from isnet_trt import cli
from isnet_trt.datasets.check import Findings, examine, page, report, spread
from isnet_trt.datasets.layouts import DATASET_NAMES, SPLITS, layout_of, open_dataset
from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.pictures.files import write_png

_DESCRIPTION = """Look through a dataset before training on it.

Opens the dataset as training does, reads every picture with its labels (files that cannot be read, sizes that differ,
label values out of range), counts the classes, and draws a page of samples with their labels."""

_EPILOG = """where the files are looked for, below DIR:
  ade20k        ADEChallengeData2016/{images,annotations}/{training,validation}
  cityscapes    leftImg8bit/{train,val}/CITY, gtFine/{train,val}/CITY (…_gtFine_labelIds.png)
  cocostuff10k  images, annotations (*.mat), imageLists/{train,test}.txt
  lip           {train,val}_images, {train,val}_segmentations, also below TrainVal_images and
                TrainVal_parsing_annotations
Id lists ({train,val}.txt, {train,val}_id.txt) are used where they lie beside; they choose and order the pictures.

examples:
  python -m isnet_trt.training.data check ade20k /data/ADE20k
  python -m isnet_trt.training.data check cityscapes /data/cityscapes --split val --limit 100 --out city.png
  python -m isnet_trt.training.data check my_pictures.yaml

Exit status: 0 all is well, 1 some file cannot be used (the others can), 2 the dataset cannot be opened."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    splits = SPLITS if arguments.split == "both" else (arguments.split,)
    datasets = [open_dataset(arguments.name, arguments.dir, split) for split in splits]
    found = [examine(one, arguments.limit, arguments.workers) for one in datasets]
    for dataset, findings in zip(datasets, found, strict=True):
        print(report(dataset, findings, _complete(arguments.name, dataset.split)))
    _draw(datasets, found, arguments.samples, arguments.out or Path(f"{datasets[0].name}_check.png"))
    return cli.FAILED if any(findings.problems for findings in found) else 0


def _complete(name: str, split: str) -> int | None:
    return layout_of(name, split).complete if name in DATASET_NAMES else None


def _draw(datasets: list[PictureSet], found: list[Findings], samples: int, out: Path) -> None:
    chosen = [
        (dataset, findings.usable[i])
        for dataset, findings in zip(datasets, found, strict=True)
        for i in spread(len(findings.usable), samples)
    ]
    if chosen:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_png(out, page(chosen)[..., ::-1])
        print(f"samples: {out}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("isnet_trt.training.data", "Tools for training data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="look through a dataset before training on it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=cli.HelpFormatter,
    )
    check.add_argument("name", metavar="NAME", help=f"{', '.join(DATASET_NAMES)}, or a .yaml file of one's own data")
    check.add_argument(
        "dir",
        metavar="DIR",
        nargs="?",
        type=Path,
        help="its folder (default: ADE20k, CityScapes, … here; the .yaml's own)",
    )
    check.add_argument("--split", default="both", choices=("both", *SPLITS), help="which part (default: both)")
    check.add_argument(
        "--limit", type=cli.positive, metavar="N", help="read N pictures of each part, evenly spaced, not all"
    )
    check.add_argument(
        "--samples", type=cli.positive, default=4, metavar="N", help="samples to draw of each part (default: 4)"
    )
    check.add_argument("--out", type=Path, metavar="FILE", help="the page of samples, PNG (default: NAME_check.png)")
    check.add_argument(
        "--workers", type=cli.positive, default=os.cpu_count() or 1, metavar="N", help="threads (default: one per core)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(main))
