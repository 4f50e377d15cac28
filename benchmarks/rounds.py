"""Contenders side by side on one picture: the same labels first, then interleaved rounds, then ratios."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import results, stats
from benchmarks.peers import ORACLES, Missing, Setup
from benchmarks.results import Record
from benchmarks.worker import Contender, Run
from isnet_trt import timing
from isnet_trt.merging.geometry import window_count
from isnet_trt.metrics import percent
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.settings import Inference, Preprocess

LEAST = 0.999
"""Least share of equal labels on clear pixels for a float32 contender (the bound of the reference's fixtures)."""
LEAST_LOW = 0.97
"""The same for lower precisions that state no bound of their own (the fixtures' float16 bound)."""
_WARM = Inference(scales=(0.25,))
"""A small pass that starts thread pools and allocators where a whole picture would take minutes."""
_STAGES = ("read", "resize", "gather", "engine", "merge", "download")
"""The order in which stages are shown; a contender has those of them that it tells apart."""


@dataclass(frozen=True)
class Case:
    """One picture (H, W, 3) uint8 RGB and how it is shown; results of two runs are matched by ``name``."""

    name: str
    image: NDArray[np.uint8]
    inference: Inference
    preprocess: Preprocess
    rounds: int = 5
    count_first: bool = False
    """Take the checking run as the first round; for pictures that take so long that starting up is below noise."""
    recipe: str = ""
    preset: str = ""


@dataclass
class Entry:
    """A contender in the comparison: its runs so far, and why it is not timed, if it is not."""

    contender: Contender
    least: float
    runs: list[Run] = field(default_factory=list)
    first: Run | None = None
    refused: str = ""
    agreement: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> list[float]:
        """Wall seconds of its timed runs."""
        return [run.seconds for run in self.runs]

    def run(self, case: Case) -> None:
        """One more round; nothing if it failed before."""
        if not self.refused:
            try:
                self.runs.append(self.contender.run(case.image, case.inference))
            except Missing as error:
                self.refused = f"failed in round {len(self.runs) + 1}: {error}"


def measure(case: Case, setups: Sequence[Setup], bounds: dict[str, float] | None = None) -> Record:
    """The latency record of one case; see `measure_all`."""
    (record,) = measure_all([case], setups, bounds)
    return record


def measure_all(
    cases: Sequence[Case],
    setups: Sequence[Setup],
    bounds: dict[str, float] | None = None,
    takes: Callable[[Setup, Case], bool] = lambda setup, case: True,
) -> list[Record]:
    """The latency records of cases whose contenders are the same, loaded once.

    ``bounds`` gives for a contender's name the least share of equal labels on clear pixels, instead of `LEAST`;
    ``takes`` says whether a contender has the settings of a case at all.
    Contenders that cannot run, fail, or give other labels are in the record with the reason, and are not timed.

    Raises:
        ImageError: the picture is too small or too narrow for the case's scales.
    """
    contenders, gaps = [], []
    # All are loaded before the first round, so that rounds can go from one to the next.
    with contextlib.ExitStack() as stack:
        for setup in tqdm(setups, desc="loading", unit="contender", disable=None, leave=False):
            try:
                contenders.append(stack.enter_context(Contender(setup)))
            except Missing as error:
                gaps.append(results.gap(setup.name, str(error)))
        records = []
        for case in cases:
            able = [contender for contender in contenders if takes(contender.setup, case)]
            entries = [Entry(contender, (bounds or {}).get(contender.setup.name, LEAST)) for contender in able]
            records.append(_measure(case, entries, gaps))
    return records


def _measure(case: Case, entries: Sequence[Entry], gaps: Sequence[Record]) -> Record:
    windows = window_count(test_size((case.image.shape[0], case.image.shape[1]), case.preprocess), case.inference)
    oracle = _check(case, entries)
    timed = [entry for entry in entries if not entry.refused]
    for entry in timed if case.count_first else ():
        entry.runs += [entry.first] if entry.first else []
    rounds = range(int(case.count_first), case.rounds)
    timing.interleaved([functools.partial(entry.run, case) for entry in timed], rounds, case.name)
    # Again: one that failed in a later round has fewer rounds, and ratios need pairs.
    timed = [entry for entry in entries if not entry.refused]
    warnings = [f"{e.contender.setup.name}: {warning}" for e in timed if (warning := stats.noise(e.seconds))]
    about: Record = {"kind": "latency", "case": case.name, "recipe": case.recipe, "preset": case.preset}
    about |= {"picture": list(case.image.shape[:2]), "inference": case.inference.describe(), "windows": windows}
    about |= {"rounds": case.rounds, "first_counts": case.count_first}
    about |= {"contenders": [_figures(entry, windows) for entry in entries], "ratios": _ratios(timed)}
    return about | {"warnings": warnings, "gaps": list(gaps), "labels_of": oracle}


def _check(case: Case, entries: Sequence[Entry]) -> str:
    """The first run of each, the oracle's before the others'; the name of the one whose labels the others need."""
    order = sorted(entries, key=lambda entry: entry.contender.setup.kind not in ORACLES)
    oracle: Run | None = None
    name = ""
    for entry in tqdm(order, desc=f"{case.name}: same labels?", unit="contender", disable=None, leave=False):
        try:
            if case.count_first:
                with contextlib.suppress(Missing):
                    entry.contender.run(case.image, _WARM)
            entry.first = entry.contender.run(case.image, case.inference, clear=oracle is None)
        except Missing as error:
            entry.refused = f"failed: {error}"
            continue
        if oracle is None:
            oracle, name = entry.first, entry.contender.setup.name
        entry.agreement = agreement(entry.first.labels, oracle.labels, oracle.clear)
        if entry.agreement["clear"] < entry.least:
            share = percent(entry.agreement["clear"])
            entry.refused = f"other labels: {share} % of clear pixels agree, {percent(entry.least)} % are needed"
    return name


def agreement(labels: NDArray[Any], expected: NDArray[Any], clear: NDArray[np.bool_] | None) -> dict[str, float]:
    """Shares of equal labels: of ``all`` pixels and of ``clear`` ones, and the share of pixels that are clear.

    A map of another size agrees nowhere.
    """
    if labels.shape != expected.shape:
        return {"all": 0.0, "clear": 0.0, "clear_share": 0.0}
    equal = labels == expected
    mask = np.ones_like(equal) if clear is None else clear
    share = float(equal[mask].mean()) if mask.any() else float(equal.mean())
    return {"all": float(equal.mean()), "clear": share, "clear_share": float(mask.mean())}


def _figures(entry: Entry, windows: int) -> Record:
    setup, status = entry.contender.setup, "refused" if entry.refused else "timed"
    about: Record = {"name": setup.name, "kind": setup.kind, "description": entry.contender.description}
    about |= {"threads": setup.threads, "agreement": entry.agreement, "status": status, "why": entry.refused}
    if entry.refused:
        return about
    figures = stats.spread(entry.seconds)
    cores_busy = float(np.median([run.cpu / run.seconds for run in entry.runs]))
    memory = _memory([run for run in (entry.first, *entry.runs) if run])
    about |= {"seconds": entry.seconds, "cores_busy": cores_busy, "summary": asdict(figures)}
    about |= {"images_per_s": 1 / figures.p50, "windows_per_s": windows / figures.p50}
    counters = sorted(set.intersection(*(set(run.energy) for run in entry.runs)))  # those read in every round
    energy = {name: float(np.median([run.energy[name] for run in entry.runs])) for name in counters}
    return about | {"stages": _stages(entry.runs), "memory": memory, "energy_j": energy}


def _stages(runs: Sequence[Run]) -> dict[str, float]:
    """Median seconds of each stage, and what is between them as ``other``."""
    met = dict.fromkeys(name for run in runs for name in run.stages)
    names = sorted(met, key=lambda name: _STAGES.index(name) if name in _STAGES else len(_STAGES))
    medians = {name: float(np.median([run.stages.get(name, 0.0) for run in runs])) for name in names}
    # Below 0 where stages overlap in time.
    rest = float(np.median([run.seconds - sum(run.stages.values()) for run in runs]))
    return {**medians, "other": max(rest, 0.0)}


def _memory(runs: Sequence[Run]) -> dict[str, int | None]:
    """Bytes: resident when loaded, the largest peak of any run, what that is beyond, and held on the device."""
    loaded = runs[0].loaded
    peak = max((run.peak for run in runs if run.peak is not None), default=None)
    beyond = peak - loaded if peak is not None and loaded is not None else None
    device = max((run.device_memory for run in runs if run.device_memory is not None), default=None)
    return {"loaded": loaded, "peak": peak, "beyond": beyond, "device": device}


def _ratios(timed: Sequence[Entry]) -> list[Record]:
    """How many times faster each bundle is than every other contender; one bundle against the next as well."""
    rows = []
    bundles = [entry for entry in timed if entry.contender.setup.kind == "bundle"]
    for number, bundle in enumerate(bundles):
        for other in (*bundles[:number], *(entry for entry in timed if entry.contender.setup.kind != "bundle")):
            ratio = stats.ratios(other.seconds, bundle.seconds)
            rows.append({"of": bundle.contender.setup.name, "over": other.contender.setup.name, **asdict(ratio)})
    return rows
