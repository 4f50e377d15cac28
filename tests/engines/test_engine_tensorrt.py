"""The TensorRT engine. What runs without a GPU runs for real; the rest against doubles of the two libraries.

The doubles keep "device" memory on the host and count it, so that a leak, a wrong size, a missing copy or a result
that is overwritten by the next call shows. They say nothing about the libraries themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from forked import in_child, needs_fork
from small_bundle import expected, save_model

from isnet_trt.bundle import ENGINE, EngineInfo
from isnet_trt.cuda import plugins
from isnet_trt.engines import tensorrt
from isnet_trt.engines.device import Gpu, find_gpu
from isnet_trt.engines.libraries import collecting_logger, import_library, installed_version
from isnet_trt.engines.stream import Stream, import_runtime
from isnet_trt.errors import EngineError, EngineUnavailable

RTX = installed_version("tensorrt-rtx")
GPU = Gpu("NVIDIA Double", "8.9", "CUDA 13.0")
INFO = EngineInfo("tensorrt-rtx", "1.7.1.116", ENGINE, ("8.9",), shapes=((1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 64, 48)))
needs_rtx = pytest.mark.skipif(RTX is None, reason="tensorrt-rtx is not installed")
no_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")


class Cuda:
    """cuda.bindings.runtime with the host's memory as the device's."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.current = 0
        self.fails: dict[str, int] = {}
        self.queue: list[tuple[int, int, int]] = []

    def _status(self, name: str) -> int:
        return self.fails.get(name, 0)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory", 700: b"an illegal memory access was encountered"}.get(status, b"unknown")

    def cudaGetDevice(self) -> tuple[int, int]:
        return self._status("cudaGetDevice"), self.current

    def cudaSetDevice(self, device: int) -> tuple[int]:
        self.current = device
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        assert flags == 1
        self.streams.add(77)
        return 0, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams.remove(stream)
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if status := self._status("cudaMalloc"):
            return status, 0
        block = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        device = self.memory[to if kind == 1 else source]
        assert size <= len(device)
        assert stream in self.streams
        self.queue.append((to, source, size))
        if kind == 1:  # the kernels read it in the order of the stream; the double's execute runs at once
            ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        for to, source, size in self.queue:
            ctypes.memmove(to, source, size)
        self.queue.clear()
        return (self._status("cudaStreamSynchronize"),)


class Library:
    """TensorRT's Python API as far as the engine uses it, around the network of `small_bundle`."""

    __version__ = "1.7.1.116"
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    DataType = SimpleNamespace(FLOAT=0, HALF=1)
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC=0, ON_PROFILE_CHANGE=1, USER_MANAGED=2)
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY=0, EAGER=1, NONE=2)
    EngineInvalidityDiagnostics = SimpleNamespace(__members__={"VERSION_MISMATCH": 1, "MALFORMED_ENGINE": 32})

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def __init__(self) -> None:
        self.dtypes = {"image": 0, "logits": 0}
        self.no_context = False
        self.execute_fails = False
        self.broken = False
        self.capturable = True
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        return SimpleNamespace(
            deserialize_cuda_engine=lambda data: None if self._bad(data) else self._engine(),
            get_engine_validity=lambda data: (2, 32),
        )

    def _bad(self, data: bytes) -> bool:
        if data != b"engine":
            self.logger.log(1, "magic tag does not match")
        return data != b"engine"

    def _engine(self) -> Any:
        names = list(self.dtypes)
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: 1 if name.startswith("image") else 2,
            get_tensor_dtype=self.dtypes.__getitem__,
            get_tensor_shape=lambda name: (-1, 3, -1, -1),
            get_tensor_profile_shape=lambda name, profile: INFO.shapes,
            device_memory_size_v2=4096,
            create_runtime_config=RuntimeConfig,
            create_execution_context=self._context,
        )

    def _context(self, config: Any) -> Any:
        assert (config.strategy, config.dynamic_shapes_kernel_specialization_strategy) == (2, 1)
        return None if self.no_context else Context(self)


class RuntimeConfig:
    """What contexts are made with; TensorRT-RTX has it, and TensorRT takes the strategy itself."""

    strategy = dynamic_shapes_kernel_specialization_strategy = 0

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self.strategy = strategy


class Context:
    """An execution context that computes on the addresses it was given, in memory that it was given."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.shape: tuple[int, ...] = ()
        library.contexts.add(self)

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = address, size

    def is_stream_capturable(self, stream: int) -> bool:
        assert self.shape
        return self.library.capturable

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        assert not self.shape or not self.fits, "a context keeps its shape"
        self.shape = tuple(shape)
        self.fits = all(a <= b <= c for a, b, c in zip(INFO.shapes[0], shape, INFO.shapes[2], strict=True))
        if not self.fits:
            self.library.logger.log(1, "dimensions not in profile")
        return self.fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, _, height, width = self.shape
        return (batch, 3, -1 if self.library.broken else height // 8, width // 8)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in (77, 99)
        assert self.memory is not None
        assert self.fits
        if self.library.execute_fails:
            self.library.logger.log(1, "enqueue failed")
            return False
        floats = ctypes.POINTER(ctypes.c_float)
        batch = np.ctypeslib.as_array(ctypes.cast(self.addresses["image"], floats), self.shape)
        logits = np.ctypeslib.as_array(ctypes.cast(self.addresses["logits"], floats), self.get_tensor_shape("logits"))
        logits[...] = expected(batch)
        return True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    double = Cuda()
    monkeypatch.setattr(tensorrt, "import_runtime", lambda: double)
    return double


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    double = Library()
    monkeypatch.setattr(tensorrt, "import_library", lambda kind: double)
    monkeypatch.setattr(tensorrt, "installed_version", lambda kind: double.__version__)
    monkeypatch.setattr(tensorrt, "look_for_gpu", lambda: (GPU, ""))
    return double


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / ENGINE).write_bytes(b"engine")
    return tmp_path / ENGINE


def _batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def test_runs_and_frees(path: Path, cuda: Cuda, library: Library) -> None:
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        assert engine.description == "tensorrt-rtx 1.7.1.116 on NVIDIA Double (compute capability 8.9)"
        results = []
        for shape in ((1, 3, 16, 24), (2, 3, 64, 48), (1, 3, 8, 8)):
            batch = _batch(*shape)
            results.append((engine.run(batch), expected(batch)))
        for got, wanted in results:  # all of them after the last call: none may have been overwritten
            np.testing.assert_allclose(got, wanted, atol=1e-5)  # float32
        assert sorted(len(block) for block in cuda.memory.values()) == [2 * 3 * 8 * 6 * 4, 4096, 2 * 3 * 64 * 48 * 4]
    engine.close()
    assert cuda.memory == {}
    assert cuda.streams == set()
    with pytest.raises(EngineError, match="closed"):
        engine.run(_batch(1, 3, 8, 8))


def test_on_device_memory_and_any_stream(path: Path, cuda: Cuda, library: Library) -> None:
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        for shape in ((1, 3, 16, 24), (2, 3, 64, 48), (1, 3, 16, 24)):
            batch, out = _batch(*shape), np.empty((shape[0], 3, shape[2] // 8, shape[3] // 8), np.float32)
            assert engine.output_shape(shape) == out.shape
            engine.enqueue(batch.ctypes.data, out.ctypes.data, shape, 99)
            np.testing.assert_allclose(out, expected(batch), atol=1e-5)  # float32
        assert [len(block) for block in cuda.memory.values()] == [4096]  # nothing but what the contexts share
        with pytest.raises(EngineError, match=r"does not take \(3, 3, 8, 8\): it was built for"):
            engine.enqueue(1, 1, (3, 3, 8, 8), 99)
        library.execute_fails = True
        with pytest.raises(EngineError, match=r"failed on an input of shape \(1, 3, 16, 24\): enqueue failed"):
            engine.enqueue(1, 1, (1, 3, 16, 24), 99)


def test_a_context_for_each_shape_in_use(path: Path, cuda: Cuda, library: Library) -> None:
    shapes = [(1, 3, 8, 8 * n) for n in range(1, 7)]
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        assert len(library.contexts) == 1  # made with the engine, used by the first shape
        for shape in shapes[:2]:
            batch, out = _batch(*shape), np.empty((1, 3, 1, shape[3] // 8), np.float32)
            engine.enqueue(batch.ctypes.data, out.ctypes.data, shape, 99)
        assert len(library.contexts) == 2
        for shape in shapes[2:] * 2:
            engine.run(_batch(*shape))
        for shape in shapes:
            engine.run(_batch(*shape))
        assert len(library.contexts) == 2 + tensorrt.CONTEXTS
        engine.keep(frozenset(shapes[:1]))
        assert [context.shape for context in library.contexts] == shapes[:1]
    assert len(library.contexts) == 0


def test_whether_it_can_be_captured(path: Path, cuda: Cuda, library: Library) -> None:
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        assert engine.no_graph(frozenset(), 99) == ""
        assert engine.no_graph(frozenset({(1, 3, 8, 8)}), 99) == ""
        library.capturable = False
        assert "cannot be captured for an input of (1, 3, 8, 8)" in engine.no_graph(frozenset({(1, 3, 8, 8)}), 99)


def test_a_forgotten_engine_gives_its_memory_back(path: Path, cuda: Cuda, library: Library) -> None:
    engine = tensorrt.TensorRTEngine(path, INFO)
    engine.run(_batch(1, 3, 8, 8))
    del engine
    gc.collect()
    assert (cuda.memory, cuda.streams) == ({}, set())


@needs_fork
def test_a_forked_child_leaves_the_device_alone(path: Path, cuda: Cuda, library: Library) -> None:
    engine = tensorrt.TensorRTEngine(path, INFO)
    batch = _batch(1, 3, 8, 8)
    wanted = engine.run(batch)

    def leave() -> str:
        nonlocal engine
        before = (list(cuda.memory), list(cuda.streams), len(library.contexts))
        with pytest.raises(EngineError, match="this engine was opened in process"):
            engine.run(batch)
        engine.close()
        del engine
        gc.collect()
        return str(before == (list(cuda.memory), list(cuda.streams), len(library.contexts)))

    assert in_child(leave) == "True"
    assert (engine.run(batch) == wanted).all()
    engine.close()
    assert (cuda.memory, cuda.streams) == ({}, set())


def test_works_on_its_device_and_gives_the_callers_back(path: Path, cuda: Cuda, library: Library) -> None:
    cuda.current = 3
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        assert cuda.current == 3
        engine.run(_batch(1, 3, 8, 8))
        assert cuda.current == 3


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (1, 3, 72, 48), (1, 3, 7, 8)])
def test_outside_the_shapes_that_it_was_built_for(
    path: Path, cuda: Cuda, library: Library, shape: tuple[int, ...]
) -> None:
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        with pytest.raises(EngineError) as caught:
            engine.run(_batch(*shape))
        for said in (str(shape), "built for (1, 3, 8, 8) to (2, 3, 64, 48)", "dimensions not in profile"):
            assert said in str(caught.value)
        assert engine.run(_batch(1, 3, 8, 8)).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("cudaMalloc", r"cudaMalloc failed: out of memory \(2\); use a smaller picture"),
        ("cudaStreamSynchronize", r"cudaStreamSynchronize failed: an illegal memory access was encountered \(700\)"),
    ],
)
def test_cuda_failures_in_cudas_words(path: Path, cuda: Cuda, library: Library, failing: str, said: str) -> None:
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        cuda.fails[failing] = 2 if failing == "cudaMalloc" else 700
        with pytest.raises(EngineError, match=said):
            engine.run(_batch(1, 3, 8, 8))
    assert (cuda.memory, cuda.streams) == ({}, set())


def test_a_failed_execution_still_waits_for_the_upload(path: Path, cuda: Cuda, library: Library) -> None:
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        library.execute_fails = True
        with pytest.raises(EngineError, match=r"failed on an input of shape \(1, 3, 8, 8\): enqueue failed"):
            engine.run(_batch(1, 3, 8, 8))
        assert cuda.queue == []


@pytest.mark.parametrize("kind", ["foreign", "no context", "half", "two inputs", "no file"])
def test_what_cannot_be_loaded_leaves_nothing(path: Path, cuda: Cuda, library: Library, kind: str) -> None:
    said = {
        "foreign": r"cannot load .*model\.engine \(MALFORMED_ENGINE\): magic tag does not match; build",
        "no context": "no execution context",
        "half": "no segmentation engine",
        "two inputs": "its tensors are image, logits, image2",
        "no file": r"model\.engine cannot be read: No such file",
    }[kind]
    if kind == "foreign":
        path.write_bytes(b"something else")
    elif kind == "no file":
        path.unlink()
    library.no_context = kind == "no context"
    library.dtypes |= {"two inputs": {"image2": 0}, "half": {"logits": 1}}.get(kind, {})
    with pytest.raises(EngineError, match=said):
        tensorrt.TensorRTEngine(path, INFO)
    assert (cuda.memory, cuda.streams) == ({}, set())


def test_an_output_without_a_shape(path: Path, cuda: Cuda, library: Library) -> None:
    with tensorrt.TensorRTEngine(path, INFO) as engine:
        library.broken = True
        with pytest.raises(EngineError, match=r"an output of shape \(1, 3, -1, 1\)"):
            engine.run(_batch(1, 3, 8, 8))


def test_another_gpu_than_it_was_built_for(path: Path, cuda: Cuda, library: Library) -> None:
    info = EngineInfo("tensorrt-rtx", "1.7.1.116", ENGINE, ("8.6", "12.0"))
    with pytest.raises(EngineUnavailable, match=r"compute capability 8\.6, 12\.0, but NVIDIA Double has 8\.9"):
        tensorrt.TensorRTEngine(path, info)
    assert cuda.streams == set()


PLUGIN = EngineInfo("tensorrt-rtx", "1.7.1.116", ENGINE, ("8.9",), shapes=INFO.shapes, context="plugin")


def test_an_engine_with_plugins_needs_kernels(path: Path, cuda: Cuda, library: Library, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="built with context plugins: the bundle holds no kernels; build"):
        tensorrt.TensorRTEngine(path, PLUGIN)
    with pytest.raises(EngineUnavailable, match=r"built with context plugins: .* holds kernels for nothing"):
        tensorrt.TensorRTEngine(path, PLUGIN, tmp_path)
    assert (cuda.memory, cuda.streams) == ({}, set())
    with tensorrt.TensorRTEngine(path, INFO, tmp_path) as engine:  # without plugins it goes without
        assert engine.kernels is None
        assert "holds kernels for nothing" in engine.no_kernels


def test_plugins_have_their_kernels_while_it_is_deserialised(
    path: Path, cuda: Cuda, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, open_now = SimpleNamespace(close=lambda: None), []
    host = SimpleNamespace(failures=["node 7: no such kernel"])

    @contextlib.contextmanager
    def kernels_for(given: Any, launcher: Any, multiprocessors: int) -> Any:
        assert (given, launcher, multiprocessors) == (library, kernels, GPU.multiprocessors)
        open_now.append(True)
        yield host
        open_now.pop()

    engine, seen = library._engine, []
    monkeypatch.setattr(library, "_engine", lambda: seen.append(list(open_now)) or engine())
    monkeypatch.setattr(plugins, "kernels_for", kernels_for)
    monkeypatch.setattr(tensorrt.Kernels, "find", lambda folder, capability, needed: (kernels, ""))
    with tensorrt.TensorRTEngine(path, PLUGIN, path.parent) as made:
        assert made.kernels is kernels
        library.execute_fails = True
        with pytest.raises(EngineError, match="node 7: no such kernel; enqueue failed"):
            made.run(_batch(1, 3, 8, 8))
    assert seen == [[True]]
    tensorrt.TensorRTEngine(path, INFO, path.parent).close()
    assert seen == [[True], []]


@no_gpu
def test_the_real_cuda_runtime_without_a_driver() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(EngineError, match=r"cudaGetDevice failed: .* \((35|100)\)"):
        Stream(import_runtime())


def test_the_real_cuda_runtime_has_every_name_in_use() -> None:
    api = pytest.importorskip("cuda.bindings.runtime")
    for name in (name for name in vars(Cuda) if name.startswith("cuda")):
        assert hasattr(api, name), name
    for name in vars(Cuda.cudaMemcpyKind):
        assert hasattr(api.cudaMemcpyKind, name), name


@needs_rtx
def test_the_real_library_has_every_name_in_use() -> None:
    real = import_library("tensorrt-rtx")
    for owner, names in {
        real.Runtime: ("deserialize_cuda_engine", "get_engine_validity"),
        real.ICudaEngine: tuple(vars(Library()._engine())),
        real.IExecutionContext: tuple(name for name in vars(Context) if not name.startswith("_")),
        real.IRuntimeConfig: tuple(name for name in vars(RuntimeConfig) if name[0] != "_" and name != "strategy"),
        real.ExecutionContextAllocationStrategy: ("USER_MANAGED",),
        real.DynamicShapesKernelSpecializationStrategy: ("EAGER",),
        real.EngineInvalidityDiagnostics: ("VERSION_MISMATCH", "MALFORMED_ENGINE"),
    }.items():
        for name in names:
            assert hasattr(owner, name), f"{owner}.{name}"
    assert real.TensorIOMode.INPUT != real.TensorIOMode.OUTPUT
    assert real.DataType.FLOAT != real.DataType.HALF


@needs_rtx
@no_gpu
@pytest.mark.rtx
def test_a_real_engine_up_to_the_missing_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> None:
    """A real engine, the real library, a GPU that is only claimed: its own words come back as an EngineError."""
    real = import_library("tensorrt-rtx")
    (tmp_path / ENGINE).write_bytes(_build(real, save_model(tmp_path / "model.onnx")))
    monkeypatch.setattr(tensorrt, "look_for_gpu", lambda: (GPU, ""))
    info = EngineInfo("tensorrt-rtx", RTX or "", ENGINE, ("8.9",))
    with pytest.raises(EngineError, match=r"cannot load .*model\.engine: .*cudaError 35"):
        tensorrt.TensorRTEngine(tmp_path / ENGINE, info)
    (tmp_path / ENGINE).write_bytes(b"this is no engine" * 100)
    with pytest.raises(EngineError, match=r"model\.engine \(MALFORMED_ENGINE\): "):
        tensorrt.TensorRTEngine(tmp_path / ENGINE, info)
    assert (cuda.memory, cuda.streams) == ({}, set())


def _build(real: Any, model: Path) -> bytes:
    logger = collecting_logger(real)
    builder = real.Builder(logger)
    network = builder.create_network(0)
    assert real.OnnxParser(network, logger).parse(model.read_bytes()), logger.errors
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(real.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *INFO.shapes)
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))
