"""From low-resolution scores to labels alone: the runtime's merge beside the reference's, on the same scores.

    python -m benchmarks.postprocess --out benchmarks/results/NAME.json

Both get the same raw logits of every window; the clock runs from there to the label map. Logits are smooth as those of
a network (normal with standard deviation 3 at every sixth position, cubic between) or, where it says "noise",
independent at every position. Memory is the growth of a fresh process that does it once.
"""

from __future__ import annotations

import functools
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import command, results, stats, worker
from benchmarks.rounds import agreement
from isnet_trt import cli, timing
from isnet_trt.merging import windows
from isnet_trt.merging.geometry import Window, coarse_size
from isnet_trt.merging.merge import Head, Merger, label_type, largest
from isnet_trt.settings import Inference, Size

Scores = list[tuple[Window, NDArray[np.float32]]]
OURS, THEIRS = "isnet_trt", "reference"


@dataclass(frozen=True)
class Work:
    """Scores of ``classes`` for a picture of ``size``, to be merged into labels of the same size."""

    name: str
    classes: int
    size: Size
    inference: Inference
    stride: int = 8
    every: int = 6
    """Logits are independent at every so many positions; 1 is noise."""

    @property
    def plan(self) -> windows.Plan:
        """The passes and windows."""
        return windows.plan(self.size, self.inference)


_TWELVE = Inference("whole", None, None, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True, softmax_before_resize=True)
_SLIDE = Inference("slide", (512, 1024), (341, 341), softmax_before_resize=True)
WORKS = (
    Work("ADE single pass", 150, (512, 683), Inference()),
    Work("ADE single pass, noise", 150, (512, 683), Inference(), every=1),
    Work("ADE ms+flip, 12 passes", 150, (512, 683), _TWELVE),
    Work("ADE ms+flip, 12 passes, noise", 150, (512, 683), _TWELVE, every=1),
    Work("Cityscapes single pass", 19, (1024, 2048), Inference()),
    Work("Cityscapes slide, one scale", 19, (1024, 2048), _SLIDE),
)
_WARM = Work("warm-up", 3, (64, 96), Inference())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.postprocess", __doc__ or "")
    names = [work.name for work in WORKS]
    parser.add_argument("--work", nargs="+", choices=names, metavar="NAME", help=f"only these: {'; '.join(names)}")
    command.add_common(parser, rounds=7)
    arguments = parser.parse_args(argv)
    chosen = [work for work in WORKS if not arguments.work or work.name in arguments.work]
    records = [measure(work, arguments.threads, arguments.rounds) for work in chosen]
    return command.finish(records, [], arguments.out)


def measure(work: Work, threads: int, rounds: int) -> results.Record:
    """The record of one piece of work."""
    import torch

    torch.set_num_threads(threads)
    scores = synthetic_scores(work)
    equal = agreement(ours(work, copied(scores), threads), theirs(work, scores), None)["all"]

    def seconds_of(side: str) -> float:
        owned = copied(scores)  # before the clock starts
        return timing.seconds(lambda: _merge(side, work, owned, threads))

    runs = [functools.partial(seconds_of, side) for side in (OURS, THEIRS)]
    seconds = dict(zip((OURS, THEIRS), timing.interleaved(runs, range(rounds), work.name), strict=True))
    about: results.Record = {"kind": "postprocess", "case": work.name, "classes": work.classes}
    about |= {"output": list(work.size), "inference": work.inference.describe(), "passes": len(work.plan.passes)}
    return about | {
        "threads": threads,
        "labels_equal": equal,
        "seconds": seconds,
        "summary": {side: asdict(stats.spread(samples)) for side, samples in seconds.items()},
        "ratio": asdict(stats.ratios(seconds[THEIRS], seconds[OURS])),
        "memory": {side: _memory(side, work, threads) for side in (OURS, THEIRS)},
        "warnings": [f"{side}: {note}" for side, samples in seconds.items() if (note := stats.noise(samples))],
    }


def synthetic_scores(work: Work) -> Scores:
    """Random logits (K, h, w) of every window, in the order in which the runtime sees the windows."""
    rng = np.random.default_rng(work.classes)
    sizes = [coarse_size(window.size, work.stride) for window in work.plan.windows]
    return [(w, _logits(rng, work.classes, size, work.every)) for w, size in zip(work.plan.windows, sizes, strict=True)]


def _logits(rng: np.random.Generator, classes: int, size: Size, every: int) -> NDArray[np.float32]:
    small = size if every == 1 else (-(-size[0] // every) + 1, -(-size[1] // every) + 1)
    planes = rng.standard_normal((classes, *small), dtype=np.float32) * 3
    return np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_CUBIC) for plane in planes])


def copied(scores: Scores) -> Scores:
    """Scores that a merger may own, as it owns what it is given."""
    return [(window, values.copy()) for window, values in scores]


def _merge(side: str, work: Work, scores: Scores, threads: int) -> NDArray:
    return ours(work, scores, threads) if side == OURS else theirs(work, scores)


def ours(work: Work, scores: Scores, threads: int) -> NDArray[np.unsignedinteger]:
    """Labels by `isnet_trt.merging.merge.Merger`, which takes ``scores`` over."""
    labels = np.empty(work.size, label_type(work.classes))

    def take(rows: slice, columns: slice, tile: NDArray[np.float32]) -> None:
        labels[rows, columns] = largest(tile)

    merger = Merger(work.plan, Head(work.classes, work.stride), work.size, take, threads)
    for window, values in scores:
        merger.add(window, values)
        merger.work()
    return labels


def theirs(work: Work, scores: Scores) -> NDArray[np.int64]:
    """Labels as the reference evaluation makes them, each pass's volume kept whole."""
    import torch

    with torch.inference_mode():
        return _theirs(work, scores)


def _theirs(work: Work, scores: Scores) -> NDArray[np.int64]:
    import torch

    from benchmarks.peers import evaluation

    logits, volumes = {}, []
    for window, values in scores:
        # A mirrored pass is queued from the left of the mirrored picture.
        left = window.of.size[1] - window.right if window.of.mirrored else window.left
        logits[window.of.index, window.top, left] = torch.from_numpy(values)[None]
    for step in work.plan.passes:
        queue = iter(sorted(key for key in logits if key[0] == step.index))
        blank = torch.zeros(1, 1, 1, 1).expand(1, 3, *step.size)
        volume = evaluation.pass_scores(lambda _, queue=queue: logits[next(queue)], blank, work.inference)  # type: ignore[misc]
        volumes.append(evaluation.unmirrored(volume, ()) if step.mirrored else volume)
    return evaluation.merged(volumes, work.size).argmax(0).numpy()


def _memory(side: str, work: Work, threads: int) -> int | None:
    """Bytes that a fresh process grows by at most while it does the work once, the scores themselves not counted."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_growth, side, work, threads).result()
        except BrokenProcessPool:  # such as killed for want of memory
            return None


def _growth(side: str, work: Work, threads: int) -> int | None:
    import torch

    torch.set_num_threads(threads)
    scores = synthetic_scores(work)
    _merge(side, _WARM, synthetic_scores(_WARM), threads)
    before = worker.settled_memory()
    worker.forget_peak()
    _merge(side, work, scores, threads)
    peak = worker.peak_memory()
    return peak - before if peak is not None and before is not None else None


if __name__ == "__main__":
    sys.exit(cli.run(main))
