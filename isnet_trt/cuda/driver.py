"""Calls of the CUDA driver API through cuda-bindings, whose status codes become exceptions, and kernel functions.

API: https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/driver.html
"""

from __future__ import annotations

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
        _, text = api.cuGetErrorString(status)
        description = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        raise failure(f"{name} failed: {description} ({int(status)}){_HINTS.get(int(status), '')}")
    return tuple(values) if len(values) > 1 else next(iter(values), None)


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
        self._api.cuCtxPushCurrent(self._context)
        self._api.cuModuleUnload(self._module)
        self._api.cuCtxPopCurrent()
