"""TensorRT-RTX, as the runtime sees it."""

from __future__ import annotations

import ctypes
from typing import Any

from isnet_trt.cuda.architectures import GPU_ARCHITECTURES
from isnet_trt.cuda.gpu import Gpu
from isnet_trt.engines.soname_alias import load_alias
from isnet_trt.engines.tensorrt_family import TensorRTFamily
from isnet_trt.errors import EngineUnavailable

COMPUTE_CAPABILITIES = tuple(arch.capability for arch in GPU_ARCHITECTURES if arch.tensorrt_rtx)
"""GPUs that TensorRT-RTX 1.7 builds fp32 engines for (`ComputeCapability` of its Python API).

9.0 is not among those it knows; for 7.5 it refuses float32 matrix products.
"""
_SHARED_OBJECT = "libtensorrt_rtx.so"
_ENTRY_POINT = "getPrivateApi_INTERNAL"


class TensorRTRTX(TensorRTFamily):
    """TensorRT-RTX: builds ahead of time, on any machine, for GPUs that need not be there."""

    kind = "tensorrt-rtx"
    title = "TensorRT-RTX"
    module = "tensorrt_rtx"
    packages = ("tensorrt-rtx-cu13", "tensorrt-rtx")
    extra = "rtx"
    options = TensorRTFamily.options | {"targets"}

    def unsupported(self, gpu: Gpu) -> str:
        if gpu.compute_capability in COMPUTE_CAPABILITIES:
            return super().unsupported(gpu)
        return f"{self.kind} runs on compute capability {', '.join(COMPUTE_CAPABILITIES)} only"

    def allow_plugins(self, module: Any) -> None:
        """Make ``libtensorrt_rtx.so`` known to the loader, and try what the parser will do with it.

        At the first plugin node the parser opens that name and looks up a function in it; where it finds none the
        process ends with "terminate called without an active exception". The wheel holds only
        ``libtensorrt_rtx.so.1``.

        Raises:
            EngineUnavailable: the parser would not find the function.
        """
        numbered = f"{_SHARED_OBJECT}.{module.__version__.split('.')[0]}"
        reason = ""
        try:
            address = _entry_point(numbered)
            load_alias(_SHARED_OBJECT, numbered)
            if _entry_point(_SHARED_OBJECT) != address:
                reason = f"{_SHARED_OBJECT} of another installation is loaded in this process"
        except (OSError, AttributeError) as error:
            reason = str(error)
        if reason:
            raise EngineUnavailable(
                f"TensorRT-RTX {module.__version__} cannot take plugins in this process, its parser would not find "
                f"{_SHARED_OBJECT}: {reason}; use --context native, or add a link of that name beside {numbered}"
            )


def _entry_point(name: str) -> int | None:
    """Address of the function that the parser looks up in the loaded library ``name``."""
    return ctypes.cast(getattr(ctypes.CDLL(name), _ENTRY_POINT), ctypes.c_void_p).value


LIBRARY = TensorRTRTX()
