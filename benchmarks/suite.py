"""The cases whose result is committed: one command, one file, within about half an hour on two cores."""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import accuracy, growth, instructions, limit, machine, options, postprocess, rates, results
from benchmarks.latency import bounds, setups, text
from benchmarks.peers import Missing
from benchmarks.rounds import Case, measure
from benchmarks.weights import filled_checkpoint
from isnet_trt import Segmenter, cli
from isnet_trt.bundle import Bundle, read_bundle
from isnet_trt.errors import IsnetError, SettingsError
from isnet_trt.export import build
from isnet_trt.export.build import PRECISIONS
from isnet_trt.export.parity import PICTURES
from isnet_trt.merging.geometry import window_count
from isnet_trt.recipes import recipe as recipe_named
from isnet_trt.settings import Inference, Size
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.scenes import draw_scene

_DESCRIPTION = """Measure the committed cases on this machine and write one result file.

Made-up deterministic weights for the published recipes (tests/golden/fill.py), the trained checkpoint for the demo
model. A bundle is built for every precision that the build offers here; one that cannot be built is a named gap. Parts
already in --out are kept with --resume. Let nothing else run meanwhile."""
PEERS = ("reference", "pytorch", "compile", "onnxruntime", "openvino")
_MERGE_ROUNDS = 25
"""A merge takes a tenth of a second: with five rounds the spread was wider than the slowdown to be seen."""


@dataclass(frozen=True)
class Shot:
    """A case of the suite: which model, picture and inference, and which peers and precisions are worth the time."""

    name: str
    recipe: str
    size: Size
    preset: str = "default"
    inference: Inference | None = None
    peers: tuple[str, ...] = PEERS
    rounds: int = 5
    count_first: bool = False
    precisions: tuple[str, ...] | None = None
    """None: all that were built; otherwise those of these that were."""


ADE, CITY, LIP = (f"isnet_resnet50os8_{name}" for name in ("ade20k", "cityscapes", "lip"))
DEMO = "isnet_demo"
FAST = ("fp32", "int8")
"""Precisions that a CPU gains from; the others are timed on the short cases only."""
_CALIBRATION_SCENES = range(8_500_000, 8_500_008)
"""Drawn scenes of neither the training nor the held-out set."""
_WINDOWS = Inference("slide", (512, 1024), (341, 341), softmax_before_resize=True)
SHOTS = (
    Shot("ADE whole 512x683", ADE, (512, 683)),
    Shot("LIP 473x473", LIP, (473, 473), peers=("reference", "onnxruntime"), precisions=FAST),
    Shot("ADE whole 512x512", ADE, (512, 512), peers=("reference",), precisions=FAST),
    Shot("demo scene, default", DEMO, (512, 1024), peers=("reference", "onnxruntime")),
    Shot("demo scene, ms-flip", DEMO, (512, 1024), "ms-flip", None, ("reference",), 2, True),
    Shot("ADE ms+flip 512x683", ADE, (512, 683), "ms-flip", None, ("reference",), 3, True, FAST),
    Shot("Cityscapes slide 1024x2048", CITY, (1024, 2048), "slide", _WINDOWS, ("reference",), 1, True, FAST),
)


@dataclass
class Workshop:
    """What the parts of one run share."""

    folder: Path
    threads: int
    reference: Path | None
    rounds: int | None
    gaps: list[results.Record] = field(default_factory=list)
    _failed: set[tuple[str, str]] = field(default_factory=set)

    def checkpoint(self, recipe: str) -> Path:
        """The checkpoint of a recipe: trained for the demo model, made up for the others."""
        if recipe == DEMO:
            return DEMO_CHECKPOINT
        path = self.folder / f"{recipe}.pth"
        return path if path.is_file() else filled_checkpoint(recipe, path)

    def bundles(self, recipe: str, wanted: Sequence[str] | None = None) -> list[Bundle]:
        """A bundle of every precision that can be built here (those ``wanted`` only, if given)."""
        precisions = [p for p in PRECISIONS if wanted is None or p in wanted]
        bar = tqdm(precisions, desc=f"bundles of {recipe}", unit="bundle", disable=None, leave=False)
        found = [bundle for precision in bar if (bundle := self._bundle(recipe, precision))]
        if not found:
            raise SettingsError(f"no bundle of {recipe} could be built")
        return found

    def _bundle(self, recipe: str, precision: str) -> Bundle | None:
        """The bundle, built where it was not yet; None, and once a gap, where it cannot be."""
        out = self.folder / f"{recipe}-{precision}"
        if (recipe, precision) in self._failed:
            return None
        try:
            if not out.is_dir():
                checkpoint, pictures = self.checkpoint(recipe), self._calibration(recipe)
                build(checkpoint, out, recipe=recipe, engine="onnxruntime", precision=precision, calib=pictures)
            return read_bundle(out, verify=False)
        except IsnetError as error:
            self._failed.add((recipe, precision))
            gap = results.gap(f"{recipe} in {precision}", str(error))
            self.gaps[:] = [*(one for one in self.gaps if one["what"] != gap["what"]), gap]
            return None

    def _calibration(self, recipe: str) -> Path:
        """Typical pictures: scenes for the demo model, the built-in photographs for made-up weights."""
        folder = self.folder / "scenes"
        if recipe != DEMO:
            return PICTURES
        folder.mkdir(exist_ok=True)
        for seed in _CALIBRATION_SCENES:
            path = folder / f"{seed}.png"
            if not path.is_file():
                cv2.imwrite(str(path), draw_scene(seed, 256, 512).image[..., ::-1])
        return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(folder, arguments.threads, arguments.reference, arguments.rounds)
        parts = dict(_parts(workshop, arguments.out))
        tasks = _chosen(parts, arguments.parts or [""])
        records = _kept(arguments, list(tasks))
        fresh = [name for name in tasks if not any(record["part"] == name for record in records)]
        workshop.gaps += _kept_gaps(arguments.out, fresh) if records else []
        for name in tqdm(fresh, desc="suite", unit="part", disable=None):
            records += _run(name, tasks[name], workshop.gaps)
            results.write(arguments.out, results.result(_in_order(records, list(parts)), workshop.gaps))
    for one in workshop.gaps:
        print(f"not measured: {one['what']}: {one['why']}", file=sys.stderr)
    print(f"written: {arguments.out} ({len(records)} records, {len(workshop.gaps)} gaps)")
    return cli.ERROR if not records else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    names = "\n  ".join(dict(_parts(Workshop(Path(), 1, None, None), Path())))
    parser = cli.parser("benchmarks.suite", _DESCRIPTION, f"parts:\n  {names}")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only parts whose name holds one of these words")
    parser.add_argument("--rounds", type=cli.positive, help="this many rounds everywhere (default: the case's own)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep checkpoints and bundles here and use them again")
    parser.add_argument("--reference", type=Path, metavar="PATH", help="a checkout of the public reference, as a peer")
    parser.add_argument("--resume", action="store_true", help="keep the parts that --out already has")
    options.add_common(parser)
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        parser.error("--out FILE is needed")
    return arguments


Task = Callable[[], list[results.Record]]


def _chosen(parts: dict[str, Task], words: Sequence[str]) -> dict[str, Task]:
    """The parts whose name holds one of ``words``.

    Raises:
        SettingsError: a word is in no name.
    """
    if unknown := [word for word in words if not any(word in name for name in parts)]:
        raise SettingsError(f"--parts {' '.join(unknown)}: no part is called so; there are: {', '.join(parts)}")
    return {name: task for name, task in parts.items() if any(word in name for word in words)}


def _parts(workshop: Workshop, out: Path) -> Iterator[tuple[str, Task]]:
    """(name, what to do) of every part, short ones first."""
    shots = [(shot.name, functools.partial(_shoot, workshop, shot)) for shot in SHOTS]
    yield "scores to labels", functools.partial(_postprocess, workshop)
    yield from shots[:2]
    yield "limit of ADE whole", functools.partial(_limit, workshop)
    yield "growth of ADE", functools.partial(_growth, workshop)
    yield "accuracy of the demo model", functools.partial(_accuracy, workshop)
    yield from shots[2:]
    yield "Cityscapes ms+flip, extrapolated", functools.partial(_extrapolated, out)
    yield "instructions of host stages", lambda: [instructions.measure()]


def _run(name: str, task: Task, gaps: list[results.Record]) -> list[results.Record]:
    start = time.perf_counter()
    try:
        found = task()
    except (IsnetError, Missing) as error:
        gaps.append(results.gap(name, str(error)))
        return []
    for record in found:
        gaps += [results.gap(f"{name}: {g['what']}", g["why"]) for g in record.pop("gaps", [])]
        if record["kind"] == "latency":
            tqdm.write(text(record) + "\n")
    tqdm.write(f"[{name}: {time.perf_counter() - start:.0f} s]\n")
    return [{**record, "part": name, "date": results.now()} for record in found]


def _kept(arguments: argparse.Namespace, names: Sequence[str]) -> list[results.Record]:
    """Records of an earlier run's file; without --resume those of parts that are not measured now.

    Raises:
        SettingsError: they were measured on another machine or with other versions.
    """
    if not arguments.out.is_file() or not (arguments.resume or arguments.parts):
        return []
    earlier, here = results.read(arguments.out), machine.describe()
    for about in ("processor", "cores", "system", "versions"):
        if earlier["machine"].get(about) != here[about]:
            raise SettingsError(
                f"{arguments.out} was measured with {about} {earlier['machine'].get(about)}, here it is {here[about]}: "
                "results do not mix; give another --out"
            )
    kept = [r for r in earlier["records"] if "part" in r and (arguments.resume or r["part"] not in names)]
    return [{"date": earlier["date"], **record} for record in kept]


def _kept_gaps(out: Path, names: Sequence[str]) -> list[results.Record]:
    """Gaps of an earlier run's file but those of parts that are measured now, which would be found again."""
    return [one for one in results.read(out)["gaps"] if not any(one["what"].startswith(name) for name in names)]


def _in_order(records: Sequence[results.Record], names: Sequence[str]) -> list[results.Record]:
    order = {name: number for number, name in enumerate(names)}
    return sorted(records, key=lambda record: order.get(record["part"], -1))


def _shoot(workshop: Workshop, shot: Shot) -> list[results.Record]:
    found = workshop.bundles(shot.recipe, shot.precisions)
    manifest = found[0].manifest
    image = accuracy.scenes(1, shot.size).__next__().image if shot.recipe == DEMO else _picture(shot.size)
    case = Case(
        shot.name,
        image,
        shot.inference or manifest.preset(shot.preset),
        manifest.preprocess,
        workshop.rounds or shot.rounds,
        shot.count_first,
        shot.recipe,
        shot.preset,
    )
    contenders = setups(found, shot.peers, workshop.checkpoint(shot.recipe), workshop.threads, workshop.reference)
    return [measure(case, contenders, bounds(found))]


def _picture(size: Size) -> NDArray[np.uint8]:
    return options.pictures(None, size, size, [])[0][1]


def _postprocess(workshop: Workshop) -> list[results.Record]:
    rounds = workshop.rounds or _MERGE_ROUNDS
    return [postprocess.measure(work, workshop.threads, rounds) for work in postprocess.WORKS]


def _limit(workshop: Workshop) -> list[results.Record]:
    machine_rates = rates.measure(workshop.threads)
    how = argparse.Namespace(threads=workshop.threads, rounds=workshop.rounds or 3)
    found = workshop.bundles(ADE, FAST)
    named = zip(options.bundle_names(found), found, strict=True)
    return [limit.measure(name, bundle, (512, 683), machine_rates, how) for name, bundle in named]


def _growth(workshop: Workshop) -> list[results.Record]:
    (bundle,) = workshop.bundles(ADE, ("fp32",))
    with Segmenter.open(bundle.folder, threads=workshop.threads) as segmenter:
        found = growth.series(segmenter, workshop.threads, growth.AXES, 5)
        return [growth.measure(one, min(2, workshop.rounds or 2)) for one in found]


def _accuracy(workshop: Workshop) -> list[results.Record]:
    samples = list(accuracy.scenes(min(3, workshop.rounds or 3), (512, 1024)))
    found, ckpt = workshop.bundles(DEMO), workshop.checkpoint(DEMO)
    presets = ("default", "ms-flip")
    return [accuracy.measure(found, p, samples, ckpt, workshop.threads, workshop.gaps) for p in presets]


def _extrapolated(out: Path) -> list[results.Record]:
    """Cityscapes ms+flip from the time per window of the slide case of the same file: labelled, not measured."""
    records = results.read(out)["records"] if out.is_file() else []
    measured = [r for r in records if r["case"].startswith("Cityscapes slide")]
    if not measured:
        raise SettingsError("there is no slide case to extrapolate from")
    record, recipe = measured[-1], recipe_named(CITY)
    windows = window_count((1024, 2048), recipe.ms_flip)
    factor = windows / record["windows"]
    rows = {one["name"]: one["summary"]["p50"] * factor for one in record["contenders"] if one["status"] == "timed"}
    return [
        {
            "kind": "extrapolated",
            "case": "Cityscapes ms+flip 1024x2048",
            "inference": recipe.ms_flip.describe(),
            "windows": windows,
            "from": record["case"],
            "how": f"seconds of {record['case']} x {windows} / {record['windows']} windows; not measured",
            "seconds": rows,
        }
    ]


if __name__ == "__main__":
    sys.exit(cli.run(main))
