"""How cost grows with image size, classes, windows, scales and batch: fitted exponents beside the expected ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats as scipy_stats
from tqdm import tqdm

from benchmarks import options, postprocess, results
from isnet_trt import Segmenter, cli
from isnet_trt.errors import IsnetError
from isnet_trt.settings import Inference

_DESCRIPTION = """Time a bundle, and the merge alone, while one thing grows, and fit seconds ∝ x^exponent.

The exponent is the slope of a straight line through log x, log seconds (least squares), stated with its standard error.
Expected: 1 where work is proportional; for the picture's pixels between 1 (convolutions) and 2 (attention of every
position to every position)."""
SIZES = ((128, 171), (192, 256), (256, 341), (384, 512), (512, 683))
COUNTS = (1, 2, 3, 4, 6)
CLASSES = (5, 19, 50, 150)
AXES = ("pixels", "classes", "windows", "passes", "batch")


@dataclass(frozen=True)
class Series:
    """What grows, the work at each point, and what is expected of the exponent."""

    case: str
    what: str
    points: tuple[tuple[float, Callable[[], object]], ...]
    expected: str
    why: str


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.growth", _DESCRIPTION)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder made by isnet_trt.build")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES, help="what grows (default: all)")
    parser.add_argument("--rounds", type=cli.positive, default=3, help="rounds; the least counts (default: 3)")
    points = range(3, len(SIZES) + 1)  # fewer than three give no line with an error
    parser.add_argument("--largest", type=int, choices=points, default=5, help="at most so many points (default: 5)")
    options.add_common(parser)
    arguments = parser.parse_args(argv)
    records, gaps = [], []
    with Segmenter.open(arguments.bundle, threads=arguments.threads) as segmenter:
        for one in series(segmenter, arguments.threads, arguments.axes, arguments.largest):
            try:
                records.append(measure(one, arguments.rounds))
                print(text(records[-1]), flush=True)
            except IsnetError as error:
                gaps.append(results.gap(one.case, str(error)))
                print(f"not measured: {one.case}: {error}", file=sys.stderr)
    if arguments.out:
        results.write(arguments.out, results.result(records, gaps))
    return cli.ERROR if not records else cli.FAILED if gaps else 0


def series(segmenter: Segmenter, threads: int, axes: Sequence[str], largest: int) -> Iterator[Series]:
    """The series of the axes asked for."""
    makers = {"pixels": _pixels, "classes": _classes, "windows": _windows, "passes": _passes, "batch": _batch}
    for axis in axes:
        yield makers[axis](segmenter, threads, largest)


def _blank(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, height, width), dtype=np.float32)


def _score(segmenter: Segmenter, size: tuple[int, int], inference: Inference) -> Callable[[], object]:
    x = _blank(1, *size)
    return lambda: segmenter.score(x, size, inference)


def _pixels(segmenter: Segmenter, threads: int, largest: int) -> Series:
    points = [(float(h * w), _logits(segmenter, 1, (h, w))) for h, w in SIZES[:largest]]
    why = "convolutions grow with the pixels, image-level attention with their square"
    return Series("network, whole picture", "pixels", tuple(points), "1 to 2", why)


def _logits(segmenter: Segmenter, batch: int, size: tuple[int, int]) -> Callable[[], object]:
    x = _blank(batch, *size)
    return lambda: segmenter.logits(x)


def _classes(segmenter: Segmenter, threads: int, largest: int) -> Series:
    points = []
    for classes in CLASSES[:largest]:
        work = postprocess.Work(f"{classes} classes", classes, (512, 683), (512, 683), Inference())
        scores = postprocess.made_up(work)
        points.append((float(classes), lambda w=work, s=scores: postprocess.ours(w, postprocess._copied(s), threads)))
    why = "each class is resampled and compared; what a tile costs besides shows where there are few"
    return Series("scores to labels, 512x683", "classes", tuple(points), "up to 1", why)


def _windows(segmenter: Segmenter, threads: int, largest: int) -> Series:
    slide = Inference("slide", (128, 256), (128, 256))
    points = [(float(n), _score(segmenter, (128, 256 * n), slide)) for n in COUNTS[:largest]]
    return Series("windows of 128x256 side by side", "windows", tuple(points), "1", "every window costs the same")


def _passes(segmenter: Segmenter, threads: int, largest: int) -> Series:
    points = [(float(n), _score(segmenter, (160, 256), Inference(scales=(1.0,) * n))) for n in COUNTS[:largest]]
    return Series("passes over a picture of 160x256", "passes", tuple(points), "1", "every pass costs the same")


def _batch(segmenter: Segmenter, threads: int, largest: int) -> Series:
    points = [(float(n), _logits(segmenter, n, (128, 256))) for n in COUNTS[:largest]]
    return Series(
        "network, batch of 128x256", "batch", tuple(points), "1", "the cores are busy with one picture already"
    )


def measure(one: Series, rounds: int) -> results.Record:
    """The growth record: the least seconds of interleaved rounds at each point, and the fit."""
    bar = tqdm(range(rounds + 1), desc=one.case, unit="round", disable=None, leave=False)
    samples = [[_seconds(work) for _, work in one.points] for _ in bar]
    x, seconds = [p for p, _ in one.points], np.min(samples[1:], axis=0).tolist()
    exponent, offset, error = fit(x, seconds)
    return {
        "kind": "growth",
        "case": one.case,
        "what": one.what,
        "x": x,
        "seconds": seconds,
        "exponent": exponent,
        "offset": offset,
        "error": error,
        "expected": one.expected,
        "why": one.why,
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fit(x: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """(exponent, offset, standard error of the exponent) of seconds = exp(offset) · x^exponent."""
    line = scipy_stats.linregress(np.log(x), np.log(seconds))
    return float(line.slope), float(line.intercept), float(line.stderr)


def text(record: results.Record) -> str:
    """A record for people."""
    points = ", ".join(f"{x:g}: {s:.4g} s" for x, s in zip(record["x"], record["seconds"], strict=True))
    found = f"exponent {record['exponent']:.2f} ± {record['error']:.2f}, expected {record['expected']}"
    return f"{record['case']}: {found} ({record['why']})\n  {record['what']} {points}"


if __name__ == "__main__":
    sys.exit(cli.run(main))
