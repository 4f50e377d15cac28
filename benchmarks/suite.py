"""The cases whose result is committed: one command, one file, within about half an hour on two cores."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import command, results
from benchmarks.synthetic import filled_checkpoint, scene_files
from isnet_trt import cli
from isnet_trt.engines.library import PRECISIONS
from isnet_trt.errors import IsnetError, SettingsError
from isnet_trt.merging.geometry import window_count
from isnet_trt.recipes import recipe as recipe_named
from isnet_trt.training import DEMO_CHECKPOINT
from isnet_trt.training.scenes import HELD_OUT_SEED, SCENE_SIZE

_DESCRIPTION = """Measure the committed cases on this machine and write one result file.

Deterministic synthetic weights for the published recipes (tests/golden/fill.py), the trained checkpoint for the demo
model. A bundle is built for every precision that the build offers here; one that cannot be built is a named gap. Parts
already in --out are kept with --resume. Let nothing else run meanwhile."""
ADE, CITY, LIP = (f"isnet_resnet50os8_{name}" for name in ("ade20k", "cityscapes", "lip"))
DEMO = "isnet_demo"
FAST = ("fp32", "int8")
"""Precisions that a CPU gains from; the others are timed on the short cases only."""
_CALIBRATION_SCENES = range(8_500_000, 8_500_008)
"""Drawn scenes of neither the training nor the held-out set."""


@dataclass(frozen=True)
class Part:
    """A command with its options, on the bundles of ``recipe`` in those of ``precisions`` that can be built."""

    command: str
    options: str
    recipe: str = ""
    precisions: Sequence[str] = PRECISIONS


_SLIDE = "--image-size 1024 2048 --mode slide --window 512 1024 --stride 341 341 --softmax-before-resize"
PARTS = {
    # A merge takes a tenth of a second: with five rounds the spread was wider than the slowdown to be seen.
    "scores to labels": Part("postprocess", "--rounds 25"),
    "ADE whole 512x683": Part(
        "latency", "--image-size 512 683 --rounds 5 --against reference pytorch compile onnxruntime openvino", ADE
    ),
    "LIP 473x473": Part("latency", "--image-size 473 473 --rounds 5 --against reference onnxruntime", LIP, FAST),
    "limit of ADE whole": Part("limit", "--image-size 512 683 --rounds 3", ADE, FAST),
    "growth of ADE": Part("growth", "--rounds 2", ADE, ("fp32",)),
    "accuracy of the demo model": Part("accuracy", "--scenes 3 --image-size 512 1024 --presets default ms-flip", DEMO),
    "ADE whole 512x512": Part("latency", "--image-size 512 512 --rounds 5 --against reference", ADE, FAST),
    "demo scene, default": Part("latency", "--images SCENE --rounds 5 --against reference onnxruntime", DEMO),
    "demo scene, ms-flip": Part(
        "latency", "--images SCENE --preset ms-flip --rounds 2 --count-first --against reference", DEMO
    ),
    "ADE ms+flip 512x683": Part(
        "latency", "--image-size 512 683 --preset ms-flip --rounds 3 --count-first --against reference", ADE, FAST
    ),
    "Cityscapes slide 1024x2048": Part("latency", f"{_SLIDE} --rounds 1 --count-first --against reference", CITY, FAST),
    "Cityscapes ms+flip, extrapolated": Part("", ""),
}
"""Name -> what to measure, short ones first; SCENE is a held-out drawn scene of 512x1024."""


@dataclass
class Workshop:
    """Folder with the checkpoints, bundles and scenes of one run; ``gaps`` names what cannot be built or measured."""

    folder: Path
    gaps: command.Gaps

    def checkpoint(self, recipe: str) -> Path:
        """The checkpoint of a recipe: trained for the demo model, synthetic for the others."""
        if recipe == DEMO:
            return DEMO_CHECKPOINT
        path = self.folder / f"{recipe}.pth"
        return path if path.is_file() else filled_checkpoint(recipe, path)

    def bundles(self, recipe: str, precisions: Sequence[str]) -> list[Path]:
        """A bundle of every precision that can be built here; the others are gaps, each of them once.

        Raises:
            SettingsError: none can be built.
        """
        from isnet_trt.export import EngineOptions, PrecisionOptions, build
        from isnet_trt.export.network_inputs import PICTURES

        bundles = []
        for precision in tqdm(precisions, desc=f"bundles of {recipe}", unit="bundle", disable=None, leave=False):
            out, name = self.folder / f"{recipe}-{precision}", f"{recipe} in {precision}"
            if any(gap["what"] == name for gap in self.gaps):
                continue
            try:
                if not out.is_dir():
                    # Typical pictures: scenes for the demo model, photographs for synthetic weights.
                    scenes = self.folder / "scenes", _CALIBRATION_SCENES, (256, 512)
                    calibration = scene_files(*scenes) if recipe == DEMO else PICTURES
                    options = PrecisionOptions(precision, calib=calibration)
                    checkpoint = self.checkpoint(recipe)
                    build(checkpoint, out, recipe=recipe, engine=EngineOptions("onnxruntime"), precision=options)
                bundles.append(out)
            except IsnetError as error:
                self.gaps.append(results.gap(name, str(error)))
        if not bundles:
            raise SettingsError(f"no bundle of {recipe} could be built")
        return bundles

    def command_line(self, name: str, part: Part) -> list[str]:
        """Arguments of the part's command; bundles and checkpoint are made where they are missing."""
        scene = scene_files(self.folder / "held-out", [HELD_OUT_SEED], SCENE_SIZE) / f"{HELD_OUT_SEED}.png"
        arguments = [str(scene) if option == "SCENE" else option for option in part.options.split()]
        if part.recipe:
            bundles = self.bundles(part.recipe, part.precisions)
            arguments = [*map(str, bundles), *arguments]
        if part.command in ("latency", "accuracy"):
            arguments += ["--ckpt", str(self.checkpoint(part.recipe))]
        return arguments + (["--case", name] if part.command == "latency" else [])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.suite", _DESCRIPTION, "parts:\n  " + "\n  ".join(PARTS))
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="only parts whose name holds one of these words")
    parser.add_argument("--rounds", type=cli.positive, help="this many rounds everywhere (default: the case's own)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep checkpoints and bundles here and use them again")
    parser.add_argument("--reference", type=Path, metavar="PATH", help="a checkout of the public reference, as a peer")
    parser.add_argument("--resume", action="store_true", help="keep the parts that --out already has")
    command.add_common(parser, out_needed=True)
    arguments = parser.parse_args(argv)
    parts = arguments.parts or [""]
    if unknown := [part for part in parts if not any(part in name for name in PARTS)]:
        raise SettingsError(f"--parts {' '.join(unknown)}: no part is called so; there are: {', '.join(PARTS)}")
    chosen = [name for name in PARTS if any(part in name for part in parts)]
    with tempfile.TemporaryDirectory() as temporary:
        workshop = Workshop(arguments.work or Path(temporary), [])
        workshop.folder.mkdir(parents=True, exist_ok=True)
        records = _kept(arguments, chosen)
        fresh = [name for name in chosen if not any(record["part"] == name for record in records)]
        if records:  # gaps of parts that are measured now would be found again
            earlier = results.read(arguments.out)["gaps"]
            workshop.gaps += [gap for gap in earlier if not any(gap["what"].startswith(name) for name in fresh)]
        for name in tqdm(fresh, desc="suite", unit="part", disable=None):
            records += _measure(name, workshop, arguments)
            records.sort(key=lambda record: [*PARTS, record["part"]].index(record["part"]))
            results.write(arguments.out, results.result(records, workshop.gaps))
    for gap in workshop.gaps:
        print(f"not measured: {gap['what']}: {gap['why']}", file=sys.stderr)
    print(f"written: {arguments.out} ({len(records)} records, {len(workshop.gaps)} gaps)")
    return cli.ERROR if not records else 0


def _kept(arguments: argparse.Namespace, chosen: Sequence[str]) -> list[results.Record]:
    """Records of an earlier run's file; without --resume those of parts that are not measured now.

    It is an error if they were measured on another machine or with other versions.
    """
    if not arguments.out.is_file() or not (arguments.resume or arguments.parts):
        return []
    earlier = results.read_earlier(arguments.out)
    records = [record for record in earlier["records"] if "part" in record]
    return [{"date": earlier["date"], **r} for r in records if arguments.resume or r["part"] not in chosen]


def _measure(name: str, workshop: Workshop, arguments: argparse.Namespace) -> list[results.Record]:
    """The records of a part; its gaps go to the workshop's."""
    part, out, start = PARTS[name], workshop.folder / "part.json", time.perf_counter()
    options = ["--threads", str(arguments.threads), "--out", str(out)]
    options += ["--rounds", str(arguments.rounds)] if arguments.rounds and part.command != "accuracy" else []
    options += ["--reference", str(arguments.reference)] if arguments.reference and part.command == "latency" else []
    try:
        if part.command:
            importlib.import_module(f"benchmarks.{part.command}").main([*workshop.command_line(name, part), *options])
        data = results.read(out) if part.command else {"records": [_extrapolated(arguments.out)], "gaps": []}
    except IsnetError as error:
        workshop.gaps.append(results.gap(name, str(error)))
        return []
    gaps = ((gap["what"].removeprefix(f"{name}: "), gap["why"]) for gap in data["gaps"])
    workshop.gaps += [results.gap(f"{name}: {subject}", why) for subject, why in gaps]
    tqdm.write(f"[{name}: {time.perf_counter() - start:.0f} s]\n")
    about = {"part": name, "date": results.now()}
    if part.recipe:
        about["weights"] = "trained" if part.recipe == DEMO else "synthetic"
    return [{key: value for key, value in record.items() if key != "gaps"} | about for record in data["records"]]


def _extrapolated(out: Path) -> results.Record:
    """Cityscapes ms+flip from the time per window of the slide case of the same file: labelled, not measured."""
    records = results.read(out)["records"] if out.is_file() else []
    measured = [record for record in records if record["case"].startswith("Cityscapes slide")]
    if not measured:
        raise SettingsError("there is no slide case to extrapolate from")
    record, inference = measured[-1], recipe_named(CITY).ms_flip
    windows = window_count((1024, 2048), inference)
    timed = [contender for contender in record["contenders"] if contender["status"] == "timed"]
    about = {"kind": "extrapolated", "case": "Cityscapes ms+flip 1024x2048", "inference": inference.describe()}
    how = f"seconds of {record['case']} x {windows} / {record['windows']} windows; not measured"
    seconds = {contender["name"]: contender["summary"]["p50"] * windows / record["windows"] for contender in timed}
    about |= {key: record[key] for key in ("weights",) if key in record}
    return {**about, "windows": windows, "from": record["case"], "how": how, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(cli.run(main))
