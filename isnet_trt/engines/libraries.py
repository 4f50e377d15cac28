"""TensorRT and TensorRT-RTX under one name: which library serves which engine kind, and how to get it."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.metadata
import importlib.util
import re
import threading
from dataclasses import dataclass
from typing import Any

from isnet_trt.engines.alias import load_alias
from isnet_trt.errors import EngineError, EngineUnavailable


@dataclass(frozen=True)
class Library:
    """An engine library: the module to import, the packages that may bring it, and how a user installs it."""

    kind: str
    module: str
    packages: tuple[str, ...]
    install: str


TENSORRT = Library("tensorrt", "tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "isnet_trt[gpu]")
TENSORRT_RTX = Library("tensorrt-rtx", "tensorrt_rtx", ("tensorrt-rtx-cu13", "tensorrt-rtx"), "isnet_trt[rtx]")
LIBRARIES = {library.kind: library for library in (TENSORRT, TENSORRT_RTX)}

RTX_COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""GPUs that TensorRT-RTX 1.7 builds fp32 engines for (`ComputeCapability` of its Python API).

9.0 is not among those it knows; for 7.5 it refuses float32 matrix products.
"""


def installed_version(kind: str) -> str | None:
    """The library's version, without importing it; None where it is not installed."""
    library = LIBRARIES[kind]
    if importlib.util.find_spec(library.module) is None:
        return None
    for package in library.packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return str(import_library(kind).__version__)


def import_library(kind: str) -> Any:
    """The library's module; both have the same Python API.

    Raises:
        EngineUnavailable: it is not installed or cannot be loaded; the message says what to install.
    """
    library = LIBRARIES[kind]
    try:
        return importlib.import_module(library.module)
    except (ImportError, OSError, RuntimeError) as error:  # its own libraries missing end as any of the three
        raise EngineUnavailable(
            f"engine {kind!r} needs the Python package {library.packages[0]}, which cannot be imported ({error}); "
            f"pip install '{library.install}', or use engine 'onnxruntime'"
        ) from None


_RTX_LIBRARY = "libtensorrt_rtx.so"
_RTX_ENTRY = "getPrivateApi_INTERNAL"


def allow_plugins(library: Any) -> None:
    """Make sure that the library's ONNX parser can take a plugin node in this process.

    At the first plugin node TensorRT-RTX's parser opens ``libtensorrt_rtx.so`` and looks for a function in it; where it
    finds none the process ends with "terminate called without an active exception". The wheel holds only
    ``libtensorrt_rtx.so.1``. So the name is added here (`isnet_trt.engines.alias`), also where somebody else imported
    the library before us, and then the parser's two steps are done ahead of it.

    Raises:
        EngineUnavailable: the parser would not find its library.
    """
    if library.__name__ != TENSORRT_RTX.module:
        return
    numbered = f"{_RTX_LIBRARY}.{library.__version__.split('.')[0]}"
    reason = ""
    try:
        wanted = _entry(numbered)
        load_alias(_RTX_LIBRARY, numbered)
        if _entry(_RTX_LIBRARY) != wanted:
            reason = f"{_RTX_LIBRARY} of another installation is loaded in this process"
    except (OSError, AttributeError) as error:
        reason = str(error)
    if reason:
        raise EngineUnavailable(
            f"TensorRT-RTX {library.__version__} cannot take plugins in this process, its parser would not find "
            f"{_RTX_LIBRARY}: {reason}; use --context native, or add a link of that name beside {numbered}"
        )


def _entry(name: str) -> int | None:
    """Where the function that the parser wants lies in the loaded library ``name``."""
    return ctypes.cast(getattr(ctypes.CDLL(name), _RTX_ENTRY), ctypes.c_void_p).value


def same_version(one: str, other: str) -> bool:
    """Whether two versions are one release; repackagings such as ``.post1`` or ``+cu13`` do not count."""
    return _release(one) == _release(other)


def runs_engine_of(installed: str, built: str, compatible: bool) -> bool:
    """Whether the ``installed`` version of a library runs an engine that version ``built`` made.

    ``compatible`` engines run under later versions of the same major version as well (TensorRT's documentation,
    "Engine Compatibility").
    """
    if same_version(installed, built) or not compatible:
        return same_version(installed, built)
    here, there = ([int(part) for part in _release(version).split(".")] for version in (installed, built))
    return here[0] == there[0] and here > there


def _release(version: str) -> str:
    found = re.match(r"\d+(\.\d+)*", version)
    return found.group() if found else version


@functools.cache
def logger_class(library: Any) -> Any:
    """A class of loggers that keep the library's error messages in ``errors``, for our own, and print nothing."""
    severity = library.ILogger.Severity

    class Collector(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Collector


_loggers: list[Any] = []
_idle: list[Any] = []
_loggers_lock = threading.Lock()


def lasting(logger: Any) -> Any:
    """``logger``, which from now on lives as long as the process.

    What belongs to no object, such as its registry of plugins, the library says to the first logger of all that are in
    use, and goes on doing so after what was made with that one is gone: a dead logger ends the process.
    """
    _loggers.append(logger)
    return logger


def collecting_logger(library: Any) -> Any:
    """A logger of `logger_class` for one user of the library."""
    with _loggers_lock:
        for index, logger in enumerate(_idle):
            if isinstance(logger, logger_class(library)):
                return _idle.pop(index)
    return lasting(logger_class(library)())


def give_back(logger: Any) -> None:
    """Let the next one have a logger of `collecting_logger`; everything that was made with it is gone."""
    logger.errors.clear()
    _idle.append(logger)


def started(kind: Any, logger: Any, what: str) -> Any:
    """A ``Builder`` or ``Runtime`` of the library ``what`` that speaks to ``logger``.

    Raises:
        EngineError: the library gives none, such as where the driver is too old for it; its words are in the message.
    """
    try:
        return kind(logger)
    except TypeError as error:  # "factory function returned nullptr"
        raise EngineError(f"{what} does not start: {'; '.join(logger.errors) or error}") from None
