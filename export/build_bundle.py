"""From a checkpoint to a bundle: load, export, lower, build the engine, pass the gate, write."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import onnx

from isnet_trt._version import __version__
from isnet_trt.bundle import KERNELS, ONNX, Bundle, CheckpointInfo, Manifest, check_target, new_bundle, read_bundle
from isnet_trt.engines.base import Engine
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import PORTABLE, PRECISIONS, EngineSource
from isnet_trt.engines.select import check_engine, choose
from isnet_trt.engines.table import library
from isnet_trt.errors import EngineUnavailable
from isnet_trt.evaluation.labelled import check_labels, open_labelled
from isnet_trt.export import parity
from isnet_trt.export.bundle_kernels import compile_kernels, include_kernels
from isnet_trt.export.engines import engine_builder
from isnet_trt.export.engines.base import BuildRequest, BuiltEngine
from isnet_trt.export.engines.profiles import shapes_for
from isnet_trt.export.graph import export_graph, save_graph
from isnet_trt.export.job import Job, prepare_graphs
from isnet_trt.export.lowering import Arithmetic, LoweredGraphs
from isnet_trt.export.options import EngineOptions, EvidenceOptions, PrecisionOptions
from isnet_trt.export.quantise import Mix
from isnet_trt.export.report import Report
from isnet_trt.export.samples import samples
from isnet_trt.export.score import score
from isnet_trt.files import printable
from isnet_trt.telemetry.logs import logged
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint, load_model

__all__ = ["PRECISIONS", "EngineOptions", "EvidenceOptions", "PrecisionOptions", "build"]
_log = logging.getLogger(__name__)

CALIBRATION = ".calibration"
"""Suffix of the folder beside the bundle that keeps the calibration table for the next build."""


def build(
    ckpt: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    weights: Literal["plain", "ema"] = "plain",
    engine: EngineOptions | None = None,
    precision: PrecisionOptions | None = None,
    evidence: EvidenceOptions | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Build a bundle at ``out`` from a checkpoint. A build that fails writes no bundle.

    Args:
        ckpt: a released or trained checkpoint, ``.pth`` or ``.safetensors``.
        out: the folder to create. The calibration table is kept beside it, in ``<out>.calibration``.
        recipe: name of the recipe; found from the checkpoint's content when not given.
        weights: of the checkpoint: "plain", or "ema" for the running average beside them.
        engine, precision, evidence: see `isnet_trt.export.options`; None: their defaults.
        force: replace an existing bundle at ``out``.
        say: receives the progress messages, one line each.

    Raises:
        CheckpointError, SettingsError, EngineUnavailable, BuildError, ParityError, BundleError: each says what is
            wrong, with which file or value, and what to do.
    """
    target = Path(out).absolute()
    # Before anything is loaded: an occupied folder must not show only after a build.
    check_target(target, force)
    precision, evidence = precision or PrecisionOptions(), evidence or EvidenceOptions()
    load = functools.partial(load_checkpoint, ckpt, recipe, weights)
    say = logged(say, _log)
    job = _settle(load, target, engine or EngineOptions(), precision, evidence, say)
    job.introduce()
    with new_bundle(out, force) as draft:
        with job.stage("export"):
            proto = export_graph(job.model, job.recipe.name)
        graphs, mix = prepare_graphs(proto, job)
        # Before the engine: for ONNX Runtime this file is the engine.
        save_graph(graphs.portable, draft.folder / ONNX)
        built = _engine(graphs.engine, draft.folder, job, target)
        report = _gate(job, graphs, draft.folder, built, mix)
        draft.finish(_manifest(job.checkpoint, job.arithmetic.precision, built.info, report.to_json()))
    return read_bundle(out, verify=False)


def _settle(
    load: Callable[[], Checkpoint],
    target: Path,
    engine: EngineOptions,
    precision: PrecisionOptions,
    evidence: EvidenceOptions,
    say: Callable[[str], None],
) -> Job:
    """Check all options and load the checkpoint, before the first long step."""
    choice, arithmetic = choose(engine.kind), Arithmetic(precision.precision, precision.rest)
    library(choice.kind).start_builder()
    builder = engine_builder(choice.kind)
    arithmetic.check(choice.kind, engine)
    arithmetic.check_options(precision)
    checkpoint = load()
    labelled = evidence.score_on
    if isinstance(labelled, str):
        labelled = open_labelled(labelled, Path(evidence.data) if evidence.data else None, "val")
    if labelled is not None:
        check_labels(checkpoint.recipe.labels, labelled, str(checkpoint.path))
    return Job(
        checkpoint=checkpoint,
        model=load_model(checkpoint),
        choice=choice,
        builder=builder,
        arithmetic=arithmetic,
        engine=engine,
        precision=precision,
        shapes=shapes_for(checkpoint.recipe, engine.batch, engine.static),
        kernels=include_kernels(builder, engine, checkpoint.recipe.architecture, say),
        samples=samples(checkpoint.recipe, precision.calib, precision.calib_inputs, evidence.images, engine.static),
        table=target.with_name(target.name + CALIBRATION),
        labelled=labelled,
        say=say,
    )


def _engine(proto: onnx.ModelProto, folder: Path, job: Job, target: Path) -> BuiltEngine:
    """The kernels and the engine, in the bundle's folder."""
    precision = job.arithmetic.precision
    # Before the engine: TensorRT runs the plugins, and so their kernels, while it builds.
    if job.kernels:
        context, capabilities = job.builder.context(job.engine), job.builder.capabilities(job.engine, precision)
        with job.stage("kernels"):
            spilling = compile_kernels(folder / KERNELS, proto, job.recipe.architecture, context, capabilities)
        if spilling:
            job.note(f"warning: slower than they could be, since they spill registers: {', '.join(spilling)}")
    with job.stage(job.choice.kind) if job.builder.library.compiles else contextlib.nullcontext():
        request = BuildRequest(proto, job.shapes, job.engine, precision, kernels=folder / KERNELS, replaced=target)
        built = job.builder.build(request, folder)
    for note in built.notes:
        job.note(note)
    return built


def _gate(job: Job, graphs: LoweredGraphs, folder: Path, built: BuiltEngine, mix: Mix | None) -> Report:
    """Compare engine and checkpoint, score both where there are labels, and write the report."""
    precision, info = job.arithmetic.precision, built.info
    with job.stage("parity"), _open_runnable(folder, info, job) as running:
        findings = parity.gate(
            job.model, graphs.portable, running, job.samples.gate, parity.TOLERANCES[precision], progress=True
        )
        scores = score(job.model, running, job.checkpoint, job.labelled) if job.labelled is not None else None
    for row in findings.rows:
        job.note(str(row))
    if scores:
        job.note(f"mIoU on {scores.pictures}: {scores.drop:+.2f} points lost")
    engine, facts = f"{info.kind} {info.library_version}", (graphs.about, dict(built.about))
    source = CheckpointInfo(printable(job.checkpoint.path.name), job.checkpoint.sha256)
    report = Report(job.recipe.name, source, precision, engine, job.recipe.labels, findings, *facts, scores, mix)
    report.write(folder)
    return report


def _open_runnable(folder: Path, info: EngineInfo, job: Job) -> Engine:
    """Open the built engine where it can run, else the graph under ONNX Runtime."""
    try:
        check_engine(info)
    except EngineUnavailable as error:
        # An engine can be built ahead of time for GPUs that are not here; the graph is what can be checked then.
        job.note(f"the gate runs the graph under ONNX Runtime. {error}")
        info = EngineInfo(PORTABLE, library(PORTABLE).load().__version__, ONNX)
    classes, stride = job.recipe.labels.count, job.recipe.architecture.output_stride
    return library(info.kind).open(EngineSource(folder / info.file, info, folder / KERNELS, classes, stride))


def _manifest(checkpoint: Checkpoint, precision: str, info: EngineInfo, report: dict[str, Any]) -> Manifest:
    recipe = checkpoint.recipe
    return Manifest(
        recipe=recipe.name,
        labels=recipe.labels,
        preprocess=recipe.preprocess,
        presets={"default": recipe.default, "ms-flip": recipe.ms_flip},
        output_stride=recipe.architecture.output_stride,
        precision=precision,
        engine=info,
        checkpoint=CheckpointInfo(printable(checkpoint.path.name), checkpoint.sha256),
        parity=report,
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        isnet_trt_version=__version__,
    )
