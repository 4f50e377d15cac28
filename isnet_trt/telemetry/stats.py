"""Statistics of a segmenter's calls: counts, failures, times as histograms; as JSON and as Prometheus text."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the buckets in seconds; one more bucket, without a bound, holds what takes longer."""
FAILURES = ("EngineError", "ImageError", "OutOfMemory", "SettingsError")
"""Types of failures that are exposed with 0 before the first occurs, so that rates are right from the start."""
_serial = itertools.count(1)


@dataclass(frozen=True)
class Histogram:
    """How often a time fell into each bucket; ``counts`` has one more entry than `BUCKETS`.

    ``sum`` and ``count`` are the total in seconds and the number of times, ``largest`` the longest in seconds.
    """

    counts: tuple[int, ...] = (0,) * (len(BUCKETS) + 1)
    sum: float = 0.0
    count: int = 0
    largest: float = 0.0

    @property
    def mean(self) -> float:
        """Mean in seconds; 0 if there was no time."""
        return self.sum / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """Estimate a quantile (0..1) in seconds: its bucket's upper bound, but no more than the longest time."""
        below = itertools.accumulate(self.counts)
        place = next((i for i, total in enumerate(below) if total >= q * self.count), len(BUCKETS))
        return min(BUCKETS[place], self.largest) if place < len(BUCKETS) else self.largest


class _Times:
    """A histogram that is being filled."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = self.largest = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds
        self.largest = max(self.largest, seconds)

    def histogram(self) -> Histogram:
        return Histogram(tuple(self.counts), self.sum, sum(self.counts), self.largest)


@dataclass(frozen=True)
class About:
    """What a segmenter is. ``bundle`` is empty where it was not opened from one."""

    engine: str
    device: str
    bundle: str = ""
    recipe: str = ""
    precision: str = ""
    preset: str = ""


@dataclass(frozen=True)
class Stats:
    """A segmenter's calls until now.

    Attributes:
        about: what the segmenter is.
        segmenter: its number in this process, from 1.
        calls: calls that have ended, failed ones included. Each image of `Segmenter.map` is a call.
        failures: failed calls by the name of the exception's type.
        seconds: time inside successful calls, waiting for other threads' calls included.
        stages: time by stage of successful calls, as in `Segmentation.seconds`.
        memory: bytes: "process" resident now, "process_peak" at most; of a GPU "gpu_buffers" for images and plans.
    """

    about: About
    segmenter: int
    calls: int
    failures: Mapping[str, int]
    seconds: Histogram
    stages: Mapping[str, Histogram]
    memory: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self) | {"buckets": list(BUCKETS)}

    def prometheus(self) -> str:
        """The statistics in Prometheus' text format; see `prometheus` for several segmenters."""
        return prometheus(self)


class Recorder:
    """Counts the calls of one segmenter; any thread may use it."""

    def __init__(self) -> None:
        self.segmenter = next(_serial)
        self._lock = threading.Lock()
        self._calls = 0
        self._failures: dict[str, int] = {}
        self._seconds = _Times()
        self._stages: dict[str, _Times] = {}

    def succeeded(self, seconds: float, stages: Mapping[str, float]) -> None:
        """Count a call that took ``seconds``, and ``stages`` of them by stage."""
        with self._lock:
            self._calls += 1
            self._seconds.add(seconds)
            for stage, part in stages.items():
                self._stages.setdefault(stage, _Times()).add(part)

    def failed(self, error: BaseException) -> None:
        """Count a call that ended with ``error``."""
        name = type(error).__name__
        with self._lock:
            self._calls += 1
            self._failures[name] = self._failures.get(name, 0) + 1

    def stats(self, about: About, memory: Mapping[str, int]) -> Stats:
        """What was counted until now; ``memory`` is added to the process's own."""
        with self._lock:
            stages = {stage: times.histogram() for stage, times in self._stages.items()}
            counts = (self._calls, dict(self._failures), self._seconds.histogram(), stages)
        return Stats(about, self.segmenter, *counts, {**_process_memory(), **memory})


def _process_memory() -> dict[str, int]:
    """Resident bytes of this process, now and at most; empty where the system does not tell."""
    memory: dict[str, int] = {}
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
    except OSError:
        return memory
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    for name, key in (("process", "VmRSS"), ("process_peak", "VmHWM")):
        if key in fields:
            memory[name] = int(fields[key].split()[0]) * 1024
    return memory


@dataclass
class _Family:
    name: str
    kind: str
    help: str
    samples: list[str] = field(default_factory=list)

    def add(self, value: float, suffix: str = "", **labels: object) -> None:
        text = ",".join(f'{key}="{_escaped(str(label))}"' for key, label in labels.items())
        self.samples.append(f"{self.name}{suffix}{{{text}}} {value:.12g}")

    def add_histogram(self, times: Histogram, **labels: object) -> None:
        bounds = (*(f"{bound:g}" for bound in BUCKETS), "+Inf")
        for bound, count in zip(bounds, itertools.accumulate(times.counts), strict=True):
            self.add(count, "_bucket", **labels, le=bound)
        self.add(times.sum, "_sum", **labels)
        self.add(times.count, "_count", **labels)

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        yield from self.samples


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def prometheus(*all_stats: Stats) -> str:
    """Statistics of segmenters in Prometheus' text exposition format, version 0.0.4.

    Every sample has the label ``segmenter``, so that several segmenters of a process are told apart.
    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    info = _Family("isnet_trt_segmenter_info", "gauge", "What the segmenter is; always 1.")
    calls = _Family("isnet_trt_calls_total", "counter", "Calls that have ended, failed ones included.")
    failures = _Family("isnet_trt_failures_total", "counter", "Failed calls by type of the error.")
    seconds = _Family("isnet_trt_call_seconds", "histogram", "Time inside successful calls.")
    stages = _Family("isnet_trt_stage_seconds", "histogram", "Time of each stage of successful calls.")
    memory = _Family("isnet_trt_memory_bytes", "gauge", "Memory of the process and of buffers on the GPU.")
    for stats in all_stats:
        number = stats.segmenter
        info.add(1, segmenter=number, **asdict(stats.about))
        calls.add(stats.calls, segmenter=number)
        for name, count in (dict.fromkeys(FAILURES, 0) | dict(stats.failures)).items():
            failures.add(count, segmenter=number, type=name)
        seconds.add_histogram(stats.seconds, segmenter=number)
        for stage, times in stats.stages.items():
            stages.add_histogram(times, segmenter=number, stage=stage)
        for kind, count in stats.memory.items():
            memory.add(count, segmenter=number, kind=kind)
    families = (info, calls, failures, seconds, stages, memory)
    return "\n".join(line for family in families for line in family.lines()) + "\n"
