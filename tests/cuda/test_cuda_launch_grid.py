"""Launch grids and parts, without triton."""

from __future__ import annotations

import subprocess
import sys

import pytest

from isnet_trt.cuda.launch_grid import blocks, splits


def test_grids():
    grid = [[["width", 128]], [["rows", 1], ["batch", 4]], []]
    assert blocks(grid, {"width": 129, "rows": 3, "batch": 5, "other": 7}) == (2, 6, 1)


@pytest.mark.parametrize(
    ("tiles", "steps", "slots", "expected"),
    [(1000, 64, 132, 1), (132, 64, 132, 1), (1, 1, 132, 1), (86, 86, 132, 3), (1, 256, 132, 16), (33, 64, 132, 4)],
)
def test_parts_fill_the_gpu(tiles, steps, slots, expected):
    def time(parts):
        return -(-tiles * parts // slots) * (-(-steps // parts) + (4 if parts > 1 else 0))

    parts = splits(tiles, steps, slots)
    assert time(parts) == time(expected) == min(time(parts) for parts in range(1, min(16, steps) + 1))


def test_the_runtime_needs_neither_triton_nor_a_cuda_library():
    names = ", ".join(f"isnet_trt.cuda.{name}" for name in ("kernel_specs", "plan", "kernels", "device", "driver"))
    code = f"import sys, {names}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"triton", "torch", "onnx", "pycuda", "cuda.bindings", "isnet_trt.kernels"} & set(loaded)
