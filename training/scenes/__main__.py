"""Draw street scenes to PNG files.

    python -m isnet_trt.training.scenes --out scenes --count 8 --size 512 1024 --seed 0 --labels

Writes `scene_<seed>.png` for each seed and one `contact_sheet.png` of all; with --labels also `scene_<seed>_labels.png`
(class numbers, 8-bit grey) and `scene_<seed>_colours.png` (the same in the demo palette).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isnet_trt import cli
from isnet_trt.files import make_folder
from isnet_trt.opencv import cv2
from isnet_trt.pictures.files import write_png
from isnet_trt.recipes import DEMO_LABELS
from isnet_trt.settings import check_size
from isnet_trt.training.scenes import SCENE_SIZE, Scene, draw_scene

SHEET_WIDTH = 480
"""Width of one scene in the contact sheet, in pixels."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = argument_parser().parse_args(argv)
    check_size("--size", (args.size[0], args.size[1]))
    make_folder(args.out, "--out")
    cells = []
    for seed in range(args.seed, args.seed + args.count):
        scene = draw_scene(seed, *args.size)
        write_png(args.out / f"scene_{seed}.png", scene.image[..., ::-1])
        if args.labels:
            write_png(args.out / f"scene_{seed}_labels.png", scene.labels)
            write_png(args.out / f"scene_{seed}_colours.png", _colours(scene.labels)[..., ::-1])
        cells.append(_cell(scene, args.labels))
    write_png(args.out / "contact_sheet.png", _sheet(cells)[..., ::-1])
    cli.echo(f"{args.count} scenes of {args.size[0]}×{args.size[1]} in {args.out}")
    return 0


def _colours(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Labels H×W in the demo palette, RGB H×W×3."""
    return np.asarray(DEMO_LABELS.palette, np.uint8)[labels]


def _cell(scene: Scene, labels: bool) -> NDArray[np.uint8]:
    picture = np.vstack([scene.image, _colours(scene.labels)]) if labels else scene.image
    height = picture.shape[0] * SHEET_WIDTH // picture.shape[1]
    return cv2.resize(picture, (SHEET_WIDTH, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _sheet(cells: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The cells in about as many rows as columns, with white cells at the end."""
    columns = max(1, round(len(cells) ** 0.5))
    blank = np.full_like(cells[0], 255)
    cells = cells + [blank] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.training.scenes", __doc__ or "")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--count", type=cli.positive, default=8, help="number of scenes (default: 8)")
    parser.add_argument(
        "--size", type=cli.side, nargs=2, default=SCENE_SIZE, metavar=("H", "W"), help="default: 512 1024"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="seed of the first scene; the others follow")
    parser.add_argument("--labels", action="store_true", help="write the labels as well")
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(main))
