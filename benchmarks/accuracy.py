"""How right bundles are, beside the checkpoint: mIoU, label and boundary agreement, every class."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import options, results
from benchmarks.latency import checkpoint
from benchmarks.peers import Missing, Setup, load
from isnet_trt import cli
from isnet_trt.bundle import Bundle
from isnet_trt.errors import IsnetError, SettingsError
from isnet_trt.metrics import Confusion
from isnet_trt.settings import Inference

BAND = 3
"""Pixels on each side of a border between two classes that count as its boundary."""
CHECKPOINT = "checkpoint"
_SCENES = 9_000_000
_DESCRIPTION = """Label pictures with bundles and with the checkpoint (the plain reference form in PyTorch) and compare.

Agreement is the share of pixels on which a bundle gives the checkpoint's label: of all pixels, of the clear ones
(whose best two scores are not nearly equal), and of those within 3 pixels of a border in the checkpoint's label map;
each the mean over the pictures.
mIoU needs labels: those of the drawn scenes (--scenes, for the demo model), or PNG files of class numbers in --labels,
of the pictures' names. Without labels only agreement is given."""
_EPILOG = """examples:
  python -m benchmarks.accuracy demo/bundle --ckpt training/assets/isnet_demo.pth --scenes 8
  python -m benchmarks.accuracy bundles/ade bundles/ade-fp16 --ckpt ade.pth --images val/ --labels val_labels/
  python -m benchmarks.accuracy bundles/ade --ckpt filled --presets default

Exit status: 0 all was compared, 1 something could not be (the rest was, and the gap is named), 2 nothing could be."""


@dataclass(frozen=True)
class Sample:
    """A picture (H, W, 3) uint8 RGB and, where there are any, its class numbers (H, W)."""

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None


@dataclass
class Tally:
    """What one contender has shown over the pictures so far."""

    confusion: Confusion
    agreement: Confusion
    """Counts of the checkpoint's label against the contender's."""
    shares: list[dict[str, float]] = field(default_factory=list)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.accuracy", _DESCRIPTION, _EPILOG)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="folders made by isnet_trt.build")
    parser.add_argument("--ckpt", required=True, metavar="FILE", help="their checkpoint; 'filled': made-up weights")
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="presets to compare (default: all of the bundle)")
    parser.add_argument("--scenes", type=cli.positive, help="this many drawn street scenes (demo model only)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="PNG files of class numbers, named as the pictures")
    options.add_images(parser, (256, 341))
    options.add_common(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    gaps: list[results.Record] = []
    found = options.bundles(arguments.bundles, gaps)
    presets = arguments.presets or list(found[0].manifest.presets)
    samples = _samples(arguments, found[0], gaps)
    with tempfile.TemporaryDirectory() as folder:
        ckpt = checkpoint(arguments.ckpt, found[0].manifest.recipe, Path(folder))
        records = [measure(found, p, samples, ckpt, arguments.threads, gaps) for p in presets]
    print("\n\n".join(map(text, records)))
    for one in gaps:
        print(f"not compared: {one['what']}: {one['why']}", file=sys.stderr)
    if arguments.out:
        results.write(arguments.out, results.result(records, gaps))
    compared = any(row["name"] != CHECKPOINT for record in records for row in record["rows"])
    return cli.ERROR if not compared else cli.FAILED if gaps else 0


def _samples(arguments: argparse.Namespace, bundle: Bundle, gaps: list[results.Record]) -> list[Sample]:
    size = tuple(arguments.image_size) if arguments.image_size else None
    if arguments.scenes:
        if bundle.manifest.recipe != "isnet_demo":
            raise SettingsError(f"--scenes is for the demo model; {bundle.manifest.recipe} has other classes")
        return list(scenes(arguments.scenes, size or (512, 1024)))
    pictures = options.pictures(arguments.images, size, arguments.default_size, gaps)
    if arguments.labels is None:
        return [Sample(name, image) for name, image in pictures]
    return [Sample(name, image, _truth(arguments.labels, name, image, gaps)) for name, image in pictures]


def scenes(count: int, size: tuple[int, int]) -> Iterator[Sample]:
    """Held-out drawn street scenes with exact labels."""
    from isnet_trt.training.scenes import draw_scene

    for seed in range(_SCENES, _SCENES + count):
        scene = draw_scene(seed, *size)
        yield Sample(f"scene {seed}", scene.image, scene.labels)


def _truth(folder: Path, name: str, image: NDArray[np.uint8], gaps: list[results.Record]) -> NDArray[np.uint8] | None:
    """The class numbers of a picture, at its size; None, and a gap, where they cannot be read."""
    path = folder / f"{Path(name).stem}.png"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        gaps.append(results.gap(f"labels of {name}", f"{path} is no PNG of class numbers (8-bit grey)"))
        return None
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def measure(
    found: Sequence[Bundle],
    preset: str,
    samples: Sequence[Sample],
    ckpt: Path | None,
    threads: int,
    gaps: list[results.Record],
) -> results.Record:
    """The accuracy record of one preset: a row for the checkpoint and one for each bundle that can run."""
    inference = found[0].manifest.preset(preset)
    names = options.bundle_names(found)
    setups = [Setup(CHECKPOINT, "reference", threads, ckpt)]
    setups += [Setup(name, "bundle", threads, ckpt, Path(b.folder)) for name, b in zip(names, found, strict=True)]
    labels = found[0].manifest.labels
    wanted: list[tuple[NDArray[Any], NDArray[np.bool_] | None]] = []
    rows = []
    for setup in setups:
        try:
            tally = _label(setup, inference, samples, wanted, labels.count)
        except (Missing, IsnetError) as error:
            gaps.append(results.gap(f"{setup.name}, preset {preset}", str(error)))
            if setup.name == CHECKPOINT:
                raise SettingsError(f"the checkpoint cannot be run: {error}") from None
            continue
        rows.append(_row(setup.name, tally))
    return {
        "kind": "accuracy",
        "case": f"{found[0].manifest.recipe} {preset}",
        "recipe": found[0].manifest.recipe,
        "preset": preset,
        "inference": inference.describe(),
        "pictures": len(samples),
        "labelled": sum(sample.truth is not None for sample in samples),
        "classes": list(labels.names),
        "rows": rows,
    }


def _label(
    setup: Setup,
    inference: Inference,
    samples: Sequence[Sample],
    wanted: list[tuple[NDArray[Any], NDArray[np.bool_] | None]],
    classes: int,
) -> Tally:
    """Label every picture; the checkpoint fills ``wanted``, the others are compared with it."""
    runner = load(setup)
    tally = Tally(Confusion(classes), Confusion(classes))
    first = not wanted
    try:
        for number, sample in enumerate(tqdm(samples, desc=setup.name, unit="picture", disable=None, leave=False)):
            answer = runner.run(sample.image, inference)
            if first:
                wanted.append((np.asarray(answer.labels), answer.clear() if answer.clear else None))
            _count(tally, np.asarray(answer.labels), wanted[number], sample)
    finally:
        runner.close()
    return tally


def _count(
    tally: Tally, labels: NDArray[Any], wanted: tuple[NDArray[Any], NDArray[np.bool_] | None], sample: Sample
) -> None:
    reference, clear = wanted
    if sample.truth is not None:
        tally.confusion.add(labels, sample.truth)
    tally.agreement.add(labels, reference)
    equal, band = labels == reference, boundary(reference)
    shares = {"all": float(equal.mean())}
    if clear is not None and clear.any():
        shares["clear"] = float(equal[clear].mean())
    if band.any():
        shares["boundary"] = float(equal[band].mean())
    tally.shares.append(shares)


def boundary(labels: NDArray[Any], width: int = BAND) -> NDArray[np.bool_]:
    """Pixels (H, W) bool within ``width`` pixels (chessboard distance) of a pixel of another class."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    values = np.ascontiguousarray(labels, np.uint16)
    return cv2.dilate(values, kernel) != cv2.erode(values, kernel)


def _row(name: str, tally: Tally) -> results.Record:
    metrics, agreement = tally.confusion.metrics(), tally.agreement.metrics()
    kinds = ("all", "clear", "boundary")
    shares = {kind: [s[kind] for s in tally.shares if kind in s] for kind in kinds}
    return {
        "name": name,
        "miou": _number(metrics.miou),
        "pixel_accuracy": _number(metrics.all_accuracy),
        "iou": [_number(v) for v in metrics.iou],
        "agreement": {kind: float(np.mean(values)) if values else None for kind, values in shares.items()},
        "class_agreement": [_number(v) for v in agreement.iou],
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: what was not counted is null."""
    return None if math.isnan(value) else float(value)


def text(record: results.Record) -> str:
    """A record for people: figures, then every class."""
    head = f"{record['case']}: {record['inference']}; {record['pictures']} pictures, {record['labelled']} with labels"
    names = [row["name"] for row in record["rows"]]
    lines = [head, f"{'':28}" + "".join(f"{name:>34}" for name in names)]
    for title, pick in (
        ("mIoU %", lambda row: row["miou"]),
        ("labels equal %", lambda row: row["agreement"]["all"]),
        ("  on clear pixels %", lambda row: row["agreement"]["clear"]),
        ("  at boundaries %", lambda row: row["agreement"]["boundary"]),
    ):
        lines.append(f"{title:28}" + "".join(f"{percent(pick(row)):>34}" for row in record["rows"]))
    key = "iou" if record["labelled"] else "class_agreement"
    lines.append("IoU of each class with " + ("its labels" if record["labelled"] else "the checkpoint's"))
    for number, name in enumerate(record["classes"]):
        values = [row[key][number] for row in record["rows"]]
        if any(value is not None for value in values):
            lines.append(f"  {name[:25]:26}" + "".join(f"{percent(value):>34}" for value in values))
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A share as per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.2f}"


if __name__ == "__main__":
    sys.exit(cli.run(main))
