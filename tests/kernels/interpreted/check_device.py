"""The functions that kernels share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from interpreter import poisoned, tensor, values

from isnet_trt.kernels.device import dot, taps
from isnet_trt.kernels.launch import Launch, splits
from isnet_trt.merging.resample import positions


@triton.jit
def _taps(low, high, weight, step, length, count, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b, w = taps(i, step, length)
    tl.store(low + i, a, i < count)
    tl.store(high + i, b, i < count)
    tl.store(weight + i, w, i < count)


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 17), (86, 683), (64, 512), (3584, 2048), (5, 2), (1, 7), (9, 9)])
def test_positions_are_those_of_the_host_to_the_last_bit(n_in, n_out):
    step = np.float32(n_in) / np.float32(n_out)
    low, high = (torch.full((n_out,), -1, dtype=torch.int32) for _ in range(2))
    weight = poisoned(n_out)
    _taps[(1,)](low, high, weight, float(step), n_in, n_out, 4096)
    for made, wanted in zip((low, high, weight), positions(n_in, step, 0, n_out), strict=True):
        np.testing.assert_array_equal(made.numpy(), wanted)


@triton.jit
def _dot(a, b, out, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    i = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(out + i, dot(tl.load(a + i), tl.load(b + i), tl.zeros((BLOCK, BLOCK), tl.float32), UPCAST))


def test_dot_in_bfloat16_is_right_only_when_upcast():
    rng = np.random.default_rng(0)
    a, b = (tensor(rng.standard_normal((16, 16)), "bf16") for _ in range(2))
    out = poisoned(16, 16)
    _dot[(1,)](a, b, out, 16, True)
    np.testing.assert_allclose(values(out), values(a).astype(np.float64) @ values(b), atol=1e-5)


def test_a_launch_refuses_wrong_arguments():
    launch = Launch("taps", _taps, {"low": "*i32", "count": "i32"}, {}, ((("count", 2),), (), ()))
    assert launch.blocks({"count": 5}) == (3, 1, 1)
    with pytest.raises(TypeError, match="missing or unknown: count, step"):
        launch.run(low=tensor(np.zeros(3)), step=1.0)


def test_splits_fill_idle_multiprocessors_and_no_more():
    assert splits(tiles=512, steps=128, slots=132) == 1
    assert splits(tiles=64, steps=128, slots=132) == 2
    assert splits(tiles=1, steps=3, slots=132) == 1
    assert splits(tiles=8, steps=86, slots=128) > 4
