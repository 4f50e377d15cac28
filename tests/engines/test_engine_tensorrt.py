"""The TensorRT engine. What runs without a GPU runs for real; the rest against doubles of the two libraries."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_double import Stream
from forked import in_child, needs_fork
from marks import needs_rtx, no_gpu
from small_bundle import expected, save_model
from tensorrt_double import ERROR, SHAPES, Context, Cuda, Library, RtxLibrary, RuntimeConfig

from isnet_trt.bundle import ENGINE
from isnet_trt.cuda import plugins
from isnet_trt.cuda.backends import open_backend
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines import tensorrt_api, tensorrt_engine, tensorrt_family, tensorrt_install
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import EngineSource
from isnet_trt.engines.table import library as library_of
from isnet_trt.engines.tensorrt_api import collecting_logger
from isnet_trt.engines.tensorrt_engine import TensorRTEngine
from isnet_trt.engines.tensorrt_rtx import LIBRARY
from isnet_trt.errors import EngineError, EngineUnavailable, InputShapeError

RTX = LIBRARY.installed_version()
GPU = Gpu("NVIDIA Double", "8.9", "CUDA 13.0")
DOUBLES = (Library, RtxLibrary)
STREAM = 99
"""The caller's."""


def info_of(library: Library | type[Library], **fields: Any) -> EngineInfo:
    """The manifest's entry of the double's engine."""
    return EngineInfo(library.kind, library.__version__, ENGINE, **{"compute_capabilities": ("8.9",), **fields})


def opened(path: Path, library: Library, kernels: Path | None = None, **fields: Any) -> TensorRTEngine:
    engine = library_of(library.kind).open_on_gpu(EngineSource(path, info_of(library, **fields), kernels, 3, 8))
    assert isinstance(engine, TensorRTEngine)
    return engine


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda().install(monkeypatch)


@pytest.fixture(params=DOUBLES, ids=lambda double: double.kind)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> Iterator[Library]:
    double = request.param(cuda.gpu)
    described = type(library_of(double.kind))
    monkeypatch.setattr(described, "load", lambda self: double)
    monkeypatch.setattr(described, "installed_version", lambda self: double.__version__)
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda index=0: (GPU, ""))
    yield double
    gc.collect()
    assert double.astray == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / ENGINE).write_bytes(b"engine")
    return tmp_path / ENGINE


def _batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def _enqueue(cuda: Cuda, engine: TensorRTEngine, shape: tuple[int, int, int, int]) -> None:
    """On the caller's memory and stream, in the primary context; the output is checked."""
    batch, out = _batch(*shape), np.empty((shape[0], 3, shape[2] // 8, shape[3] // 8), np.float32)
    assert engine.output_shape(shape) == out.shape
    cuda.gpu.foreign |= {batch.ctypes.data: batch.nbytes, out.ctypes.data: out.nbytes}
    cuda.gpu.streams[STREAM] = stream = Stream(cuda.gpu)
    cuda.push()
    engine.enqueue(batch.ctypes.data, out.ctypes.data, batch.shape, STREAM)
    stream.run()
    cuda.cuCtxPopCurrent()
    del cuda.gpu.streams[STREAM]
    np.testing.assert_allclose(out, expected(batch), atol=1e-5)  # float32


def test_runs_and_frees(path: Path, cuda: Cuda, library: Library) -> None:
    with opened(path, library) as engine:
        version = f"{library.kind} {library.__version__}"
        assert engine.description == f"{version} on NVIDIA Double (compute capability 8.9)"
        results = []
        for shape in ((1, 3, 16, 24), (2, 3, 64, 48), (1, 3, 8, 8)):
            batch = _batch(*shape)
            results.append((engine.run(batch), expected(batch)))
        for got, reference in results:  # all of them after the last call: none may have been overwritten
            np.testing.assert_allclose(got, reference, atol=1e-5)  # float32
        assert sorted(cuda.gpu.memory.values()) == [2 * 3 * 8 * 6 * 4, 4096, 2 * 3 * 64 * 48 * 4]
    engine.close()
    cuda.gpu.nothing_is_left()
    with pytest.raises(EngineError, match="closed"):
        engine.run(_batch(1, 3, 8, 8))


def test_on_device_memory_and_any_stream(path: Path, cuda: Cuda, library: Library) -> None:
    with opened(path, library) as engine:
        for shape in ((1, 3, 16, 24), (2, 3, 64, 48), (1, 3, 16, 24)):
            _enqueue(cuda, engine, shape)
        assert list(cuda.gpu.memory.values()) == [4096]  # nothing but what the contexts share
        with pytest.raises(InputShapeError, match=r"does not take \(3, 3, 8, 8\): it was built for"):
            engine.enqueue(1, 1, (3, 3, 8, 8), STREAM)
        library.execute_fails = True
        with pytest.raises(EngineError, match=r"failed on an input of shape \(1, 3, 16, 24\): enqueue failed"):
            engine.enqueue(1, 1, (1, 3, 16, 24), STREAM)


@pytest.mark.parametrize(("kind", "number", "error"), [("fp16", 1, 2e-3), ("bf16", 7, 2e-2)])
def test_logits_in_half_precision(
    path: Path, cuda: Cuda, library: Library, kind: Any, number: int, error: float
) -> None:
    """They are written as they are on the device, and float32 on the host."""
    library.dtypes["logits"] = number
    batch = _batch(2, 3, 64, 48)
    with opened(path, library, output=kind) as engine:
        assert engine.output_type == kind
        logits = engine.run(batch)
        assert logits.dtype == np.float32
        assert 0 < np.abs(logits - expected(batch)).max() < error
        assert sorted(cuda.gpu.memory.values()) == [2 * 3 * 8 * 6 * 2, 4096, batch.nbytes]
    library.dtypes["logits"] = 0
    with pytest.raises(EngineError, match=f"no segmentation engine with {kind} output"):
        opened(path, library, output=kind)


def test_a_context_for_each_shape_in_use(path: Path, cuda: Cuda, library: Library) -> None:
    shapes = [(1, 3, 8, 8 * n) for n in range(1, 7)]
    with opened(path, library) as engine:
        assert len(library.contexts) == 1  # made with the engine, used by the first shape
        for shape in shapes[:2]:
            _enqueue(cuda, engine, shape)
        assert len(library.contexts) == 2
        for shape in shapes[2:] * 2:
            engine.run(_batch(*shape))
        for shape in shapes:
            engine.run(_batch(*shape))
        assert len(library.contexts) == 2 + tensorrt_engine.CONTEXTS
        cuda.push()
        engine.keep(frozenset(shapes[:1]))
        cuda.cuCtxPopCurrent()
        assert [context.shape for context in library.contexts] == shapes[:1]
    assert len(library.contexts) == 0


def test_each_shape_in_the_profile_that_has_it(path: Path, cuda: Cuda, library: Library) -> None:
    with opened(path, library) as engine:
        for shape in ((1, 3, 64, 8), (2, 3, 48, 64), (1, 3, 16, 16), (1, 3, 8, 56)):
            _enqueue(cuda, engine, shape)
        with pytest.raises(EngineError, match=r"not take \(1, 3, 64, 64\): it was built for .* or \(1, 3, 8, 8\) to"):
            engine.run(_batch(1, 3, 64, 64))
        profiles = {context.shape: context.active_optimization_profile for context in library.contexts if context.fits}
    assert profiles == {(1, 3, 64, 8): 0, (2, 3, 48, 64): 1, (1, 3, 16, 16): 0, (1, 3, 8, 56): 1}


def test_whether_it_can_be_captured(path: Path, cuda: Cuda, library: Library) -> None:
    with opened(path, library) as engine:
        assert engine.no_graph(frozenset(), STREAM) == ""
        assert engine.no_graph(frozenset({(1, 3, 8, 8)}), STREAM) == ""
        library.capturable = False
        reason = engine.no_graph(frozenset({(1, 3, 8, 8)}), STREAM)
        can_tell = isinstance(library, RtxLibrary)  # TensorRT has no such question
        assert ("cannot be captured for an input of (1, 3, 8, 8)" in reason) == can_tell


def test_a_forgotten_engine_gives_its_memory_back(path: Path, cuda: Cuda, library: Library) -> None:
    engine = opened(path, library)
    engine.run(_batch(1, 3, 8, 8))
    del engine
    gc.collect()
    cuda.gpu.nothing_is_left()


@needs_fork
def test_a_forked_child_leaves_the_device_alone(path: Path, cuda: Cuda, library: Library) -> None:
    engine = opened(path, library)
    batch = _batch(1, 3, 8, 8)
    reference = engine.run(batch)

    def leave() -> str:
        nonlocal engine
        before = (list(cuda.gpu.memory), list(cuda.gpu.streams), len(library.contexts))
        with pytest.raises(EngineError, match="this engine was opened in process"):
            engine.run(batch)
        engine.close()
        del engine
        gc.collect()
        return str(before == (list(cuda.gpu.memory), list(cuda.gpu.streams), len(library.contexts)))

    assert in_child(leave) == "True"
    assert (engine.run(batch) == reference).all()
    engine.close()
    cuda.gpu.nothing_is_left()


def test_works_in_its_context_and_gives_the_callers_back(path: Path, cuda: Cuda, library: Library) -> None:
    callers = SimpleNamespace()
    cuda.push(callers)
    stack = cuda.gpu.stacks[threading.get_ident()]
    with opened(path, library) as engine:
        assert stack == [callers]
        engine.run(_batch(1, 3, 8, 8))
        assert stack == [callers]
        library.execute_fails = True
        with pytest.raises(EngineError):
            engine.run(_batch(1, 3, 8, 8))
    assert stack == [callers]


def test_the_primary_context_is_retained_once(path: Path, cuda: Cuda, library: Library) -> None:
    with opened(path, library), opened(path, library):
        pass
    cuda.gpu.fails["cuDevicePrimaryCtxRetain"] = 2
    with opened(path, library):
        assert open_backend(0) is open_backend(0)
        assert cuda.gpu.retained == 1
    with pytest.raises(EngineError, match=r"cuDeviceGet failed: .* \(101\)"):
        open_backend(2)


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (1, 3, 72, 48), (1, 3, 7, 8)])
def test_outside_the_shapes_that_it_was_built_for(
    path: Path, cuda: Cuda, library: Library, shape: tuple[int, ...]
) -> None:
    with opened(path, library) as engine:
        with pytest.raises(EngineError) as caught:
            engine.run(_batch(*shape))
        for message in (
            str(shape),
            "built for (1, 3, 8, 8) to (2, 3, 64, 48)",
            "does not satisfy any optimization profiles",
        ):
            assert message in str(caught.value)
        assert engine.run(_batch(1, 3, 8, 8)).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("cuMemAlloc", r"cuMemAlloc failed: out of memory \(2\); use a smaller picture"),
        ("cuStreamSynchronize", r"cuStreamSynchronize failed: an illegal memory access \(700\)"),
    ],
)
def test_cuda_failures_in_cudas_words(path: Path, cuda: Cuda, library: Library, failing: str, message: str) -> None:
    with opened(path, library) as engine:
        cuda.gpu.fails[failing] = 2 if failing == "cuMemAlloc" else 700
        with pytest.raises(EngineError, match=message):
            engine.run(_batch(1, 3, 8, 8))
    cuda.gpu.nothing_is_left()


def test_a_failed_execution_still_waits_for_the_upload(path: Path, cuda: Cuda, library: Library) -> None:
    with opened(path, library) as engine:
        library.execute_fails = True
        with pytest.raises(EngineError, match=r"failed on an input of shape \(1, 3, 8, 8\): enqueue failed"):
            engine.run(_batch(1, 3, 8, 8))
        assert [stream.waiting for stream in cuda.gpu.streams.values()] == [[]]


def test_a_library_that_does_not_start(path: Path, cuda: Cuda, library: Library) -> None:
    library.starts = False
    with pytest.raises(EngineError) as caught:
        opened(path, library)
    assert str(caught.value).startswith(
        f"{library.kind} {library.__version__} creates no Runtime: createInferRuntime: "
    )
    assert "CUDA initialization failure with error: 35" in str(caught.value)
    assert "nvidia-smi" in str(caught.value)
    cuda.gpu.nothing_is_left()


@pytest.mark.parametrize("version", ["10.6.0", "10.15.1.29", "11.2.1.2"])
def test_a_builder_that_does_not_start(library: Library, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """That of TensorRT 10.6 would end the process, and is not asked."""
    library.starts = False
    monkeypatch.setattr(type(library), "__version__", version)
    name = "Runtime" if library.kind == "tensorrt" else "Builder"
    with pytest.raises(EngineError, match=rf"{version} creates no {name}: createInfer{name}: .*error: 35"):
        library_of(library.kind).start_builder()


def test_a_builder_that_starts_leaves_its_logger_for_the_next(library: Library) -> None:
    library_of(library.kind).start_builder()
    count = len(tensorrt_api._kept_alive)
    library_of(library.kind).start_builder()
    assert len(tensorrt_api._kept_alive) == count


@pytest.mark.parametrize("result", ["an object", None])
def test_an_object_whose_creation_logged_an_error_is_none(result: Any) -> None:
    logger = collecting_logger(Library)
    logger.log(ERROR, "of an earlier call")
    assert tensorrt_api.create("library 1", logger, lambda: "an object") == "an object"

    def create_network() -> Any:
        logger.log(ERROR, "out of memory")
        return result

    with pytest.raises(EngineError, match=r"^library 1 creates no create_network: out of memory$"):
        tensorrt_api.create("library 1", logger, create_network)
    with pytest.raises(EngineError, match="creates no <lambda>: the library gave no reason"):
        tensorrt_api.create("library 1", logger, lambda: None)


@pytest.mark.parametrize(("driver", "needs"), [("CUDA 12.8", 13), ("CUDA 11.4", 12)])
def test_a_driver_too_old(
    path: Path, cuda: Cuda, library: Library, monkeypatch: pytest.MonkeyPatch, driver: str, needs: int
) -> None:
    """Found before the library is asked."""
    library.starts = False
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda index=0: (Gpu("NVIDIA Double", "8.9", driver), ""))
    monkeypatch.setattr(tensorrt_install, "wheels_cuda", lambda stem: needs)
    message = rf"was built for CUDA {needs}, and the NVIDIA driver supports {driver} only: install a driver for CUDA"
    with pytest.raises(EngineUnavailable, match=message):
        opened(path, library)
    if library.kind == "tensorrt":
        with pytest.raises(EngineUnavailable, match=message):
            library_of(library.kind).start_builder()


def test_closing_gives_its_logger_to_the_next_engine(path: Path, cuda: Cuda, library: Library) -> None:
    """Loggers live as long as the process, so that there must not be one for every engine that was ever opened."""
    with opened(path, library), opened(path, library):
        count = len(tensorrt_api._kept_alive)
    for _ in range(3):
        with opened(path, library) as engine:
            engine.close()
            with pytest.raises(EngineError, match="closed"):
                engine.run(_batch(1, 3, 8, 8))
    assert len(tensorrt_api._kept_alive) == count


@pytest.mark.parametrize("kind", ["foreign", "no context", "half", "two inputs", "no file"])
def test_what_cannot_be_loaded_leaves_nothing(path: Path, cuda: Cuda, library: Library, kind: str) -> None:
    message = {
        "foreign": rf"cannot load .*model\.engine{re.escape(library.bad_engine)}: .*Magic tag does not match.*; build",
        "no context": "no execution context",
        "half": r"no segmentation engine with fp32 output: its tensors are image \(0\), logits \(1\)",
        "two inputs": r"its tensors are image \(0\), logits \(0\), image2 \(0\)",
        "no file": r"model\.engine cannot be read: No such file",
    }[kind]
    if kind == "foreign":
        path.write_bytes(b"something else")
    elif kind == "no file":
        path.unlink()
    library.no_context = kind == "no context"
    library.dtypes |= {"two inputs": {"image2": 0}, "half": {"logits": 1}}.get(kind, {})
    with pytest.raises(EngineError, match=message):
        opened(path, library)
    cuda.gpu.nothing_is_left()


def test_an_output_without_a_shape(path: Path, cuda: Cuda, library: Library) -> None:
    with opened(path, library) as engine:
        library.broken = True
        with pytest.raises(EngineError, match=r"an output of shape \(1, 3, -1, 1\)"):
            engine.run(_batch(1, 3, 8, 8))


def test_on_another_gpu_of_the_machine(
    path: Path, cuda: Cuda, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Gpu("NVIDIA Double", "8.9", "CUDA 13.0", index=1)
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda index=0: (second, "") if index else (GPU, ""))
    batch = _batch(1, 3, 16, 24)
    described = library_of(library.kind)
    engine = described.open_on_gpu(EngineSource(path, info_of(library), None, 3, 8, gpu=1))
    with engine, opened(path, library) as first:
        assert engine.description == f"{library.kind} {library.__version__} on NVIDIA Double (cuda:1) " + (
            "(compute capability 8.9)"
        )
        for each in (engine, first, engine):  # the double refuses memory of one in the context of the other
            np.testing.assert_allclose(each.run(batch), expected(batch), atol=1e-5)  # float32
        assert {owner.device for address, owner in cuda.gpu.owners.items() if address in cuda.gpu.memory} == {0, 1}
    cuda.gpu.nothing_is_left()


def test_another_gpu_than_it_was_built_for(path: Path, cuda: Cuda, library: Library) -> None:
    with pytest.raises(EngineUnavailable, match=r"compute capability 8\.6, 12\.0, but NVIDIA Double has 8\.9"):
        opened(path, library, compute_capabilities=("8.6", "12.0"))
    cuda.gpu.nothing_is_left()


def test_an_engine_with_plugins_needs_kernels(path: Path, cuda: Cuda, library: Library, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="built with context plugins: the bundle holds no kernels; build"):
        opened(path, library, context="plugin")
    with pytest.raises(EngineUnavailable, match=r"built with context plugins: .* holds kernels for nothing"):
        opened(path, library, tmp_path, context="plugin")
    cuda.gpu.nothing_is_left()
    with opened(path, library, tmp_path) as engine:  # without plugins it goes without
        assert engine.kernels is None
        assert "holds kernels for nothing" in engine.no_kernels


def test_plugins_have_their_kernels_while_it_is_deserialised(
    path: Path, cuda: Cuda, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, open_now = SimpleNamespace(close=lambda: None), []
    host = plugins.Host(kernels, failures=["node 7: no such kernel"])

    @contextlib.contextmanager
    def kernels_for(module: Any, launcher: Any, multiprocessors: int) -> Any:
        assert (module, launcher, multiprocessors) == (library, kernels, GPU.multiprocessors)
        open_now.append(True)
        yield host
        open_now.pop()

    engine, seen = library._engine, []
    monkeypatch.setattr(library, "_engine", lambda: seen.append(list(open_now)) or engine())
    monkeypatch.setattr(plugins, "kernels_for", kernels_for)
    monkeypatch.setattr(tensorrt_engine.Kernels, "find", lambda folder, capability, needed: (kernels, ""))
    with opened(path, library, path.parent, context="plugin") as loaded:
        assert loaded.kernels is kernels
        library.execute_fails = True
        with pytest.raises(EngineError, match="node 7: no such kernel; enqueue failed"):
            loaded.run(_batch(1, 3, 8, 8))
        assert host.kernels is kernels
    assert host.kernels is None  # plugins that the library never frees would hold them
    assert seen == [[True]]
    opened(path, library, path.parent).close()
    assert seen == [[True], []]


def test_the_real_driver_api_has_every_name_in_use() -> None:
    api = pytest.importorskip("cuda.bindings.driver")
    for name in (name for name in vars(Cuda) if name.startswith("cu")):
        assert hasattr(api, name), name


@pytest.mark.parametrize("double", DOUBLES, ids=lambda double: double.kind)
def test_the_real_library_has_every_name_in_use(double: type[Library]) -> None:
    real = pytest.importorskip(double.kind.replace("-", "_"))
    owners = {
        real.Runtime: tuple(vars(double(Cuda().gpu).Runtime(None))),
        real.ICudaEngine: tuple(vars(double(Cuda().gpu)._engine())),
        real.IExecutionContext: tuple(name for name in vars(Context) if not name.startswith("_")),
        real.ExecutionContextAllocationStrategy: ("USER_MANAGED",),
    }
    if double is RtxLibrary:
        owners[real.IExecutionContext] += ("is_stream_capturable",)
        owners[real.IRuntimeConfig] = tuple(n for n in vars(RuntimeConfig) if n[0] != "_" and n != "strategy")
        owners[real.DynamicShapesKernelSpecializationStrategy] = ("EAGER",)
        owners[real.EngineInvalidityDiagnostics] = ("VERSION_MISMATCH", "MALFORMED_ENGINE")
    else:  # what the engine takes for a sign of TensorRT-RTX
        assert not hasattr(real, "DynamicShapesKernelSpecializationStrategy")
        assert not hasattr(real.Runtime, "get_engine_validity")
        assert not hasattr(real.IExecutionContext, "is_stream_capturable")
    for owner, names in owners.items():
        for name in names:
            assert hasattr(owner, name), f"{owner}.{name}"
    assert real.TensorIOMode.INPUT != real.TensorIOMode.OUTPUT
    assert real.DataType.FLOAT != real.DataType.HALF


@needs_rtx
@no_gpu
@pytest.mark.rtx
def test_a_real_engine_up_to_the_missing_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> None:
    """A real engine, the real library, a GPU that is only claimed: its own words come back as an EngineError."""
    real = LIBRARY.load()
    (tmp_path / ENGINE).write_bytes(_build(real, save_model(tmp_path / "model.onnx")))
    monkeypatch.setattr(tensorrt_family, "probe_gpu", lambda index=0: (GPU, ""))
    info = EngineInfo("tensorrt-rtx", RTX or "", ENGINE, ("8.9",))
    source = EngineSource(tmp_path / ENGINE, info, None, 3, 8)
    with pytest.raises(EngineError, match=r"cannot load .*model\.engine: .*cudaError 35"):
        LIBRARY.open_on_gpu(source)
    (tmp_path / ENGINE).write_bytes(b"this is no engine" * 100)
    with pytest.raises(EngineError, match=r"model\.engine \(MALFORMED_ENGINE\): "):
        LIBRARY.open_on_gpu(source)
    cuda.gpu.nothing_is_left()


def _build(real: Any, model: Path) -> bytes:
    logger = collecting_logger(real)
    builder = real.Builder(logger)
    network = builder.create_network(0)
    assert real.OnnxParser(network, logger).parse(model.read_bytes()), logger.errors
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(real.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *SHAPES)
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))
