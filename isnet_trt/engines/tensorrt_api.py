"""TensorRT's Python API, which TensorRT-RTX shares: creating objects, loggers, versions.

https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Callable
from typing import Any

from isnet_trt.errors import EngineError

_HINT = "; see whether nvidia-smi shows the GPU, and a CUDA version not older than the library's"
LAYERS_HEAD = "Layers:"
"""First line of the layer information of an engine."""


def network_flags(module: Any) -> int:
    """Strong typing is a flag in TensorRT 10 and the only way from 11 on."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parser_errors(parser: Any) -> list[str]:
    """What an ONNX parser refuses, with the nodes."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"{error.node_operator()} node {error.node_name()}: {error.desc()}" for error in errors]


def runs_engine_of(installed: str, built: str, compatible: bool) -> bool:
    """Whether the ``installed`` version of a library runs an engine that version ``built`` built.

    It does where both are one release; repackagings such as ``.post1`` or ``+cu13`` do not count. ``compatible``
    engines run under later versions of the same major version as well (TensorRT's documentation, "Engine
    Compatibility").
    """
    newer, older = ([int(part) for part in release(version).split(".")] for version in (installed, built))
    return newer == older or (compatible and newer[0] == older[0] and newer > older)


def release(version: str) -> str:
    """The numbers that a version begins with, such as 10.13.3.9; "0" where there are none."""
    match = re.match(r"\d+(\.\d+)*", version)
    return match.group() if match else "0"


@functools.cache
def logger_class(module: Any) -> Any:
    """A class of loggers that print nothing.

    They collect the library's error messages in ``errors``, and keep in ``layers`` the layer information that
    TensorRT-RTX writes at the end of a build.
    """
    severity = module.ILogger.Severity

    class CollectingLogger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, level: Any, message: str) -> None:
            if message.startswith(LAYERS_HEAD):
                self.layers = message
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)

    return CollectingLogger


# The library's process-wide parts, such as the registry of plugins, log to the first logger that is in use, and go on
# doing so after the objects created with it are gone: a logger that was freed ends the process. So none is ever freed.
_kept_alive: list[Any] = []
_idle: list[Any] = []
_loggers_lock = threading.Lock()


def collecting_logger(module: Any) -> Any:
    """A logger of `logger_class` for one user of the library; idle ones are used again."""
    with _loggers_lock:
        for index, logger in enumerate(_idle):
            # TensorRT and TensorRT-RTX share the list, and each takes only subclasses of its own ILogger.
            if isinstance(logger, logger_class(module)):
                return _idle.pop(index)
    logger = logger_class(module)()
    _kept_alive.append(logger)
    return logger


def give_back(logger: Any) -> None:
    """Return a logger of `collecting_logger` for reuse, once everything created with it is gone."""
    logger.errors.clear()
    _idle.append(logger)


def create(library: str, logger: Any, factory: Callable[..., Any], *arguments: Any) -> Any:
    """Create an object of the library, such as a ``Runtime``, that logs to ``logger``: ``factory(*arguments)``.

    ``library`` is its name and version, for messages.

    Raises:
        EngineError: the library creates none, such as where CUDA does not start; the message has its reason.
    """
    known = len(logger.errors)
    try:
        created, reason = factory(*arguments), "the library gave no reason"
    except TypeError as error:  # "factory function returned nullptr"
        created, reason = None, str(error)
    errors = logger.errors[known:]
    if created is None or errors:
        # Without CUDA, Python's Runtime (TensorRT 10 and 11) is an object around a null pointer: to use it, to destroy
        # it, and to end the interpreter, which destroys it, are a SIGSEGV. With one reference more it never dies.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(created))
        hint = _HINT if factory.__name__ in ("Runtime", "Builder") else ""
        raise EngineError(f"{library} creates no {factory.__name__}: {'; '.join(errors) or reason}{hint}")
    return created
