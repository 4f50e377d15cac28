"""From a checkpoint to a bundle: load, export, choose the arithmetic, build the engine, pass the gate, write."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from isnet_trt._version import __version__
from isnet_trt.bundle import (
    ENGINE,
    KERNELS,
    ONNX,
    TIMING_CACHE,
    Bundle,
    CheckpointInfo,
    Manifest,
    check_target,
    new_bundle,
    read_bundle,
)
from isnet_trt.cuda.gpu import find_gpu
from isnet_trt.engines.base import Engine
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import PORTABLE, EngineSource
from isnet_trt.engines.select import Choice, check_engine, choose
from isnet_trt.engines.table import compiling_kinds, library
from isnet_trt.errors import BundleError, EngineUnavailable, SettingsError
from isnet_trt.evaluation.labelled import Labelled, check_labels, open_labelled
from isnet_trt.export import parity, ranges, tensorrt
from isnet_trt.export.bundle_kernels import check_kernels, compile_kernels
from isnet_trt.export.engine_options import Context, EngineOptions
from isnet_trt.export.graph import export_graph, save_graph
from isnet_trt.export.interrupts import interruptible
from isnet_trt.export.layers import summary
from isnet_trt.export.lowering import (
    PRECISIONS,
    Arithmetic,
    LoweredGraphs,
    flavour_of,
    lower_graph,
    missing_calibration,
)
from isnet_trt.export.profiles import Shapes, shapes_for
from isnet_trt.export.quantise import (
    Agreement,
    CalibrationInputs,
    Evaluate,
    MeanIoU,
    Mix,
    Table,
    calibrate,
    find_mix,
    quantisable_layers,
)
from isnet_trt.export.quantise.placement import select_layers
from isnet_trt.export.report import Report, Scores
from isnet_trt.export.samples import OptionalPath, Samples, samples
from isnet_trt.export.score import score
from isnet_trt.pictures.files import printable
from isnet_trt.recipes import Recipe
from isnet_trt.settings import Size
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint, load_model
from isnet_trt.training.model import ISNet

__all__ = ["PRECISIONS", "build"]

Say = Callable[[str], None]
CALIBRATION = ".calibration"
"""Behind the bundle's name: the folder beside it that keeps the calibration table for the next build."""
INPUTS = 128


@dataclass(frozen=True)
class _Job:
    """One build's settled choices."""

    checkpoint: Checkpoint
    model: ISNet
    choice: Choice
    arithmetic: Arithmetic
    options: EngineOptions
    shapes: Shapes
    kernels: bool
    earlier: bytes
    samples: Samples
    table: Path
    skip: tuple[str, ...]
    max_drop: float | None
    labelled: Labelled | None
    say: Say

    @property
    def recipe(self) -> Recipe:
        return self.checkpoint.recipe

    @property
    def context(self) -> Context | None:
        """Who computes the context operations; None where that is no choice."""
        return self.options.context if self.choice.kind in compiling_kinds() else None


def build(
    ckpt: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    engine: str = "auto",
    precision: str = "fp32",
    rest: str = "fp16",
    calib: str | os.PathLike[str] | None = None,
    calib_inputs: int = INPUTS,
    keep: Iterable[str] = (),
    max_drop: float | None = None,
    images: str | os.PathLike[str] | None = None,
    score_on: Labelled | str | None = None,
    data: str | os.PathLike[str] | None = None,
    batch: int = 1,
    static: Size | None = None,
    targets: tuple[str, ...] | None = None,
    context: Context | None = None,
    workspace: float | None = None,
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    timing_cache: str | os.PathLike[str] | None = None,
    kernels: bool = False,
    force: bool = False,
    say: Say = lambda text: None,
) -> Bundle:
    """Build a bundle at ``out`` from a checkpoint; either a whole one is written or nothing.

    Args:
        ckpt: a released or trained ``.pth`` file.
        out: the folder to make. The calibration table is kept beside it, in ``<out>.calibration``.
        recipe: name of the recipe; found from the checkpoint's content when not given.
        engine: ``auto``, ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``.
        precision: one of `PRECISIONS`; which of them an engine has, `graphs.Arithmetic.check` says.
        rest: for int8 and fp8 on a GPU: the type of what stays out of eight bits.
        calib: a folder of typical pictures: calibrates int8 and fp8, finds the float32 islands of fp16 and bf16, and
            serves the gate.
        calib_inputs: at most so many network inputs of them.
        keep: layers that stay out of eight bits, as module names (``backbone_net.layer4``).
        max_drop: for int8 and fp8: the most points of mIoU (with ``score_on``, else of equal labels) that may be lost;
            the most damaging blocks are kept out of eight bits until it holds.
        images: a picture or a folder of pictures for the parity gate instead of the built-in ones.
        score_on: a labelled set, or its name (as `isnet_trt.evaluate` takes it, with ``data``), on which checkpoint
            and engine are scored.
        batch: largest batch of a TensorRT engine.
        static: (height, width) of a TensorRT engine for one input size only.
        targets: compute capabilities that TensorRT-RTX builds for.
        context, workspace, hardware_compatible, version_compatible, timing_cache: of a TensorRT engine, see
            `isnet_trt.export.engine_options.EngineOptions`; the context operations are plugins if not said otherwise,
            and with ``force`` the measurements of the bundle that is replaced are taken.
        kernels: put kernels for the CUDA runtime into a bundle for ONNX Runtime as well; others have them anyway.
        force: replace an existing bundle at ``out``.
        say: receives a line for people at each stage.

    Raises:
        CheckpointError, SettingsError, EngineUnavailable, BuildError, ParityError, BundleError: each says what is
            wrong, with which file or value, and what to do.
    """
    target = Path(out).absolute()
    check_target(target, force)
    choice, arithmetic = choose(engine), Arithmetic(precision, rest)
    cache = Path(timing_cache) if timing_cache is not None else None
    options = EngineOptions(context or "plugin", targets, workspace, hardware_compatible, version_compatible, cache)
    if choice.kind not in compiling_kinds() and (context is not None or options != EngineOptions()):
        options.check(choice.kind)
    arithmetic.check(choice.kind, options)
    _check_eight_bits(arithmetic, tuple(keep), max_drop, calib)
    checkpoint = load_checkpoint(ckpt, recipe)
    labelled = open_labelled(score_on, Path(data) if data else None, "val") if isinstance(score_on, str) else score_on
    if labelled is not None:
        check_labels(checkpoint.recipe.labels, labelled, str(ckpt))
    kernels = _settle_kernels(kernels, choice.kind, options.context, checkpoint.recipe, say)
    shown = samples(checkpoint.recipe, calib, calib_inputs, images, static)
    _introduce(checkpoint, choice, say)
    if choice.kind not in compiling_kinds() and (static or batch > 1):
        say(f"            --static and --batch are for TensorRT engines: {choice.kind} takes any size and number")
    for reason in () if arithmetic.eight_bits else shown.left_out:  # the calibration of eight bits says it itself
        say(f"            left out: {reason}")
    job = _Job(
        checkpoint,
        load_model(checkpoint),
        choice,
        arithmetic,
        options,
        shapes_for(checkpoint.recipe, batch, static),
        kernels,
        measured(target, choice.kind),
        shown,
        target.with_name(target.name + CALIBRATION),
        tuple(keep),
        max_drop,
        labelled,
        say,
    )
    with new_bundle(out, force) as draft:
        graphs, mixed = _graphs(job)
        save_graph(graphs.portable, draft.folder / ONNX)
        info, built = _engine(graphs.engine, draft.folder, job)
        report = _gate(job, graphs, draft.folder, info, built, mixed)
        draft.finish(_manifest(checkpoint, precision, info, report.to_json()))
    return read_bundle(out, verify=False)


def _check_eight_bits(
    arithmetic: Arithmetic, keep: tuple[str, ...], max_drop: float | None, calib: OptionalPath
) -> None:
    """Refuse early what eight bits need, and what only they have."""
    if keep and not arithmetic.eight_bits:
        raise SettingsError(f"keep {' '.join(keep)} with {arithmetic}: it is for int8 and fp8; leave it out")
    if max_drop is not None and not (0 <= max_drop < math.inf and arithmetic.eight_bits):
        raise SettingsError(f"max_drop {max_drop:g} with {arithmetic}: it is for int8 and fp8, and 0 points or more")
    if calib is None and arithmetic.eight_bits:
        raise missing_calibration(arithmetic.precision)


def _settle_kernels(asked: bool, kind: str, context: Context, recipe: Recipe, say: Say) -> bool:
    """Whether the bundle gets kernels: a TensorRT one does where they can be compiled, and must if they are plugins."""
    if not asked and kind not in compiling_kinds():
        return False
    plugin = context if kind in compiling_kinds() else None
    try:
        check_kernels(plugin, recipe.architecture)
    except EngineUnavailable as error:
        if asked or plugin == "plugin":
            raise
        say(f"            without kernels for the CUDA runtime: {error}")
        return False
    return True


def _introduce(checkpoint: Checkpoint, choice: Choice, say: Say) -> None:
    say(f"recipe      {checkpoint.recipe.name}")
    for note in checkpoint.notes:
        say(f"            {note}")
    say(f"engine      {choice.kind}: {choice.reason}")


@contextlib.contextmanager
def _stage(say: Say, name: str) -> Iterator[None]:
    start = time.perf_counter()
    with interruptible():
        yield
    say(f"{name:11} {time.perf_counter() - start:.1f} s")


def _graphs(job: _Job) -> tuple[LoweredGraphs, Mix | None]:
    with _stage(job.say, "export"):
        proto = export_graph(job.model, job.recipe.name)
    arithmetic, found, table, mixed = job.arithmetic, None, None, None
    if arithmetic.eight_bits and job.samples.calibration is not None:
        select_layers(
            quantisable_layers(proto, flavour_of(arithmetic.precision, job.choice.kind)), job.skip
        )  # refuses unknown names
        with _stage(job.say, "calibration"):
            table = _calibrated(proto, job.samples.calibration, job)
        if job.max_drop is not None:
            with _stage(job.say, "sensitivity"):
                mixed = _mixed(proto, table, job, job.max_drop)
    if arithmetic.precision != "fp32":
        with _stage(job.say, "ranges"):
            found = ranges.measure_ranges(proto, (picture.pixels for picture in job.samples.typical), progress=True)
    skip = (*job.skip, *(mixed.skip if mixed else ()))
    return lower_graph(proto, arithmetic, job.choice.kind, found, table, skip), mixed


def _mixed(proto: onnx.ModelProto, table: Table, job: _Job, max_drop: float) -> Mix:
    """Blocks are ranked by equal labels, which is finer; mIoU decides where there are labels."""
    rank = Agreement(proto, job.samples.typical)
    evaluate: Evaluate = rank
    if job.labelled is not None:
        pairs = (job.labelled[index] for index in range(len(job.labelled)))
        evaluate = MeanIoU(job.recipe, [(image[..., ::-1], truth) for image, truth in pairs], job.recipe.default)
    flavour = flavour_of(job.arithmetic.precision, job.choice.kind)
    found = find_mix(proto, table, flavour, max_drop, evaluate, rank=rank, folder=job.table)
    job.say(f"            {found.summary()}")
    return found


def _calibrated(proto: onnx.ModelProto, inputs: CalibrationInputs, job: _Job) -> Table:
    table = calibrate(proto, inputs, job.table)
    for note in (*inputs.notes, *(f"left out: {reason}" for reason in inputs.skipped)):
        job.say(f"            {note}")
    if idle := table.idle():
        job.say(f"            always zero on these pictures: {', '.join(idle[:5])}{' …' * (len(idle) > 5)}")
    return table


def measured(target: Path, kind: str) -> bytes:
    """The measurements in the bundle that the build will replace; empty where there are none to be had."""
    try:
        return read_bundle(target).path(TIMING_CACHE).read_bytes() if kind == "tensorrt" else b""
    except BundleError:
        return b""


def _engine(proto: onnx.ModelProto, folder: Path, job: _Job) -> tuple[EngineInfo, dict[str, Any]]:
    kind, gpu = job.choice.kind, find_gpu()
    precision = job.arithmetic.precision
    capabilities = job.options.capabilities(kind, gpu, precision) if kind in compiling_kinds() else None
    if job.kernels:
        with _stage(job.say, "kernels"):
            spilling = compile_kernels(folder / KERNELS, proto, job.recipe.architecture, job.context, capabilities)
        if spilling:
            job.say(f"            warning: slower than they need be, since they spill registers: {', '.join(spilling)}")
    if kind == PORTABLE:
        return EngineInfo(kind, library(kind).load().__version__, ONNX), {"bytes": (folder / ONNX).stat().st_size}
    path, kernels = folder / ENGINE, folder / KERNELS
    with _stage(job.say, kind):
        built = tensorrt.build_engine(
            proto, kind, job.shapes, path, job.options, precision=precision, kernels=kernels, earlier=job.earlier
        )
    if built.timing_cache:
        (folder / TIMING_CACHE).write_bytes(built.timing_cache)
        job.say(f"            measured {'only what was not known before' if built.reused else 'from the start'}")
    info = EngineInfo(
        kind,
        library(kind).installed_version() or "",
        ENGINE,
        built.capabilities,
        gpu.name if gpu else None,
        gpu.driver if gpu else None,
        (job.shapes.smallest, job.shapes.usual, job.shapes.largest),
        job.context,
        job.options.version_compatible,
    )
    return info, {"bytes": built.size, "layers": summary(built.layers)}


def _gate(
    job: _Job, graphs: LoweredGraphs, folder: Path, info: EngineInfo, built: dict[str, Any], mixed: Mix | None
) -> Report:
    """Compare, score where there are labels, and leave the report in the bundle's folder."""
    tolerance = parity.TOLERANCES[job.arithmetic.precision]
    scores: Scores | None = None
    output = (job.recipe.labels.count, job.recipe.architecture.output_stride)
    with _stage(job.say, "parity"), _runnable(folder, info, output, job.say) as running:
        found = parity.gate(job.model, graphs.portable, running, job.samples.gate, tolerance, progress=True)
        if job.labelled is not None:
            scores = score(job.model, running, job.checkpoint, job.labelled)
    for row in found.rows:
        job.say(f"            {row}")
    if scores:
        job.say(f"            mIoU on {scores.pictures}: {scores.drop:+.2f} points lost")
    engine = f"{info.kind} {info.library_version}"
    precision = job.arithmetic.precision
    report = Report(job.recipe.name, precision, engine, job.recipe.labels, found, graphs.about, built, scores, mixed)
    report.write(folder)
    return report


@contextlib.contextmanager
def _runnable(folder: Path, info: EngineInfo, output: tuple[int, int], say: Say) -> Iterator[Engine]:
    """The built engine where it can run, else the graph under ONNX Runtime."""
    try:
        check_engine(info)
    except EngineUnavailable as error:
        say(f"            the gate runs the graph under ONNX Runtime. {error}")
        info = EngineInfo(PORTABLE, library(PORTABLE).load().__version__, ONNX)
    source = EngineSource(folder / info.file, info, folder / KERNELS, *output)
    with library(info.kind).open(source) as engine:
        yield engine


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
