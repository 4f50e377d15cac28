"""The functions that kernels share, in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from isnet_trt.kernels.device import dot, taps
from isnet_trt.merging.resample import positions
from tests.interpreter import use_interpreter

use_interpreter()


@triton.jit
def _taps(low, high, weight, step, length, count, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b, w = taps(i, step, length)
    tl.store(low + i, a, i < count)
    tl.store(high + i, b, i < count)
    tl.store(weight + i, w, i < count)


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 17), (86, 683), (64, 512), (3584, 2048), (5, 2), (1, 7), (9, 9)])
def test_positions_are_those_of_the_host_to_the_last_bit(n_in: int, n_out: int) -> None:
    step = np.float32(n_in) / np.float32(n_out)
    low, high = (torch.full((n_out,), -1, dtype=torch.int32) for _ in range(2))
    weight = torch.full((n_out,), 7777.0)
    _taps[(1,)](low, high, weight, float(step), n_in, n_out, 4096)
    for result, expected in zip((low, high, weight), positions(n_in, step, 0, n_out), strict=True):
        np.testing.assert_array_equal(result.numpy(), expected)


@triton.jit
def _dot(a, b, out, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    i = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + i, dot(tl.load(a + i), tl.load(b + i), tl.zeros((BLOCK, BLOCK), tl.float32), UPCAST))


def test_dot_in_bfloat16_is_right_when_upcast() -> None:
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(2))
    out = torch.full((16, 16), 7777.0)
    _dot[(1,)](a, b, out, 16, True)
    np.testing.assert_allclose(out.numpy(), (a.double() @ b.double()).numpy(), atol=1e-5)
