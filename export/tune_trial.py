"""One trial of a tuning: build a candidate, compare its labels, and time whole calls beside the best so far."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from isnet_trt.bundle import ONNX, Bundle, Tuning, new_bundle, read_bundle
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import BundleError
from isnet_trt.export.engines.base import BuiltEngine
from isnet_trt.export.graph import save_graph
from isnet_trt.export.intake.enlargement import enlarged
from isnet_trt.export.job import Job, prepare_graphs
from isnet_trt.export.lowering import LoweredGraphs
from isnet_trt.export.network import Network
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.quantise import Mix
from isnet_trt.export.stages import build_engine, new_manifest
from isnet_trt.export.tune_candidates import Candidate, job_of
from isnet_trt.export.tune_state import Store
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference
from isnet_trt.timing import interleaved, seconds

WARM_CALLS, WARM_SECONDS = 3, 1.0
"""A GPU's steps are captured as a graph at the second call, so that the third shows what later ones take."""
FEWEST_ROUNDS, MOST_ROUNDS, TIMED_SECONDS = 3, 15, 5.0
_KEPT_GRAPHS = 2
_PLAIN = Inference()


@dataclass(frozen=True)
class TimedCall:
    """What is timed: an image, uint8 (H, W, 3) RGB, with a preset."""

    image: NDArray[np.uint8]
    preset: str
    device: str

    def tuning(self, candidate: Candidate, median: float = 0.0) -> Tuning:
        """The manifest's entry for a candidate."""
        return Tuning(
            batch=candidate.batch,
            threads=candidate.threads,
            cores=usable_cores(),
            optimisation_level=candidate.optimisation_level,
            streams=candidate.streams,
            device=self.device,
            size=(self.image.shape[0], self.image.shape[1]),
            preset=self.preset,
            seconds=median,
        )


class References:
    """The reference's labels of the comparison inputs; ``seconds`` is what it took for all of them."""

    def __init__(self, network: Network, inputs: Sequence[NetworkInput]) -> None:
        start = time.perf_counter()
        self.inputs, self.head = inputs, network.head
        self.labels = [self._labels(network.reference.run(item.pixels)) for item in inputs]
        self.seconds = time.perf_counter() - start

    def _labels(self, logits: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        return self.head.labels(logits[0], _PLAIN)

    def agreement(self, segmenter: Segmenter) -> float:
        """Share of positions of the network's output at which a segmenter's network gives the reference's label."""
        model = segmenter.runtime.model
        # An engine of one batch takes nothing else.
        copies = model.batch if model.full_batches else 1
        equal = total = 0
        for item, labels in zip(self.inputs, self.labels, strict=True):
            logits = segmenter.logits(np.repeat(item.pixels, copies, axis=0))[:1]
            equal += int((self._labels(enlarged(logits, labels.shape, self.head.network.upsampling)) == labels).sum())
            total += labels.size
        return equal / max(total, 1)


@dataclass
class Workshop:
    """Builds and opens candidates. Their bundles lie in ``store``; lowered graphs of two precisions stay in memory."""

    job: Job
    proto: onnx.ModelProto
    store: Store
    target: Path
    call: TimedCall
    _graphs: OrderedDict[str, tuple[LoweredGraphs, Mix | None]] = field(default_factory=OrderedDict)

    def graphs(self, candidate: Candidate) -> tuple[LoweredGraphs, Mix | None]:
        """The graphs of a candidate's precision, and the mix of eight bits where one was searched for."""
        precision = candidate.precision
        if precision not in self._graphs:
            self._graphs[precision] = prepare_graphs(self.proto, job_of(self.job, candidate))
            if len(self._graphs) > _KEPT_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(precision)
        return self._graphs[precision]

    def is_prepared(self, precision: str) -> bool:
        """Whether calibration, ranges and lowering of a precision are done."""
        return precision in self._graphs

    def of_build(self, candidate: Candidate) -> Candidate:
        """What of a candidate its files depend on."""
        return candidate.of_build(self.job.builder.library.compiles)

    def is_built(self, candidate: Candidate) -> bool:
        """Whether a candidate's bundle is there; it may still be damaged."""
        return self.store.bundle(self.of_build(candidate)).is_dir()

    def bundle(self, candidate: Candidate) -> Bundle:
        """A candidate's bundle: as it lies in the store, or built now.

        Raises:
            BuildError, EngineError, EngineUnavailable, SettingsError: it cannot be built.
        """
        key = self.of_build(candidate)
        place = self.store.bundle(key)
        try:
            return self._tuned(read_bundle(place), candidate)
        except BundleError:  # it is not there, or damaged
            shutil.rmtree(place, ignore_errors=True)
        job = job_of(self.job, key)
        with new_bundle(place) as draft:
            graphs, _ = self.graphs(key)
            save_graph(graphs.portable, draft.folder / ONNX)
            built = build_engine(graphs.engine, draft.folder, job, self.target)
            report = {"built": dict(built.about)}
            draft.finish(new_manifest(job.network, key.precision, built.info, report))
        return self._tuned(read_bundle(place, verify=False), candidate)

    def _tuned(self, bundle: Bundle, candidate: Candidate) -> Bundle:
        """The bundle as it would be if the candidate won: its batch and threads are the defaults of opening."""
        return Bundle(bundle.folder, dataclasses.replace(bundle.manifest, tuning=self.call.tuning(candidate)))

    def copy(self, candidate: Candidate, folder: Path) -> BuiltEngine:
        """Copy the files of a candidate's bundle into ``folder``."""
        bundle = self.bundle(candidate)
        for name in bundle.manifest.files:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), place)
        return BuiltEngine(bundle.manifest.engine, bundle.manifest.parity["built"])

    def open(self, candidate: Candidate) -> Segmenter:
        """A candidate as a service would open it; those of ONNX Runtime on the CPU, where all of them run."""
        device = "auto" if self.job.builder.library.needs_gpu else "cpu"
        return Segmenter.open(self.bundle(candidate), preset=self.call.preset, device=device)


def time_calls(
    call: TimedCall, segmenter: Segmenter, reference: Segmenter | None, limit: float
) -> tuple[list[float], list[float]]:
    """Seconds of whole calls of a segmenter and, interleaved with them, of ``reference``.

    After `FEWEST_ROUNDS` it ends at `MOST_ROUNDS`, or when `TIMED_SECONDS` or ``limit`` seconds are over.
    """
    runs = [functools.partial(seconds, functools.partial(s, call.image)) for s in (segmenter, reference) if s]
    for run in runs:
        _warm(run)
    samples = interleaved(runs, _rounds(min(TIMED_SECONDS, limit)), "timing")
    return samples[0], samples[-1]


def _warm(run: functools.partial[float]) -> None:
    taken = 0.0
    for _ in range(WARM_CALLS):
        taken += run()
        if taken > WARM_SECONDS:
            return


def _rounds(limit: float) -> Iterator[int]:
    start = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= FEWEST_ROUNDS and time.perf_counter() - start > limit:
            return
        yield number


@contextlib.contextmanager
def opened(
    workshop: Workshop, candidate: Candidate, reference: Candidate | None
) -> Iterator[tuple[Segmenter, Segmenter | None]]:
    """A candidate and the one that it is timed beside, open."""
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(workshop.open(reference)) if reference is not None else None
        yield stack.enter_context(workshop.open(candidate)), other
