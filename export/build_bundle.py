"""From a network to a bundle: load, export, lower, build the engine, pass the gate, write."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import onnx

from isnet_trt.bundle import ONNX, Bundle, check_target, new_bundle, read_bundle
from isnet_trt.cuda.gpu import require_gpu
from isnet_trt.engines.library import PRECISIONS
from isnet_trt.engines.select import choose
from isnet_trt.engines.table import library
from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.labelled import Labelled, check_labels, open_labelled
from isnet_trt.export.bundle_kernels import include_kernels
from isnet_trt.export.engines import engine_builder
from isnet_trt.export.engines.profiles import shapes_for
from isnet_trt.export.graph import save_graph
from isnet_trt.export.job import Job, prepare_graphs
from isnet_trt.export.lowering import EIGHT_BITS, Arithmetic
from isnet_trt.export.network import Network
from isnet_trt.export.options import EngineOptions, EvidenceOptions, PrecisionOptions, TuneOptions
from isnet_trt.export.parity import Target
from isnet_trt.export.quantise.table import JSON, check_writable
from isnet_trt.export.samples import samples
from isnet_trt.export.sources import CheckpointFile, Module, OnnxFile, Source
from isnet_trt.export.stages import build_engine, compare_with_reference, measurements, new_manifest
from isnet_trt.export.tune import TUNING, build_tuned
from isnet_trt.export.tune import check as check_tuning
from isnet_trt.files import check_name_length
from isnet_trt.settings import Placement
from isnet_trt.telemetry.logs import logged

__all__ = [
    "PRECISIONS",
    "EngineOptions",
    "EvidenceOptions",
    "Module",
    "OnnxFile",
    "PrecisionOptions",
    "TuneOptions",
    "build",
]
_log = logging.getLogger(__name__)

CALIBRATION = ".calibration"
"""Suffix of the folder beside the bundle that keeps the calibration table for the next build."""


def build(
    ckpt: str | os.PathLike[str] | Source,
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    weights: Literal["plain", "ema"] = "plain",
    engine: EngineOptions | None = None,
    precision: PrecisionOptions | None = None,
    evidence: EvidenceOptions | None = None,
    tune: TuneOptions | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
    command: str = "",
) -> Bundle:
    """Build a bundle at ``out`` from a network. A build that fails writes no bundle.

    Args:
        ckpt: a released or trained checkpoint of an ISNet, ``.pth`` or ``.safetensors``; or any segmentation network:
            `isnet_trt.export.OnnxFile`, `isnet_trt.export.Module`.
        out: the folder to create. The calibration table is kept beside it, in ``<out>.calibration``.
        recipe: of a checkpoint: name of the recipe; found from the checkpoint's content when not given.
        weights: of a checkpoint: "plain", or "ema" for the running average beside them.
        engine: library, sizes and limits of the engine; None: the defaults of `EngineOptions`.
        precision: arithmetic and calibration; None: the defaults of `PrecisionOptions`.
        evidence: what the engine is compared on; None: the defaults of `EvidenceOptions`.
        tune: search for the fastest settings; None: build with those of the options. An interrupted search is kept in
            ``<out>.tuning``, and the same call goes on with it.
        force: replace an existing bundle at ``out``.
        say: receives the progress messages, one line each.
        command: noted in the report as what made the bundle.

    Raises:
        CheckpointError, SettingsError, EngineUnavailable, BuildError, ParityError, BundleError: each says what is
            wrong, with which file or value, and what to do.
    """
    target = Path(out).absolute()
    # Before anything is loaded: an occupied folder must not show only after a build.
    check_target(target, force)
    precision, evidence = precision or PrecisionOptions(), evidence or EvidenceOptions()
    source = CheckpointFile(ckpt, recipe, weights) if isinstance(ckpt, str | os.PathLike) else ckpt
    say = logged(say, _log)
    job = _settle(source, target, engine or EngineOptions(), precision, evidence, tune, say)
    job = dataclasses.replace(job, command=command)
    job.introduce()
    if tune:
        build_tuned(job, _exported(job), target, force, tune, evidence.images)
        return read_bundle(out, verify=False)
    with new_bundle(out, force) as draft:
        graphs, mix = prepare_graphs(_exported(job), job)
        # Before the engine: for ONNX Runtime this file is the engine.
        save_graph(graphs.portable, draft.folder / ONNX)
        built = build_engine(graphs.engine, draft.folder, job, target)
        report = compare_with_reference(job, graphs, draft.folder, built, mix)
        draft.finish(new_manifest(job.network, job.arithmetic.precision, built.info, report.to_json()))
    return read_bundle(out, verify=False)


def _exported(job: Job) -> onnx.ModelProto:
    with job.stage("export"):
        return job.network.export()


def _settle(
    source: Source,
    target: Path,
    engine: EngineOptions,
    precision: PrecisionOptions,
    evidence: EvidenceOptions,
    tune: TuneOptions | None,
    say: Callable[[str], None],
) -> Job:
    """Check all options and load the network, before the first long step."""
    start = time.monotonic()
    if (number := Placement.parse(engine.device).number) is not None:
        require_gpu(number)
    choice, arithmetic = choose(engine.kind, gpu=engine.gpu), Arithmetic(precision.precision, precision.rest)
    if choice.on_gpu:  # chosen automatically: the bundle is for the GPU, as if that had been asked for
        engine = dataclasses.replace(engine, device=f"cuda:{engine.gpu}")
    library(choice.kind).start_builder(engine.gpu)
    builder = engine_builder(choice.kind)
    arithmetic.check(choice.kind, engine)
    # Candidates of a tuning may be in eight bits where the build itself is not.
    candidates = EIGHT_BITS if tune and tune.accuracy and precision.calib else ()
    arithmetic.check_options(precision, candidates)
    table = target.with_name(target.name + CALIBRATION)
    kept = [table] if arithmetic.eight_bits or candidates else []
    kept += [measurements(target)] if "timing_cache" in library(choice.kind).options else []
    kept += [target.with_name(target.name + TUNING)] if tune else []
    for path in kept:
        check_name_length(path, "--out")
    if table in kept and not os.path.lexists(table / JSON):  # a table that is complete need not be written
        check_writable(table)
    network = source.load(engine.static)
    engine = _fitted(engine, network, choice.kind)
    static = engine.static or network.size
    labelled = _labelled(evidence, network)
    job = Job(
        network=network,
        choice=choice,
        builder=builder,
        arithmetic=arithmetic,
        engine=engine,
        precision=precision,
        shapes=shapes_for(network.recipe, engine.batch, static),
        kernels=include_kernels(builder, engine, network.context_width, say),
        samples=samples(
            network.recipe,
            precision.calib,
            precision.calib_inputs,
            evidence.images,
            static,
            evidence.gate_inputs,
            network.size,
        ),
        target=None if evidence.min_equal is None else Target(evidence.min_equal, "`--min-equal` asks for it"),
        table=table,
        labelled=labelled,
        say=say,
        start=start,
    )
    if tune:
        check_tuning(tune, job)
    return job


def _labelled(evidence: EvidenceOptions, network: Network) -> Labelled | None:
    """The set to score on; SettingsError if its classes are not the network's."""
    labelled = evidence.score_on
    if isinstance(labelled, str):
        labelled = open_labelled(labelled, Path(evidence.data) if evidence.data else None, "val")
    if labelled is not None:
        check_labels(network.recipe.labels, labelled, network.path)
    return labelled


def _fitted(engine: EngineOptions, network: Network, kind: str) -> EngineOptions:
    """The options of an engine for a network; refused where the network has no use for one of them.

    Raises:
        SettingsError: a batch for a network of one image at a time, plugins for a network without context operations.
    """
    if network.batch is not None and engine.batch > network.batch:
        raise SettingsError(f"--batch {engine.batch}: {network.path} takes {network.batch} image at a time")
    if network.context_width is not None or "context" not in library(kind).options:
        return engine
    if engine.context == "plugin":
        raise SettingsError(f"--context plugin: {network.path} has no context operations; leave it out")
    return dataclasses.replace(engine, context="native")
