"""TensorRT and TensorRT-RTX engines: one class, since both libraries have the same Python API.

Tests without a GPU: every refusal up to the deserialisation with the real libraries, the rest against a double that
keeps "device" memory on the host.
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.backends import open_backend
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.element_types import ELEMENT_TYPES, as_float32
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.cuda.kernels import Kernels
from isnet_trt.engines.base import Engine, check_batch
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.library import EngineSource
from isnet_trt.engines.runtime_cache import RuntimeCache, cache_file
from isnet_trt.engines.tensorrt_api import collecting_logger, create, give_back
from isnet_trt.errors import EngineError, InputShapeError
from isnet_trt.forks import OwnerProcess

CONTEXTS = 4
"""Input shapes of the host form whose contexts are kept."""
REBUILD = "build the bundle again here with python -m isnet_trt.build"


class TensorRTEngine(Engine):
    """A serialised engine on one GPU.

    There is one execution context per input shape, since a context that changes its shape cannot be captured in a CUDA
    graph; they never run at the same time and share their device memory. `run` works from and to host memory, on a
    stream of the engine's own, and `enqueue` on device memory and any stream.

    ``library`` is the module and ``gpu`` the GPU that it runs on (`TensorRTFamily.check`). An engine with context
    plugins needs the kernels of ``source``.

    Raises:
        EngineUnavailable: there are no kernels for its plugins.
        BundleError: the kernels of the bundle are damaged.
        EngineError: the file cannot be deserialised, or is no network with one float32 input, and one output of the
            type that the manifest has.
    """

    stream = 0
    """`enqueue` works on any stream."""
    _runtime: Any = None
    _engine: Any = None
    _spare: Any = None
    _options: Any = None
    _compiled: RuntimeCache | None = None
    _host: Any = None

    def __init__(self, library: Any, gpu: Gpu, source: EngineSource) -> None:
        info = source.info
        self.gpu, self.kind = gpu, info.kind
        self.output_type: str = info.output
        capability = gpu.compute_capability
        self.description = f"{info.kind} {info.library_version} on {gpu.label} (compute capability {capability})"
        needed = "the engine was built with context plugins" if info.context == "plugin" else ""
        self.kernels, self.no_kernels = Kernels.find(source.kernels, capability, needed)
        self._path, self._library = source.path, library
        self._log = collecting_logger(library)
        self._contexts: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._pinned: set[tuple[int, ...]] = set()  # shapes that `enqueue` uses, possibly in a CUDA graph
        self._buffers: dict[str, tuple[int, int]] = {}
        self._device = Device(open_backend(gpu.index))
        self._owner = OwnerProcess(self)
        try:
            # Plugins are registered only while the engine is deserialised; other threads that need them wait.
            with self._device, self._plugins(info):
                self._stream = self._device.create_stream()
                self._load(source)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _plugins(self, info: EngineInfo) -> Iterator[None]:
        """The context operations' plugins, for engines that were built with them."""
        if info.context != "plugin":
            yield
            return
        from isnet_trt.cuda import plugins

        with plugins.kernels_for(self._library, self.kernels, self.gpu.multiprocessors) as host:
            self._host = host
            yield

    def _load(self, source: EngineSource) -> None:
        library = f"{self.kind} {self._library.__version__}"
        self._runtime = create(library, self._log, self._library.Runtime, self._log)
        if source.info.version_compatible:  # it carries the lean runtime of the version that built it
            self._runtime.engine_host_code_allowed = True
        serialised = source.read_model()
        self._engine = self._runtime.deserialize_cuda_engine(serialised)
        if self._engine is None:
            messages = self._messages()  # before _invalid() makes the library say more
            raise EngineError(f"{library} cannot load {self._path}{self._invalid(serialised)}: {messages}; {REBUILD}")
        self._input, self._output = self._signature()
        self._options = self._context_options(source)  # as long as the contexts, which hand it out (TensorRT-RTX)
        self._spare = self._create_context()  # now, so that too little memory shows when the engine is opened

    def _invalid(self, serialised: bytes) -> str:
        """The reasons that TensorRT-RTX finds in the file's header; TensorRT has no such check."""
        get_validity = getattr(self._runtime, "get_engine_validity", None)
        if get_validity is None:
            return ""
        _, flags = get_validity(serialised)
        members = self._library.EngineInvalidityDiagnostics.__members__
        names = [name for name, flag in members.items() if int(flags) & int(flag)]
        return f" ({', '.join(names)})" if names else ""

    def _signature(self) -> tuple[str, str]:
        """Names of the one input and the one output, whose types are checked."""
        engine, mode = self._engine, self._library.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == mode.INPUT]
        outputs = [name for name in names if engine.get_tensor_mode(name) == mode.OUTPUT]
        types = {name: engine.get_tensor_dtype(name) for name in names}
        kinds = "fp32", self.output_type
        expected = [getattr(self._library.DataType, ELEMENT_TYPES[kind].tensorrt) for kind in kinds]
        if len(inputs) != 1 or len(outputs) != 1 or [types[inputs[0]], types[outputs[0]]] != expected:
            tensors = ", ".join(f"{name} ({types[name]})" for name in names)
            raise EngineError(
                f"{self._path} is no segmentation engine with {self.output_type} output: its tensors are {tensors}; "
                f"{REBUILD}"
            )
        return inputs[0], outputs[0]

    def _context_options(self, source: EngineSource) -> Any:
        """The options of contexts, which use the memory that they are given."""
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        eager = getattr(self._library, "DynamicShapesKernelSpecializationStrategy", None)
        if eager is None:
            return strategy
        # TensorRT-RTX would start with general kernels and change them later, which a CUDA graph would not see.
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        config.dynamic_shapes_kernel_specialization_strategy = eager.EAGER
        self._compiled = RuntimeCache(config, cache_file(source, self.gpu, str(self._library.__version__)))
        return config

    def _create_context(self) -> Any:
        """A context that works in the memory that all of them share."""
        context = self._engine.create_execution_context(self._options)
        if context is None:
            raise EngineError(f"{self._path}: no execution context, is GPU memory free? {self._messages()}")
        self._lend_memory(context)
        return context

    def _lend_memory(self, context: Any) -> None:
        """Give ``context`` the shared memory, which suffices for a run in any profile."""
        size = int(self._engine.device_memory_size_v2)
        if size:
            context.set_device_memory(self._buffer("activations", size), size)

    def _buffer(self, name: str, size: int) -> int:
        """The address of at least ``size`` bytes of device memory, kept for the next call with this name."""
        address, capacity = self._buffers.get(name, (0, 0))
        if capacity < size:
            if address:
                del self._buffers[name]
                self._device.free(address)
            address = self._device.allocate(size)
            self._buffers[name] = address, size
        return address

    def _context(self, shape: tuple[int, ...]) -> Any:
        """The context for inputs of ``shape``."""
        if self._engine is None:
            raise EngineError("this engine was closed; open it again")
        # Messages of an earlier call would explain the wrong failure.
        self._log.errors.clear()
        if shape not in self._contexts:
            # No local name for it: the traceback of the error would keep it alive beyond `close`.
            self._spare = self._spare or self._create_context()
            if not self._shape(self._spare, shape):  # it serves the next shape
                raise InputShapeError(f"the engine does not take {shape}: {self._limits()}. {self._messages()}")
            self._contexts[shape], self._spare = self._spare, None
        self._contexts.move_to_end(shape)
        return self._contexts[shape]

    def _shape(self, context: Any, shape: tuple[int, ...]) -> bool:
        """Give ``context`` inputs of ``shape``, in the profile that has them; whether the engine takes them."""
        fitting = (
            index
            for index, (smallest, _, largest) in enumerate(self._profiles())
            if all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True))
        )
        # Where no profile fits, the first one: the library then refuses the shape with its own message.
        profile = next(fitting, 0)
        if context.active_optimization_profile != profile:
            if not context.set_optimization_profile_async(profile, self._stream):
                return False
            self._device.synchronize(self._stream)  # it is used on other streams
            self._lend_memory(context)  # whether it keeps its memory is not documented
        return bool(context.set_input_shape(self._input, shape))

    def _profiles(self) -> list[list[tuple[int, ...]]]:
        """Smallest, usual and largest input of each profile; none for an engine of one shape."""
        engine = self._engine
        if min(engine.get_tensor_shape(self._input)) > 0:
            return []
        indices = range(engine.num_optimization_profiles)
        return [[tuple(shape) for shape in engine.get_tensor_profile_shape(self._input, i)] for i in indices]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`; the shapes that the engine was built for are the only ones."""
        self._owner.check("this engine")
        check_batch(batch)
        with self._device:
            context = self._context(batch.shape)
            shape = self._output_shape(context, batch.shape)
            logits = np.empty(math.prod(shape) * ELEMENT_TYPES[self.output_type].size, np.uint8)
            source = self._buffer(self._input, batch.nbytes)
            result = self._buffer(self._output, logits.nbytes)
            self._device.upload(source, batch, self._stream)
            try:
                self._execute(context, source, result, batch.shape, self._stream)
                self._device.download(logits, result, self._stream)
            finally:
                # Also when nothing was started: the upload still reads the caller's memory.
                self._device.synchronize(self._stream)
            loose = [shape for shape in self._contexts if shape not in self._pinned]
            for shape in loose[:-CONTEXTS]:
                del self._contexts[shape]
        return as_float32(logits, self.output_type).reshape(shape)

    def output_shape(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        with self._device:
            return self._output_shape(self._context(shape), shape)

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, int, int, int], stream: int) -> None:
        """Queue the network; see `isnet_trt.cuda.protocols.DeviceEngine`.

        Addresses are multiples of 256; ``stream`` is any stream of the device's primary context, which is current.
        Runs on different streams must not overlap.

        Raises:
            EngineError: closed, or ``shape`` is outside what the engine was built for, or the library refuses.
        """
        self._pinned.add(shape)
        self._execute(self._context(shape), input_address, output_address, shape, stream)

    def _execute(self, context: Any, source: int, result: int, shape: tuple[int, ...], stream: int) -> None:
        context.set_tensor_address(self._input, source)
        context.set_tensor_address(self._output, result)
        if not context.execute_async_v3(stream):
            raise EngineError(f"{self.kind} failed on an input of shape {shape}: {self._messages()}")

    def no_graph(self, shapes: frozenset[tuple[int, int, int, int]], stream: int) -> str:
        """See `isnet_trt.cuda.protocols.DeviceEngine`: TensorRT refuses a capture only when it is tried."""
        for shape in sorted(shapes):
            is_capturable = getattr(self._context(shape), "is_stream_capturable", None)
            if is_capturable is not None and not is_capturable(stream):
                return f"{self.kind} cannot be captured for an input of {shape}"
        # Each shape has run, so that its kernels are compiled; a service that is killed does not come to `close`.
        self._save_compiled()
        return ""

    def _save_compiled(self) -> None:
        if self._compiled is not None:
            self._compiled.save()

    def keep(self, shapes: frozenset[tuple[int, int, int, int]]) -> None:
        self._pinned &= shapes
        for shape in [shape for shape in self._contexts if shape not in shapes]:
            del self._contexts[shape]

    def _output_shape(self, context: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        output = tuple(context.get_tensor_shape(self._output))
        if len(output) != 4 or min(output) < 1:
            raise EngineError(f"{self._path} gives an output of shape {output} for {shape}; {REBUILD}")
        return output

    def _limits(self) -> str:
        ranges = [f"{smallest} to {largest}" for smallest, _, largest in self._profiles()]
        return f"it was built for {' or '.join(ranges) or f'{tuple(self._engine.get_tensor_shape(self._input))} only'}"

    def _messages(self) -> str:
        failures = self._host.failures if self._host else ()
        return "; ".join([*failures, *self._log.errors]) or "the library gave no reason"

    def close(self) -> None:
        """Give the GPU's memory back; closing twice is harmless, and so is closing in a forked child."""
        if not self._owner.is_here or self._log is None:
            return
        try:
            with self._device:
                self._save_compiled()
                self._release()
                self._device.close()
        # The library's objects go also where the context cannot be made current any more.
        except EngineError:  # a lost device
            self._release()

    def _release(self) -> None:
        """Drop the library's objects, each before the one that it uses, then what they were given."""
        self._contexts.clear()
        self._spare = None
        self._options = None
        self._compiled = None
        self._engine = None
        self._runtime = None
        if self._host is not None:
            self._host.kernels = None  # the library's Python API never frees a plugin that it cloned
        if self.kernels is not None:
            self.kernels.close()
        if self._log is not None:
            logger, self._log = self._log, None
            give_back(logger)

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self.close()
