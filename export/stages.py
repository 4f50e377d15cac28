"""The stages of a build behind its graphs: kernels and engine, the parity gate with its report, the manifest."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx

from isnet_trt._version import __version__
from isnet_trt.bundle import CUDA_ONNX, KERNELS, ONNX, Manifest, Tuning
from isnet_trt.engines.base import Engine
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import PORTABLE, EngineSource
from isnet_trt.engines.select import check_engine, no_cuda_provider
from isnet_trt.engines.table import library
from isnet_trt.errors import EngineUnavailable, ParityError
from isnet_trt.evaluation.provenance import Provenance, now
from isnet_trt.export import parity
from isnet_trt.export.bundle_kernels import compile_kernels, kernel_capabilities
from isnet_trt.export.engines.base import BuildRequest, BuiltEngine
from isnet_trt.export.job import Job
from isnet_trt.export.lowering import LoweredGraphs
from isnet_trt.export.network import Network
from isnet_trt.export.quantise import Mix
from isnet_trt.export.report import HTML, Report
from isnet_trt.export.samples import COMPARED
from isnet_trt.export.score import score
from isnet_trt.export.tune_state import TuningTable
from isnet_trt.files import printable
from isnet_trt.markdown import plain
from isnet_trt.metrics import percent
from isnet_trt.settings import Placement

MEASUREMENTS = ".timing.cache"
"""Suffix of the file beside the bundle that keeps TensorRT's timing cache for the next build."""


def measurements(target: Path) -> Path:
    """The timing cache beside the bundle ``target``."""
    return target.with_name(target.name + MEASUREMENTS)


def build_engine(proto: onnx.ModelProto, folder: Path, job: Job, target: Path) -> BuiltEngine:
    """The kernels and the engine, in the bundle's folder."""
    precision = job.arithmetic.precision
    # Before the engine: TensorRT runs the plugins, and so their kernels, while it builds.
    if job.kernels:
        context, capabilities = job.builder.context(job.engine), job.builder.capabilities(job.engine, precision)
        with job.stage("kernels"):
            targets = kernel_capabilities(job.engine, capabilities)
            head = job.network.head
            channels, padded = (head.classes, job.network.context_width), head.network.size_multiple > 1
            spilling = compile_kernels(folder / KERNELS, proto, channels, context, targets, padded=padded)
        if spilling:
            job.note(f"warning: slower than they could be, since they spill registers: {', '.join(spilling)}")
    with job.stage(job.choice.kind) if job.builder.library.compiles else contextlib.nullcontext():
        request = BuildRequest(proto, job.shapes, job.engine, precision, folder / KERNELS, target, measurements(target))
        built = job.builder.build(request, folder)
    for note in built.notes:
        job.note(note)
    return built


def compare_with_reference(
    job: Job,
    graphs: LoweredGraphs,
    folder: Path,
    built: BuiltEngine,
    mix: Mix | None,
    tuning: TuningTable | None = None,
) -> Report:
    """Compare engine and reference, score both where there are labels, and write the report."""
    precision, info = job.arithmetic.precision, built.info
    with job.stage("parity"), contextlib.ExitStack() as stack:
        engine, not_run = _open_runnable(folder, info, job)
        running = stack.enter_context(engine)
        findings = parity.gate(
            job.network.reference,
            job.network.head,
            graphs.portable,
            running,
            job.samples.gate,
            parity.TOLERANCES[precision],
            progress=True,
            preprocess=job.recipe.preprocess,
        )
        scores = score(job.network, running, job.labelled) if job.labelled is not None else None
    for row in findings.rows:
        job.note(str(row))
    if scores:
        job.note(f"mIoU on {scores.pictures}: {scores.drop:+.2f} points lost")
    report = Report(
        recipe=job.recipe.name,
        checkpoint=job.network.source,
        precision=precision,
        engine=f"{info.kind} {info.library_version}",
        labels=job.recipe.labels,
        result=findings,
        about=graphs.about,
        built=dict(built.about),
        scores=scores,
        mix=mix,
        tuning=tuning,
        evidence=job.samples.evidence if precision != "fp32" else job.samples.evidence.uncalibrated(),
        target=job.target,
        not_run=not_run,
        calibration=_calibration(job),
        provenance=Provenance(job.command),
    )
    _judge(report, job)
    report.write(folder)
    return report


def _judge(report: Report, job: Job) -> None:
    """Tell the user the verdict; ParityError where the engine misses the share of equal labels that the user set."""
    measured, least = percent(report.result.agreement, 3), percent(report.bound.agreement)
    if report.meets:
        job.note(f"labels equal {measured} %, the bound is {least} %")
    elif job.target is not None:
        raise ParityError(
            f"{measured} % of the labels equal the reference's, --min-equal is {least} %; nothing was written. Keep "
            "blocks out of eight bits (--max-drop, --keep), calibrate on more typical pictures (--calib), or use a "
            "finer --precision"
        )
    else:
        job.note(
            f"warning: labels equal {measured} %, less than the {least} % expected of {report.precision}; the bundle "
            f"is written, its {HTML} says so (--min-equal sets a bound that is enforced)"
        )


def _calibration(job: Job) -> str:
    """Which images ranges and the calibration table come from, for the report."""
    inputs, evidence = job.samples.calibration, job.samples.evidence
    if job.arithmetic.precision == "fp32":
        return "none: float32 needs no ranges"
    if inputs is None:
        return "none; ranges were measured on the compared images"
    windows = job.precision.calib_inputs if job.arithmetic.eight_bits else COMPARED
    folder = plain(printable(str(job.precision.calib)))
    return (
        f"{folder}: up to {windows} windows of {evidence.calibrated} images; list of files `{inputs.fingerprint[:12]}`"
    )


def _open_runnable(folder: Path, info: EngineInfo, job: Job) -> tuple[Engine, str]:
    """Open the built engine where it can run, else the graph under ONNX Runtime; the reason why it cannot, or ""."""
    reason, device = "", Placement()
    try:
        check_engine(info, job.engine.gpu)
        if info.file == CUDA_ONNX:
            device = Placement("cuda", job.engine.gpu)
            if missing := no_cuda_provider(job.engine.gpu):
                raise EngineUnavailable(f"the graph for a GPU cannot run here: {missing}")
    except EngineUnavailable as error:
        # An engine can be built ahead of time for GPUs that are not here; the graph is what can be checked then.
        reason = str(error)
        job.note(f"the gate runs the graph under ONNX Runtime. {reason}")
        info, device = EngineInfo(PORTABLE, library(PORTABLE).load().__version__, ONNX), Placement()
    output = job.network.head.classes, job.network.stride
    precision = job.arithmetic.precision
    source = EngineSource(folder / info.file, info, folder / KERNELS, *output, gpu=job.engine.gpu, precision=precision)
    return library(info.kind).open(source, device=device), reason


def new_manifest(
    network: Network, precision: str, info: EngineInfo, report: dict[str, Any], tuning: Tuning | None = None
) -> Manifest:
    """The manifest of a bundle that is about to be finished; ``report`` is that of the gate."""
    recipe = network.recipe
    return Manifest(
        recipe=recipe.name,
        labels=recipe.labels,
        preprocess=recipe.preprocess,
        presets=dict(recipe.presets),
        output_stride=network.stride,
        precision=precision,
        engine=info,
        checkpoint=network.source,
        parity=report,
        created_at=report.get("created_at") or now(),  # the date on the page is the bundle's
        isnet_trt_version=__version__,
        network=recipe.network,
        tuning=tuning,
    )
