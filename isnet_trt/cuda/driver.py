"""The CUDA driver API through cuda-bindings, its status codes turned into words.

API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

from __future__ import annotations

import threading
from typing import Any

from isnet_trt.errors import EngineError, EngineUnavailable

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
    """What a function of the driver API returns beside its status; None for nothing.

    Raises:
        EngineError: the status is no success; the message has the driver's own words.
    """
    status, *values = getattr(api, name)(*arguments)
    if int(status):
        raise EngineError(f"{name} failed: {words(api, status)} ({int(status)}){_HINTS.get(int(status), '')}")
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
