"""Functions that several kernels call."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, total: tl.tensor, UPCAST: tl.constexpr) -> tl.tensor:
    """total + a b with float32 sums; float32 factors are not rounded to TF32.

    UPCAST multiplies in float32: Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    """
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def taps(index: tl.tensor, step: tl.tensor, length: tl.tensor) -> tl.tensor:
    """Lower and upper input sample of output ``index`` and the weight of the upper.

    As isnet_trt.merging.resample.positions:
    step * (index + 0.5) - 0.5 in one fused multiply-add, clamped to 0 .. length - 1. ``length`` is an integer.
    """
    # One fused multiply-add, spelled out: the compiler may or may not fuse a product and a sum, and the last bit of a
    # position decides which of two samples is taken.
    shifted = index.to(tl.float32) + 0.5
    at = tl.fma(shifted, tl.zeros_like(shifted) + step, tl.zeros_like(shifted) - 0.5)
    at = tl.minimum(tl.maximum(at, 0.0), (length - 1).to(tl.float32))
    low = at.to(tl.int32)
    return low, tl.minimum(low + 1, length - 1), at - low.to(tl.float32)


@triton.jit
def bilinear(
    rows: tl.tensor, low: tl.tensor, high: tl.tensor, down: tl.tensor, left: tl.tensor, right: tl.tensor,
    across: tl.tensor, mask: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Values between four neighbours, in float32.

    ``rows`` (k, 1) points to the planes of the classes; ``low`` and ``high`` are offsets of two rows in a plane, and
    ``down`` the weight of the second; ``left`` and ``right`` (1, x) are columns, ``across`` the weight of the second.
    """
    upper = tl.load(rows + (low + left), mask, 0.0).to(tl.float32) * (1.0 - across)
    upper += tl.load(rows + (low + right), mask, 0.0).to(tl.float32) * across
    lower = tl.load(rows + (high + left), mask, 0.0).to(tl.float32) * (1.0 - across)
    lower += tl.load(rows + (high + right), mask, 0.0).to(tl.float32) * across
    return upper * (1.0 - down) + lower * down
