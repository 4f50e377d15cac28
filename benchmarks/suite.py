"""The cases whose result is committed: one command, one file, within about half an hour on two cores."""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
from tqdm import tqdm

from benchmarks import accuracy, command, growth, limit, machine, postprocess, rates, results, sections
from benchmarks.latency import bounds, setups
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

Deterministic synthetic weights for the published recipes (tests/golden/fill.py), the trained checkpoint for the demo
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
SHOTS = (
    Shot("ADE whole 512x683", ADE, (512, 683)),
    Shot("LIP 473x473", LIP, (473, 473), peers=("reference", "onnxruntime"), precisions=FAST),
    Shot("ADE whole 512x512", ADE, (512, 512), peers=("reference",), precisions=FAST),
    Shot("demo scene, default", DEMO, (512, 1024), peers=("reference", "onnxruntime")),
    Shot("demo scene, ms-flip", DEMO, (512, 1024), "ms-flip", None, ("reference",), 2, True),
    Shot("ADE ms+flip 512x683", ADE, (512, 683), "ms-flip", None, ("reference",), 3, True, FAST),
    Shot("Cityscapes slide 1024x2048", CITY, (1024, 2048), "slide", postprocess.SLIDE, ("reference",), 1, True, FAST),
)


@dataclass
class Workshop:
    """What the parts of one run share."""

    folder: Path
    threads: int
    reference: Path | None
    rounds: int | None
    gaps: command.Gaps = field(default_factory=list)

    def checkpoint(self, recipe: str) -> Path:
        """The checkpoint of a recipe: trained for the demo model, synthetic for the others."""
        if recipe == DEMO:
            return DEMO_CHECKPOINT
        path = self.folder / f"{recipe}.pth"
        return path if path.is_file() else filled_checkpoint(recipe, path)

    def bundles(self, recipe: str, wanted: Sequence[str] | None = None) -> list[Bundle]:
        """A bundle of every precision that can be built here (those ``wanted`` only, if given).

        Raises:
            SettingsError: none can be built.
        """
        precisions = [p for p in PRECISIONS if wanted is None or p in wanted]
        bar = tqdm(precisions, desc=f"bundles of {recipe}", unit="bundle", disable=None, leave=False)
        bundles = [bundle for precision in bar if (bundle := self._bundle(recipe, precision))]
        if not bundles:
            raise SettingsError(f"no bundle of {recipe} could be built")
        return bundles

    def _bundle(self, recipe: str, precision: str) -> Bundle | None:
        """The bundle, built where it was not yet; None, and one gap, where it cannot be."""
        out, name = self.folder / f"{recipe}-{precision}", f"{recipe} in {precision}"
        if any(gap["what"] == name for gap in self.gaps):
            return None
        try:
            if not out.is_dir():
                checkpoint, pictures = self.checkpoint(recipe), self._calibration(recipe)
                build(checkpoint, out, recipe=recipe, engine="onnxruntime", precision=precision, calib=pictures)
            return read_bundle(out, verify=False)
        except IsnetError as error:
            self.gaps.append(results.gap(name, str(error)))
            return None

    def _calibration(self, recipe: str) -> Path:
        """Typical pictures: scenes for the demo model, the built-in photographs for synthetic weights."""
        if recipe != DEMO:
            return PICTURES
        folder = self.folder / "scenes"
        folder.mkdir(exist_ok=True)
        for seed in _CALIBRATION_SCENES:
            path = folder / f"{seed}.png"
            if not path.is_file():
                cv2.imwrite(str(path), draw_scene(seed, 256, 512).image[..., ::-1])
        return folder


Part = Callable[[Workshop, Path], list[results.Record]]
"""Measures something; the path is that of the result file."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(folder, arguments.threads, arguments.reference, arguments.rounds)
        chosen = _chosen(arguments.parts or [""])
        records = _kept(arguments, chosen)
        fresh = [name for name in chosen if not any(record["part"] == name for record in records)]
        if records:  # gaps of parts that are measured now would be found again
            earlier = results.read(arguments.out)["gaps"]
            workshop.gaps += [gap for gap in earlier if not any(gap["what"].startswith(name) for name in fresh)]
        for name in tqdm(fresh, desc="suite", unit="part", disable=None):
            records += _run(name, workshop, arguments.out)
            records.sort(key=lambda record: _order(record["part"]))
            results.write(arguments.out, results.result(records, workshop.gaps))
    for gap in workshop.gaps:
        print(f"not measured: {gap['what']}: {gap['why']}", file=sys.stderr)
    print(f"written: {arguments.out} ({len(records)} records, {len(workshop.gaps)} gaps)")
    return cli.ERROR if not records else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser("benchmarks.suite", _DESCRIPTION, "parts:\n  " + "\n  ".join(PARTS))
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only parts whose name holds one of these words")
    parser.add_argument("--rounds", type=cli.positive, help="this many rounds everywhere (default: the case's own)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep checkpoints and bundles here and use them again")
    parser.add_argument("--reference", type=Path, metavar="PATH", help="a checkout of the public reference, as a peer")
    parser.add_argument("--resume", action="store_true", help="keep the parts that --out already has")
    command.add_common(parser)
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        parser.error("--out FILE is needed")
    return arguments


def _chosen(words: Sequence[str]) -> list[str]:
    """The parts whose name holds one of ``words``.

    Raises:
        SettingsError: a word is in no name.
    """
    if unknown := [word for word in words if not any(word in name for name in PARTS)]:
        raise SettingsError(f"--parts {' '.join(unknown)}: no part is called so; there are: {', '.join(PARTS)}")
    return [name for name in PARTS if any(word in name for word in words)]


def _order(part: str) -> int:
    """The place of a part in the result; parts of earlier versions come first."""
    return list(PARTS).index(part) if part in PARTS else -1


def _run(name: str, workshop: Workshop, out: Path) -> list[results.Record]:
    start = time.perf_counter()
    try:
        records = PARTS[name](workshop, out)
    except IsnetError as error:
        workshop.gaps.append(results.gap(name, str(error)))
        return []
    for record in records:
        workshop.gaps += [results.gap(f"{name}: {gap['what']}", gap["why"]) for gap in record.pop("gaps", [])]
    tqdm.write(f"{sections.text(records)}\n\n[{name}: {time.perf_counter() - start:.0f} s]\n")
    return [{**record, "part": name, "date": results.now()} for record in records]


def _kept(arguments: argparse.Namespace, chosen: Sequence[str]) -> list[results.Record]:
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
    kept = [r for r in earlier["records"] if "part" in r and (arguments.resume or r["part"] not in chosen)]
    return [{"date": earlier["date"], **record} for record in kept]


def _shoot(shot: Shot, workshop: Workshop, out: Path) -> list[results.Record]:
    bundles = workshop.bundles(shot.recipe, shot.precisions)
    manifest = bundles[0].manifest
    if shot.recipe == DEMO:
        image = next(accuracy.scenes(1, shot.size)).image
    else:
        image = command.pictures(None, shot.size, shot.size, [])[0][1]
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
    checkpoint = workshop.checkpoint(shot.recipe)
    contenders = setups(bundles, shot.peers, checkpoint, workshop.threads, workshop.reference)
    return [measure(case, contenders, bounds(bundles))]


def _postprocess(workshop: Workshop, out: Path) -> list[results.Record]:
    rounds = workshop.rounds or _MERGE_ROUNDS
    return [postprocess.measure(work, workshop.threads, rounds) for work in postprocess.WORKS]


def _limit(workshop: Workshop, out: Path) -> list[results.Record]:
    threads, rounds = workshop.threads, workshop.rounds or 3
    machine_rates, bundles = rates.measure(threads), command.named(workshop.bundles(ADE, FAST))
    return [limit.measure(name, b, (512, 683), machine_rates, threads, rounds) for name, b in bundles.items()]


def _growth(workshop: Workshop, out: Path) -> list[results.Record]:
    (bundle,) = workshop.bundles(ADE, ("fp32",))
    with Segmenter.open(bundle.folder, threads=workshop.threads) as segmenter:
        series = growth.series(segmenter, workshop.threads, growth.AXES, 5)
        return [growth.measure(one, min(2, workshop.rounds or 2)) for one in series]


def _accuracy(workshop: Workshop, out: Path) -> list[results.Record]:
    samples = list(accuracy.scenes(min(3, workshop.rounds or 3), (512, 1024)))
    bundles, ckpt = workshop.bundles(DEMO), workshop.checkpoint(DEMO)
    presets = ("default", "ms-flip")
    return [accuracy.measure(bundles, p, samples, ckpt, workshop.threads, workshop.gaps) for p in presets]


def _extrapolated(workshop: Workshop, out: Path) -> list[results.Record]:
    """Cityscapes ms+flip from the time per window of the slide case of the same file: labelled, not measured."""
    records = results.read(out)["records"] if out.is_file() else []
    measured = [record for record in records if record["case"].startswith("Cityscapes slide")]
    if not measured:
        raise SettingsError("there is no slide case to extrapolate from")
    record, inference = measured[-1], recipe_named(CITY).ms_flip
    windows = window_count((1024, 2048), inference)
    timed = [one for one in record["contenders"] if one["status"] == "timed"]
    return [
        {
            "kind": "extrapolated",
            "case": "Cityscapes ms+flip 1024x2048",
            "inference": inference.describe(),
            "windows": windows,
            "from": record["case"],
            "how": f"seconds of {record['case']} x {windows} / {record['windows']} windows; not measured",
            "seconds": {one["name"]: one["summary"]["p50"] * windows / record["windows"] for one in timed},
        }
    ]


def _shots(shots: Sequence[Shot]) -> dict[str, Part]:
    return {shot.name: functools.partial(_shoot, shot) for shot in shots}


PARTS: dict[str, Part] = {
    "scores to labels": _postprocess,
    **_shots(SHOTS[:2]),
    "limit of ADE whole": _limit,
    "growth of ADE": _growth,
    "accuracy of the demo model": _accuracy,
    **_shots(SHOTS[2:]),
    "Cityscapes ms+flip, extrapolated": _extrapolated,
}
"""Name -> what to measure, short ones first."""


if __name__ == "__main__":
    sys.exit(cli.run(main))
