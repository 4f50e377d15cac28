"""Calls of the CUDA driver API through cuda-bindings, whose status codes become exceptions.

API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

from __future__ import annotations

from typing import Any

from isnet_trt.errors import EngineError, EngineUnavailable, OutOfMemory

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
OUT_OF_MEMORY_HINT = "; use a smaller picture, window or batch, or free GPU memory"
_HINTS = {
    OUT_OF_MEMORY: OUT_OF_MEMORY_HINT,
    209: "; the code is for another GPU",  # CUDA_ERROR_NO_BINARY_FOR_GPU
    222: "; upgrade the NVIDIA driver",  # CUDA_ERROR_UNSUPPORTED_PTX_VERSION
}


def import_driver() -> Any:
    """Import ``cuda.bindings.driver``. Its functions need the driver library: call `probe_gpu` first.

    Raises:
        EngineUnavailable: cuda-bindings is not installed or cannot be loaded.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineUnavailable(f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings") from None
    return driver


def call(api: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the driver API.

    Returns:
        What the function returns beside its status: nothing, one value, or a tuple.

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
        message = f"{name} failed: {_description(api, status)} ({int(status)})"
        raise failure(message + _HINTS.get(int(status), ""))
    return tuple(values) if len(values) > 1 else next(iter(values), None)


def _description(api: Any, status: Any) -> str:
    """The driver's description of a status."""
    _, text = api.cuGetErrorString(status)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
