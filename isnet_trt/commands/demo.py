"""The whole chain in one command: checkpoint -> bundle -> label map of a street scene that was not trained on.

    python -m isnet_trt.demo --out demo

Builds a bundle from the demo checkpoint, draws a 1024×2048 scene, segments it at a single scale and with windows,
several scales and flip, and compares both with the exact labels. Writes scene.png, truth.png and labels.png (class
numbers, 8-bit grey), overlay.png and the bundle to --out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isnet_trt import Segmentation, Segmenter, cli
from isnet_trt.engines.select import choose
from isnet_trt.errors import SettingsError, needs
from isnet_trt.files import make_folder
from isnet_trt.metrics import Confusion, Metrics, percent
from isnet_trt.pictures.files import write_png
from isnet_trt.recipes import PRESETS, Recipe, recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.scenes import Scene, draw_scene

SEED = 9_500_007
"""A scene that is neither in the training nor in the held-out set."""
SIZE = (1024, 2048)


@dataclass(frozen=True)
class Result:
    """One preset's segmentation, its figures against the exact labels, and wall seconds."""

    preset: str
    segmentation: Segmentation
    metrics: Metrics
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = argument_parser().parse_args(argv)
    if args.ckpt == DEMO_CHECKPOINT and not args.ckpt.is_file():
        raise SettingsError(
            "the demo's checkpoint is not installed with the package: run make demo in a checkout of the repository, "
            "which holds training/assets/isnet_demo.pth, or name a checkpoint of isnet_demo with --ckpt"
        )
    make_folder(args.out, "--out")
    demo, scene = recipe("isnet_demo"), draw_scene(args.seed, *SIZE)
    _build(args.ckpt, args.out / "bundle", args.engine)
    start = time.perf_counter()
    with Segmenter.open(args.out / "bundle", threads=args.threads) as segmenter:
        seconds, engine = time.perf_counter() - start, type(segmenter.engine).__name__
        print(f"\nopened in {seconds:.2f} s: {engine} ({choose(args.engine).reason})")
        results = [_segment(segmenter, preset, scene) for preset in PRESETS]
    print(f"scene {args.seed}, {SIZE[0]}×{SIZE[1]}, not in training\n")
    print(table(demo, results))
    write(args.out, scene, results[-1].segmentation)
    cli.echo(f"\nwritten: {args.out}/scene.png, truth.png, labels.png, overlay.png, bundle/")
    return 0


def _build(checkpoint: Path, folder: Path, engine: str) -> None:
    with needs("building", "build"):
        from isnet_trt.export import EngineOptions, build
    cli.echo(f"bundle from {checkpoint.name}")
    build(checkpoint, folder, engine=EngineOptions(engine), force=True, say=lambda text: cli.echo(f"  {text}"))


def _segment(segmenter: Segmenter, preset: str, scene: Scene) -> Result:
    start = time.perf_counter()
    segmentation = segmenter(scene.image, inference=preset)
    seconds = time.perf_counter() - start
    confusion = Confusion(segmenter.labels.count)
    confusion.add(segmentation.labels, scene.labels)
    return Result(preset, segmentation, confusion.metrics(), seconds)


def table(demo: Recipe, results: Sequence[Result]) -> str:
    """The figures of all presets side by side: mIoU, IoU of each class (per cent), seconds of each stage."""
    rows: list[tuple[str, ...]] = [("", *(r.preset for r in results))]
    rows += [("mIoU %", *(percent(r.metrics.miou, 1) for r in results))]
    for number, name in enumerate(demo.labels.names):
        rows.append((f"  {name}", *(percent(r.metrics.iou[number], 1) for r in results)))
    rows += [("seconds", *(f"{r.seconds:.2f}" for r in results))]
    for stage in dict.fromkeys(stage for r in results for stage in r.segmentation.seconds):
        rows.append((f"  {stage}", *(f"{r.segmentation.seconds.get(stage, 0.0):.2f}" for r in results)))
    presets = [f"{r.preset:<9}{demo.preset(r.preset).describe()}" for r in results]
    lines = [f"{head:<16}" + "".join(f"{cell:>12}" for cell in cells) for head, *cells in rows]
    return "\n".join([*presets, "", *lines])


def write(folder: Path, scene: Scene, segmentation: Segmentation) -> None:
    """Write scene, truth, labels and overlay as PNG; ImageError if one cannot be written."""
    write_png(folder / "scene.png", scene.image[..., ::-1])
    results = {
        "truth.png": scene.labels,
        "labels.png": segmentation.labels,
        "overlay.png": segmentation.overlay(scene.image)[..., ::-1],
    }
    for name, image in results.items():
        write_png(folder / name, image, result=True)


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    p = cli.parser("isnet_trt.demo", __doc__ or "")
    add = p.add_argument
    out = "folder for the pictures and the bundle (default: demo)"
    add("--out", type=Path, default=Path("demo"), help=out)
    add("--ckpt", type=Path, default=DEMO_CHECKPOINT, help="another checkpoint of the demo model")
    add("--engine", default="auto", help="engine of the bundle (default: auto, what this machine can run)")
    add("--seed", type=cli.seed, default=SEED, help=f"which scene (default: {SEED})")
    add("--threads", type=cli.threads, help="CPU threads (default: all cores)")
    return p
