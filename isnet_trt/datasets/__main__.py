"""``python -m isnet_trt.training.data check``: look through a dataset before training on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from isnet_trt import cli
from isnet_trt.datasets.check import Findings, examine, page, report, spread
from isnet_trt.datasets.layouts import LAYOUTS, SPLITS, open_dataset
from isnet_trt.datasets.picture_set import PictureSet
from isnet_trt.pictures.files import write_png

_DESCRIPTION = """Look through a dataset before training on it.

Opens the dataset as training does, reads every picture with its labels (files that cannot be read, sizes that differ,
label values out of range), counts the classes, and draws a page of samples with their labels."""

_FOLDERS = "\n".join(f"  {name:<14}" + layout.about.replace("\n", "\n" + " " * 16) for name, layout in LAYOUTS.items())
_EPILOG = f"""folders, relative to DIR:
{_FOLDERS}
Id lists ({{train,val}}.txt, {{train,val}}_id.txt) beside them are used; they choose and order the pictures.

examples:
  python -m isnet_trt.training.data check ade20k /data/ADE20k
  python -m isnet_trt.training.data check cityscapes /data/cityscapes --split val --limit 100 --out city.png
  python -m isnet_trt.training.data check my_pictures.yaml

Exit status: 0 all files can be used, 1 some cannot, 2 the dataset cannot be opened."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = _parser().parse_args(argv)
    splits = SPLITS if arguments.split == "both" else (arguments.split,)
    datasets = [open_dataset(arguments.name, arguments.dir, split) for split in splits]
    findings = [examine(dataset, arguments.limit, arguments.workers) for dataset in datasets]
    layout = LAYOUTS.get(arguments.name)
    for dataset, of_split in zip(datasets, findings, strict=True):
        print(report(dataset, of_split, layout.complete[dataset.split] if layout else None))
    _draw(datasets, findings, arguments.samples, arguments.out or Path(f"{datasets[0].name}_check.png"))
    return cli.FAILED if any(of_split.problems for of_split in findings) else 0


def _draw(datasets: list[PictureSet], findings: list[Findings], samples: int, out: Path) -> None:
    chosen = [
        (dataset, of_split.usable[i])
        for dataset, of_split in zip(datasets, findings, strict=True)
        for i in spread(len(of_split.usable), samples)
    ]
    if chosen:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_png(out, page(chosen)[..., ::-1])
        print(f"samples: {out}")


def _parser() -> argparse.ArgumentParser:
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
    add("--workers", type=cli.positive, default=cores, metavar="N", help="threads (default: one per core)")
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(main))
