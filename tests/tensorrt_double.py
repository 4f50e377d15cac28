"""Doubles of TensorRT's Python API and of the driver API as the engine uses them, around the network of `small_bundle`.

Device memory is the host's and counted, streams run as late as they may, so that a leak, a wrong size, a missing copy
or wait, or a result that is overwritten by the next call shows. They say nothing about the libraries themselves.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_double import Driver, Gpu
from small_bundle import expected

from isnet_trt.cuda import backends, driver

SHAPES = ((1, 3, 8, 8), (1, 3, 16, 16), (2, 3, 64, 48))
"""Smallest, usual and largest input of the engine's first profile."""
PROFILES = SHAPES, tuple((b, c, w, h) for b, c, h, w in SHAPES)


class Cuda(Driver):
    """``cuda.bindings.driver`` of a machine without pycuda."""

    def __init__(self) -> None:
        super().__init__(Gpu(devices=2))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Cuda:
        """Be the driver of this test, in which no context has been retained yet."""
        monkeypatch.setattr(driver, "import_driver", lambda: self)
        monkeypatch.setattr(backends, "_backends", {})
        monkeypatch.setitem(sys.modules, "pycuda", None)
        return self

    def push(self, context: Any = None) -> None:
        self.cuCtxPushCurrent(context or self.primary)


ERROR = 1
"""Severity of messages."""
NO_CUDA = (
    "{function}: Error Code 6: API Usage Error (CUDA initialization failure with error: 35 In checkCudaInstallation at "
    "/_src/runtime/dispatch/runtime.cpp:824)"
)
"""What TensorRT 10.15 logs where CUDA does not start."""
NULL_FACTORY = "pybind11::init(): factory function returned nullptr"
BAD_ENGINE = "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does not match)"
BAD_SHAPE = (
    "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Set dimension {shape} for tensor {name} does not "
    "satisfy any optimization profiles.)"
)


class Null:
    """What TensorRT returns in place of an object: to use it or to destroy it would end the process."""

    def __init__(self, library: Library) -> None:
        self.__dict__["_library"] = library

    def __getattr__(self, name: str) -> Any:
        self._library.astray.append(f"SIGSEGV: {name} of a null object")
        return lambda *arguments: None

    def __setattr__(self, name: str, value: Any) -> None:
        self._library.astray.append(f"SIGSEGV: {name} of a null object was set")

    def __del__(self) -> None:
        self._library.astray.append("SIGSEGV: a null object was destroyed")


class Library:
    """TensorRT's Python API as far as the engine uses it, around the network of `small_bundle`."""

    __version__ = "10.15.1.29"
    kind = "tensorrt"
    bad_engine = ""
    """What the library finds in the header of a damaged engine."""
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    DataType = SimpleNamespace(FLOAT=0, HALF=1, BF16=7)
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC=0, ON_PROFILE_CHANGE=1, USER_MANAGED=2)

    class ILogger:
        Severity = SimpleNamespace(ERROR=ERROR, INTERNAL_ERROR=0)

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.dtypes = {"image": 0, "logits": 0}
        self.no_context = False
        self.execute_fails = False
        self.broken = False
        self.environment = "this GPU"
        self.compiled: list[str] = []
        self.capturable = True
        self.starts = True
        self.astray: list[str] = []
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()

    def Builder(self, logger: Any) -> Any:
        if not self.starts and self.__version__ == "10.6.0" and self.kind == "tensorrt":
            self.astray.append("SIGABRT: terminate called after throwing an instance of 'nvinfer1::APIUsageError'")
        if not self.starts:
            logger.log(ERROR, NO_CUDA.format(function="createInferBuilder"))
            raise TypeError(NULL_FACTORY)
        return SimpleNamespace()

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        if not self.starts:
            logger.log(ERROR, NO_CUDA.format(function="createInferRuntime"))
            return self._no_runtime()
        return SimpleNamespace(deserialize_cuda_engine=lambda data: None if self._bad(data) else self._engine())

    def _no_runtime(self) -> Any:
        return Null(self)

    def _bad(self, data: bytes) -> bool:
        if data != b"engine":
            self.logger.log(ERROR, BAD_ENGINE)
        return data != b"engine"

    def _engine(self) -> Any:
        names = list(self.dtypes)
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: 1 if name.startswith("image") else 2,
            get_tensor_dtype=self.dtypes.__getitem__,
            get_tensor_shape=lambda name: (-1, 3, -1, -1),
            num_optimization_profiles=len(PROFILES),
            get_tensor_profile_shape=lambda name, profile: PROFILES[profile],
            device_memory_size_v2=4096,
            create_execution_context=self._context,
        )

    def _context(self, options: Any) -> Any:
        assert options == 2, "contexts work in the memory that they are given"
        return None if self.no_context else Context(self, options)


class RtxLibrary(Library):
    """What TensorRT-RTX has otherwise: no object in place of a null one, runtime configurations, more checks."""

    __version__ = "1.7.1.116"
    kind = "tensorrt-rtx"
    bad_engine = " (MALFORMED_ENGINE)"
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY=0, EAGER=1, NONE=2)
    EngineInvalidityDiagnostics = SimpleNamespace(__members__={"VERSION_MISMATCH": 1, "MALFORMED_ENGINE": 32})

    def Runtime(self, logger: Any) -> Any:
        runtime = super().Runtime(logger)
        runtime.get_engine_validity = lambda data: (2, 32)
        return runtime

    def _no_runtime(self) -> Any:
        raise TypeError(NULL_FACTORY)

    def _engine(self) -> Any:
        engine = super()._engine()
        engine.create_runtime_config = lambda: RuntimeConfig(self)
        return engine

    def _context(self, options: Any) -> Any:
        assert (options.strategy, options.dynamic_shapes_kernel_specialization_strategy) == (2, 1)
        return None if self.no_context else RtxContext(self, options)


class RuntimeConfig:
    """What contexts of TensorRT-RTX are made with; TensorRT takes the strategy itself."""

    strategy = dynamic_shapes_kernel_specialization_strategy = 0

    def __init__(self, library: Library) -> None:
        self.library = library
        self.cache: KernelCache | None = None

    def create_runtime_cache(self) -> KernelCache:
        return KernelCache(self.library)

    def set_runtime_cache(self, cache: KernelCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self.strategy = strategy


class KernelCache:
    """A runtime cache: the shapes whose kernels were compiled. `Library.environment` is what it is valid for."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.shapes: set[str] = set()

    def serialize(self) -> bytes:
        self.library.gpu.check_current()
        return f"{self.library.environment}: {' '.join(sorted(self.shapes))}".encode()

    def deserialize(self, blob: bytes) -> bool:
        self.library.gpu.check_current()
        environment, found, shapes = blob.decode("utf-8", "replace").partition(": ")
        if not found or environment != self.library.environment:
            return False
        self.shapes = set(shapes.split())
        return True


class Context:
    """An execution context that computes on the addresses it was given, in memory that it was given."""

    active_optimization_profile = 0

    def __init__(self, library: Library, options: Any) -> None:
        self.library = library
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.shape: tuple[int, ...] = ()
        self.fits = False
        self.ready = True
        library.contexts.add(self)

    def __del__(self) -> None:
        """It gives device memory of its own back, which takes the context that it was made in."""
        if not self.library.gpu.stacks.get(threading.get_ident()):
            self.library.astray.append("a context was destroyed while none was current")

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = address, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert not (self.shape and self.fits), "a context keeps its shape"
        self.active_optimization_profile, self.ready, self.memory = profile, False, None
        self.library.gpu.put(stream, lambda: setattr(self, "ready", True))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        assert not self.shape or not self.fits, "a context keeps its shape"
        self.shape = tuple(shape)
        smallest, _, largest = PROFILES[self.active_optimization_profile]
        self.fits = all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))
        if not self.fits:
            self.library.logger.log(ERROR, BAD_SHAPE.format(shape=list(shape), name=name))
        return self.fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch, _, height, width = self.shape
        return (batch, 3, -1 if self.library.broken else height // 8, width // 8)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory is not None
        self.library.gpu.check_range(*self.memory)
        assert self.fits
        assert self.ready, "the profile was set on another stream, which nobody waited for"
        if self.library.execute_fails:
            self.library.logger.log(ERROR, "enqueue failed")
            return False
        self.library.gpu.check_memory(self.memory[0], *self.addresses.values())
        batch, logits = self._tensor("image", self.shape), self._tensor("logits", self.get_tensor_shape("logits"))
        self.library.gpu.put(stream, lambda: np.copyto(logits, expected(batch), casting="same_kind"))
        return True

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = {0: np.float32, 1: np.float16, 7: ml_dtypes.bfloat16}[self.library.dtypes[name]]
        size = np.dtype(kind).itemsize * int(np.prod(shape))
        self.library.gpu.check_range(self.addresses[name], size)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(self.addresses[name]), kind).reshape(shape)


class RtxContext(Context):
    """A context of TensorRT-RTX, which hands out the configuration that it was made with."""

    def __init__(self, library: Library, config: RuntimeConfig) -> None:
        super().__init__(library, config)
        self.config = weakref.ref(config)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fits, config = super().set_input_shape(name, shape), self.config()
        text = "x".join(map(str, shape))
        assert config is not None
        if fits and (config.cache is None or text not in config.cache.shapes):
            self.library.compiled.append(text)
        if fits and config.cache is not None:
            config.cache.shapes.add(text)
        return fits

    def is_stream_capturable(self, stream: int) -> bool:
        assert self.shape
        return self.library.capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert self.config() is not None, "what it was made with is gone"
        return super().execute_async_v3(stream)
