"""Open a bundle's engine and the runtime around it: on the GPU where engine, kernels and device allow it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable
from typing import TypeVar

from isnet_trt.bundle import KERNELS, ONNX, Bundle
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.gpu import Gpu, require_gpu
from isnet_trt.cuda.kernels import CompiledFiles
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import Engine
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.library import PORTABLE, EngineSource, Library, ModelContent
from isnet_trt.engines.memory import memory_limit
from isnet_trt.engines.select import check_engine, no_cuda_provider
from isnet_trt.engines.table import KINDS, library
from isnet_trt.errors import EngineError, EngineUnavailable, SettingsError
from isnet_trt.merging.merge import Head
from isnet_trt.runtime.gpu import GpuRuntime
from isnet_trt.runtime.host import HostRuntime, Runtime
from isnet_trt.settings import Placement

_log = logging.getLogger(__name__)
_Opened = TypeVar("_Opened")
_LARGEST_GRAPH = 2**31
"""Bytes; protobuf reads no more."""


def open_runtime(bundle: Bundle, kind: str | None, *, threads: int | None, device: object) -> Runtime:
    """The engine as `open_engine` opens it, with all stages on the GPU where that can be; raises the same errors."""

    def opened(library: Library, source: EngineSource, placement: Placement) -> Runtime:
        return _open_runtime(bundle, library, source, placement, threads)

    return _first_that_runs(bundle, kind, Placement.parse(device), opened)


def _open_runtime(
    bundle: Bundle, library: Library, source: EngineSource, placement: Placement, threads: int | None
) -> Runtime:
    on_gpu = library.needs_gpu or placement.kind == "cuda"
    model = _model(bundle, library.kind, on_gpu)
    if not on_gpu:
        model, threads = _tuned(bundle, library.kind, model, threads)
        return HostRuntime(library.open_on_cpu(source, threads=threads), model, threads)
    with contextlib.ExitStack() as undo:
        # Before the engine: a session of ONNX Runtime has to know at its creation whether it works on a device stream.
        gpu, reason = _open_device(source)
        if gpu is not None:
            undo.callback(_close, gpu)
        engine = library.open_on_gpu(source, threads=threads, on_device=gpu is not None)
        undo.callback(engine.close)
        try:
            if gpu is None or engine.kernels is None:
                raise EngineUnavailable(reason or engine.no_kernels)
            pipeline = Pipeline(gpu, engine.kernels, engine, model, engine.stream)
        except EngineUnavailable as error:  # the engine itself is open: only the stages around it go to the host
            _log.info("all stages but the network run on the host: %s", error)
            if gpu is not None:
                _close(gpu)
            # The device is closed already and the engine stays open: nothing is left to undo.
            undo.pop_all()
            return HostRuntime(engine, model, threads, str(error))
        undo.pop_all()
    return GpuRuntime(engine, pipeline, threads)


def device_name(engine: Engine) -> str:
    """The GPU that an engine runs on, or "CPU"."""
    gpu = getattr(engine, "gpu", None)
    return gpu.label if isinstance(gpu, Gpu) else getattr(engine, "device_name", "CPU")


def _model(bundle: Bundle, kind: str, on_gpu: bool) -> Model:
    """The network's output, and the batches that the engine was built for: (smallest, usual, largest) shape."""
    manifest = bundle.manifest
    head = Head.of(manifest.labels, manifest.output_stride, manifest.network)
    # The shapes are those of the engine for a GPU, not of the portable graph opened in its place.
    shapes = manifest.engine.shapes if kind == manifest.engine.kind and on_gpu else ()
    if not shapes:
        return Model(head, manifest.preprocess)
    # An engine whose smallest batch is above 1 takes no shorter one: the batch is filled up.
    return Model(head, manifest.preprocess, batch=shapes[1][0], full_batches=shapes[0][0] > 1)


def _tuned(bundle: Bundle, kind: str, model: Model, threads: int | None) -> tuple[Model, int | None]:
    """Batch and threads that a tuning found for the CPU, where this is its engine and the caller names no others."""
    tuning, info = bundle.manifest.tuning, bundle.manifest.engine
    if tuning is None or kind != info.kind:
        return model, threads
    # Threads were timed on so many cores; another machine is better off with all of its own.
    if threads is None and tuning.cores == usable_cores():
        threads = tuning.threads
    return dataclasses.replace(model, batch=tuning.batch), threads


def _open_device(source: EngineSource) -> tuple[Device | None, str]:
    """The GPU for the stages around the network, or why there is none."""
    if source.kernels is None:
        return None, "the bundle holds no kernels; build it again with python -m isnet_trt.build"
    try:
        return Device.open(source.gpu), ""
    except EngineUnavailable as error:
        return None, str(error)


def _close(gpu: Device) -> None:
    with gpu:
        gpu.close()


def open_engine(
    bundle: Bundle, kind: str | None = None, *, threads: int | None = None, device: object = "auto"
) -> Engine:
    """The bundle's engine, or for ``kind="onnxruntime"`` its ONNX graph.

    ``threads`` is for the CPU (default: the physical cores that this process may use). ``device`` is as
    `Placement.parse` takes it: "cuda" runs ONNX Runtime on the GPU, "cuda:N" any engine on GPU N. Without ``kind``,
    "auto" takes ONNX Runtime's CUDA provider where there is a GPU and the bundle's own engine cannot run on it.

    Raises:
        SettingsError: ``kind`` or ``device`` is unknown, or the engine cannot run on ``device``.
        EngineUnavailable: there is no such GPU, the engine cannot run here or is not in the bundle; the message says
            what there is and what can be done.
        BundleError: its kernels are damaged.
        EngineError: it should run but cannot be loaded.
    """

    def opened(library: Library, source: EngineSource, placement: Placement) -> Engine:
        return library.open(source, threads=threads, device=placement)

    return _first_that_runs(bundle, kind, Placement.parse(device), opened)


def _first_that_runs(
    bundle: Bundle, kind: str | None, device: Placement, opened: Callable[[Library, EngineSource, Placement], _Opened]
) -> _Opened:
    """What ``opened`` makes of the engine of ``kind``; without ``kind``, "auto" chooses between GPU and CPU.

    A bundle's engine that cannot run here gives way to ONNX Runtime's CUDA provider, never to the CPU. A bundle for
    ONNX Runtime runs on the GPU where the provider is there. Logs and description say so.
    """
    info, on_gpu, note = bundle.manifest.engine, Placement("cuda"), ""
    if kind is not None or device.kind != "auto":
        return opened(*_source(bundle, kind, device), device)
    # Eight bits under ONNX Runtime are made for a CPU: its CUDA provider computes them in float32.
    if info.kind == PORTABLE and bundle.manifest.precision != "int8" and not no_cuda_provider():
        try:
            return opened(*_source(bundle, None, on_gpu), on_gpu)
        except (EngineError, EngineUnavailable) as error:
            note = f"; not on the GPU: {error}"
            _log.warning("%s opens on the CPU: %s", bundle.folder, error)
    try:
        own = _source(bundle, None, device, note)
    except EngineUnavailable as error:
        if no_cuda_provider():
            raise
        _log.warning("%s opens with ONNX Runtime's CUDA provider: %s", bundle.folder, error)
        return opened(*_source(bundle, PORTABLE, on_gpu, f"; not with {info.kind}: {error}"), on_gpu)
    return opened(*own, device)


def _source(bundle: Bundle, kind: str | None, device: Placement, note: str = "") -> tuple[Library, EngineSource]:
    """The library of ``kind`` and what it opens, checked before the library is imported."""
    if device.number is not None:
        require_gpu(device.number)
    manifest = bundle.manifest
    info = manifest.engine
    if kind is None and info.kind not in KINDS:
        raise EngineUnavailable(
            f"{bundle.folder} was built for the engine {info.kind!r}, which this isnet_trt does not know; it may "
            f"open on the CPU with engine={PORTABLE!r}"
        )
    chosen = library(kind or info.kind)
    if device.kind == "cpu" and chosen.needs_gpu:
        raise SettingsError(f"engine {chosen.kind!r} runs on a GPU only; for device='cpu' use engine={PORTABLE!r}")
    if chosen.compiles and chosen.kind != info.kind:
        content = "only its ONNX graph" if info.file == ONNX else f"a {info.kind} engine and its ONNX graph"
        raise EngineUnavailable(
            f"{bundle.folder} holds {content}, no {chosen.kind} engine; build one with "
            f"python -m isnet_trt.build --engine {chosen.kind}, or open it with engine={PORTABLE!r}"
        )
    if chosen.kind == info.kind:
        check_engine(info, device.gpu)
    on_gpu = chosen.needs_gpu or device.kind == "cuda"
    # On a CPU ONNX Runtime opens the graph that is made for one.
    file = info.file if chosen.kind == info.kind and on_gpu else ONNX
    model, kernels = _read(bundle, file, chosen.compiles, on_gpu)
    output = (manifest.network.channels(manifest.labels), manifest.output_stride)
    source = EngineSource(bundle.path(file), info, kernels, *output, model, device.gpu, manifest.precision, note)
    return chosen, source


def _read(bundle: Bundle, file: str, compiled: bool, on_gpu: bool) -> tuple[ModelContent, CompiledFiles | None]:
    """The model in ``file`` (an engine if ``compiled``, else a graph), and the kernels if they are used and there.

    Every file of the bundle is read once and checked; the bytes that were checked are what the libraries get.
    """
    names = bundle.manifest.files
    limit = memory_limit() or None
    kernel_names = {name for name in names if name.startswith(f"{KERNELS}/")}
    model = bundle.read(file, limit if compiled else _LARGEST_GRAPH)
    external = {}
    if not compiled:
        # A graph has the name of a file of external data in it; which tensors lie where is the library's to read.
        others = names.keys() - kernel_names - {file, bundle.manifest.engine.file}
        external = {name: bundle.read(name, limit) for name in sorted(others) if name.encode() in model}
    kernels = {name.partition("/")[2]: bundle.read(name, limit) for name in sorted(kernel_names)} if on_gpu else {}
    used = {file, *external, *(kernel_names if kernels else ())}
    bundle.check(name for name in names if name not in used)
    return ModelContent(model, external), CompiledFiles(bundle.folder / KERNELS, kernels) if kernels else None
