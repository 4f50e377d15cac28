"""Contenders side by side on one picture: the same answer first, then interleaved rounds, then ratios."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import stats
from benchmarks.peers import ORACLE, Missing, Setup
from benchmarks.results import Record
from benchmarks.worker import Contender, Run, open_all
from isnet_trt.merging.geometry import window_count
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.settings import Inference, Preprocess

LEAST = 0.999
"""Least share of equal labels on clear pixels for a float32 contender (the bound of the reference's fixtures)."""
LEAST_LOW = 0.97
"""The same for lower precisions that state no bound of their own (the fixtures' float16 bound)."""
WARM = Inference(scales=(0.25,))
"""A small pass that starts thread pools and allocators where a whole picture would take minutes."""
_STAGES = ("read", "resize", "gather", "engine", "merge", "download")
"""The order in which stages are shown; a contender has those of them that it tells apart."""


@dataclass(frozen=True)
class Case:
    """One picture and how it is shown; ``name`` is how results of two runs find each other."""

    name: str
    image: NDArray[np.uint8]
    inference: Inference
    preprocess: Preprocess
    rounds: int = 5
    count_first: bool = False
    """Take the checking run as the first round; for pictures that take so long that starting up is below noise."""
    recipe: str = ""
    preset: str = ""

    @property
    def windows(self) -> int:
        """How many windows the network sees."""
        size = (self.image.shape[0], self.image.shape[1])
        return window_count(test_size(size, self.preprocess), self.inference)


@dataclass
class Entry:
    """What one contender has shown so far."""

    contender: Contender
    least: float
    runs: list[Run] = field(default_factory=list)
    first: Run | None = None
    refused: str = ""
    agreement: dict[str, float] = field(default_factory=dict)

    @property
    def setup(self) -> Setup:
        """What it was made from."""
        return self.contender.setup


def measure(case: Case, setups: Sequence[Setup], bounds: dict[str, float] | None = None) -> Record:
    """The latency record of one case.

    ``bounds`` gives for a contender's name the least share of equal labels on clear pixels, instead of `LEAST`.
    Contenders that cannot run, fail, or answer otherwise are in the record with the reason, and are not timed.

    Raises:
        ImageError: the picture is too small or too narrow for the case's scales.
    """
    windows = case.windows
    opened, missing = open_all(setups)
    with contextlib.ExitStack() as stack:
        for contender in opened:
            stack.callback(contender.close)
        entries = [Entry(c, (bounds or {}).get(c.setup.name, LEAST)) for c in opened]
        oracle = _check(case, entries)
        _time(case, [entry for entry in entries if entry.first and not entry.refused])
    return {**_record(case, windows, entries, missing), "labels_of": oracle}


def _check(case: Case, entries: Sequence[Entry]) -> str:
    """The first run of each, the oracle's before the others'; the name of the one whose labels the others need."""
    order = sorted(entries, key=lambda e: e.setup.kind != ORACLE)
    oracle: Run | None = None
    name = ""
    for entry in tqdm(order, desc=f"{case.name}: same answer?", unit="contender", disable=None, leave=False):
        try:
            if case.count_first:
                with contextlib.suppress(Missing):
                    entry.contender.run(case.image, WARM)
            entry.first = entry.contender.run(case.image, case.inference, clear=oracle is None)
        except Missing as error:
            entry.refused = f"failed: {error}"
            continue
        if oracle is None:
            oracle, name = entry.first, entry.setup.name
        entry.agreement = agreement(entry.first.labels, oracle.labels, oracle.clear)
        if entry.agreement["clear"] < entry.least:
            share = 100 * entry.agreement["clear"]
            entry.refused = f"another answer: {share:.2f} % of clear pixels agree, {100 * entry.least:.2f} % are needed"
    return name


def agreement(labels: NDArray[Any], wanted: NDArray[Any], clear: NDArray[np.bool_] | None) -> dict[str, float]:
    """Shares of equal labels: of ``all`` pixels and of ``clear`` ones, and the share of pixels that are clear.

    A map of another size agrees nowhere.
    """
    if labels.shape != wanted.shape:
        return {"all": 0.0, "clear": 0.0, "clear_share": 0.0}
    equal = labels == wanted
    mask = np.ones_like(equal) if clear is None else clear
    return {
        "all": float(equal.mean()),
        "clear": float(equal[mask].mean()) if mask.any() else float(equal.mean()),
        "clear_share": float(mask.mean()),
    }


def _time(case: Case, entries: Sequence[Entry]) -> None:
    """Interleaved rounds, every second one in reverse order, so that a drift favours nobody."""
    for entry in entries:
        if case.count_first and entry.first:
            entry.runs.append(entry.first)
    rounds = range(len(entries[0].runs) if entries else 0, case.rounds)
    for number in tqdm(rounds, desc=case.name, unit="round", disable=None, leave=False):
        for entry in entries if number % 2 == 0 else reversed(entries):
            if entry.refused:
                continue
            try:
                entry.runs.append(entry.contender.run(case.image, case.inference))
            except Missing as error:
                entry.refused = f"failed in round {number + 1}: {error}"


def _record(case: Case, windows: int, entries: Sequence[Entry], missing: Sequence[tuple[str, str]]) -> Record:
    timed = [entry for entry in entries if entry.runs and not entry.refused]
    return {
        "kind": "latency",
        "case": case.name,
        "recipe": case.recipe,
        "preset": case.preset,
        "picture": [case.image.shape[0], case.image.shape[1]],
        "inference": case.inference.describe(),
        "windows": windows,
        "rounds": case.rounds,
        "first_counts": case.count_first,
        "contenders": [_figures(entry, windows) for entry in entries],
        "ratios": _ratios(timed),
        "gaps": [{"what": name, "why": why} for name, why in missing],
        "warnings": [f"{entry.setup.name}: {warning}" for entry in timed if (warning := stats.noise(_seconds(entry)))],
    }


def _seconds(entry: Entry) -> list[float]:
    return [run.seconds for run in entry.runs]


def _figures(entry: Entry, windows: int) -> Record:
    about = {
        "name": entry.setup.name,
        "kind": entry.setup.kind,
        "description": entry.contender.description,
        "threads": entry.setup.threads,
        "agreement": entry.agreement,
        "status": "refused" if entry.refused else "timed",
        "why": entry.refused,
    }
    if entry.refused or not entry.runs or entry.first is None:
        return about
    figures = stats.spread(_seconds(entry))
    return {
        **about,
        "seconds": _seconds(entry),
        "cores_busy": float(np.median([run.cpu / run.seconds for run in entry.runs])),
        "summary": figures.to_json(),
        "images_per_s": 1 / figures.p50,
        "windows_per_s": windows / figures.p50,
        "stages": _stages(entry),
        "memory": _memory(entry),
        "energy_j": _energy(entry),
    }


def _stages(entry: Entry) -> dict[str, float]:
    """Median seconds of each stage, and what is between them as ``other``."""
    met = dict.fromkeys(name for run in entry.runs for name in run.stages)
    names = [*(name for name in _STAGES if name in met), *(name for name in met if name not in _STAGES)]
    found = {name: float(np.median([run.stages.get(name, 0.0) for run in entry.runs])) for name in names}
    rest = float(np.median([run.seconds - sum(run.stages.values()) for run in entry.runs]))
    return {**found, "other": max(rest, 0.0)}


def _memory(entry: Entry) -> dict[str, int | None]:
    """Bytes: resident when loaded, the largest peak of any run, what that is beyond, and held on the device."""
    runs = [run for run in (entry.first, *entry.runs) if run]
    peaks = [run.peak for run in runs if run.peak is not None]
    loaded = runs[0].loaded
    beyond = max(peaks) - loaded if peaks and loaded is not None else None
    held = [run.device_memory for run in runs if run.device_memory is not None]
    return {"loaded": loaded, "peak": max(peaks, default=None), "beyond": beyond, "device": max(held, default=None)}


def _energy(entry: Entry) -> dict[str, float]:
    """Median joules per picture of each counter that could be read in every round."""
    names = set.intersection(*(set(run.energy) for run in entry.runs))
    return {name: float(np.median([run.energy[name] for run in entry.runs])) for name in sorted(names)}


def _ratios(timed: Sequence[Entry]) -> list[Record]:
    """How many times faster each bundle is than every other contender; one bundle against the next as well."""
    rows = []
    bundles = [entry for entry in timed if entry.setup.kind == "bundle"]
    for bundle in bundles:
        for other in timed:
            if other is bundle or (other in bundles and bundles.index(other) > bundles.index(bundle)):
                continue
            ratio = stats.ratios(_seconds(other), _seconds(bundle))
            rows.append({"of": bundle.setup.name, "over": other.setup.name, **ratio.to_json()})
    return rows
