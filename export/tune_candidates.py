"""Candidates of a tuning: settings of an engine and of its runtime, the most promising values first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import SettingsError
from isnet_trt.export.bundle_kernels import include_kernels
from isnet_trt.export.engines.profiles import shapes_for
from isnet_trt.export.job import Job
from isnet_trt.export.lowering import EIGHT_BITS, Arithmetic

BATCHES = (2, 4, 8, 16, 32)
LEVELS, STREAMS = (5, 4), (1, 4)
Dimensions = list[tuple[str, tuple[Any, ...]]]
"""Field of `Candidate` and its values, in the order in which they are tried."""


@dataclass(frozen=True)
class Candidate:
    """One combination of settings; None: the library's default, or no such setting.

    Attributes:
        precision: of the engine.
        batch: windows that the network sees at once.
        context: who computes the context operations.
        optimisation_level, streams: see `isnet_trt.export.options.EngineOptions`.
        threads: of the engine and the merge on the CPU.
    """

    precision: str
    batch: int = 1
    context: Literal["plugin", "native"] | None = None
    optimisation_level: int | None = None
    streams: int | None = None
    threads: int | None = None

    def __str__(self) -> str:
        parts = [self.precision, f"batch {self.batch}"]
        parts += [self.context] if self.context else []
        for name in ("optimisation_level", "streams", "threads"):
            if (value := getattr(self, name)) is not None:
                parts.append(f"{name.replace('_', ' ')} {value}")
        return ", ".join(parts)

    def of_build(self, compiles: bool) -> Candidate:
        """The part that the built files depend on: a graph serves every batch and number of threads."""
        return dataclasses.replace(self, threads=None, batch=self.batch if compiles else 1)


def baseline(job: Job) -> Candidate:
    """The candidate that a build without tuning gives."""
    engine = job.engine
    return Candidate(
        job.arithmetic.precision,
        engine.batch,
        job.builder.context(engine),
        engine.optimisation_level,
        engine.streams,
        None if job.builder.library.needs_gpu else usable_cores(),
    )


def dimensions(job: Job, windows: int, all_precisions: bool) -> Dimensions:
    """What is varied, in order of its effect: all settings but those that the options of the build state.

    ``windows`` is the number of windows of a call: a larger batch would never be full.
    """
    engine, library = job.engine, job.builder.library
    result: Dimensions = [("precision", precisions(job))] if all_precisions else []
    if "context" in library.options and engine.context is None:
        result.append(("context", ("plugin", "native")))
    if engine.batch == 1 and engine.static is None and job.network.batch is None:
        result.append(("batch", tuple(batch for batch in BATCHES if batch <= windows)))
    if "optimisation_level" in library.options and engine.optimisation_level is None:
        result.append(("optimisation_level", LEVELS))
    if "streams" in library.options and engine.streams is None:
        result.append(("streams", STREAMS))
    if not library.needs_gpu:
        result.append(("threads", tuple(_halves(usable_cores()))))
    return result


def _halves(cores: int) -> Iterator[int]:
    while cores > 1:
        cores = (cores + 1) // 2
        yield cores


def precisions(job: Job) -> tuple[str, ...]:
    """The precisions that the library and its GPUs have, and for which there are calibration images if need be."""
    order = job.builder.fastest_first or tuple(job.builder.library.precisions)
    return tuple(precision for precision in order if _has(job, precision))


def _has(job: Job, precision: str) -> bool:
    if precision in EIGHT_BITS and job.samples.calibration is None:
        return False
    try:
        Arithmetic(precision, job.arithmetic.rest).check(job.choice.kind, job.engine)
    except SettingsError:
        return False
    return True


def job_of(job: Job, candidate: Candidate) -> Job:
    """The build of a candidate."""
    compiles = job.builder.library.compiles
    engine = dataclasses.replace(
        job.engine,
        batch=candidate.batch if compiles else job.engine.batch,
        context=candidate.context,
        optimisation_level=candidate.optimisation_level,
        streams=candidate.streams,
    )
    return dataclasses.replace(
        job,
        arithmetic=Arithmetic(candidate.precision, job.arithmetic.rest),
        engine=engine,
        shapes=shapes_for(job.recipe, engine.batch, engine.static or job.network.size),
        kernels=include_kernels(job.builder, engine, job.network.context_width, lambda text: None),
    )
