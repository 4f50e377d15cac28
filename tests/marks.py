"""Marks of tests that need a library or a machine which is not everywhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

from isnet_trt.cuda.gpu import find_gpu

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="there is no tensorrt-rtx wheel for this platform"
)
no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
no_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")


def builds_rtx(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that builds a real TensorRT-RTX engine."""
    return pytest.mark.rtx(needs_rtx(test))
