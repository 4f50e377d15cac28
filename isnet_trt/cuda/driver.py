"""Calls of the CUDA driver API through cuda-bindings, whose status codes become exceptions, and kernel functions.

API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from isnet_trt.errors import EngineError, EngineUnavailable, OutOfMemory

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
OUT_OF_MEMORY_HINT = "; use a smaller picture, window or batch, or free GPU memory"
STATIC_SHARED = 48 * 1024
"""Bytes of dynamic shared memory that need no attribute (CUDA programming guide, compute capabilities)."""
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
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineUnavailable(f"cuda-bindings cannot be imported ({error}); pip install cuda-bindings") from None
    return driver


def call(api: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the driver API.

    Returns:
        What the function returns beside its status: nothing, one value, or a tuple.

    Raises:
        OutOfMemory: the driver reports CUDA_ERROR_OUT_OF_MEMORY.
        EngineError: any other status but success, with the driver's description of it, or the driver or the bindings
            have no such function.
    """
    status, *values = _invoke(api, name, *arguments)
    if int(status):
        failure = OutOfMemory if int(status) == OUT_OF_MEMORY else EngineError
        raise failure(f"{name} failed: {describe(api, status)} ({int(status)}){_HINTS.get(int(status), '')}")
    return tuple(values) if len(values) > 1 else next(iter(values), None)


def describe(api: Any, status: Any) -> str:
    """The driver's description of ``status``, a CUresult of the bindings."""
    _, text = _invoke(api, "cuGetErrorString", status)
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def ignore_errors(api: Any, name: str, *arguments: Any) -> None:
    """Call a function that gives something back; errors of a lost device or an old driver are ignored."""
    with contextlib.suppress(EngineError):
        _invoke(api, name, *arguments)


def _invoke(api: Any, name: str, *arguments: Any) -> Any:
    """Status and values of a function of the driver API; EngineError where there is none."""
    function = getattr(api, name, None)
    if function is None:
        version = getattr(sys.modules.get("cuda.bindings"), "__version__", "of an unknown version")
        raise EngineError(f"cuda-bindings {version} has no {name}; pip install --upgrade cuda-bindings")
    try:
        return function(*arguments)
    except RuntimeError as error:  # its FunctionNotFoundError, and pathfinder's DynamicLibNotFoundError
        raise EngineError(f"{name} failed: {error}; upgrade the NVIDIA driver") from None


class Function:
    """A kernel function, its module loaded into the current context.

    cuLaunchKernel: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__EXEC.html
    """

    def __init__(self, api: Any, code: bytes, name: str, shared: int) -> None:
        """Load ``code``, a cubin or zero-terminated PTX; ``shared`` are the bytes of dynamic shared memory per block.

        Raises:
            EngineError: the driver refuses the code, or it has no function called ``name``.
        """
        self._api, self._shared = api, shared
        # For `unload`, which may run where another context or none is current.
        self._context = call(api, "cuCtxGetCurrent")
        self._module = call(api, "cuModuleLoadData", code)
        try:
            self._function = call(api, "cuModuleGetFunction", self._module, name.encode())
            if shared > STATIC_SHARED:
                attribute = api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                call(api, "cuFuncSetAttribute", self._function, attribute, shared)
        except EngineError:
            self.unload()
            raise

    def launch(self, grid: tuple[int, int, int], threads: int, stream: int, parameters: int) -> None:
        """Queue it on ``stream``; ``parameters`` is the address of the array of its parameters' addresses."""
        block = (threads, 1, 1)
        call(self._api, "cuLaunchKernel", self._function, *grid, *block, self._shared, stream, parameters, 0)

    def unload(self) -> None:
        """Unload the module, in any current context or none; errors of a lost device are ignored."""
        with contextlib.suppress(EngineError):
            call(self._api, "cuCtxPushCurrent", self._context)
            ignore_errors(self._api, "cuModuleUnload", self._module)
            ignore_errors(self._api, "cuCtxPopCurrent")
