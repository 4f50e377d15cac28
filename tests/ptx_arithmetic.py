"""What PTX instructions compute, on numpy arrays of one value per thread (PTX ISA, "Instruction Set").

Operands come in the instruction's type. bfloat16 is held as the float32 of the same value; fused multiply-adds are
rounded once, from the 64-bit mantissa of x86's long double.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WARP = 32
_LEAST_NORMAL = np.float32(1.17549435e-38)


def flush(a: Array) -> Array:
    """Subnormal float32 to zero, as ``.ftz`` does."""
    return np.where(np.abs(a) < _LEAST_NORMAL, np.copysign(np.float32(0), a), a).astype(np.float32)


def from_bfloat16(bits: Array) -> Array:
    """uint16 to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(a: Array) -> Array:
    """float32 to uint16, halves to even."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(a), np.uint16(0x7FFF), rounded)


def halves(bits: Array, kind: str) -> Array:
    """uint32 (…) with two values of 16 bits, the first in the lower half, to float32 (…, 2)."""
    return float16_values(np.stack([bits & np.uint32(0xFFFF), bits >> np.uint32(16)], -1).astype(np.uint16), kind)


def float16_values(bits: Array, kind: str) -> Array:
    """uint16 of f16 or bf16 to float32."""
    return bits.view(np.float16).astype(np.float32) if kind == "f16" else from_bfloat16(bits)


def _fused(a: Array, b: Array, c: Array) -> Array:
    wide = a.astype(np.longdouble) * b.astype(np.longdouble) + c.astype(np.longdouble)
    return wide.astype(a.dtype)


def _divided(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.abs(a.astype(np.int64)) // np.abs(b.astype(np.int64))
    return (np.sign(a.astype(np.int64)) * np.sign(b.astype(np.int64)) * quotient).astype(a.dtype)


def _shifted(a: Array, by: Array, left: bool) -> Array:
    bits = 8 * a.dtype.itemsize
    made = (operator.lshift if left else operator.rshift)(a, np.minimum(by, bits - 1).astype(a.dtype))
    return np.asarray(np.where((by >= bits) & (left | (a.dtype.kind == "u")), a.dtype.type(0), made))


def _field(a: Array, first: Array, count: Array) -> Array:
    """``bfe``: bits ``first`` … ``first + count - 1``."""
    made = (a.view(np.uint32).astype(np.int64) >> first.astype(np.int64)) & ((1 << count.astype(np.int64)) - 1)
    if a.dtype.kind == "i":
        top = 1 << (count.astype(np.int64) - 1)
        made = (made ^ top) - top
    return made.astype(a.dtype)


def _power(a: Array) -> Array:
    return np.exp2(a.astype(np.float64)).astype(np.float32)


PLAIN: Mapping[str, Callable[..., Array]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "and": operator.and_, "or": operator.or_,
    "xor": operator.xor, "not": operator.invert, "neg": operator.neg, "abs": np.abs, "fma": _fused, "div": _divided,
    "mad": lambda a, b, c: a * b + c, "ex2": _power, "bfe": _field, "cvta": lambda a: a,
    "max": lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "min": lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b),
    "shl": lambda a, by: _shifted(a, by, True), "shr": lambda a, by: _shifted(a, by, False),
}  # fmt: skip
"""Opcode -> what it computes from its operands."""


def packed(name: str, sources: Sequence[Array], kind: str) -> Array:
    """`PLAIN` on registers (threads,) of two numbers, ``f32x2``, ``f16x2`` or ``bf16x2``."""
    if kind == "f32x2":
        pairs = [np.ascontiguousarray(source).view(np.float32).reshape(-1, 2) for source in sources]
        return np.ascontiguousarray(PLAIN[name](*pairs), np.float32).view(np.uint64)[:, 0]
    numbers = [halves(source, kind.removesuffix("x2")) for source in sources]
    if kind == "f16x2":
        bits = np.asarray(PLAIN[name](*(one.astype(np.float16) for one in numbers)), np.float16).view(np.uint16)
    else:
        bits = to_bfloat16(PLAIN[name](*numbers))
    return np.ascontiguousarray(bits).view(np.uint32)[:, 0]


COMPARED: Mapping[str, Callable[[Array, Array], Array]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
ROUNDED: Mapping[str, Callable[[Array], Array]] = {"rmi": np.floor, "rzi": np.trunc, "rpi": np.ceil, "rni": np.rint}


def compared(name: str, a: Array, b: Array) -> Array:
    """``setp``: with a trailing u also true where one is NaN, without it never."""
    if a.dtype.kind != "f":
        return COMPARED[name](a, b)
    unordered = np.isnan(a) | np.isnan(b)
    if name in COMPARED:
        return COMPARED[name](a, b) & ~unordered
    return unordered if name == "nan" else COMPARED[name.removesuffix("u")](a, b) | unordered


def converted(a: Array, to: Any, how: Sequence[str]) -> Array:
    """``cvt`` from one type to another; out of range it stops at the ends."""
    rounding = next((ROUNDED[one] for one in how if one in ROUNDED), None)
    if rounding is not None and a.dtype.kind == "f":
        a = rounding(a)
        if np.dtype(to).kind in "iu":
            ends = np.iinfo(to)
            a = np.nan_to_num(np.clip(a.astype(np.float64), ends.min, ends.max), nan=0)
    return a.astype(to)


def exchanged(how: str, a: Array, by: Array) -> Array:
    """``shfl.sync`` over whole warps."""
    lanes = np.arange(WARP)
    other = by.reshape(-1, WARP).astype(np.int64)
    return np.take_along_axis(a.reshape(-1, WARP), lanes ^ other if how == "bfly" else other % WARP, 1).reshape(-1)


def reduced(how: str, a: Array) -> Array:
    """``redux.sync`` over whole warps."""
    warps = a.reshape(-1, WARP)
    made = warps.sum(1, dtype=a.dtype) if how == "add" else getattr(np, f"f{how}").reduce(warps, 1)
    return np.repeat(made, WARP)


# Fragments of matrices over the lanes of a warp (PTX ISA, "Matrix Fragments for mma.m16n8k16").
_LANE = np.arange(WARP)
GROUP, PAIR = _LANE // 4, _LANE % 4 * 2


def left_factor(a: Sequence[Array], kind: str) -> Array:
    """Four registers (threads,) of two 16-bit values each as (warps, 16, 16)."""
    left = np.zeros((len(a[0]) // WARP, 16, 16))
    for register, (down, across) in zip(a, ((0, 0), (8, 0), (0, 8), (8, 8)), strict=True):
        two = halves(register.reshape(-1, WARP), kind)
        left[:, GROUP + down, PAIR + across], left[:, GROUP + down, PAIR + across + 1] = two[..., 0], two[..., 1]
    return left


def matrix_product(a: Sequence[Array], b: Sequence[Array], c: Sequence[Array], kind: str) -> list[Array]:
    """``mma.m16n8k16``: four registers of a, two of b, four of c and of the result, each (threads,)."""
    left, warps = left_factor(a, kind), len(a[0]) // WARP
    right = np.zeros((warps, 16, 8))
    for register, down in zip(b, (0, 8), strict=True):
        two = halves(register.reshape(warps, WARP), kind)
        right[:, PAIR + down, GROUP], right[:, PAIR + down + 1, GROUP] = two[..., 0], two[..., 1]
    product = left @ right
    spots = ((0, 0), (0, 1), (8, 0), (8, 1))
    return [
        (product[:, GROUP + down, PAIR + across].reshape(-1) + register).astype(np.float32)
        for register, (down, across) in zip(c, spots, strict=True)
    ]


def matrix_rows(rows: Array, transposed: bool) -> list[Array]:
    """``ldmatrix``: rows uint16 (warps, matrices, 8, 8) to one register (threads,) per matrix."""
    if transposed:
        rows = rows.transpose(0, 1, 3, 2)
    low, high = (rows[:, :, GROUP, PAIR + i].astype(np.uint32) for i in (0, 1))
    both = low | (high << np.uint32(16))
    return [both[:, i].reshape(-1) for i in range(rows.shape[1])]


def matrix_parts(values: Sequence[Array], transposed: bool) -> Array:
    """``stmatrix``: one register (threads,) per matrix to rows uint16 (warps, matrices, 8, 8)."""
    rows = np.zeros((len(values[0]) // WARP, len(values), 8, 8), np.uint16)
    for matrix, register in enumerate(values):
        bits = register.reshape(-1, WARP)
        rows[:, matrix, GROUP, PAIR] = bits & np.uint32(0xFFFF)
        rows[:, matrix, GROUP, PAIR + 1] = bits >> np.uint32(16)
    return np.ascontiguousarray(rows.transpose(0, 1, 3, 2)) if transposed else rows
