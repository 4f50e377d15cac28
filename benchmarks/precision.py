"""What each precision costs on the demo model and held-out scenes: mIoU at one scale, and with windows, scales, flip.

    python -m benchmarks.precision --out benchmarks/results/precision-demo

Every row is the graph that an engine gets, run by ONNX Runtime on the CPU (for TensorRT's types its faithful twin:
see docs/precision.md), through the same runtime on the same scenes. Writes NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import onnx
from tqdm import tqdm

from benchmarks import machine
from isnet_trt import cli
from isnet_trt.errors import ImageError
from isnet_trt.evaluation.labelled import DrawnScenes
from isnet_trt.export.build import windows_at_scale_1
from isnet_trt.export.graph import export_graph
from isnet_trt.export.graphs import Arithmetic, flavour_of, make_graphs
from isnet_trt.export.quantise import Agreement, MeanIoU, Table, calibrate, calibration_inputs, mix
from isnet_trt.export.ranges import Ranges, measure
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.data.scenes import TRAIN_SEED
from isnet_trt.training.demo import CHECKPOINT
from isnet_trt.training.recipes import PRESETS, Recipe
from isnet_trt.training.scenes import draw_scene

SIZE = (512, 1024)
_RANKED = 6
"""Calibration inputs on which blocks are ranked by equal labels."""


@dataclass(frozen=True)
class Case:
    """One row: what is asked of which engine; ``qat`` takes the fine-tuned checkpoint."""

    engine: str
    arithmetic: Arithmetic
    max_drop: float | None = None
    qat: bool = False

    def __str__(self) -> str:
        parts = [str(self.arithmetic) if self.engine != "onnxruntime" else self.arithmetic.precision]
        parts += [f"--max-drop {self.max_drop:g}"] if self.max_drop is not None else []
        return " ".join([*parts, *(["QAT"] if self.qat else [])])


@dataclass(frozen=True)
class Line:
    """A measured row: mIoU in per cent by preset, points lost to float32 by preset, and the graph's bytes."""

    case: str
    engine: str
    bytes: int
    miou: dict[str, float]
    drop: dict[str, float]
    kept: tuple[str, ...] = ()


@dataclass
class Source:
    """A checkpoint's graph with what calibration found on it."""

    recipe: Recipe
    proto: onnx.ModelProto
    table: Table
    ranges: Ranges
    agreement: Agreement


def cases(qat: bool) -> list[Case]:
    """The rows of the table, float32 first."""
    plain = [Case("tensorrt", Arithmetic(precision)) for precision in ("fp32", "fp16", "bf16", "int8", "fp8")]
    rows = [
        *plain,
        Case("tensorrt", Arithmetic("int8"), 0.5),
        Case("onnxruntime", Arithmetic("int8")),
        Case("onnxruntime", Arithmetic("int8"), 0.5),
    ]
    tuned = [Case(engine, Arithmetic("int8"), qat=True) for engine in ("tensorrt", "onnxruntime")]
    return rows + tuned if qat else rows


def source(checkpoint: Path, street: Path, inputs: int) -> Source:
    """Export, calibrate and measure one checkpoint."""
    loaded = load_checkpoint(checkpoint)
    recipe = loaded.recipe
    proto = export_graph(load_model(loaded), recipe.name)
    pictures = calibration_inputs(street, recipe.preprocess, windows_at_scale_1(recipe), inputs)
    table = calibrate(proto, pictures)
    few = [picture for picture, _ in zip(pictures, range(_RANKED), strict=False)]
    return Source(recipe, proto, table, measure(proto, (one.pixels for one in few)), Agreement(proto, few))


def draw_street(folder: Path, count: int) -> None:
    """Training scenes as files: what calibration may see.

    Raises:
        ImageError: one cannot be written.
    """
    for index in range(count):
        path = folder / f"{TRAIN_SEED + index}.png"
        if not cv2.imwrite(str(path), draw_scene(TRAIN_SEED + index, *SIZE).image[..., ::-1]):
            raise ImageError(f"{path} cannot be written; is there space?")


def measured(todo: Sequence[Case], plain: Source, tuned: Source | None, scores: dict[str, MeanIoU]) -> Iterator[Line]:
    """Each case in turn; float32 comes first and is what the others are held against."""
    best: dict[str, float] = {}
    for case in tqdm(todo, "precisions", disable=None):
        origin = tuned if case.qat and tuned else plain
        skip: tuple[str, ...] = ()
        if case.max_drop is not None:
            flavour = flavour_of(case.arithmetic.precision, case.engine)
            found = mix(origin.proto, origin.table, flavour, case.max_drop, scores["default"], rank=origin.agreement)
            skip = found.skip
        graphs = make_graphs(origin.proto, case.arithmetic, case.engine, origin.ranges, origin.table, skip)
        miou = {preset: score(graphs.portable) for preset, score in scores.items()}
        best = best or miou
        drop = {preset: best[preset] - value for preset, value in miou.items()}
        yield Line(str(case), case.engine, graphs.engine.ByteSize(), miou, drop, skip)


def table(lines: Sequence[Line]) -> str:
    """The rows in Markdown."""
    head = ["precision", "engine", "graph, MB", *(f"mIoU {p}, %" for p in PRESETS), *(f"lost {p}" for p in PRESETS)]
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for line in lines:
        figures = [*(f"{line.miou[p]:.2f}" for p in PRESETS), *(f"{line.drop[p]:+.2f}" for p in PRESETS)]
        rows.append([line.case, line.engine, f"{line.bytes / 1e6:.2f}", *figures])
    kept = [f"- {line.case} ({line.engine}) keeps {', '.join(line.kept)}" for line in lines if line.kept]
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), *([""] if kept else []), *kept])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        draw_street(Path(folder), args.calib_inputs)
        plain = source(args.ckpt, Path(folder), args.calib_inputs)
        tuned = source(args.qat, Path(folder), args.calib_inputs) if args.qat else None
    drawn = DrawnScenes(args.scenes, SIZE)
    scenes = [(image[..., ::-1], truth) for image, truth in (drawn[index] for index in range(len(drawn)))]
    scores = {preset: MeanIoU(plain.recipe, scenes, plain.recipe.preset(preset)) for preset in PRESETS}
    lines = list(measured(cases(tuned is not None), plain, tuned, scores))
    text = table(lines)
    print(text)
    if args.out:
        _write(args, lines, text)
    return 0


def _write(args: argparse.Namespace, lines: Sequence[Line], text: str) -> None:
    qat = f" --qat {args.qat.name}" if args.qat else ""
    command = f"python -m benchmarks.precision --scenes {args.scenes} --calib-inputs {args.calib_inputs}{qat}"
    about = {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": machine.describe(),
        "scenes": args.scenes,
        "lines": [asdict(line) for line in lines],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    head = f"# Precision on the demo model\n\n`{command}`; {args.scenes} held-out scenes of 512×1024.\n\n"
    args.out.with_suffix(".md").write_text(f"{head}{text}\n", "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.precision", __doc__ or "")
    parser.add_argument("--ckpt", type=Path, default=CHECKPOINT, help="another checkpoint of the demo model")
    parser.add_argument("--qat", type=Path, metavar="FILE", help="the same, fine-tuned with --qat: adds its rows")
    parser.add_argument("--scenes", type=int, default=32, metavar="N", help="held-out scenes (default: 32)")
    parser.add_argument("--calib-inputs", type=int, default=32, metavar="N", help="training scenes (default: 32)")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json and NAME.md")
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(main))
