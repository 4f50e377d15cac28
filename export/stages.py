"""The stages of a build behind its graphs: kernels and engine, the parity gate with its report, the manifest."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import Any

import onnx

from isnet_trt._version import __version__
from isnet_trt.bundle import KERNELS, ONNX, Manifest, Tuning
from isnet_trt.engines.base import Engine
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import PORTABLE, EngineSource
from isnet_trt.engines.select import check_engine
from isnet_trt.engines.table import library
from isnet_trt.errors import EngineUnavailable
from isnet_trt.export import parity
from isnet_trt.export.bundle_kernels import compile_kernels, kernel_capabilities
from isnet_trt.export.engines.base import BuildRequest, BuiltEngine
from isnet_trt.export.job import Job
from isnet_trt.export.lowering import LoweredGraphs
from isnet_trt.export.network import Network
from isnet_trt.export.quantise import Mix
from isnet_trt.export.report import Report
from isnet_trt.export.score import score
from isnet_trt.export.tune_state import TuningTable

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
            channels = job.network.head.classes, job.network.context_width
            spilling = compile_kernels(folder / KERNELS, proto, channels, context, targets)
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
    with job.stage("parity"), _open_runnable(folder, info, job) as running:
        network, tolerance = job.network, parity.TOLERANCES[precision]
        findings = parity.gate(
            network.reference, network.head, graphs.portable, running, job.samples.gate, tolerance, progress=True
        )
        scores = score(network, running, job.labelled) if job.labelled is not None else None
    for row in findings.rows:
        job.note(str(row))
    if scores:
        job.note(f"mIoU on {scores.pictures}: {scores.drop:+.2f} points lost")
    engine, facts = f"{info.kind} {info.library_version}", (graphs.about, dict(built.about))
    report = Report(
        job.recipe.name, job.network.source, precision, engine, job.recipe.labels, findings, *facts, scores, mix, tuning
    )
    report.write(folder)
    return report


def _open_runnable(folder: Path, info: EngineInfo, job: Job) -> Engine:
    """Open the built engine where it can run, else the graph under ONNX Runtime."""
    try:
        check_engine(info, job.engine.gpu)
    except EngineUnavailable as error:
        # An engine can be built ahead of time for GPUs that are not here; the graph is what can be checked then.
        job.note(f"the gate runs the graph under ONNX Runtime. {error}")
        info = EngineInfo(PORTABLE, library(PORTABLE).load().__version__, ONNX)
    output = job.network.head.classes, job.network.stride
    source = EngineSource(folder / info.file, info, folder / KERNELS, *output, gpu=job.engine.gpu)
    return library(info.kind).open(source)


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
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        isnet_trt_version=__version__,
        network=recipe.network,
        tuning=tuning,
    )
