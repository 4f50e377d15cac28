"""``build --tune``: the fastest candidate within an accuracy bound becomes the bundle.

The search goes one setting at a time from the best candidate so far, over and over until no value of any setting makes
the call faster or the budget is spent. It tries a few of the hundreds of combinations, and those that gain most first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from isnet_trt._version import __version__
from isnet_trt.bundle import new_bundle
from isnet_trt.cuda.gpu import probe_gpu
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import BuildError, BundleError, EngineUnavailable, IsnetError, ParityError, SettingsError
from isnet_trt.export.job import Job
from isnet_trt.export.lowering import EIGHT_BITS
from isnet_trt.export.network_inputs import PICTURES, scaled
from isnet_trt.export.options import OptionalPath, TuneOptions
from isnet_trt.export.samples import COMPARED
from isnet_trt.export.stages import compare_with_reference, new_manifest
from isnet_trt.export.tune_candidates import Candidate, Dimensions, baseline, dimensions, job_of
from isnet_trt.export.tune_state import Status, Store, Trial, TuningTable, exclusive, winner
from isnet_trt.export.tune_trial import References, TimedCall, Workshop, opened, time_calls
from isnet_trt.merging import windows
from isnet_trt.metrics import percent
from isnet_trt.pictures.files import Image, read_image
from isnet_trt.pictures.finding import pictures_in
from isnet_trt.pictures.preprocess import resize
from isnet_trt.recipes import PRESETS
from isnet_trt.settings import Placement, size_text

TUNING = ".tuning"
"""Suffix of the folder beside the bundle that keeps a tuning that has not ended."""
_PASSES = {"fp32": 0, "fp16": 1, "bf16": 1, "int8": 3, "fp8": 3}
"""Times that preparing a precision is estimated to run the network on each of its inputs."""
_ATTEMPTS = 2


def check(tune: TuneOptions, job: Job) -> None:
    """Refuse, before the first long step, what cannot be tuned here.

    Raises:
        SettingsError: the preset is unknown, or the bundle is for ONNX Runtime's CUDA provider.
        EngineUnavailable: the library's engines do not run on this machine, and so cannot be timed.
    """
    if tune.preset not in PRESETS:
        raise SettingsError(f"--tune-preset {tune.preset!r} is unknown; use one of {', '.join(PRESETS)}")
    library = job.builder.library
    if not library.needs_gpu:
        if Placement.parse(job.engine.device).kind == "cuda":
            raise SettingsError(
                f"--tune times {library.kind} on a CPU, this bundle is for its CUDA provider ({job.choice.reason}); "
                f"leave out --tune, or use --engine {library.kind} without --device"
            )
        return
    gpu, reason = probe_gpu()
    if gpu is not None:
        reason = library.unsupported(gpu)
    if reason:
        raise EngineUnavailable(f"--tune times {library.kind} engines on this machine, which cannot run them: {reason}")


def timed_image(tune: TuneOptions, job: Job, images: OptionalPath) -> Image:
    """The image whose call is timed, uint8 (H, W, 3) RGB; see `TuneOptions`.

    Raises:
        ImageError: the image cannot be read.
    """
    if tune.image is not None:
        return read_image(tune.image)
    if tune.size is None and job.samples.calibration is not None:
        known = [read_image(path) for path in job.samples.calibration.readable]
        (size, _), *_ = Counter(image.shape for image in known).most_common(1)
        return next(image for image in known if image.shape == size)
    if tune.size is None and images is not None:
        path = Path(images)
        return read_image(pictures_in(path)[0] if path.is_dir() else path)
    preprocess = job.recipe.preprocess
    test_size = preprocess.size or job.shapes.usual[2:]
    size = tune.size or ((min(test_size), max(test_size)) if preprocess.keep_ratio else test_size)
    return scaled(read_image(pictures_in(PICTURES)[0]), size)


def identity(job: Job, call: TimedCall, tune: TuneOptions) -> dict[str, str]:
    """What the figures of a tuning depend on: a tuning goes on only where all of it is the same."""
    samples, library = job.samples, job.builder.library
    pixels = (item.pixels.tobytes() for item in samples.gate)
    options = dataclasses.replace(job.engine, timing_cache=None), job.arithmetic, job.precision
    return {
        "checkpoint": job.network.source.sha256,
        "recipe": repr(job.recipe.preset(tune.preset)) + job.recipe.name,
        "weights": job.network.identity,
        "engine": f"{library.kind} {library.installed_version()}",
        "isnet_trt version": __version__,
        "device": call.device,
        "picture": f"{size_text(call.image.shape[:2])} {_digest([call.image.tobytes()])}",
        "accuracy bound": str(tune.accuracy),
        "options": repr(options),
        "comparison pictures": _digest(pixels),
        "calibration pictures": samples.calibration.fingerprint if samples.calibration else "none",
    }


def _digest(parts: Iterator[bytes] | list[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def device(job: Job) -> str:
    """The device that is timed: the GPU with its driver, or the CPU with its cores."""
    gpu, _ = probe_gpu() if job.builder.library.needs_gpu else (None, "")
    return f"{gpu.name}, {gpu.driver}" if gpu else f"{_cpu_name()}, {usable_cores()} cores"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or an architecture that states no name
        return platform.processor() or platform.machine()


def build_tuned(
    job: Job, proto: onnx.ModelProto, target: Path, force: bool, tune: TuneOptions, images: OptionalPath
) -> None:
    """Search, and write the bundle of the best candidate at ``target``.

    Raises:
        BuildError: no candidate is within the bound; the message has each one's reason.
        KeyboardInterrupt: what was tried stays beside the bundle.
    """
    call = TimedCall(timed_image(tune, job, images), tune.preset, device(job))
    resized = resize(call.image, job.recipe.preprocess)
    queue = windows.plan(resized.shape[:2], job.recipe.preset(tune.preset)).windows
    folder = target.with_name(target.name + TUNING)
    with exclusive(folder):
        store = Store.open(folder, identity(job, call, tune))
        search = Search(job, tune, Workshop(job, proto, store, target, call), len(queue))
        try:
            search.run()
            search.write_bundle(target, force)
        except KeyboardInterrupt:
            search.interrupted()
            raise
        store.remove()


class Search:
    """The candidates of a tuning one after the other, within the budget."""

    def __init__(self, job: Job, tune: TuneOptions, workshop: Workshop, windows: int) -> None:
        self.job, self.tune, self.workshop, self.windows = job, tune, workshop, windows
        self.store, self.state = workshop.store, workshop.store.state
        self.start = job.start - self.state.spent
        self.skipped: dict[Candidate, Trial] = {}
        self.references = References(job.network, job.samples.gate)

    @property
    def left(self) -> float:
        """Seconds of the budget, less what the final comparison is estimated to take."""
        if self.tune.budget is None:
            return float("inf")
        return self.tune.budget - (time.monotonic() - self.start) - 2 * self.references.seconds

    def run(self) -> None:
        """Try candidates until none is left to try, or the budget is spent."""
        self._introduce()
        first = baseline(self.job)
        if not self._is_tried(first):
            self._try(first)  # whatever the budget: without it there may be no bundle
        varied = dimensions(self.job, self.windows, self.tune.accuracy is not None)
        while self._pass(varied):
            pass

    def _introduce(self) -> None:
        call, trials = self.workshop.call, self.state.trials
        size = size_text(call.image.shape[:2])
        self.job.say(f"tuning      whole calls of {size}, {call.preset}, {self.windows} windows, on {call.device}")
        for note in self.store.notes:
            self.job.note(note)
        if trials:
            self.job.note(f"going on after {len(trials)} candidates in {self.state.spent:.0f} s")
        if self.tune.accuracy is None:
            self.job.note("precision stays as it is: --tune-accuracy states how many labels must stay equal")

    def _pass(self, varied: Dimensions) -> bool:
        """Vary each setting once; whether anything was tried."""
        before = len(self.state.trials)
        for name, values in varied:
            centre = self._best() or baseline(self.job)
            for value in values:
                candidate = dataclasses.replace(centre, **{name: value})
                if not self._is_tried(candidate) and self._fits(candidate):
                    self._try(candidate)
        return len(self.state.trials) > before

    def _best(self) -> Candidate | None:
        best = winner(self.state.trials)
        return best.candidate if best else None

    def _is_tried(self, candidate: Candidate) -> bool:
        return any(trial.candidate == candidate for trial in self.state.trials)

    def _fits(self, candidate: Candidate) -> bool:
        """Whether a candidate is estimated to fit what is left of the budget; notes it where not."""
        estimate, left = self._estimate(candidate), self.left
        if estimate <= left:
            self.skipped.pop(candidate, None)
            return True
        if candidate not in self.skipped:
            reason = f"it would take about {estimate:.0f} s, {max(left, 0.0):.0f} s are left"
            self.skipped[candidate] = Trial(candidate, "out of budget", reason)
        return False

    def _estimate(self, candidate: Candidate) -> float:
        """Seconds that a candidate will take, from those done."""
        trials = self.state.trials
        seconds = max((trial.trial_seconds for trial in trials), default=0.0)
        if self.workshop.is_built(candidate):
            return seconds
        same = [t.build_seconds for t in trials if t.candidate.precision == candidate.precision and t.build_seconds]
        seconds += max(same or [trial.build_seconds for trial in trials], default=0.0)
        if same or self.workshop.is_prepared(candidate.precision):
            return seconds
        inputs = self.job.precision.calib_inputs if candidate.precision in EIGHT_BITS else COMPARED
        per_input = self.references.seconds / len(self.references.inputs)
        return seconds + _PASSES.get(candidate.precision, 0) * inputs * per_input

    def _try(self, candidate: Candidate) -> None:
        """Try one candidate, and keep what came of it."""
        state = self.state
        state.attempts = state.attempts + 1 if state.current == candidate else 1
        state.current = candidate
        if state.attempts > _ATTEMPTS:
            trial = Trial(candidate, "failed", f"the process ended {_ATTEMPTS} times while this was tried")
        else:
            self._save()
            trial = self._measured(candidate)
        state.trials, state.current, state.attempts = (*state.trials, trial), None, 0
        self._save()
        timed = {self.workshop.of_build(t.candidate) for t in (self._reference(),) if t}
        self.store.keep(timed)
        left = "" if self.tune.budget is None else f" ({max(self.left, 0.0):.0f} s left)"
        self.job.say(f"tried {len(state.trials):<5} {trial}{left}")

    def _save(self) -> None:
        self.state.spent = time.monotonic() - self.start
        self.store.save()

    def _reference(self) -> Trial | None:
        """The best trial, or before there is one the first that could be timed: others are timed beside it."""
        timed = (trial for trial in self.state.trials if trial.relative is not None)
        return winner(self.state.trials) or next(timed, None)

    def _measured(self, candidate: Candidate) -> Trial:
        start = time.perf_counter()
        built = start
        try:
            self.workshop.bundle(candidate)
            built = time.perf_counter()
            return dataclasses.replace(
                self._timed(candidate), build_seconds=built - start, trial_seconds=time.perf_counter() - built
            )
        except (IsnetError, MemoryError) as error:
            if isinstance(error, BundleError):  # the disk is full, say: nothing that is the candidate's
                raise
            return Trial(candidate, "failed", _line(error), build_seconds=time.perf_counter() - start)

    def _timed(self, candidate: Candidate) -> Trial:
        reference = self._reference()
        with opened(self.workshop, candidate, reference.candidate if reference else None) as (segmenter, other):
            agreement = self.references.agreement(segmenter)
            own, others = time_calls(self.workshop.call, segmenter, other, self.left)
        low, median, high = (float(value) for value in np.percentile(own, (25, 50, 75)))
        relative = 1.0
        if reference is not None and reference.relative is not None:
            relative = reference.relative * float(np.median(np.divide(own, others)))
        status, reason = self._judge(agreement)
        return Trial(candidate, status, reason, agreement, median, (low, high), len(own), relative)

    def _judge(self, agreement: float) -> tuple[Status, str]:
        bound = self.tune.accuracy
        if bound is None or agreement >= bound:
            return "within the bound", ""
        return (
            "over the bound",
            f"{percent(agreement, 3)} % of the labels are equal, the bound is {percent(bound, 3)} %",
        )

    def write_bundle(self, target: Path, force: bool) -> None:
        """Write the bundle of the best candidate that the parity gate accepts."""
        while (best := winner(self.state.trials)) is not None:
            try:
                self._write(best, target, force)
                return
            except ParityError as error:
                failed = dataclasses.replace(best, status="failed", reason=_line(error))
                self.state.trials = tuple(failed if trial is best else trial for trial in self.state.trials)
                self._save()
                self.job.note(f"{best.candidate}: {_line(error)}")
        reasons = "".join(f"\n  {trial}" for trial in (*self.state.trials, *self.skipped.values()))
        raise BuildError(f"no candidate is within the bound; nothing was written:{reasons}")

    def _write(self, best: Trial, target: Path, force: bool) -> None:
        candidate, call = best.candidate, self.workshop.call
        job = job_of(self.job, candidate)
        with new_bundle(target, force) as draft:
            built = self.workshop.copy(candidate, draft.folder)
            graphs, mix = self.workshop.graphs(candidate)
            table = TuningTable(self._about(), (*self.state.trials, *self.skipped.values()), best)
            report = compare_with_reference(job, graphs, draft.folder, built, mix, table)
            tuning = call.tuning(candidate, best.median or 0.0)
            draft.finish(new_manifest(job.network, candidate.precision, built.info, report.to_json(), tuning))
        self.job.say(f"chosen      {best}")

    def _about(self) -> dict[str, Any]:
        call, bound, budget = self.workshop.call, self.tune.accuracy, self.tune.budget
        return {
            "device": call.device,
            "engine": self.state.identity["engine"],
            "timed": f"whole calls of {size_text(call.image.shape[:2])}, {call.preset}, {self.windows} windows",
            "bound": f"{percent(bound, 3)} % equal labels" if bound is not None else "the precision of the build",
            "budget": f"{budget:g} s" if budget is not None else "none",
            "spent": f"{time.monotonic() - self.start:.1f} s",
        }

    def interrupted(self) -> None:
        """Keep what was tried, and tell the user how to go on."""
        self.state.current, self.state.attempts = None, 0
        self._save()
        self.job.note(f"{len(self.state.trials)} candidates are kept in {self.store.folder}; the same command goes on")
        if best := winner(self.state.trials):
            self.job.note(f"best so far: {best}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
