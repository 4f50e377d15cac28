"""ONNX Runtime's CUDA provider: the engine on a GPU where there is no TensorRT.

It comes with the package ``onnxruntime-gpu``, which takes the place of ``onnxruntime``. docs/cuda-runtime.md says what
has run on a GPU.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html,
https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.backends import open_backend
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.cuda.kernels import Kernels, KernelSource
from isnet_trt.cuda.protocols import Shape
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.library import ModelContent
from isnet_trt.engines.onnxruntime_cpu import (
    BINDINGS,
    SessionEngine,
    create_session,
    run_error,
    run_options,
    session_options,
)
from isnet_trt.engines.onnxruntime_graphs import GRAPH_OPTIONS, GRAPH_RUN, ShapeGraph, fix_sizes
from isnet_trt.errors import EngineError, EngineUnavailable, InputShapeError, OutOfMemory, TimeLimitExceeded
from isnet_trt.forks import OwnerProcess
from isnet_trt.merging.geometry import coarse_size

_log = logging.getLogger(__name__)
PROVIDER = "CUDAExecutionProvider"
GRAPHS = 8
"""Most input shapes with CUDA graphs; each has a session, and so weights, of its own.

Further shapes run without: one that had to make room would be compiled again with the next image of several scales.
"""
_REMEMBERED = 64
"""Input shapes remembered as having run once."""
_INSTALL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu (with its CUDA and cuDNN)"
_TUNED = {
    "fp32": {"cudnn_conv_use_max_workspace": "1"},
    "fp16": {"cudnn_conv_use_max_workspace": "1", "prefer_nhwc": "1", "fuse_conv_bias": "1"},
}
"""Options by the precision of the graph, which only make it faster; all are known to 1.22 and 1.31.

Tensor cores take channels last, for which the provider has no bfloat16 convolutions (1.31); float32 without TF32 does
not use them.
"""


class OnnxRuntimeCudaEngine(SessionEngine):
    """A model file under ONNX Runtime's CUDA provider, on GPU ``gpu``, without TF32.

    ``runtime`` is the module ``onnxruntime``; ``output`` is (classes, stride) of the model; ``kernels`` the bundle's
    compiled kernels; ``content`` the model, if it is in memory; ``precision`` that of its graph; ``note`` ends the
    description. With ``on_device`` (which takes cuda-bindings) `enqueue` works, on the stream `stream` alone; without,
    the session has a stream that nobody else sees, and only `run` works.

    An input shape that comes to `enqueue` a second time gets a session with fixed sizes, held in a CUDA graph
    (`isnet_trt.engines.onnxruntime_graphs`); where ONNX Runtime refuses that, `description` says why.

    Raises:
        EngineUnavailable: the provider or the GPU is missing, or the provider cannot be loaded.
        BundleError: the kernels of the bundle are damaged.
        EngineError: the file is no model that it can load.
    """

    def __init__(
        self,
        runtime: Any,
        path: Path,
        output: tuple[int, int],
        kernels: KernelSource | None = None,
        on_device: bool = False,
        threads: int | None = None,
        content: ModelContent | None = None,
        gpu: int = 0,
        precision: str = "fp32",
        note: str = "",
    ) -> None:
        missing = missing_provider(runtime)
        self.gpu = _gpu(missing, gpu)
        self.kernels, self.no_kernels = Kernels.find(kernels, self.gpu.compute_capability)
        self._output, self._note = output, note
        self._model = runtime, path, threads or usable_cores(), content
        self.stream = 0  # with on_device a stream of the engine's own: it has to outlive the session
        self._device: Device | None = None
        self._graphs: dict[Shape, ShapeGraph] = {}
        self._seen: deque[Shape] = deque(maxlen=_REMEMBERED)
        self._describe()
        if on_device:
            self._device = Device(open_backend(gpu))
            with self._device:
                self.stream = self._device.create_stream()
        self._owner = OwnerProcess(self)
        try:
            with self._current():
                self._open_session(_options(self.stream, gpu), _TUNED.get(precision, _TUNED["fp32"]))
        except BaseException:
            self.close()
            raise
        # By default a run waits for the GPU before it returns, and `enqueue` must not wait.
        self._queue_options = run_options(runtime, {"disable_synchronize_execution_providers": "1"})

    def _describe(self, no_graphs: str = "") -> None:
        """Set `description`; ``no_graphs`` is why ONNX Runtime's own CUDA graphs are not used any more."""
        self._no_graphs = no_graphs
        self.description = (
            f"ONNX Runtime {self._model[0].__version__}, CUDA provider on {self.gpu.label} "
            f"(compute capability {self.gpu.compute_capability})"
            + (f", the network without CUDA graphs: {no_graphs}" if no_graphs else "")
            + self._note
        )

    def _open_session(self, options: dict[str, str], tuned: dict[str, str]) -> None:
        """Open the session with ``tuned`` options besides, if this ONNX Runtime takes them and the graph allows it."""
        self._options, self._tuned = options | tuned, tuned
        runtime, path, threads, content = self._model
        try:
            self._load(runtime, path, threads, (PROVIDER, self._options), f"gpu:{self.gpu.index}", content)
        except OutOfMemory:
            raise
        except EngineError as error:
            if not tuned:
                raise
            _log.info("ONNX Runtime refuses %s: %s", ", ".join(tuned), error)
            self._open_session(options, {})
            return
        # ONNX Runtime itself goes on with the CPU when a provider cannot be loaded.
        if self._session.get_providers()[0] != PROVIDER:
            missing = _preload(runtime)
            raise EngineUnavailable(
                f"ONNX Runtime {runtime.__version__} has a CUDA provider but could not load it: the CUDA or cuDNN "
                f"libraries that it was built for are missing{missing}; {_INSTALL}"
            )

    def _without_tuning(self, error: Exception) -> bool:
        """Reopen the session without the options that only make it faster; False if it has none of them."""
        if (
            self._session is None
            or not self._tuned
            or isinstance(error, InputShapeError | OutOfMemory | TimeLimitExceeded)
        ):
            return False
        _log.warning("run without %s from now on: %s", ", ".join(self._tuned), error)
        self._open_session({key: value for key, value in self._options.items() if key not in self._tuned}, {})
        return True

    def _current(self) -> contextlib.AbstractContextManager[object]:
        """Restores the calling thread's current GPU, which ONNX Runtime changes in every call and leaves changed.

        Without ``on_device`` nothing is restored: that takes cuda-bindings.
        """
        return contextlib.nullcontext() if self._device is None else self._device

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._owner.check("this engine")  # before the device, which is the parent's in a forked child
        with self._current():
            try:
                return super().run(batch)
            except EngineError as error:
                if not self._without_tuning(error):
                    raise
                return super().run(batch)

    def output_shape(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        self._open(shape)
        classes, stride = self._output
        return shape[0], classes, *coarse_size((shape[2], shape[3]), stride)

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, int, int, int], stream: int) -> None:
        """Queue the network on `stream`; see `isnet_trt.cuda.protocols.DeviceEngine`.

        Raises:
            EngineError: closed, another stream than `stream`, or ONNX Runtime fails, also where the model's output has
                another shape than `output_shape`.
        """
        if not stream or stream != self.stream:
            raise EngineError("this engine works in device memory on its own stream only, if it was opened for that")
        self._open(shape)
        if graph := self._graph(shape):
            try:
                graph.enqueue(input_address, output_address, stream)
                return
            except Exception as error:  # the eager run below raises what is not the graph's fault
                self._give_up_graph(shape, run_error(shape, error))
        try:
            self._enqueue(input_address, output_address, shape)
        except EngineError as error:
            if not self._without_tuning(error):
                raise
            self._enqueue(input_address, output_address, shape)

    def _enqueue(self, input_address: int, output_address: int, shape: Shape) -> None:
        """Queue the network operator by operator."""
        session = self._open(shape)
        try:
            binding = session.io_binding()
            binding.bind_input(self._name, "cuda", self.gpu.index, np.float32, shape, input_address)
            shape_out = self.output_shape(shape)
            kind = BINDINGS[self.output_type]
            binding.bind_output(self._output_name, "cuda", self.gpu.index, kind, shape_out, output_address)
            session.run_with_iobinding(binding, self._queue_options)
        except Exception as error:
            raise run_error(shape, error) from None

    def _graph(self, shape: Shape) -> ShapeGraph | None:
        """The CUDA graph for inputs of ``shape``; None the first time, and where there is none."""
        if shape in self._graphs or self._no_graphs or self._device is None or len(self._graphs) == GRAPHS:
            return self._graphs.get(shape)
        if shape not in self._seen:  # a shape that occurs once costs no session
            self._seen.append(shape)
            return None
        try:
            self._graphs[shape] = self._create_graph(shape, self._device)
        except EngineError as error:
            self._give_up_graph(shape, error)
        return self._graphs.get(shape)

    def _create_graph(self, shape: Shape, device: Device) -> ShapeGraph:
        runtime, path, threads, content = self._model
        options = session_options(runtime, threads)
        fix_sizes(options, self._shape, shape)
        provider = PROVIDER, self._options | GRAPH_OPTIONS
        session, *_ = create_session(runtime, path, options, provider, content)
        tensors = (self._name, shape, "fp32"), (self._output_name, self.output_shape(shape), self.output_type)
        return ShapeGraph(session, device, self.gpu.index, tensors, run_options(runtime, GRAPH_RUN))

    def _give_up_graph(self, shape: Shape, error: EngineError) -> None:
        """Go on without new graphs; those of other shapes stay."""
        _log.info("ONNX Runtime's CUDA graphs are not used: %s", error)
        self._describe(str(error))
        graph = self._graphs.pop(shape, None)
        if graph is not None and self._device is not None:
            with contextlib.suppress(EngineError):  # raised again by the call that waits for what is queued
                self._device.synchronize(self.stream)
            graph.close()

    def no_graph(self, shapes: frozenset[Shape], stream: int) -> str:
        reason = "ONNX Runtime's runs cannot be captured"
        return reason if self._no_graphs or self._device is None else f"{reason}, it captures the network itself"

    def keep(self, shapes: frozenset[Shape]) -> None:
        for shape in [shape for shape in self._graphs if shape not in shapes]:
            self._graphs.pop(shape).close()
        # It has to repeat again: shapes that come in turns would be compiled each time.
        self._seen = deque((shape for shape in self._seen if shape in shapes), _REMEMBERED)

    def close(self) -> None:
        # The session goes first: it works on the stream that is destroyed with the device.
        if not self._owner.is_here:
            return
        try:
            with self._current():
                self.keep(frozenset())
                super().close()
                if self._device is not None:
                    self._device.close()
        except EngineError:  # a lost device
            self._graphs.clear()
            super().close()
        if self.kernels is not None:
            self.kernels.close()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self.close()


def missing_provider(runtime: Any) -> str:
    """What the module ``onnxruntime`` lacks to run on a GPU, and what to install; empty if it has a CUDA provider."""
    # Before the providers are listed: some builds list CUDA's only once its libraries are loaded.
    _preload(runtime)
    if PROVIDER in runtime.get_available_providers():
        return ""
    return f"ONNX Runtime's CUDA provider, which the installed ONNX Runtime {runtime.__version__} lacks; {_INSTALL}"


def _gpu(missing: str, index: int) -> Gpu:
    """The GPU that the provider would use; ``missing`` is what `missing_provider` says."""
    if missing:
        raise EngineUnavailable(f"device='cuda' with engine 'onnxruntime' needs {missing}")
    gpu, reason = probe_gpu(index)
    if gpu is None:
        raise EngineUnavailable(f"device='cuda' needs an NVIDIA GPU and its driver: {reason}")
    return gpu


def _preload(runtime: Any) -> str:
    """Load CUDA and cuDNN from the packages ``nvidia-*``, where the provider does not look, and return what is missing.

    Some builds list the provider only once these libraries are loaded.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#preload-dlls
    """
    preload = getattr(runtime, "preload_dlls", None)  # from 1.21 on
    if preload is None:
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as output:  # it prints, and the provider may load nevertheless
        preload()
    message = " ".join(output.getvalue().split())
    return f" ({message})" if message else ""


def _options(stream: int, gpu: int) -> dict[str, str]:
    """The options of the provider that results and memory depend on."""
    options = {
        "device_id": str(gpu),
        "use_tf32": "0",  # TF32 rounds float32 products, and labels would differ from the CPU's
        "cudnn_conv_algo_search": "HEURISTIC",  # trying every algorithm takes seconds for every new size
        "arena_extend_strategy": "kSameAsRequested",  # not to the next power of two
    }
    return options | ({"user_compute_stream": str(stream)} if stream else {})
