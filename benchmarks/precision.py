"""What each precision costs on the demo model and held-out scenes: mIoU at one scale, and with windows, scales, flip.

    python -m benchmarks.precision --out benchmarks/results/precision-demo --work precision-work

Every row is the graph that an engine gets, run by ONNX Runtime on the CPU (for TensorRT's types its faithful twin:
see docs/precision.md), through the same runtime on the same scenes. Writes NAME.json, NAME.md and, for each search of
--max-drop that had something to find, a picture. Label maps are kept in --work: a second run with the same folder goes
on where the first stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import results
from isnet_trt import cli
from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.labelled import SCENES, DrawnScenes
from isnet_trt.export.graph import export_graph
from isnet_trt.export.lowering import Arithmetic, flavour_of, lower_graph
from isnet_trt.export.quantise import Agreement, MeanIoU, Mix, Table, calibrate, calibration_inputs, find_mix
from isnet_trt.export.quantise.plot import draw
from isnet_trt.export.quantise.table import atomic_write, digest
from isnet_trt.export.ranges import Ranges, measure_ranges
from isnet_trt.export.samples import windows_at_scale_1
from isnet_trt.pictures.files import write_png
from isnet_trt.recipes import PRESETS, Recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint, load_model
from isnet_trt.training.scenes import TRAIN_SEED, draw_scene

SIZE = (512, 1024)
KIND = "precision"
_RANKED = 6
"""Calibration inputs on which blocks are ranked by equal labels."""
Labels = list[NDArray[np.integer]]


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
class Score:
    """One preset of a row: mIoU in %, points lost to the float32 of the first checkpoint, and the share (%) of pixels
    labelled as its own checkpoint in float32 labels them."""

    miou: float
    lost: float
    equal: float


@dataclass(frozen=True)
class Line:
    """A measured row; ``bytes`` are those of the engine's graph."""

    case: Case
    bytes: int
    scores: dict[str, Score]
    found: Mix | None = None

    def record(self) -> results.Record:
        """For the result file."""
        search = {"search": asdict(self.found)} if self.found else {}
        scores = {preset: asdict(score) for preset, score in self.scores.items()}
        return {
            "kind": KIND,
            "case": str(self.case),
            "engine": self.case.engine,
            "qat": self.case.qat,
            "bytes": self.bytes,
            "scores": scores,
            **search,
        }


@dataclass
class Source:
    """A checkpoint's graph with what calibration found on it."""

    recipe: Recipe
    proto: onnx.ModelProto
    table: Table
    ranges: Ranges
    agreement: Agreement


@dataclass
class Judge:
    """Label maps of a graph for each preset, kept in ``folder`` under the graph's digest."""

    scores: dict[str, MeanIoU]
    folder: Path
    unit: str = field(default=MeanIoU.unit, init=False)

    def labels(self, proto: onnx.ModelProto, preset: str) -> Labels:
        """The label maps of all scenes of ``preset``: those of an earlier run, and what is missing computed now."""
        count = len(self.scores[preset].pictures)
        folder = self.folder / f"{preset}-{digest(proto)[:20]}"
        files = [folder / f"{index}.png" for index in range(count)]
        if missing := [index for index, file in enumerate(files) if not file.exists()]:
            self._compute(self.scores[preset], proto, [(index, files[index]) for index in missing])
        return [np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) for file in files]

    def _compute(self, score: MeanIoU, proto: onnx.ModelProto, missing: Sequence[tuple[int, Path]]) -> None:
        missing[0][1].parent.mkdir(exist_ok=True)
        found = score.labels(proto, [index for index, _ in missing])
        for (_, file), labels in zip(missing, found, strict=True):
            with atomic_write(file) as temporary:
                temporary.write_bytes(cv2.imencode(".png", labels)[1])

    @property
    def fingerprint(self) -> str:
        """What a search hangs on."""
        return self.scores["default"].fingerprint

    def __call__(self, proto: onnx.ModelProto) -> float:
        """100 times the mIoU with the preset "default": what a search is bound by."""
        return self.scores["default"].of(self.labels(proto, "default"))


def cases(max_drops: Sequence[float], qat: bool) -> list[Case]:
    """The rows of the table, float32 first."""
    int8, fp8, cpu = (
        ("tensorrt", Arithmetic("int8")),
        ("tensorrt", Arithmetic("fp8")),
        ("onnxruntime", Arithmetic("int8")),
    )
    plain = [Case("tensorrt", Arithmetic(precision)) for precision in ("fp32", "fp16", "bf16", "int8", "fp8")]
    mixed = [Case(*one, max_drop) for max_drop in max_drops for one in (int8, cpu, fp8)]
    tuned = [Case(*one, qat=True) for one in (("tensorrt", Arithmetic("fp32")), int8, cpu)]
    return [*plain, Case(*cpu), *mixed, *(tuned if qat else [])]


def source(checkpoint: Checkpoint, street: Path, inputs: int, work: Path) -> Source:
    """Export, calibrate and measure one checkpoint."""
    recipe = checkpoint.recipe
    proto = export_graph(load_model(checkpoint), recipe.name)
    pictures = calibration_inputs(street, recipe.preprocess, windows_at_scale_1(recipe), inputs)
    table = calibrate(proto, pictures, work / checkpoint.sha256[:20])
    few = [picture for picture, _ in zip(pictures, range(_RANKED), strict=False)]
    return Source(recipe, proto, table, measure_ranges(proto, (one.pixels for one in few)), Agreement(proto, few))


def draw_street(folder: Path, count: int) -> Path:
    """Training scenes as files: what calibration may see.

    Raises:
        ImageError: one cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for index in range(count):
        path = folder / f"{TRAIN_SEED + index}.png"
        if not path.exists():  # what stands there is whole: a stopped run is gone on with
            write_png(path, draw_scene(TRAIN_SEED + index, *SIZE).image[..., ::-1])
    return folder


def measured(todo: Sequence[Case], plain: Source, tuned: Source | None, judge: Judge) -> Iterator[Line]:
    """Each case in turn, held against float32."""
    for case in tqdm(todo, "precisions", disable=None):
        origin = tuned if case.qat and tuned else plain
        found = None
        if case.max_drop is not None:
            flavour = flavour_of(case.arithmetic.precision, case.engine)
            folder = judge.folder / f"mix-{case.max_drop:g}"
            found = find_mix(
                origin.proto, origin.table, flavour, case.max_drop, judge, rank=origin.agreement, folder=folder
            )
        skip = found.skip if found else ()
        graphs = lower_graph(origin.proto, case.arithmetic, case.engine, origin.ranges, origin.table, skip)
        scores = {p: _score(judge, p, graphs.portable, plain.proto, origin.proto) for p in PRESETS}
        yield Line(case, graphs.engine.ByteSize(), scores, found)


def _score(judge: Judge, preset: str, proto: onnx.ModelProto, first: onnx.ModelProto, own: onnx.ModelProto) -> Score:
    labels, exact, before = (judge.labels(one, preset) for one in (proto, own, first))
    miou, best = (judge.scores[preset].of(one) for one in (labels, before))
    equal = float(np.mean([np.mean(one == other) for one, other in zip(labels, exact, strict=True)]))
    return Score(miou, best - miou, 100 * equal)


def table(lines: Sequence[Line], scenes: dict[str, int]) -> str:
    """The rows in Markdown."""
    heads = (f"{preset} ({scenes[preset]}): mIoU % | lost | labels equal %" for preset in PRESETS)
    rows = ["| precision | engine | graph, MB | " + " | ".join(heads) + " |"]
    rows.append("|---|---|---:|" + "---:|---:|---:|" * len(PRESETS))
    for line in lines:
        cells = (f"{s.miou:.2f} | {s.lost:+.2f} | {s.equal:.2f}" for s in (line.scores[p] for p in PRESETS))
        rows.append(f"| {line.case} | {line.case.engine} | {line.bytes / 1e6:.2f} | " + " | ".join(cells) + " |")
    searches = [
        f"- {line.case} ({line.case.engine}) keeps {', '.join(line.found.skip) or 'nothing'}"
        for line in lines
        if line.found
    ]
    return "\n".join([*rows, "", *searches])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = _parser().parse_args(argv)
    checkpoints = [_demo_checkpoint(path) for path in (args.ckpt, args.qat) if path]
    with _folder(args.work) as work:
        street = draw_street(work / "street", args.calib_inputs)
        plain, *tuned = (source(one, street, args.calib_inputs, work) for one in checkpoints)
        counts = dict(zip(PRESETS, (args.scenes, args.ms_flip_scenes), strict=True))
        judge = Judge({preset: _scorer(plain.recipe, preset, count) for preset, count in counts.items()}, work)
        lines = list(measured(cases(args.max_drop, bool(tuned)), plain, tuned[0] if tuned else None, judge))
    text = table(lines, counts)
    print(text)
    if args.out:
        about = {"scenes": counts, "checkpoints": {one.path.name: one.sha256 for one in checkpoints}}
        _write(args.out, lines, text, about)
    return 0


def _demo_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose classes are those of the drawn scenes."""
    found = load_checkpoint(path)
    if found.recipe.dataset != SCENES:
        raise SettingsError(f"{path} belongs to {found.recipe.name}; here drawn scenes are scored: give a demo model")
    return found


def _scorer(recipe: Recipe, preset: str, count: int) -> MeanIoU:
    drawn = DrawnScenes(count, SIZE)
    scenes = [(image[..., ::-1], truth) for image, truth in (drawn[index] for index in range(count))]
    return MeanIoU(recipe, scenes, recipe.preset(preset))


@contextlib.contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        work.mkdir(parents=True, exist_ok=True)
        yield work


def _write(out: Path, lines: Sequence[Line], text: str, about: dict[str, Any]) -> None:
    data = results.result([line.record() for line in lines], [], **about)
    results.write(out.with_suffix(".json"), data)
    head = "# Precision on the demo model\n\n"
    command = f"`{data['machine']['command']}`; held-out scenes of {SIZE[0]}×{SIZE[1]}.\n\n"
    parts = [head, command, text, "\n"]
    for line in lines:
        if line.found and line.found.ranking:
            name = f"{out.name}-{line.found.flavour}-{line.found.max_drop:g}.png"
            draw(line.found, out.with_name(name))
            parts += [f"\n## {line.case}, {line.case.engine}\n\n{line.found.markdown()}\n\n![The search]({name})\n"]
    results.write_text(out.with_suffix(".md"), "".join(parts))


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.precision", __doc__ or "")
    parser.add_argument("--ckpt", type=Path, default=DEMO_CHECKPOINT, help="another checkpoint of the demo model")
    parser.add_argument("--qat", type=Path, metavar="FILE", help="the same, fine-tuned with --qat: adds its rows")
    parser.add_argument("--scenes", type=cli.positive, default=12, metavar="N", help="held-out scenes (default: 12)")
    parser.add_argument(
        "--ms-flip-scenes", type=cli.positive, default=6, metavar="N", help="also with ms-flip (default: 6)"
    )
    parser.add_argument(
        "--calib-inputs", type=cli.positive, default=32, metavar="N", help="training scenes (default: 32)"
    )
    parser.add_argument(
        "--max-drop", type=float, nargs="*", default=[0.5], metavar="POINTS", help="bounds to search for (default: 0.5)"
    )
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json, NAME.md and pictures")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep tables and label maps there for the next run")
    return parser


if __name__ == "__main__":
    sys.exit(cli.run(main))
