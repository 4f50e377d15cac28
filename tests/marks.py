"""Marks of tests that need a library or a machine which is not everywhere."""

from __future__ import annotations

import importlib.util

import pytest

from isnet_trt.cuda.gpu import find_gpu

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="there is no tensorrt-rtx wheel for this platform"
)
no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
no_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
