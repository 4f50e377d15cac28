"""How accurate bundles are, beside the checkpoint: mIoU, label and boundary agreement, every class."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import command, results
from benchmarks.peers import Missing, Setup, load
from isnet_trt import cli
from isnet_trt.bundle import Bundle
from isnet_trt.errors import IsnetError, SettingsError
from isnet_trt.evaluation.labelled import DrawnScenes
from isnet_trt.metrics import Confusion
from isnet_trt.settings import Inference
from isnet_trt.training.scenes import SCENE_SIZE

Labels = NDArray[Any]
Mask = NDArray[np.bool_]
Expected = tuple[Labels, Mask | None]
"""The checkpoint's labels of a picture, and which pixels are clear."""
BAND = 3
"""Pixels on each side of a border between two classes that count as its boundary."""
CHECKPOINT = "checkpoint"
_DESCRIPTION = """Label pictures with bundles and with the checkpoint (the plain reference form in PyTorch) and compare.

Agreement is the share of pixels on which a bundle gives the checkpoint's label: of all pixels, of the clear ones
(whose best two scores are not nearly equal), and of those within 3 pixels of a border in the checkpoint's label map;
each the mean over the pictures.
mIoU needs labels: those of the drawn scenes (--scenes, for the demo model), or PNG files of class numbers in --labels,
of the pictures' names. Without labels only agreement is given."""
_EPILOG = """examples:
  python -m benchmarks.accuracy demo/bundle --ckpt training/assets/isnet_demo.pth --scenes 8
  python -m benchmarks.accuracy bundles/ade bundles/ade-fp16 --ckpt ade.pth --images val/ --labels val_labels/
  python -m benchmarks.accuracy bundles/ade --ckpt filled --presets default"""


@dataclass(frozen=True)
class Sample:
    """A picture (H, W, 3) uint8 RGB and, where there are any, its class numbers (H, W)."""

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None


Samples = Sequence[Sample]


@dataclass
class Tally:
    """Counts and shares of one contender over the pictures so far."""

    confusion: Confusion
    """Counts of the true label against the contender's."""
    agreement: Confusion
    """Counts of the checkpoint's label against the contender's."""
    shares: list[dict[str, float]] = field(default_factory=list)

    def add(self, labels: Labels, expected: Labels, clear: Mask | None, truth: Labels | None) -> None:
        """Count one picture; ``expected`` are the checkpoint's labels and ``clear`` its clear pixels."""
        if truth is not None:
            self.confusion.add(labels, truth)
        self.agreement.add(labels, expected)
        equal = labels == expected
        masks = {"all": np.ones_like(equal), "clear": clear, "boundary": boundary(expected)}
        self.shares.append({k: float(equal[m].mean()) for k, m in masks.items() if m is not None and m.any()})


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.accuracy", _DESCRIPTION, _EPILOG + command.EXIT_STATUS)
    command.add_bundles(parser)
    parser.add_argument("--ckpt", required=True, metavar="FILE", help="their checkpoint; 'filled': synthetic weights")
    parser.add_argument("--presets", nargs="+", metavar="NAME", help="presets to compare (default: all of the bundle)")
    parser.add_argument("--scenes", type=cli.positive, help="this many drawn street scenes (demo model only)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="PNG files of class numbers, named as the pictures")
    command.add_images(parser, (256, 341))
    command.add_common(parser)
    arguments = parser.parse_args(argv)
    gaps: command.Gaps = []
    bundles = command.read_bundles(arguments.bundles, gaps)
    presets = arguments.presets or list(bundles[0].manifest.presets)
    samples = _samples(arguments, bundles[0], gaps)
    with command.checkpoint(arguments.ckpt, bundles[0].manifest.recipe) as ckpt:
        records = [measure(bundles, preset, samples, ckpt, arguments.threads, gaps) for preset in presets]
        records = [record | command.weights(arguments.ckpt) for record in records]
    compared = any(row["name"] != CHECKPOINT for record in records for row in record["rows"])
    return command.finish(records, gaps, arguments.out, compared)


def _samples(arguments: argparse.Namespace, bundle: Bundle, gaps: command.Gaps) -> list[Sample]:
    size = arguments.image_size
    if arguments.scenes:
        if bundle.manifest.recipe != "isnet_demo":
            raise SettingsError(f"--scenes is for the demo model; {bundle.manifest.recipe} has other classes")
        drawn = DrawnScenes(arguments.scenes, tuple(size or SCENE_SIZE))
        scenes = zip(drawn.names, (drawn[index] for index in range(len(drawn))), strict=True)
        return [Sample(name, np.ascontiguousarray(bgr[..., ::-1]), truth) for name, (bgr, truth) in scenes]
    pictures = command.pictures(arguments.images, size, arguments.default_size, gaps)
    if arguments.labels is None:
        return [Sample(name, image) for name, image in pictures]
    return [Sample(name, image, _truth(arguments.labels, name, image, gaps)) for name, image in pictures]


def _truth(folder: Path, name: str, image: NDArray[np.uint8], gaps: command.Gaps) -> NDArray[np.uint8] | None:
    """The class numbers of a picture, at its size; None, and a gap, where they cannot be read."""
    path = folder / f"{Path(name).stem}.png"
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
    if labels is None or labels.ndim != 2 or labels.dtype != np.uint8:
        gaps.append(results.gap(f"labels of {name}", f"{path} is no PNG of class numbers (8-bit grey)"))
        return None
    size = (image.shape[1], image.shape[0])
    return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def measure(
    bundles: Sequence[Bundle],
    preset: str,
    samples: Sequence[Sample],
    ckpt: Path | None,
    threads: int,
    gaps: command.Gaps,
) -> results.Record:
    """The accuracy record of one preset: a row for the checkpoint and one for each bundle that can run.

    Raises:
        SettingsError: the checkpoint cannot be run.
    """
    manifest = bundles[0].manifest
    inference, labels = manifest.preset(preset), manifest.labels
    setups = [Setup(CHECKPOINT, "reference", threads, ckpt)]
    setups += [Setup(name, "bundle", threads, ckpt, Path(b.folder)) for name, b in command.named(bundles).items()]
    expected: list[Expected] = []
    rows = []
    for setup in setups:
        try:
            rows.append(_row(setup.name, _compare(setup, inference, samples, expected, labels.count)))
        except (Missing, IsnetError) as error:
            gaps.append(results.gap(f"{setup.name}, preset {preset}", str(error)))
            if setup.name == CHECKPOINT:
                raise SettingsError(f"the checkpoint cannot be run: {error}") from None
    about = {"kind": "accuracy", "case": f"{manifest.recipe} {preset}", "recipe": manifest.recipe, "preset": preset}
    labelled = sum(sample.truth is not None for sample in samples)
    counts = {"inference": inference.describe(), "pictures": len(samples), "labelled": labelled}
    return {**about, **counts, "classes": list(labels.names), "rows": rows}


def _compare(setup: Setup, inference: Inference, samples: Samples, expected: list[Expected], classes: int) -> Tally:
    """Label every picture; the first contender, the checkpoint, fills ``expected``, which the others compare with."""
    runner = load(setup)
    tally = Tally(Confusion(classes), Confusion(classes))
    try:
        for number, sample in enumerate(tqdm(samples, desc=setup.name, unit="picture", disable=None, leave=False)):
            output = runner.run(sample.image, inference)
            if number == len(expected):
                clear = output.clear() if output.clear else None
                expected.append((output.labels, clear))
            tally.add(output.labels, *expected[number], sample.truth)
    finally:
        runner.close()
    return tally


def boundary(labels: NDArray[Any], width: int = BAND) -> NDArray[np.bool_]:
    """Pixels (H, W) bool within ``width`` pixels (chessboard distance) of a pixel of another class."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    values = np.ascontiguousarray(labels, np.uint16)
    return cv2.dilate(values, kernel) != cv2.erode(values, kernel)


def _row(name: str, tally: Tally) -> results.Record:
    metrics, agreement = tally.confusion.metrics(), tally.agreement.metrics()
    shares = {kind: [s[kind] for s in tally.shares if kind in s] for kind in ("all", "clear", "boundary")}
    means = {kind: float(np.mean(values)) if values else None for kind, values in shares.items()}
    figures = {"miou": _number(metrics.miou), "pixel_accuracy": _number(metrics.all_accuracy)}
    by_class = {"iou": [_number(v) for v in metrics.iou], "class_agreement": [_number(v) for v in agreement.iou]}
    return {"name": name, **figures, "agreement": means, **by_class}


def _number(value: float) -> float | None:
    """JSON has no NaN: what was not counted is null."""
    return None if math.isnan(value) else float(value)


if __name__ == "__main__":
    sys.exit(cli.run(main))
