"""The whole chain in one command: checkpoint -> bundle -> label map of a street scene that was not in training.

    python -m isnet_trt.demo --out demo

Builds a bundle from the demo checkpoint, draws a 1024×2048 scene, segments it at a single scale and by windows, several
scales and flip, and compares both with the exact labels. Leaves scene.png, truth.png and labels.png (class numbers,
8-bit grey), overlay.png and the bundle under --out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from isnet_trt import Segmentation, Segmenter, cli
from isnet_trt.engines.select import choose
from isnet_trt.errors import BuildError, ImageError
from isnet_trt.metrics import Confusion, Metrics
from isnet_trt.recipes import PRESETS, Recipe, recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.scenes import Scene, draw_scene

SEED = 9_500_007
"""A scene of neither the training nor the held-out set."""
SIZE = (1024, 2048)


@dataclass(frozen=True)
class Answer:
    """One preset's label map, its figures against the exact labels, and wall seconds."""

    preset: str
    segmentation: Segmentation
    metrics: Metrics
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Build, segment, compare, write; 0 when all of it worked."""
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    demo, scene = recipe("isnet_demo"), draw_scene(args.seed, *SIZE)
    _build(args.ckpt, args.out / "bundle", args.engine)
    start = time.perf_counter()
    with Segmenter.open(args.out / "bundle", threads=args.threads) as segmenter:
        print(f"\nopened in {time.perf_counter() - start:.2f} s: {_engine_line(segmenter, args.engine)}")
        answers = [_segment(segmenter, preset, scene) for preset in PRESETS]
    print(f"scene {args.seed}, {SIZE[0]}×{SIZE[1]}, not in training\n")
    print(table(demo, answers))
    write(args.out, scene, answers[-1].segmentation)
    print(f"\nwritten: {args.out}/scene.png, truth.png, labels.png, overlay.png, bundle/")
    return 0


def _build(checkpoint: Path, folder: Path, engine: str) -> None:
    try:
        from isnet_trt.export import build
    except ImportError as error:
        raise BuildError(f"building needs more packages ({error}); pip install 'isnet_trt[build]'") from None
    print(f"bundle from {checkpoint.name}")
    build(checkpoint, folder, engine=engine, force=True, say=lambda text: print(f"  {text}", flush=True))


def _engine_line(segmenter: Segmenter, asked: str) -> str:
    return f"{type(segmenter.engine).__name__} ({choose(asked).reason})"


def _segment(segmenter: Segmenter, preset: str, scene: Scene) -> Answer:
    start = time.perf_counter()
    answer = segmenter(scene.image, inference=preset)
    seconds = time.perf_counter() - start
    confusion = Confusion(segmenter.labels.count)
    confusion.add(answer.labels, scene.labels)
    return Answer(preset, answer, confusion.metrics(), seconds)


def table(demo: Recipe, answers: Sequence[Answer]) -> str:
    """The figures of all presets side by side: mIoU, IoU of each class (per cent), seconds of each stage."""
    about = [f"{a.preset:<9}{demo.preset(a.preset).describe()}" for a in answers]
    rows: list[tuple[str, ...]] = [("", *(a.preset for a in answers))]
    rows += [("mIoU %", *(f"{100 * a.metrics.miou:.1f}" for a in answers))]
    for number, name in enumerate(demo.labels.names):
        rows.append((f"  {name}", *(f"{100 * a.metrics.iou[number]:.1f}" for a in answers)))
    stages = list(dict.fromkeys(stage for a in answers for stage in a.segmentation.seconds))
    rows += [("seconds", *(f"{a.seconds:.2f}" for a in answers))]
    for stage in stages:
        rows.append((f"  {stage}", *(f"{a.segmentation.seconds.get(stage, 0.0):.2f}" for a in answers)))
    lines = [f"{head:<16}" + "".join(f"{cell:>12}" for cell in cells) for head, *cells in rows]
    return "\n".join([*about, "", *lines])


def write(folder: Path, scene: Scene, answer: Segmentation) -> None:
    """The pictures, as PNG.

    Raises:
        ImageError: one cannot be written.
    """
    pictures: dict[str, NDArray[np.uint8]] = {
        "scene.png": scene.image[..., ::-1],
        "truth.png": scene.labels,
        "labels.png": answer.labels.astype(np.uint8),
        "overlay.png": answer.overlay(scene.image)[..., ::-1],
    }
    for name, picture in pictures.items():
        if not cv2.imwrite(str(folder / name), picture):
            raise ImageError(f"{folder / name} cannot be written; is there space, and may you write there?")


def _parser() -> argparse.ArgumentParser:
    p = cli.parser("isnet_trt.demo", __doc__ or "")
    p.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the pictures and the bundle (default: demo)"
    )
    p.add_argument("--ckpt", type=Path, default=DEMO_CHECKPOINT, help="another checkpoint of the demo model")
    p.add_argument("--engine", default="auto", help="engine of the bundle (default: auto, what this machine can run)")
    p.add_argument("--seed", type=int, default=SEED, help=f"which scene (default: {SEED})")
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    return p


if __name__ == "__main__":
    sys.exit(cli.run(main))
