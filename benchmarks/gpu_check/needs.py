"""What checks need, and why this machine lacks it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable

from isnet_trt.cuda.gpu import probe_gpu


def missing(needs: Iterable[str]) -> str:
    """Why one of ``needs`` is not there, in words; empty if all are.

    Raises:
        KeyError: a name that `NEEDS` has not.
    """
    return next((reason for need in needs if (reason := _reason(need))), "")


def absent(needs: Iterable[str]) -> str:
    """Why one of ``needs`` is not installed; empty if all are, which says nothing of whether they work.

    Nothing is loaded for it.
    """
    packages = {need: PACKAGES[need] for need in needs if need in PACKAGES}
    return next((reason for module, name in packages.values() if (reason := _module(module, name)())), "")


@functools.cache
def _reason(need: str) -> str:
    return NEEDS[need]()


def _gpu() -> str:
    gpu, reason = probe_gpu()
    return "" if gpu else reason


def _without_gpu() -> str:
    """For what stands in for a GPU check where there is none."""
    gpu, _ = probe_gpu()
    return f"{gpu.name} is here, so that the check on it is the one that counts" if gpu else ""


def _module(name: str, package: str = "") -> Callable[[], str]:
    """A need for a module that can be imported."""

    def reason() -> str:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = False
        return "" if found else f"the Python package {package or name} is not installed"

    return reason


def _installed(need: str) -> Callable[[], str]:
    """A need of `PACKAGES` that is there if it is installed."""
    return _module(*PACKAGES[need])


def _loads(need: str) -> Callable[[], str]:
    """A need of `PACKAGES` whose import may fail though it is there; only asked after the driver was found."""
    name, package = PACKAGES[need]

    def reason() -> str:
        if missing := _module(name, package)():
            return missing
        try:
            importlib.import_module(name)
        except Exception as error:  # a CUDA package may fail in any way
            return f"the Python package {package} cannot be imported: {type(error).__name__}: {error}"
        return ""

    return reason


def _torch_cuda() -> str:
    unusable = _loads("torch")()
    if unusable:
        return unusable
    import torch

    if torch.cuda.is_available():
        return ""
    try:
        torch.cuda.init()
    except Exception as error:  # such as a driver that is too old for it
        return f"PyTorch {torch.__version__} sees no GPU: {error}"
    return f"PyTorch {torch.__version__} sees no GPU"


def _ort_cuda() -> str:
    unusable = _loads("onnxruntime")()
    if unusable:
        return unusable
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return f"ONNX Runtime {onnxruntime.__version__} has no CUDA provider (pip install onnxruntime-gpu)"
    return ""


def _fork() -> str:
    return "" if hasattr(os, "fork") else "this system has no fork"


PACKAGES = {
    "torch": ("torch", "torch"),
    "torch-cuda": ("torch", "torch"),
    "triton": ("triton", "triton"),
    "onnx": ("onnx", "onnx"),
    "onnxscript": ("onnxscript", "onnxscript"),
    "matplotlib": ("matplotlib", "matplotlib"),
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "onnxruntime-cuda": ("onnxruntime", "onnxruntime"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt-rtx-cu13"),
    "cuda-bindings": ("cuda.bindings.driver", "cuda-bindings"),
}
"""Need -> the module that it takes, and the package that brings it."""
NEEDS: dict[str, Callable[[], str]] = {
    "gpu": _gpu,
    "no gpu": _without_gpu,
    **{need: _installed(need) for need in ("torch", "triton", "onnx", "onnxscript", "matplotlib", "onnxruntime")},
    **{need: _loads(need) for need in ("tensorrt", "tensorrt-rtx", "cuda-bindings")},
    "torch-cuda": _torch_cuda,
    "onnxruntime-cuda": _ort_cuda,
    "fork": _fork,
}
"""Name -> a function that says why it is missing, or nothing. Checks name ``gpu`` before what needs a driver."""
KERNELS = ("gpu", "torch-cuda", "triton", "cuda-bindings")
"""What checks of single kernels need: memory from PyTorch, and what compiles and launches kernels."""
RUNTIME = KERNELS
"""What checks of the CUDA runtime need."""
