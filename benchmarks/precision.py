"""What each precision costs on the demo model and held-out scenes: mIoU at one scale, and with windows, scales, flip.

    python -m benchmarks.precision --out benchmarks/results/precision-demo --work precision-work

Every row is the graph that an engine gets, run by ONNX Runtime on the CPU (for TensorRT's types a float graph that
emulates their rounding: see docs/precision.md), through the same runtime on the same scenes. Writes NAME.json, NAME.md
and, for each search of --max-drop that had something to find, a picture. Label maps are kept in --work: a second run
with the same folder continues where the first stopped.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import results, sections
from benchmarks.synthetic import scene_files
from isnet_trt import cli
from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.labelled import SCENES, DrawnScenes
from isnet_trt.files import replacing
from isnet_trt.recipes import PRESETS, Recipe
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.scenes import TRAIN_SEED

if TYPE_CHECKING:  # torch and onnx are imported where they are used: --help does without
    import onnx

    from isnet_trt.export.lowering import Arithmetic
    from isnet_trt.export.quantise import Agreement, MeanIoU, Mix, Table
    from isnet_trt.export.ranges import Ranges
    from isnet_trt.training.checkpoint import Checkpoint

SIZE = (512, 1024)
KIND = "precision"
_RANKED = 6
"""Calibration inputs on which blocks are ranked by equal labels."""
Labels = list[NDArray[np.integer]]
Row = tuple[results.Record, "Mix | None"]
"""A record of the table, and the search of --max-drop behind it."""


@dataclass(frozen=True)
class Case:
    """One row: an engine and its arithmetic; ``qat`` takes the fine-tuned checkpoint."""

    engine: str
    arithmetic: Arithmetic
    max_drop: float | None = None
    qat: bool = False

    def __str__(self) -> str:
        parts = [str(self.arithmetic) if self.engine != "onnxruntime" else self.arithmetic.precision]
        parts += [f"--max-drop {self.max_drop:g}"] if self.max_drop is not None else []
        return " ".join([*parts, *(["QAT"] if self.qat else [])])


@dataclass(frozen=True)
class Source:
    """A checkpoint's graph with its calibration table and ranges."""

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
    unit: str = field(init=False)

    def __post_init__(self) -> None:
        self.unit = self.scores["default"].unit

    def labels(self, proto: onnx.ModelProto, preset: str) -> Labels:
        """The label maps of all scenes of ``preset``: those of an earlier run, and what is missing computed now."""
        from isnet_trt.export.quantise.table import digest

        score, folder = self.scores[preset], self.folder / f"{preset}-{digest(proto)[:20]}"
        files = [folder / f"{index}.png" for index in range(len(score.pictures))]
        folder.mkdir(exist_ok=True)
        missing = [index for index, file in enumerate(files) if not file.exists()]
        for index, labels in zip(missing, score.labels(proto, missing) if missing else (), strict=True):
            with replacing(files[index]) as temporary:
                temporary.write_bytes(cv2.imencode(".png", labels)[1])
        return [np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) for file in files]

    @property
    def fingerprint(self) -> str:
        """Identifies the data that a search depends on."""
        return self.scores["default"].fingerprint

    def __call__(self, proto: onnx.ModelProto) -> float:
        """100 times the mIoU with the preset "default", which bounds a search."""
        return self.scores["default"].of(self.labels(proto, "default"))


def cases(max_drops: Sequence[float], qat: bool) -> list[Case]:
    """The rows of the table, float32 first."""
    from isnet_trt.export.lowering import Arithmetic

    int8, fp8 = (("tensorrt", Arithmetic(precision)) for precision in ("int8", "fp8"))
    cpu = ("onnxruntime", Arithmetic("int8"))
    plain = [Case("tensorrt", Arithmetic(precision)) for precision in ("fp32", "fp16", "bf16", "int8", "fp8")]
    mixed = [Case(*engine, max_drop) for max_drop in max_drops for engine in (int8, cpu, fp8)]
    tuned = [Case(*engine, qat=True) for engine in (("tensorrt", Arithmetic("fp32")), int8, cpu)]
    return [*plain, Case(*cpu), *mixed, *(tuned if qat else [])]


def source(checkpoint: Checkpoint, street: Path, inputs: int, work: Path) -> Source:
    """Export, calibrate and measure one checkpoint."""
    from isnet_trt.export.quantise import Agreement, calibrate, calibration_inputs
    from isnet_trt.export.ranges import measure_ranges
    from isnet_trt.export.samples import windows_at_scale_1
    from isnet_trt.export.tracing import export_graph
    from isnet_trt.training.checkpoint import load_model

    recipe = checkpoint.recipe
    proto = export_graph(load_model(checkpoint), recipe.name)
    pictures = calibration_inputs(street, recipe.preprocess, windows_at_scale_1(recipe), inputs)
    table = calibrate(proto, pictures, work / checkpoint.sha256[:20])
    few = [picture for picture, _ in zip(pictures, range(_RANKED), strict=False)]
    ranges = measure_ranges(proto, (picture.pixels for picture in few))
    return Source(recipe, proto, table, ranges, Agreement(proto, few))


def measured(todo: Sequence[Case], plain: Source, tuned: Source | None, judge: Judge) -> Iterator[Row]:
    """Each case in turn, compared with float32."""
    from isnet_trt.export.lowering import flavour_of, lower_graph
    from isnet_trt.export.quantise import find_mix

    for case in tqdm(todo, "precisions", disable=None):
        origin = tuned if case.qat and tuned else plain
        search = None
        if case.max_drop is not None:
            flavour = flavour_of(case.arithmetic.precision, case.engine)
            judged = origin.proto, origin.table, flavour, case.max_drop, judge
            search = find_mix(*judged, rank=origin.agreement, folder=judge.folder / f"mix-{case.max_drop:g}")
        skip = search.skip if search else ()
        graphs = lower_graph(origin.proto, case.arithmetic, case.engine, origin.ranges, origin.table, skip)
        scores = {preset: _score(judge, preset, graphs.portable, plain.proto, origin.proto) for preset in PRESETS}
        about = {"kind": KIND, "case": str(case), "engine": case.engine, "qat": case.qat}
        record = {**about, "bytes": graphs.engine.ByteSize(), "scores": scores}
        yield record | ({"search": asdict(search)} if search else {}), search


def _score(
    judge: Judge, preset: str, proto: onnx.ModelProto, first: onnx.ModelProto, own: onnx.ModelProto
) -> dict[str, float]:
    """mIoU in %, points lost to the float32 of the first checkpoint, and the share (%) of pixels that are labelled as
    the row's own checkpoint labels them in float32."""
    labels, exact, before = (judge.labels(graph, preset) for graph in (proto, own, first))
    miou, best = (judge.scores[preset].of(maps) for maps in (labels, before))
    equal = float(np.mean([np.mean(a == b) for a, b in zip(labels, exact, strict=True)]))
    return {"miou": miou, "lost": best - miou, "equal": 100 * equal}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.precision", __doc__ or "")
    parser.add_argument("--ckpt", type=Path, default=DEMO_CHECKPOINT, help="another checkpoint of the demo model")
    parser.add_argument("--qat", type=Path, metavar="FILE", help="the same, fine-tuned with --qat: adds its rows")
    number: dict[str, Any] = {"type": cli.positive, "metavar": "N"}
    parser.add_argument("--scenes", default=12, help="held-out scenes (default: 12)", **number)
    parser.add_argument("--ms-flip-scenes", default=6, help="also with ms-flip (default: 6)", **number)
    parser.add_argument("--calib-inputs", default=32, help="training scenes (default: 32)", **number)
    help = "bounds to search for (default: 0.5)"
    parser.add_argument("--max-drop", type=cli.number(0, 100), nargs="*", default=[0.5], metavar="POINTS", help=help)
    parser.add_argument("--out", type=Path, metavar="NAME", help="write NAME.json, NAME.md and pictures")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep tables and label maps there for the next run")
    args = parser.parse_args(argv)
    from isnet_trt.export.quantise import MeanIoU

    checkpoints = [_demo_checkpoint(path) for path in (args.ckpt, args.qat) if path]
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        training = range(TRAIN_SEED, TRAIN_SEED + args.calib_inputs)  # calibration sees no held-out scene
        street = scene_files(work / "street", training, SIZE)
        plain, *tuned = (source(checkpoint, street, args.calib_inputs, work) for checkpoint in checkpoints)
        counts = dict(zip(PRESETS, (args.scenes, args.ms_flip_scenes), strict=True))
        drawn = DrawnScenes(size=SIZE)
        scenes = [(image[..., ::-1], truth) for image, truth in map(drawn.__getitem__, range(max(counts.values())))]
        recipe = plain.recipe
        stride = recipe.architecture.output_stride
        scores = {p: MeanIoU(recipe, scenes[:count], recipe.preset(p), stride) for p, count in counts.items()}
        judge = Judge(scores, work)
        rows = list(measured(cases(args.max_drop, bool(tuned)), plain, tuned[0] if tuned else None, judge))
    print(sections.text([record for record, _ in rows]))
    if args.out:
        about = {"scenes": counts, "checkpoints": {c.path.name: c.sha256 for c in checkpoints}}
        _write(args.out, rows, about)
    return 0


def _demo_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint whose classes are those of the drawn scenes."""
    from isnet_trt.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    if checkpoint.recipe.dataset != SCENES:
        name = checkpoint.recipe.name
        raise SettingsError(f"{path} belongs to {name}; here drawn scenes are scored: give a demo model")
    return checkpoint


def _write(out: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """NAME.json, NAME.md, and a picture of each search that had something to find."""
    from isnet_trt.export.quantise.plot import draw

    data = results.result([record for record, _ in rows], [], **about)
    results.write(out.with_suffix(".json"), data)
    parts = head(data)
    for record, search in rows:
        if search and search.ranking:
            name = f"{out.name}-{search.flavour}-{search.max_drop:g}.png"
            draw(search, out.with_name(name))
            parts += [f"## {record['case']}, {record['engine']}", search.markdown(), f"![The search]({name})"]
    results.write_text(out.with_suffix(".md"), "\n\n".join(parts) + "\n")


def head(data: results.Result) -> list[str]:
    """Title, command and table of the page beside a result."""
    scenes = ", ".join(f"{count} {preset}" for preset, count in data["scenes"].items())
    command = f"`{data['machine']['command']}`; held-out scenes of {SIZE[0]}×{SIZE[1]}: {scenes}."
    return ["# Precision on the demo model", command, *sections.section(KIND, data["records"])]


if __name__ == "__main__":
    sys.exit(cli.run(main))
