"""The CUDA driver API through cuda-bindings, its status codes turned into words.

API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

from __future__ import annotations

import threading
from typing import Any

from isnet_trt.errors import EngineError, EngineUnavailable, OutOfMemory

OUT_OF_MEMORY = 2
_HINTS = {
    OUT_OF_MEMORY: "; use a smaller picture, window or batch, or free GPU memory",
    209: "; the code is for another GPU",  # CUDA_ERROR_NO_BINARY_FOR_GPU
    222: "; upgrade the NVIDIA driver",  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
}

_contexts: dict[int, Any] = {}
_contexts_lock = threading.Lock()


def import_driver() -> Any:
    """The module ``cuda.bindings.driver``. Its functions look for the driver library: ask `look_for_gpu` before.

    Raises:
        EngineUnavailable: cuda-bindings is not installed or cannot be loaded.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineUnavailable(f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings") from None
    return driver


def call(api: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the driver API and return its value beside the status; None where it has none.

    Raises:
        OutOfMemory: the driver reports CUDA_ERROR_OUT_OF_MEMORY.
        EngineError: any other status but success, with the driver's description of it, or the driver has no such
            function, which the bindings raise themselves.
    """
    try:
        status, *values = getattr(api, name)(*arguments)
    except RuntimeError as error:  # cuda.bindings' FunctionNotFoundError and the like
        raise EngineError(f"{name} failed: {error}; upgrade the NVIDIA driver") from None
    if int(status):
        failure = OutOfMemory if int(status) == OUT_OF_MEMORY else EngineError
        raise failure(f"{name} failed: {words(api, status)} ({int(status)}){_HINTS.get(int(status), '')}")
    return values[0] if values else None


def primary_context(api: Any, index: int) -> Any:
    """The primary context of GPU ``index``, retained once a process and never released, as PyTorch and TensorRT do.

    Raises:
        EngineError: the driver has no such GPU, or cannot give it a context.
    """
    with _contexts_lock:
        if index not in _contexts:
            call(api, "cuInit", 0)
            _contexts[index] = call(api, "cuDevicePrimaryCtxRetain", call(api, "cuDeviceGet", index))
        return _contexts[index]


def words(api: Any, status: Any) -> str:
    """The driver's description of a status."""
    _, text = api.cuGetErrorString(status)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
