"""TensorRT and TensorRT-RTX engines: one class, since both libraries have the same Python API.

Host form: the batch goes to the GPU and the logits come back for each call. Not yet run on a GPU: every refusal up to
the deserialisation is tested for real, the rest against a double that keeps "device" memory on the host.
API (Runtime, ICudaEngine, IExecutionContext):
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.bundle import EngineInfo
from isnet_trt.engines.base import check_batch
from isnet_trt.engines.device import Gpu, look_for_gpu
from isnet_trt.engines.libraries import (
    LIBRARIES,
    collecting_logger,
    import_library,
    installed_version,
    same_version,
)
from isnet_trt.engines.stream import Stream, import_runtime
from isnet_trt.errors import EngineError, EngineUnavailable
from isnet_trt.forks import Home

_BUILD = "build the bundle again here with python -m isnet_trt.build"


def check_compatible(info: EngineInfo) -> Gpu:
    """The GPU that an engine with this manifest entry runs on, found before its library is imported.

    Raises:
        EngineUnavailable: library missing or of another version, no GPU, or a GPU that the engine was not built for.
    """
    _check_version(info)
    gpu, reason = look_for_gpu()
    if gpu is None:
        raise EngineUnavailable(f"a {info.kind} engine needs an NVIDIA GPU and its driver: {reason}")
    if info.compute_capabilities and gpu.compute_capability not in info.compute_capabilities:
        raise EngineUnavailable(
            f"the engine was built for compute capability {', '.join(info.compute_capabilities)}, but {gpu.name} has "
            f"{gpu.compute_capability}; {_BUILD}"
        )
    return gpu


def _check_version(info: EngineInfo) -> None:
    version = installed_version(info.kind)
    if version is None:
        import_library(info.kind)  # says what to install
    elif not same_version(version, info.library_version):
        package = LIBRARIES[info.kind].packages[0]
        raise EngineUnavailable(
            f"the engine was built with {info.kind} {info.library_version}, but {version} is installed, and an engine "
            f"runs only under the version that built it; pip install '{package}=={info.library_version}', or {_BUILD}"
        )


class TensorRTEngine:
    """A serialised engine on GPU 0 (as CUDA_VISIBLE_DEVICES counts), with its own stream and execution context.

    Raises:
        EngineUnavailable: it cannot run here (see `check_compatible`).
        EngineError: the file cannot be deserialised, or is no network with one float32 input and output.
    """

    def __init__(self, path: Path, info: EngineInfo) -> None:
        gpu = check_compatible(info)
        self.kind = info.kind
        self.description = (
            f"{info.kind} {info.library_version} on {gpu.name} (compute capability {gpu.compute_capability})"
        )
        self._path = path
        self._library = import_library(info.kind)
        self._log = collecting_logger(self._library)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream = Stream(import_runtime())
        self._home = Home(self)
        try:
            with self._stream.active():
                self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        self._runtime = self._library.Runtime(self._log)
        serialised = _read(self._path)
        self._engine = self._runtime.deserialize_cuda_engine(serialised)
        if self._engine is None:
            said = self._said()  # before _invalid() makes the library say more
            what = f"{self.kind} {self._library.__version__} cannot load {self._path}{self._invalid(serialised)}"
            raise EngineError(f"{what}: {said}; {_BUILD}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{self._path}: no execution context, is GPU memory free? {self._said()}")
        self._input, self._output = self._signature()

    def _invalid(self, serialised: bytes) -> str:
        """What TensorRT-RTX finds in the file's header; TensorRT has no such check."""
        ask = getattr(self._runtime, "get_engine_validity", None)
        if ask is None:
            return ""
        _, found = ask(serialised)
        members = self._library.EngineInvalidityDiagnostics.__members__
        names = [name for name, flag in members.items() if int(found) & int(flag)]
        return f" ({', '.join(names)})" if names else ""

    def _signature(self) -> tuple[str, str]:
        """Names of the one input and the one output."""
        engine, mode = self._engine, self._library.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == mode.INPUT]
        outputs = [name for name in names if engine.get_tensor_mode(name) == mode.OUTPUT]
        floats = all(engine.get_tensor_dtype(name) == self._library.DataType.FLOAT for name in names)
        if len(inputs) != 1 or len(outputs) != 1 or not floats:
            raise EngineError(f"{self._path} is no segmentation engine: its tensors are {', '.join(names)}; {_BUILD}")
        return inputs[0], outputs[0]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`.

        Raises:
            EngineError: closed, or ``batch`` is outside the shapes that the engine was built for, or CUDA failed.
        """
        self._home.check("this engine")
        if self._context is None:
            raise EngineError("this engine was closed; open it again")
        check_batch(batch)
        self._log.errors.clear()
        with self._stream.active():
            logits = np.empty(self._output_shape(batch.shape), np.float32)
            source = self._stream.buffer(self._input, batch.nbytes)
            result = self._stream.buffer(self._output, logits.nbytes)
            self._context.set_tensor_address(self._input, source)
            self._context.set_tensor_address(self._output, result)
            self._stream.upload(source, batch)
            started = self._context.execute_async_v3(self._stream.handle)
            if started:
                self._stream.download(logits, result)
            self._stream.wait()  # also when nothing was started: the upload still reads the caller's memory
        if not started:
            raise EngineError(f"{self.kind} failed on an input of shape {batch.shape}: {self._said()}")
        return logits

    def _output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self._context.set_input_shape(self._input, shape):
            raise EngineError(f"the engine does not take {shape}: {self._limits()}. {self._said()}")
        output = tuple(self._context.get_tensor_shape(self._output))
        if len(output) != 4 or min(output) < 1:
            raise EngineError(f"{self._path} gives an output of shape {output} for {shape}; {_BUILD}")
        return output

    def _limits(self) -> str:
        given = tuple(self._engine.get_tensor_shape(self._input))
        if min(given) > 0:
            return f"it was built for {given} only"
        smallest, _, largest = (tuple(s) for s in self._engine.get_tensor_profile_shape(self._input, 0))
        return f"it was built for {smallest} to {largest}"

    def _said(self) -> str:
        return "; ".join(self._log.errors) or "the library gave no reason"

    def close(self) -> None:
        """Give the GPU's memory back; closing twice is harmless, and so is closing in a forked child."""
        if not self._home.is_here:
            return
        # In this order: each one uses the next.
        self._context = None
        self._engine = None
        self._runtime = None
        self._stream.close()

    def __del__(self) -> None:
        if hasattr(self, "_home"):
            self.close()

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}") from None
