"""The engine that runs anywhere, ONNX Runtime on the CPU, and what it shares with ONNX Runtime on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isnet_trt.cuda.element_types import ELEMENT_TYPES, as_float32
from isnet_trt.engines.base import Engine, check_batch
from isnet_trt.engines.cores import usable_cores
from isnet_trt.engines.library import PORTABLE, ModelContent
from isnet_trt.engines.memory import LIMIT_VARIABLE, limit_folding, limit_memory
from isnet_trt.engines.time_limit import limited
from isnet_trt.errors import (
    EngineError,
    EngineUnavailable,
    InputShapeError,
    SettingsError,
    TimeLimitExceeded,
    engine_error,
    is_out_of_memory,
)
from isnet_trt.forks import OwnerProcess

_HOST = "cpu:0"
_EXTERNAL = "1.24"
"""The first ONNX Runtime that takes external data from memory."""
Signature = list[tuple[str, str, tuple[Any, ...]]]
_OUTPUTS = {"tensor(float)": "fp32", "tensor(float16)": "fp16", "tensor(bfloat16)": "bf16"}
"""ONNX Runtime's name of an element type that logits may have -> its name in `isnet_trt.cuda.element_types`."""
BINDINGS = {"fp32": np.float32, "fp16": np.float16, "bf16": 16}
"""Element type -> what ONNX Runtime's bindings take for it: numpy's type, or ONNX's number where numpy has none."""


class SessionEngine(Engine):
    """A model file in a session of ONNX Runtime; a subclass calls `_load` with an execution provider."""

    kind = PORTABLE
    _owner: OwnerProcess
    _session: Any = None
    _may_loop = True

    def _load(
        self, runtime: Any, path: Path, threads: int, provider: Any, device: str, content: ModelContent | None
    ) -> None:
        """Open the session; ``provider`` is a name or (name, options), ``device`` that of its memory arena.

        Raises:
            EngineError: the model cannot be loaded, or has not one (B, C, H, W) as input and as output: float32, or an
            output in half precision.
        """
        options = session_options(runtime, threads)
        # The name of the operator, wherever it stands: only a graph with a loop can run without end.
        self._may_loop = content is None or b"Loop" in content.model
        if device == _HOST:
            limit_memory(runtime, options)
        self._session, inputs, outputs = create_session(runtime, path, options, provider, content)
        for side, values, types in (("input", inputs, ("tensor(float)",)), ("output", outputs, _OUTPUTS)):
            if len(values) != 1 or values[0][1] not in types or len(values[0][2]) != 4:
                names = ", ".join(f"{name}: {element} {_text(shape)}" for name, element, shape in values)
                kinds = " or ".join(types)
                raise EngineError(
                    f"{path} is no segmentation model: it has {side} {names}, not one {kinds} (B, C, H, W)"
                )
        (self._name, _, self._shape), (self._output_name, element, _) = inputs[0], outputs[0]
        self.output_type = _OUTPUTS[element]
        # The arena goes back to the system after each run: one large picture must not hold its memory for ever.
        self._run_options = run_options(runtime, {"memory.enable_memory_arena_shrinkage": device})
        self._keep_options = run_options(runtime, {})

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        self._owner.check("this engine")
        check_batch(batch)
        session = self._open(batch.shape)
        try:
            # Memory that was given back is mapped anew by the next run, which costs up to a fifth of its time.
            options = self._keep_options if self.keep_memory else self._run_options
            with limited(options) if self._may_loop else contextlib.nullcontext():
                if self.output_type == "bf16":
                    return self._run_bf16(session, batch, options)
                return session.run(None, {self._name: batch}, options)[0].astype(np.float32, copy=False)
        except (TimeLimitExceeded, SettingsError):
            raise
        except Exception as error:
            raise run_error(batch.shape, error) from None

    def _run_bf16(self, session: Any, batch: NDArray[np.float32], options: Any) -> NDArray[np.float32]:
        """`run` of a model with a bfloat16 output, which numpy has no type for."""
        binding = session.io_binding()
        binding.bind_cpu_input(self._name, batch)
        binding.bind_output(self._output_name, "cpu")
        session.run_with_iobinding(binding, options)
        (logits,) = binding.get_outputs()
        shape = tuple(logits.shape())
        size = math.prod(shape) * ELEMENT_TYPES["bf16"].size
        data = np.frombuffer((ctypes.c_uint8 * size).from_address(logits.data_ptr()), np.uint8)
        return as_float32(data, "bf16").reshape(shape)  # a copy: the memory is ONNX Runtime's

    def _open(self, shape: tuple[int, ...]) -> Any:
        """The session, if it is open and takes inputs of ``shape``."""
        if self._session is None:
            raise EngineError("this engine was closed; open it again")
        if any(isinstance(size, int) and size != actual for size, actual in zip(self._shape, shape, strict=True)):
            raise InputShapeError(f"this model takes inputs of shape {_text(self._shape)}, not {_text(shape)}")
        return self._session

    def close(self) -> None:
        """Free the session; closing twice is harmless, and so is closing in a forked child, which frees nothing."""
        if self._owner.is_here:
            self._session = None


class OnnxRuntimeEngine(SessionEngine):
    """A model file under ONNX Runtime's CPU provider; any batch and size that the model takes.

    ``runtime`` is the module ``onnxruntime``; ``content`` the model, if it is in memory; ``threads`` defaults to the
    physical cores that the process may use.

    Raises:
        SettingsError: ``threads`` is below 1.
        EngineError: the file is no model that it can load, or takes and gives something else than one float32
            (B, C, H, W) each; the message names the file.
    """

    def __init__(
        self, runtime: Any, path: Path, threads: int | None = None, *, content: ModelContent | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise SettingsError(f"threads is {threads}; it must be at least 1, or None for all cores")
        threads = threads or usable_cores()
        self.description = f"ONNX Runtime {runtime.__version__}, CPU, {threads} thread{'s' * (threads > 1)}"
        self._load(runtime, path, threads, "CPUExecutionProvider", _HOST, content)
        self._owner = OwnerProcess(self)


def create_session(
    runtime: Any, path: Path, options: Any, provider: Any, content: ModelContent | None
) -> tuple[Any, Signature, Signature]:
    """A session of a model on ``provider``, and the name, type and shape of each of its inputs and outputs.

    Raises:
        EngineError: the model cannot be loaded; the message has ONNX Runtime's reason.
    """
    if content is None and not path.is_file():
        raise EngineError(f"{path} does not exist or is no file: there is no model to load")
    model = str(path) if content is None else model_in_memory(options, content)
    try:
        # With its fallback, it would print what failed to stdout and try again with other providers.
        session = runtime.InferenceSession(model, options, providers=[provider], enable_fallback=0)
        inputs, outputs = map(_signature, (session.get_inputs(), session.get_outputs()))
    # ONNX Runtime's exceptions have no base class of their own; names that are no Unicode raise yet another.
    except Exception as error:
        message = f"ONNX Runtime {runtime.__version__} cannot load {path}: {_line(error)}"
        if content is not None and os.devnull in message:
            message += "; external data must lie in files that bundle.json lists"
        raise engine_error(message, error) from None
    session._model_bytes = None  # kept for the fallback
    return session, inputs, outputs


def _signature(values: Any) -> Signature:
    """Name, type and shape of each input or output; UnicodeDecodeError for names that are no Unicode."""
    return [(value.name, value.type, tuple(value.shape)) for value in values]


def session_options(runtime: Any, threads: int) -> Any:
    """The options of a session with ``threads`` threads."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # Nodes run one after the other, ONNX Runtime's default: a second pool would have no work.
    options.inter_op_num_threads = 1
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # 3 is ERROR: failures are raised, and warnings on stderr are nothing that a caller could act on.
    options.log_severity_level = 3
    # Planned memory patterns hold one block per input shape that was ever seen; windows and scales have many.
    options.enable_mem_pattern = False
    # Idle workers that spin take the cores from the merging between two windows, and from the service around it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def model_in_memory(options: Any, content: ModelContent) -> bytes:
    """The model for a session with ``options``, to which its external data are added.

    Raises EngineUnavailable if this ONNX Runtime takes external data from files only.
    """
    # Format and folder would be guessed from the content: an .ort file, and external data beside the working folder.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    limit_folding(options, len(content.model) + sum(map(len, content.external.values())))
    if content.external:
        if not hasattr(options, "add_external_initializers_from_files_in_memory"):
            raise EngineUnavailable(f"the model has external data, which needs ONNX Runtime {_EXTERNAL} or later")
        names, buffers = list(content.external), list(content.external.values())
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(data) for data in buffers])
    return content.model


def run_options(runtime: Any, entries: Mapping[str, str]) -> Any:
    """Options of a run with the configuration ``entries``."""
    options = runtime.RunOptions()
    for key, value in entries.items():
        options.add_run_config_entry(key, value)
    options.log_severity_level = 4  # a failure is raised; it need not be on stderr as well
    return options


def run_error(shape: tuple[int, ...], error: Exception) -> EngineError:
    """The error of a failed run, with ONNX Runtime's message; `OutOfMemory` where memory is short."""
    hint = ""
    if is_out_of_memory(error):
        hint = f"; memory is short: use a smaller window or scale, or raise {LIMIT_VARIABLE}"
    return engine_error(f"ONNX Runtime failed on an input of shape {shape}: {_line(error)}{hint}", error)


def _text(shape: Any) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
