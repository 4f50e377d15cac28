"""Many calls of segmenters: nothing grows, threads do not disturb each other, Ctrl-C leaves a segmenter usable.

    python tests/stress/calls.py --cases 10000

Four parts, all on the tests' tiny model under ONNX Runtime, without torch: calls with changing sizes and options;
opening, using and closing; threads that share segmenters; calls that KeyboardInterrupt ends at a random instant.
Memory, open files and threads are counted after a tenth of the calls and at the end; every label map is compared with
the first one of its image and options.
"""

from __future__ import annotations

import ctypes
import random
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import probe
import psutil
import tiny_model
from numpy.typing import NDArray
from tqdm import tqdm

from isnet_trt import Inference, Segmenter

CLASSES = 5
THREADS, SEGMENTERS = 8, 3
MEMORY = 8 << 20
"""Bytes by which the process may grow: the allocator's arenas do not always end where they began."""
SLIDE = Inference("slide", (33, 65), (21, 43), (0.5, 1.0), flip=True)
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"inference": SLIDE},
    {"probabilities": True},
    {"order": "bgr", "points": [(0, 0), (3, 5)]},
)
IMAGES = [np.random.default_rng(i).integers(0, 256, (30 + 11 * i, 75 - 9 * i, 3), np.uint8) for i in range(5)]


class Usage(NamedTuple):
    """What the process holds: bytes (without what the C library keeps for later), open files, threads."""

    memory: int
    files: int
    threads: int

    @classmethod
    def now(cls) -> Usage:
        """The usage of this process."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        process = psutil.Process()
        return cls(process.memory_info().rss, process.num_fds(), process.num_threads())


class Expected:
    """The label maps of the first calls, for each image and each set of options."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.labels = {
            (image, option): segmenter(IMAGES[image], **OPTIONS[option]).labels
            for image in range(len(IMAGES))
            for option in range(len(OPTIONS))
        }

    def wrong(self, segmenter: Segmenter, chance: random.Random) -> bool:
        """Whether a call with a random image and options gives other labels."""
        image, option = chance.randrange(len(IMAGES)), chance.randrange(len(OPTIONS))
        labels: NDArray[Any] = segmenter(IMAGES[image], **OPTIONS[option]).labels
        return not np.array_equal(labels, self.labels[image, option])


class Probe:
    """The parts, with the figures and findings that they add."""

    def __init__(self, bundle: Path, cases: int, seed: int) -> None:
        self.bundle, self.cases, self.seed = bundle, cases, seed
        self.figures: dict[str, int] = {}
        self.findings: list[str] = []

    def open(self) -> Segmenter:
        """A segmenter of one thread."""
        return Segmenter.open(self.bundle, threads=1)

    def find(self, text: str) -> None:
        """Note and print a finding."""
        self.findings.append(text)
        probe.show(text)

    def repeat(self, name: str, count: int, step: Any) -> None:
        """Take a step ``count`` times; it returns whether the labels are wrong. What grows is a finding."""
        chance = random.Random(self.seed)
        before = Usage.now()
        for number in tqdm(range(count), name, disable=None):
            if number == count // 10:
                before = Usage.now()
            if step(chance):
                self.find(f"{name} {number}: other labels")
        after = Usage.now()
        self.figures[name] = count
        grown = Usage(*(new - old for new, old in zip(after, before, strict=True)))
        self.figures[f"{name}: growth of memory, KiB"] = grown.memory >> 10
        self.figures[f"{name}: growth of open files"] = grown.files
        self.figures[f"{name}: growth of threads"] = grown.threads
        if grown.memory > MEMORY or grown.files > 0 or grown.threads > 0:
            self.find(f"{name}: {grown} more after {count}")

    def calls(self) -> None:
        """Calls of one segmenter."""
        with self.open() as segmenter:
            expected = Expected(segmenter)
            self.repeat("calls", self.cases, lambda chance: expected.wrong(segmenter, chance))

    def opens(self) -> None:
        """Open, use, and close; every third is only forgotten."""
        with self.open() as segmenter:
            expected = Expected(segmenter)

        def step(chance: random.Random) -> bool:
            segmenter = self.open()
            wrong = expected.wrong(segmenter, chance)
            if chance.randrange(3):
                segmenter.close()
            return wrong

        self.repeat("opens and closes", max(self.cases * 12 // 100, 20), step)

    def threads(self) -> None:
        """Threads that call segmenters which they share."""
        segmenters = [self.open() for _ in range(SEGMENTERS)]
        expected, each = Expected(segmenters[0]), max(self.cases // 10 // THREADS, 10)

        def work(number: int) -> int:
            chance = random.Random(self.seed + number)
            return sum(expected.wrong(chance.choice(segmenters), chance) for _ in range(each))

        with ThreadPoolExecutor(THREADS) as pool:
            wrong = sum(pool.map(work, range(THREADS)))
        for segmenter in segmenters:
            segmenter.close()
        self.figures[f"calls of {THREADS} threads on {SEGMENTERS} segmenters"] = THREADS * each
        if wrong:
            self.find(f"threads: {wrong} of {THREADS * each} label maps are others")

    def interrupts(self) -> None:
        """KeyboardInterrupt at a random instant of a call; the next call must be right."""
        chance, interrupted, count = random.Random(self.seed), 0, max(self.cases // 50, 20)
        earlier = signal.signal(signal.SIGALRM, signal.default_int_handler)
        with self.open() as segmenter:
            expected = Expected(segmenter)
            seconds = _duration(segmenter)
            for number in tqdm(range(count), "interrupts", disable=None):
                interrupted += _interrupted(segmenter, chance.random() * seconds)
                if expected.wrong(segmenter, chance):
                    self.find(f"interrupt {number}: the next call gives other labels")
        signal.signal(signal.SIGALRM, earlier)
        self.figures |= {"calls to be interrupted": count, "calls that were interrupted": interrupted}
        if threading.active_count() > 1:
            self.find(f"{threading.active_count() - 1} threads are left")


def _duration(segmenter: Segmenter) -> float:
    """Seconds of the longest kind of call."""
    start = time.perf_counter()
    segmenter(IMAGES[0], inference=SLIDE)
    return time.perf_counter() - start


def _interrupted(segmenter: Segmenter, after: float) -> bool:
    """Interrupt a call; False if it ended before."""
    try:
        signal.setitimer(signal.ITIMER_REAL, max(after, 1e-5))
        segmenter(IMAGES[0], inference=SLIDE)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


def main() -> int:
    """Run all parts; the exit status."""
    tqdm.monitor_interval = 0  # its thread would be counted
    arguments = probe.parser(__doc__, 10_000, "calls; the other parts have a share of it").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_model.write_bundle(Path(folder) / "tiny", tiny_model.labels(CLASSES))
        run = Probe(bundle, arguments.cases, arguments.first)
        for part in (run.calls, run.opens, run.threads, run.interrupts):
            part()
    return probe.finish(arguments, run.figures, run.findings)


if __name__ == "__main__":
    sys.exit(main())
