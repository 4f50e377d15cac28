"""Fused multiply-adds in Triton's interpreter: rounded once, as by a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _fma(builder: Any, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
    total = x.data.astype(np.float64) * y.data + z.data
    return TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)


def round_once() -> None:
    """Interpreters up to Triton 3.7 at least round the product as well; that of 3.9 does not and stays as it is."""
    factor, term = (TensorHandle(np.float32([v]), tl.float32) for v in (1 + 2**-12, -1 - 2**-11))
    if InterpreterBuilder.create_fma(InterpreterBuilder(), factor, factor, term).data[0] != 2**-24:
        InterpreterBuilder.create_fma = _fma
