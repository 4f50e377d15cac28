"""ONNX Runtime's CUDA provider: the engine on a GPU where there is no TensorRT.

It comes with the package ``onnxruntime-gpu``, which takes the place of ``onnxruntime``, and is used on request only.
docs/cuda-runtime.md says what has run on a GPU.

https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html,
https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.backends import open_backend
from isnet_trt.cuda.device import Device
from isnet_trt.cuda.gpu import Gpu, probe_gpu
from isnet_trt.cuda.kernels import Kernels, KernelSource
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.library import ModelContent
from isnet_trt.engines.onnxruntime_cpu import SessionEngine, run_error, run_options
from isnet_trt.errors import EngineError, EngineUnavailable
from isnet_trt.forks import OwnerProcess
from isnet_trt.merging.geometry import coarse_size

PROVIDER = "CUDAExecutionProvider"
_INSTALL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu (with its CUDA and cuDNN)"


class OnnxRuntimeCudaEngine(SessionEngine):
    """A model file under ONNX Runtime's CUDA provider, on GPU ``gpu``, in float32 proper.

    ``runtime`` is the module ``onnxruntime``; ``output`` is (classes, stride) of the model; ``kernels`` the bundle's
    compiled kernels; ``content`` the model, if it is in memory. With ``on_device`` (which takes cuda-bindings)
    `enqueue` works, on the stream `stream` alone; without, the session has a stream that nobody else sees, and only
    `run` works.

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
    ) -> None:
        # Before the providers are listed: some builds list CUDA's only once its libraries are loaded.
        missing = _preload(runtime)
        self.gpu = _gpu(runtime, gpu)
        self.description = (
            f"ONNX Runtime {runtime.__version__}, CUDA provider on {self.gpu.label} "
            f"(compute capability {self.gpu.compute_capability})"
        )
        self.kernels, self.no_kernels = Kernels.find(kernels, self.gpu.compute_capability)
        self._output = output
        self.stream = 0  # with on_device a stream of the engine's own: it has to outlive the session
        self._device: Device | None = None
        if on_device:
            self._device = Device(open_backend(gpu))
            with self._device:
                self.stream = self._device.create_stream()
        self._owner = OwnerProcess(self)
        try:
            provider = PROVIDER, _options(self.stream, gpu)
            with self._current():
                self._load(runtime, path, threads or usable_cores(), provider, f"gpu:{gpu}", content)
            # ONNX Runtime itself goes on with the CPU when a provider cannot be loaded.
            if self._session.get_providers()[0] != PROVIDER:
                raise EngineUnavailable(
                    f"ONNX Runtime {runtime.__version__} has a CUDA provider but could not load it: the CUDA or cuDNN "
                    f"libraries that it was built for are missing{missing}; {_INSTALL}"
                )
        except BaseException:
            self.close()
            raise
        # By default a run waits for the GPU before it returns, and `enqueue` must not wait.
        self._queue_options = run_options(runtime, "disable_synchronize_execution_providers", "1")

    def _current(self) -> contextlib.AbstractContextManager[object]:
        """Restores the calling thread's current GPU, which ONNX Runtime changes in every call and leaves changed.

        Without ``on_device`` nothing is restored: that takes cuda-bindings.
        """
        return contextlib.nullcontext() if self._device is None else self._device

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._owner.check("this engine")  # before the device, which is the parent's in a forked child
        with self._current():
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
        session = self._open(shape)
        try:
            binding = session.io_binding()
            binding.bind_input(self._name, "cuda", self.gpu.index, np.float32, shape, input_address)
            shape_out = self.output_shape(shape)
            binding.bind_output(self._output_name, "cuda", self.gpu.index, np.float32, shape_out, output_address)
            session.run_with_iobinding(binding, self._queue_options)
        except Exception as error:
            raise run_error(shape, error) from None

    def no_graph(self, shapes: frozenset[tuple[int, int, int, int]], stream: int) -> str:
        return "ONNX Runtime's runs cannot be captured"  # they allocate, and some of their steps are the host's

    def keep(self, shapes: frozenset[tuple[int, int, int, int]]) -> None:
        """Do nothing: no memory is held for a shape."""

    def close(self) -> None:
        # The session goes first: it works on the stream that is destroyed with the device.
        if not self._owner.is_here:
            return
        try:
            with self._current():
                super().close()
                if self._device is not None:
                    self._device.close()
        except EngineError:  # a lost device
            super().close()
        if self.kernels is not None:
            self.kernels.close()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self.close()


def _gpu(runtime: Any, index: int) -> Gpu:
    """The GPU that the provider would use."""
    if PROVIDER not in runtime.get_available_providers():
        raise EngineUnavailable(
            f"device='cuda' with engine 'onnxruntime' needs ONNX Runtime's CUDA provider, which the installed ONNX "
            f"Runtime {runtime.__version__} lacks; {_INSTALL}"
        )
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
    """The options of the provider."""
    options = {
        "device_id": str(gpu),
        "use_tf32": "0",  # TF32 rounds float32 products, and labels would differ from the CPU's
        "cudnn_conv_algo_search": "HEURISTIC",  # trying every algorithm takes seconds for every new size
        "arena_extend_strategy": "kSameAsRequested",  # not to the next power of two
    }
    return options | ({"user_compute_stream": str(stream)} if stream else {})
