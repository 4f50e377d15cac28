"""How cost grows with image size, classes, windows, scales and batch: fitted exponents beside the expected ones."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks import command, postprocess, results
from isnet_trt import Segmenter, cli, timing
from isnet_trt.errors import IsnetError
from isnet_trt.settings import Inference, Size

_DESCRIPTION = """Time a bundle, and the merge alone, while one thing grows, and fit seconds ∝ x^exponent.

The exponent is the slope of a straight line through log x, log seconds (least squares), stated with its standard error.
Expected: 1 where work is proportional; for the picture's pixels between 1 (convolutions) and 2 (attention of every
position to every position)."""
SIZES = ((128, 171), (192, 256), (256, 341), (384, 512), (512, 683))
COUNTS = (1, 2, 3, 4, 6)
CLASSES = (5, 19, 50, 150)
_SQUARE = "convolutions grow with the pixels, image-level attention with their square"
_FEW = "each class is resampled and compared; what a tile costs besides shows where there are few"
_ABOUT = {
    "pixels": ("network, whole picture", "1 to 2", _SQUARE),
    "classes": ("scores to labels, 512x683", "up to 1", _FEW),
    "windows": ("windows of 128x256 side by side", "1", "every window costs the same"),
    "passes": ("passes over a picture of 160x256", "1", "every pass costs the same"),
    "batch": ("network, batch of 128x256", "1", "the cores are busy with one picture already"),
}
"""What grows -> case, expected exponent, and why."""
AXES = tuple(_ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.growth", _DESCRIPTION)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder made by isnet_trt.build")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES, help="what grows (default: all)")
    parser.add_argument("--rounds", type=cli.positive, default=3, help="rounds; the least counts (default: 3)")
    counts = range(3, len(SIZES) + 1)  # fewer than three give no line with an error
    parser.add_argument("--largest", type=int, choices=counts, default=5, help="at most so many points (default: 5)")
    command.add_common(parser)
    arguments = parser.parse_args(argv)
    records: list[results.Record] = []
    gaps: command.Gaps = []
    with Segmenter.open(arguments.bundle, threads=arguments.threads) as segmenter:
        for axis in arguments.axes:
            try:
                points = dict(itertools.islice(series(axis, segmenter, arguments.threads), arguments.largest))
                records.append(measure(axis, points, arguments.rounds))
            except IsnetError as error:
                gaps.append(results.gap(_ABOUT[axis][0], str(error)))
    return command.finish(records, gaps, arguments.out)


def series(axis: str, segmenter: Segmenter, threads: int) -> Iterator[tuple[int, Callable[[], object]]]:
    """Values of ``axis``, the smallest first, each with the work there."""

    def random(count: int, size: Size) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((count, 3, *size), dtype=np.float32)

    def score(size: Size, inference: Inference) -> Callable[[], object]:
        return functools.partial(segmenter.score, random(1, size), size, inference)

    def merge(classes: int) -> Callable[[], object]:
        work = postprocess.Work(f"{classes} classes", classes, (512, 683), Inference())
        scores = postprocess.synthetic_scores(work)
        return lambda: postprocess.ours(work, postprocess.copied(scores), threads)

    if axis == "pixels":
        yield from ((h * w, functools.partial(segmenter.logits, random(1, (h, w)))) for h, w in SIZES)
    elif axis == "batch":
        yield from ((n, functools.partial(segmenter.logits, random(n, (128, 256)))) for n in COUNTS)
    elif axis == "classes":
        yield from ((classes, merge(classes)) for classes in CLASSES)
    elif axis == "windows":
        slide = Inference("slide", (128, 256), (128, 256))
        yield from ((n, score((128, 256 * n), slide)) for n in COUNTS)
    else:
        yield from ((n, score((160, 256), Inference(scales=(1.0,) * n))) for n in COUNTS)


def measure(axis: str, points: dict[int, Callable[[], object]], rounds: int) -> results.Record:
    """The growth record: least seconds at each value of ``axis``, the first of the interleaved rounds left out; fit."""
    case, expected, why = _ABOUT[axis]
    runs = [functools.partial(timing.seconds, work) for work in points.values()]
    samples = timing.interleaved(runs, range(rounds + 1), case)
    x, seconds = [float(point) for point in points], [min(values[1:]) for values in samples]
    exponent, offset, error = fit(x, seconds)
    about = {"kind": "growth", "case": case, "what": axis, "x": x, "seconds": seconds}
    return {**about, "exponent": exponent, "offset": offset, "error": error, "expected": expected, "why": why}


def fit(x: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """(exponent, offset, standard error of the exponent) of seconds = exp(offset) · x^exponent."""
    from scipy.stats import linregress

    line = linregress(np.log(x), np.log(seconds))
    return float(line.slope), float(line.intercept), float(line.stderr)


if __name__ == "__main__":
    sys.exit(cli.run(main))
