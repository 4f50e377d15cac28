"""ONNX Runtime's CUDA provider: the engine on a GPU where there is no TensorRT.

It comes with the package ``onnxruntime-gpu``, which takes the place of ``onnxruntime``. Two forms, as the TensorRT
engines: `run` from and to host memory, and `enqueue` on device memory, on a stream of its own. It is
taken only where it is asked for. docs/cuda-runtime.md says what has run on a GPU.

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
from isnet_trt.cuda.kernels import Kernels
from isnet_trt.engines.base import Engine, check_batch
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.library import PORTABLE
from isnet_trt.engines.onnxruntime_cpu import check_shape, failed, open_session, run_options, signature
from isnet_trt.errors import EngineError, EngineUnavailable
from isnet_trt.forks import OwnerProcess
from isnet_trt.merging.geometry import coarse_size

PROVIDER = "CUDAExecutionProvider"
_INSTALL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu (with its CUDA and cuDNN)"


def check_available(runtime: Any) -> Gpu:
    """The GPU that the provider would use.

    Raises:
        EngineUnavailable: there is none, or this ONNX Runtime has no CUDA provider.
    """
    if PROVIDER not in runtime.get_available_providers():
        raise EngineUnavailable(
            f"device='cuda' with engine 'onnxruntime' needs ONNX Runtime's CUDA provider, which the installed ONNX "
            f"Runtime {runtime.__version__} lacks; {_INSTALL}"
        )
    gpu, reason = probe_gpu()
    if gpu is None:
        raise EngineUnavailable(f"device='cuda' needs an NVIDIA GPU and its driver: {reason}")
    return gpu


class OnnxRuntimeCudaEngine(Engine):
    """A model file under ONNX Runtime's CUDA provider, on GPU 0 (as CUDA_VISIBLE_DEVICES counts), in float32 proper.

    Raises:
        EngineUnavailable: the provider or the GPU is missing, or the provider cannot be loaded.
        BundleError: the kernels of the bundle are damaged.
        EngineError: the file is no model that it can load.
    """

    kind = PORTABLE

    def __init__(
        self,
        runtime: Any,
        path: Path,
        output: tuple[int, int],
        kernels: Path | None = None,
        on_device: bool = False,
        threads: int | None = None,
    ) -> None:
        """``runtime`` is the module ``onnxruntime``; ``output`` is (classes, stride) of the model; ``kernels`` the
        bundle's folder of compiled kernels.

        With ``on_device`` (which takes cuda-bindings) `enqueue` works, on the stream `stream` alone; without, the
        session has a stream that nobody else sees, and only `run` works.
        """
        missing = _preload(runtime)
        self.gpu = check_available(runtime)
        self.description = (
            f"ONNX Runtime {runtime.__version__}, CUDA provider on {self.gpu.name} "
            f"(compute capability {self.gpu.compute_capability})"
        )
        self.kernels, self.no_kernels = Kernels.find(kernels, self.gpu.compute_capability)
        self._output = output
        self._session: Any = None
        self.stream = 0  # with on_device a stream of the engine's own: it has to outlive the session
        self._device: Device | None = None
        if on_device:
            self._device = Device(open_backend())
            with self._device:
                self.stream = self._device.create_stream()
        self._owner = OwnerProcess(self)
        try:
            self._load(runtime, path, threads or usable_cores(), missing)
        except BaseException:
            self.close()
            raise
        self._run_options = run_options(runtime, "memory.enable_memory_arena_shrinkage", "gpu:0")
        self._queue_options = run_options(runtime, "disable_synchronize_execution_providers", "1")

    def _load(self, runtime: Any, path: Path, threads: int, missing: str) -> None:
        self._session = open_session(runtime, path, threads, [(PROVIDER, _options(self.stream))])
        if self._session.get_providers()[0] != PROVIDER:
            raise EngineUnavailable(
                f"ONNX Runtime {runtime.__version__} has a CUDA provider but could not load it: the CUDA or cuDNN "
                f"libraries that it was built for are missing{missing}; {_INSTALL}"
            )
        self._name, self._shape, self._output_name = signature(self._session, path)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`."""
        self._owner.check("this engine")
        check_batch(batch)
        session = self._open(batch.shape)
        try:
            return np.asarray(session.run(None, {self._name: batch}, self._run_options)[0])
        except Exception as error:
            raise failed(batch.shape, error) from None

    def _open(self, shape: tuple[int, ...]) -> Any:
        if self._session is None:
            raise EngineError("this engine was closed; open it again")
        check_shape(self._shape, shape)
        return self._session

    def output_shape(self, shape: tuple[int, int, int, int]) -> tuple[int, ...]:
        """Shape of the logits for an input of ``shape``; EngineError where the model takes no such input."""
        self._open(shape)
        classes, stride = self._output
        return shape[0], classes, *coarse_size((shape[2], shape[3]), stride)

    def enqueue(self, input_address: int, output_address: int, shape: tuple[int, int, int, int], stream: int) -> None:
        """Queue the network on `stream`: float32 ``shape`` at one device address to logits at the other.

        Raises:
            EngineError: closed, another stream than `stream`, or ONNX Runtime fails, also where the model's output has
                another shape than `output_shape`.
        """
        if not stream or stream != self.stream:
            raise EngineError("this engine works in device memory on its own stream only, if it was opened for that")
        session = self._open(shape)
        try:
            binding = session.io_binding()
            binding.bind_input(self._name, "cuda", 0, np.float32, shape, input_address)
            binding.bind_output(self._output_name, "cuda", 0, np.float32, self.output_shape(shape), output_address)
            session.run_with_iobinding(binding, self._queue_options)
        except Exception as error:
            raise failed(shape, error) from None

    def no_graph(self, shapes: frozenset[tuple[int, int, int, int]], stream: int) -> str:
        """See `isnet_trt.cuda.protocols.DeviceEngine`: its runs allocate, and some of its steps are the host's."""
        return "ONNX Runtime's runs cannot be captured"

    def keep(self, shapes: frozenset[tuple[int, int, int, int]]) -> None:
        """Nothing is held for a shape."""

    def close(self) -> None:
        """Free the session; closing twice is harmless, and so is closing in a forked child, which frees nothing."""
        if not self._owner.is_here:
            return
        self._session = None
        if self.kernels is not None:
            self.kernels.close()
        if self._device is not None:
            with contextlib.suppress(EngineError), self._device:  # a lost device
                self._device.close()

    def __del__(self) -> None:
        if hasattr(self, "_owner"):
            self.close()


def _preload(runtime: Any) -> str:
    """Load CUDA and cuDNN from the packages ``nvidia-*``, where the provider does not look by itself; what is missing.

    Some builds have the provider only once they are there.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#preload-dlls
    """
    preload = getattr(runtime, "preload_dlls", None)  # from 1.21 on
    if preload is None:
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as output:  # it prints, and the provider may load nevertheless
        preload()
    message = " ".join(output.getvalue().split())
    return f" ({message})" if message else ""


def _options(stream: int) -> dict[str, str]:
    """Of the provider. Float32 products are not rounded to TF32, so that labels are those of the CPU.

    Trying every convolution algorithm for every new size takes seconds; the heuristic does not. Memory grows by what
    is needed, not to the next power of two.
    """
    options = {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    return options | ({"user_compute_stream": str(stream)} if stream else {})
