"""The engine that runs anywhere: ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.engines.base import Engine, check_batch
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.library import PORTABLE
from isnet_trt.errors import EngineError, SettingsError
from isnet_trt.forks import OwnerProcess


class OnnxRuntimeEngine(Engine):
    """A model file under ONNX Runtime's CPU provider; any batch and size that the model takes.

    ``runtime`` is the module ``onnxruntime``; ``threads`` defaults to the physical cores that the process may use.

    Raises:
        SettingsError: ``threads`` is below 1.
        EngineError: the file is no model that it can load, or takes and gives something else than one float32
            (B, C, H, W) each; the message names the file.
    """

    kind = PORTABLE

    def __init__(self, runtime: Any, path: Path, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise SettingsError(f"threads is {threads}; it must be at least 1, or None for all cores")
        threads = threads or usable_cores()
        self.description = f"ONNX Runtime {runtime.__version__}, CPU, {threads} thread{'s' * (threads > 1)}"
        self._session = open_session(runtime, path, threads, ["CPUExecutionProvider"])
        self._owner = OwnerProcess(self)
        self._run_options = run_options(runtime, "memory.enable_memory_arena_shrinkage", "cpu:0")
        self._name, self._shape, _ = signature(self._session, path)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `isnet_trt.engines.base.Engine.run`."""
        self._owner.check("this engine")
        if self._session is None:
            raise EngineError("this engine was closed; open it again")
        check_batch(batch)
        check_shape(self._shape, batch.shape)
        try:
            return self._session.run(None, {self._name: batch}, self._run_options)[0]
        except Exception as error:
            raise failed(batch.shape, error) from None

    def close(self) -> None:
        """Free the session; closing twice is harmless, and so is closing in a forked child, which frees nothing."""
        if self._owner.is_here:
            self._session = None


def open_session(runtime: Any, path: Path, threads: int, providers: list[Any]) -> Any:
    """A session of the module ``runtime``.

    Raises:
        EngineError: there is no such file, or it cannot be loaded.
    """
    if not path.is_file():
        raise EngineError(f"{path} does not exist or is no file: there is no model to load")
    try:
        return runtime.InferenceSession(str(path), session_options(runtime, threads), providers=providers)
    except Exception as error:
        raise EngineError(f"ONNX Runtime {runtime.__version__} cannot load {path}: {_line(error)}") from None


def session_options(runtime: Any, threads: int) -> Any:
    """The options of a session with so many threads."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # Planned memory patterns hold one block per input shape that was ever seen; windows and scales have many.
    options.enable_mem_pattern = False
    # Idle workers that spin take the cores from the merging between two windows, and from the service around it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def run_options(runtime: Any, key: str, value: str) -> Any:
    """Options of a run with one entry.

    The engines give the arena back after each run: one large picture must not hold its memory for ever.
    """
    options = runtime.RunOptions()
    options.add_run_config_entry(key, value)
    options.log_severity_level = 4  # what fails is raised; it need not be on stderr as well
    return options


def signature(session: Any, path: Path) -> tuple[str, tuple[int | str | None, ...], str]:
    """Name and shape of the one input, and the name of the one output.

    Raises:
        EngineError: the model has others.
    """
    for what, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        found = ", ".join(f"{v.name}: {v.type} {_text(v.shape)}" for v in values)
        if len(values) != 1 or values[0].type != "tensor(float)" or len(values[0].shape) != 4:
            raise EngineError(f"{path} is no segmentation model: it has {what} {found}, not one float32 (B, C, H, W)")
    entry = session.get_inputs()[0]
    return entry.name, tuple(entry.shape), session.get_outputs()[0].name


def check_shape(takes: tuple[int | str | None, ...], given: tuple[int, ...]) -> None:
    """Raise EngineError where a model of fixed sizes does not take ``given``."""
    if any(isinstance(size, int) and size != one for size, one in zip(takes, given, strict=True)):
        raise EngineError(f"this model takes inputs of shape {_text(takes)}, not {_text(given)}")


def failed(shape: tuple[int, ...], error: Exception) -> EngineError:
    """The error of a run, with ONNX Runtime's message."""
    hint = "if memory is short, use a smaller window or scale"  # it has no type of its own for that
    return EngineError(f"ONNX Runtime failed on an input of shape {shape}: {_line(error)}; {hint}")


def _text(shape: Any) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
