"""What eight bits cost a model of the drawn scenes: mIoU of every flavour, single scale and with ms-flip.

    python -m isnet_trt.export.quantise --out quantised
    python -m isnet_trt.export.quantise --ckpt isnet_demo_int8.pth --out quantised_qat --max-drop 0.1

Calibrates on training scenes, scores on held-out ones; all under ONNX Runtime on the CPU (graphs for TensorRT as their
twins). Leaves the calibration table, cost.md and, with --max-drop, the search for a mix as mix-<flavour>.json, .md and
.png under --out. A second run goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from isnet_trt import cli
from isnet_trt.export.graph import export_graph
from isnet_trt.export.quantise import FLAVOURS, Agreement, MeanIoU, Mix, Table, calibrate, mix, quantise
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.data.scenes import SceneSet, held_out_scenes, training_scenes
from isnet_trt.training.demo import CHECKPOINT
from isnet_trt.training.qat import calibration_pictures
from isnet_trt.training.recipes import PRESETS, Recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate, score, write."""
    args = _parser().parse_args(argv)
    checkpoint = load_checkpoint(args.ckpt, args.recipe)
    recipe = checkpoint.recipe
    proto = export_graph(load_model(checkpoint), recipe.name)
    pictures = calibration_pictures(recipe, training_scenes(SceneSet(count=args.calibration)), args.calibration)
    args.out.mkdir(parents=True, exist_ok=True)
    table = calibrate(proto, list(pictures), args.out, threads=args.threads)
    scores = {preset: _scorer(recipe, preset, args) for preset in PRESETS}
    text = _costs(proto, table, scores)
    (args.out / "cost.md").write_text(text + "\n", "utf-8")
    print(text)
    if args.max_drop is not None:
        _search(proto, table, scores["default"], recipe, args)
    return 0


def _scorer(recipe: Recipe, preset: str, args: argparse.Namespace) -> MeanIoU:
    count = args.scenes if preset == "default" else args.ms_flip_scenes
    scenes = held_out_scenes(count, SceneSet().size)
    pictures = [(np.ascontiguousarray(scenes[i][0][..., ::-1]), scenes[i][1]) for i in range(count)]
    return MeanIoU(recipe, pictures, recipe.preset(preset), args.threads)


def _costs(proto: onnx.ModelProto, table: Table, scores: dict[str, MeanIoU]) -> str:
    """A row for each flavour: mIoU and what is lost, by preset."""
    heads = [f"{preset} ({len(score.pictures)} scenes)" for preset, score in scores.items()]
    lines = [
        "| | " + " | ".join(f"{head}, mIoU % | lost" for head in heads) + " |",
        "|---|" + "---:|---:|" * len(heads),
    ]
    exact = {preset: score(proto) for preset, score in scores.items()}
    lines.append("| float32 | " + " | ".join(f"{value:.2f} | " for value in exact.values()) + " |")
    for flavour in FLAVOURS:
        graph = quantise(proto, table, flavour)
        found = {preset: score(graph) for preset, score in scores.items()}
        cells = (f"{value:.2f} | {exact[preset] - value:.2f}" for preset, value in found.items())
        lines.append(f"| {flavour} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _search(proto: onnx.ModelProto, table: Table, score: MeanIoU, recipe: Recipe, args: argparse.Namespace) -> None:
    from isnet_trt.export.quantise.picture import draw

    inputs = list(calibration_pictures(recipe, held_out_scenes(2, SceneSet().size), 2))
    rank = Agreement(proto, inputs, args.threads)
    for flavour in args.flavours:
        found: Mix = mix(proto, table, flavour, args.max_drop, score, rank=rank, folder=args.out)
        (args.out / f"mix-{flavour}.md").write_text(found.markdown() + "\n", "utf-8")
        draw(found, args.out / f"mix-{flavour}.png")
        print(f"\n{flavour}\n\n{found.markdown()}")


def _parser() -> argparse.ArgumentParser:
    p = cli.parser("isnet_trt.export.quantise", __doc__ or "")
    p.add_argument("--ckpt", type=Path, default=CHECKPOINT, help="a checkpoint of the demo model (default: its own)")
    p.add_argument("--recipe", metavar="NAME", help="the model's recipe (default: found from the checkpoint)")
    p.add_argument("--out", type=Path, required=True, help="folder for the table and the results")
    p.add_argument("--calibration", type=int, default=24, metavar="N", help="training scenes (default: 24)")
    p.add_argument("--scenes", type=int, default=12, metavar="N", help="held-out scenes, single scale (default: 12)")
    p.add_argument("--ms-flip-scenes", type=int, default=4, metavar="N", help="the same with ms-flip (default: 4)")
    p.add_argument("--max-drop", type=float, metavar="POINTS", help="search a mix that loses at most so much mIoU")
    p.add_argument(
        "--flavours", nargs="+", choices=FLAVOURS, default=FLAVOURS, help="flavours to search for (default: all)"
    )
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    return p


if __name__ == "__main__":
    sys.exit(cli.run(main))
