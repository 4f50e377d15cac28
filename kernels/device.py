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


_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""The interpreter has no inline assembly."""
_VOTE = tl.constexpr("""{
.reg .pred own, voted;
.reg .b32 both;
or.b32 both, $2, $3;
setp.ne.b32 own, both, 0;
vote.sync.any.pred voted, own, 0xffffffff;
selp.b32 $0, 1, 0, voted;
selp.b32 $1, 1, 0, voted;
}""")
"""Whether any flag of the warp is not 0, twice: a thread has the flags of two rows of a product of warpgroups."""


@triton.constexpr_function
def _products_if_flagged(count: tl.constexpr) -> str:
    """``count`` registers times as many others, left as they are where the flag after those is 0 in the whole warp."""
    lines = [f"mul.f32 ${i}, ${i}, ${2 * count + i};" for i in range(count)]
    before = ["{", ".reg .pred flagged;", f"setp.ne.b32 flagged, ${3 * count}, 0;", "@!flagged bra.uni kept;"]
    return "\n".join([*before, *lines, "kept:", "}"])


@triton.constexpr_function
def _registers(count: tl.constexpr) -> str:
    """The constraints of `_products_if_flagged`: each result is in the register of the first factor."""
    return ",".join(["=f"] * count + [str(i) for i in range(count)] + ["f"] * count + ["r"] * count)


@triton.jit
def decayed(total: tl.tensor, decay: tl.tensor, SKIP: tl.constexpr) -> tl.tensor:
    """``total`` (rows, columns) of a product of warpgroups, each row times its ``decay``.

    SKIP: warps whose rows all have a decay of 1 branch around the products.
    """
    if SKIP and not _INTERPRETED:
        COUNT: tl.constexpr = total.shape[1] // 2  # of a thread
        flag = tl.inline_asm_elementwise(_VOTE, "=r,=r,r,r", [(decay != 1.0).to(tl.int32)], tl.int32, True, 2)
        operands = [total, decay[:, None], flag[:, None]]
        product = tl.inline_asm_elementwise(
            _products_if_flagged(COUNT), _registers(COUNT), operands, tl.float32, True, COUNT
        )
    else:
        product = total * decay[:, None]
    return product


@triton.jit
def taps(index: tl.tensor, step: tl.tensor, length: tl.tensor) -> tl.tensor:
    """Lower and upper input sample of output ``index`` and the weight of the upper.

    As isnet_trt.merging.resample.positions:
    step * (index + 0.5) - 0.5 in one fused multiply-add, clamped to 0 .. length - 1. ``length`` is an integer.
    """
    return _taps(index, step, 0.5, length)


@triton.jit
def upsampling_taps(index: tl.tensor, step: tl.tensor, length: tl.tensor) -> tl.tensor:
    """`taps`, or for a negative step those of aligned corners: index * -step, clamped.

    Sign and not an argument: kernels of bundles from before there was one, called with positive steps, stay callable.
    """
    return _taps(index, tl.abs(step), tl.where(step < 0, 0.0, 0.5), length)


@triton.jit
def _position(index: tl.tensor, step: tl.tensor, centre: tl.tensor, length: tl.tensor) -> tl.tensor:
    # One fused multiply-add, spelled out: the compiler may or may not fuse a product and a sum, and the last bit of a
    # position decides which of two samples is taken.
    shifted = index.to(tl.float32) + centre
    at = tl.fma(shifted, tl.zeros_like(shifted) + step, tl.zeros_like(shifted) - centre)
    return tl.minimum(tl.maximum(at, 0.0), (length - 1).to(tl.float32))


@triton.jit
def _taps(index: tl.tensor, step: tl.tensor, centre: tl.tensor, length: tl.tensor) -> tl.tensor:
    at = _position(index, step, centre, length)
    low = at.to(tl.int32)
    return low, tl.minimum(low + 1, length - 1), at - low.to(tl.float32)


@triton.jit
def column_taps(x: tl.tensor, step: tl.tensor, width: tl.tensor) -> tl.tensor:
    """The left one of two neighbouring columns for each output column ``x``, and the weight of the right one.

    The right one is always the next, so that its address is a constant offset: beyond the last pair of columns the left
    one is that pair's, and has weight 0. A width of 1 has no right one, see `between_columns`.
    """
    low, _, across = upsampling_taps(x, step, width)
    left = tl.minimum(low, tl.maximum(width - 2, 0))
    return left, across + (low - left).to(tl.float32)


@triton.jit
def row_taps(y: tl.tensor, step: tl.tensor, height: tl.tensor, last: tl.tensor, ROWS: tl.constexpr) -> tl.tensor:
    """The input rows of output rows ``y`` .. ``y + ROWS - 1``, all scalars: ``(ROWS - 1) * |step|`` must be at most 1.

    Returns three neighbouring input rows, none of them beyond row ``last``; the weights of the three for each output
    row, one after the other; and whether `weighted` needs the third one, which is the same for a whole block.
    """
    centre = tl.where(step < 0, 0.0, 0.5)
    first = _position(y, tl.abs(step), centre, height).to(tl.int32)
    weights = ()
    for row in tl.static_range(ROWS):
        # Exact, since both are multiples of the position's last bit; never negative.
        beyond = _position(y + row, tl.abs(step), centre, height) - first.to(tl.float32)
        below = tl.maximum(beyond - 1.0, 0.0)
        second = tl.minimum(beyond, 1.0) - below
        weights += (1.0 - second - below, second, below)
    crossed = beyond > 1.0
    if ROWS > 2:
        crossed = beyond >= 1.0
    return (first, tl.minimum(first + 1, last), tl.minimum(first + 2, last)), weights, crossed


@triton.jit
def between_columns(left: tl.tensor, across: tl.tensor, pair: tl.tensor) -> tl.tensor:
    """Values of one input row between the column at ``left`` and the next, which there is if ``pair``."""
    value = tl.load(left).to(tl.float32) * (1.0 - across)
    return tl.fma(tl.load(left + 1, pair, 0.0).to(tl.float32), across, value)


@triton.jit
def near_values(rows: tl.tensor, plane: tl.tensor, across: tl.tensor, pair: tl.tensor, NEAR: tl.constexpr) -> tl.tensor:
    """Values of one class in NEAR input rows.

    ``rows`` points to the left columns in the three rows of `row_taps`; ``plane`` is the offset of the class.
    """
    values = ()
    for row in tl.static_range(NEAR):
        values += (between_columns(rows[row] + plane, across, pair),)
    return values


@triton.jit
def weighted(values: tl.tensor, weights: tl.tensor, ROW: tl.constexpr, NEAR: tl.constexpr) -> tl.tensor:
    """The mean of `near_values` for output row ROW; a row that lies exactly on an input row has its bits.

    Every multiply-add is spelled out: the compiler may fuse those of two unrolled classes differently, and equal
    classes would no longer tie.
    """
    mean = values[0] * weights[3 * ROW]
    for row in tl.static_range(1, NEAR):
        mean = tl.fma(values[row], tl.zeros_like(mean) + weights[3 * ROW + row], mean)
    return mean


@triton.jit
def interpolate(
    rows: tl.tensor, plane: tl.tensor, across: tl.tensor, pair: tl.tensor, weights: tl.tensor, ROWS: tl.constexpr,
    NEAR: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores of one class, a tensor for each of ROWS output rows: input rows are read once for all of them."""
    values = near_values(rows, plane, across, pair, NEAR)
    scores = ()
    for row in tl.static_range(ROWS):
        scores += (weighted(values, weights, row, NEAR),)
    return scores


@triton.jit
def filled(value: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr = tl.float32) -> tl.tensor:
    """COUNT tensors of ``value``: in registers, a thread has its own pixel's element of each."""
    tensors = ()
    for _ in tl.static_range(COUNT):
        tensors += (tl.full((BLOCK,), value, TYPE),)
    return tensors


@triton.jit
def divided(dividend: tl.tensor, divisor: tl.tensor, inverse: tl.tensor) -> tl.tensor:
    """dividend / divisor, correctly rounded, where ``inverse`` is the correctly rounded 1 / divisor.

    Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990: three instructions
    instead of a division's ten. The quotient must be neither subnormal nor infinite.
    """
    quotient = dividend * inverse
    zero = tl.zeros_like(dividend)
    rest = tl.fma(-quotient, zero + divisor, dividend)
    return tl.fma(rest, zero + inverse, quotient)
