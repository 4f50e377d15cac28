"""What was tried to make eight bits more accurate, each on the demo model: ranges, corrections, equalising, splitting.

    python -m benchmarks.quantise_trials --out benchmarks/results/quantise-trials

Error of the logits (rms over their standard deviation) and share of equal labels against float32, on crops of held-out
scenes; graphs for TensorRT as their twins under ONNX Runtime. Calibrated on crops of training scenes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import results
from isnet_trt import cli
from isnet_trt.export.graph import export_graph
from isnet_trt.export.parity import Picture
from isnet_trt.export.quantise import FLAVOURS, Flavour, Table, calibrate, quantise, running
from isnet_trt.export.quantise.adjust import corrected, equalised, split
from isnet_trt.export.quantise.observers import OBSERVERS
from isnet_trt.pictures.preprocess import normalise
from isnet_trt.recipes import recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.data.scenes import SceneCache, SceneSet, held_out_scenes, training_scenes

CROP = (256, 448)
KIND = "quantise-trial"
Change = Callable[[onnx.ModelProto, Table, Flavour], onnx.ModelProto]
Logits = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Trial:
    """One row for one flavour: ``rms`` of the logits' error over their standard deviation, ``equal`` labels in %."""

    what: str
    flavour: Flavour
    rms: float
    equal: float


def crops(scenes: SceneCache, count: int) -> list[Picture]:
    """A crop from the middle of each scene, as the network sees it."""
    preprocess = recipe("isnet_demo").preprocess
    found = []
    for index in range(count):
        image = np.ascontiguousarray(scenes[index][0][..., ::-1])
        top, left = ((whole - part) // 2 for whole, part in zip(image.shape[:2], CROP, strict=True))
        part = np.ascontiguousarray(image[top : top + CROP[0], left : left + CROP[1]])
        planes = normalise(part, preprocess).transpose(2, 0, 1)[None]
        found.append(Picture(str(index), np.ascontiguousarray(planes)))
    return found


def trials(proto: onnx.ModelProto, shown: list[Picture], judged: list[Picture]) -> Iterator[Trial]:
    """Every row of every flavour."""
    exact = answers(proto, judged)
    for what, graph, table, change in tqdm(list(_cases(proto, shown)), "trials", disable=None):
        for flavour in FLAVOURS:
            got = answers(quantise(change(graph, table, flavour), table, flavour), judged)
            yield Trial(what, flavour, *errors(got, exact))


def _cases(proto: onnx.ModelProto, shown: list[Picture]) -> Iterator[tuple[str, onnx.ModelProto, Table, Change]]:
    table = calibrate(proto, shown, progress=False)
    for name in OBSERVERS:
        one = dataclasses.replace(table, observers=(name,))
        yield f"{name} for all tensors", proto, one, _same
    yield "best of each tensor (used)", proto, table, _same
    yield "used, and bias correction", proto, table, corrected
    for what, other in (("equalised channels", equalised(proto, table)), ("concatenations split", split(proto))):
        yield f"used, and {what}", other, calibrate(other, shown, progress=False), _same


def _same(proto: onnx.ModelProto, table: Table, flavour: Flavour) -> onnx.ModelProto:
    return proto


def answers(proto: onnx.ModelProto, judged: Sequence[Picture]) -> Logits:
    """The logits of each input."""
    with running(proto) as engine:
        return [engine.run(one.pixels) for one in judged]


def errors(got: Logits, wanted: Logits) -> tuple[float, float]:
    """rms error over the standard deviation of ``wanted``, and 100 times the share of equal labels."""
    pairs = list(zip(got, wanted, strict=True))
    square = np.mean([np.square(one - other, dtype=np.float64).mean() for one, other in pairs])
    spread = np.concatenate([other.ravel() for other in wanted]).std()
    equal = np.mean([np.mean(one.argmax(1) == other.argmax(1)) for one, other in pairs])
    return float(np.sqrt(square) / spread), float(100 * equal)


def table(rows: Sequence[Trial]) -> str:
    """The rows in Markdown, a column for each flavour."""
    lines = ["| | " + " | ".join(FLAVOURS) + " |", "|---|" + "---:|" * len(FLAVOURS)]
    for what in dict.fromkeys(row.what for row in rows):
        cells = (f"{row.rms:.4f}, {row.equal:.2f} %" for row in rows if row.what == what)
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = _parser().parse_args(argv)
    checkpoint = load_checkpoint(args.ckpt)
    proto = export_graph(load_model(checkpoint), checkpoint.recipe.name)
    shown = crops(training_scenes(SceneSet(count=args.calibration)), args.calibration)
    judged = crops(held_out_scenes(args.scenes, SceneSet().size), args.scenes)
    rows = list(trials(proto, shown, judged))
    text = table(rows)
    print(text)
    if args.out:
        records = [{"kind": KIND, **asdict(row)} for row in rows]
        data = results.result(records, [], checkpoint=checkpoint.sha256)
        results.write(args.out.with_suffix(".json"), data)
        head = f"# Tried for eight bits, on the demo model\n\n`{data['machine']['command']}`\n\n"
        results.write_text(args.out.with_suffix(".md"), f"{head}{text}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.quantise_trials", __doc__ or "")
    parser.add_argument("--ckpt", type=Path, default=DEMO_CHECKPOINT, help="another checkpoint of the demo model")
    parser.add_argument("--calibration", type=int, default=12, metavar="N", help="training scenes (default: 12)")
    parser.add_argument("--scenes", type=int, default=6, metavar="N", help="held-out scenes (default: 6)")
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json and NAME.md")
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(main))
