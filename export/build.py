"""From a checkpoint to a bundle: load, export, build the engine, pass the gate, write."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import onnx

from isnet_trt._version import __version__
from isnet_trt.bundle import (
    ENGINE,
    ONNX,
    Bundle,
    CheckpointInfo,
    EngineInfo,
    Manifest,
    check_target,
    new_bundle,
    read_bundle,
)
from isnet_trt.engines import Engine, check_engine, open_onnx
from isnet_trt.engines import onnxruntime as ort
from isnet_trt.engines.device import find_gpu
from isnet_trt.engines.libraries import installed_version
from isnet_trt.engines.select import Choice, choose
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.export import parity, tensorrt, winograd
from isnet_trt.export.graph import export_graph, save_graph
from isnet_trt.settings import Size
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint, load_model
from isnet_trt.training.recipes import Recipe

PRECISIONS = ("fp32",)
Say = Callable[[str], None]


def build(
    ckpt: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    recipe: str | None = None,
    engine: str = "auto",
    precision: str = "fp32",
    images: str | os.PathLike[str] | None = None,
    batch: int = 1,
    static: Size | None = None,
    targets: tuple[str, ...] | None = None,
    force: bool = False,
    say: Say = lambda text: None,
) -> Bundle:
    """Build a bundle at ``out`` from a checkpoint; either a whole one is written or nothing.

    Args:
        ckpt: a released or trained ``.pth`` file.
        out: the folder to make.
        recipe: name of the recipe; found from the checkpoint's content when not given.
        engine: ``auto``, ``onnxruntime``, ``tensorrt`` or ``tensorrt-rtx``.
        precision: ``fp32``.
        images: a picture or a folder of pictures for the parity gate instead of the built-in ones.
        batch: largest batch of a TensorRT engine.
        static: (height, width) of a TensorRT engine for one input size only.
        targets: compute capabilities that TensorRT-RTX builds for.
        force: replace an existing bundle at ``out``.
        say: receives a line for people at each stage.

    Raises:
        CheckpointError, SettingsError, EngineUnavailable, BuildError, ParityError, BundleError: each says what is
            wrong, with which file or value, and what to do.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"precision {precision!r} is not available; there is: {', '.join(PRECISIONS)}")
    check_target(Path(out).absolute(), force)
    choice = choose(engine)
    checkpoint = load_checkpoint(ckpt, recipe)
    say(f"recipe      {checkpoint.recipe.name}")
    for note in checkpoint.notes:
        say(f"            {note}")
    say(f"engine      {choice.kind}: {choice.reason}")
    model = load_model(checkpoint)
    pictures = parity.load_pictures(checkpoint.recipe.preprocess, Path(images) if images else None, static)
    with new_bundle(out, force) as draft:
        graph = draft.folder / ONNX
        with _stage(say, "export"):
            proto = export_graph(model, checkpoint.recipe.name)
            portable = winograd.rewrite(proto)
            save_graph(portable, graph)
        info = _engine(proto, draft.folder, choice, checkpoint.recipe, batch, static, targets, say)
        with _stage(say, "parity"), _runnable(draft.folder, info, say) as running:
            report = parity.gate(model, portable, running, pictures, graph_path=graph)
        for row in report["pictures"]:
            say(f"            {parity.Row(**row)}")
        draft.finish(_manifest(checkpoint, precision, info, report))
    return read_bundle(out, verify=False)


@contextlib.contextmanager
def _stage(say: Say, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    say(f"{name:11} {time.perf_counter() - start:.1f} s")


def _engine(
    proto: onnx.ModelProto,
    folder: Path,
    choice: Choice,
    recipe: Recipe,
    batch: int,
    static: Size | None,
    targets: tuple[str, ...] | None,
    say: Say,
) -> EngineInfo:
    if choice.kind == ort.KIND:
        return EngineInfo(ort.KIND, ort.library_version(), ONNX)
    shapes = tensorrt.shapes_for(recipe, batch, static)
    with _stage(say, choice.kind):
        capabilities = tensorrt.build_engine(proto, choice.kind, shapes, folder / ENGINE, targets)
    gpu = find_gpu()
    return EngineInfo(
        choice.kind,
        installed_version(choice.kind) or "",
        ENGINE,
        capabilities,
        gpu.name if gpu else None,
        gpu.driver if gpu else None,
        (shapes.smallest, shapes.usual, shapes.largest),
    )


@contextlib.contextmanager
def _runnable(folder: Path, info: EngineInfo, say: Say) -> Iterator[Engine]:
    """The built engine where it can run, else the graph under ONNX Runtime."""
    try:
        check_engine(info)
    except EngineUnavailable as error:
        say(f"            the gate runs the graph under ONNX Runtime. {error}")
        info = EngineInfo(ort.KIND, ort.library_version(), ONNX)
    if info.kind == ort.KIND:
        with open_onnx(folder / ONNX) as running:
            yield running
        return
    from isnet_trt.engines.tensorrt import TensorRTEngine

    with TensorRTEngine(folder / info.file, info) as running:
        yield running


def _manifest(checkpoint: Checkpoint, precision: str, info: EngineInfo, report: dict) -> Manifest:
    recipe = checkpoint.recipe
    return Manifest(
        recipe=recipe.name,
        labels=recipe.labels,
        preprocess=recipe.preprocess,
        presets={"default": recipe.default, "ms-flip": recipe.ms_flip},
        output_stride=recipe.architecture.output_stride,
        precision=precision,
        engine=info,
        checkpoint=CheckpointInfo(Path(checkpoint.path).name, checkpoint.sha256),
        parity={**report, "tolerance": asdict(parity.FP32)},
        created_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        isnet_trt_version=__version__,
    )
