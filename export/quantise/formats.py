"""The eight-bit number formats, and scale and zero point for a range of values.

    real = scale * (stored - zero)

Formulas: ONNX operators QuantizeLinear and DequantizeLinear. E4M3 (largest finite value 448, no infinity): Micikevicius
et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

Array = NDArray[np.float32]
Flavour = Literal["cpu", "tensorrt", "fp8"]
FLAVOURS: tuple[Flavour, ...] = ("cpu", "tensorrt", "fp8")
SMALLEST_SCALE = 1e-10
"""Smallest scale, for channels whose weights are all zero: a smaller one makes 1/scale overflow in half precision."""


@dataclass(frozen=True)
class Scale:
    """Scale and zero point of a whole tensor."""

    scale: float
    zero: int = 0


@dataclass(frozen=True)
class Format:
    """An eight-bit type that stores ``lowest`` … ``highest``; ``symmetric`` fixes the zero point at 0."""

    name: str
    onnx_type: int
    lowest: float
    highest: float
    symmetric: bool

    def fit(self, low: float, high: float) -> Scale:
        """The smallest scale that covers ``low`` … ``high`` and 0; scale 1 for a range of width 0."""
        # 0 must be exact: it is what convolutions pad with and what a ReLU gives.
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            return Scale(_positive(max(-low, high) / self.highest))
        scale = _positive((high - low) / self.highest)
        return Scale(scale, int(np.clip(np.rint(-low / scale), self.lowest, self.highest)))

    def store(self, x: Array, scale: Array | float, zero: int = 0) -> NDArray:
        """Round ``x`` to stored numbers, half to even, saturated; ``scale`` broadcasts."""
        # Clipped first: E4M3 has no infinity, and ml_dtypes turns values beyond 448 into NaN.
        y = np.clip(x / np.asarray(scale, np.float32), self.lowest - zero, self.highest - zero)
        if self is FP8:
            return y.astype(ml_dtypes.float8_e4m3fn)
        return (np.rint(y) + zero).astype(np.uint8 if self is UINT8 else np.int8)

    def fake(self, x: Array, scale: Scale) -> Array:
        """``x`` after quantisation and dequantisation ("fake quantisation")."""
        stored = self.store(x, scale.scale, scale.zero).astype(np.float32)
        return (stored - scale.zero) * np.float32(scale.scale)


INT8 = Format("int8", TensorProto.INT8, -128, 127, True)
UINT8 = Format("uint8", TensorProto.UINT8, 0, 255, False)
FP8 = Format("fp8", TensorProto.FLOAT8E4M3FN, -448, 448, True)
ACTIVATIONS: dict[Flavour, Format] = {"cpu": UINT8, "tensorrt": INT8, "fp8": FP8}
WEIGHTS: dict[Flavour, Format] = {"cpu": INT8, "tensorrt": INT8, "fp8": FP8}


def weight_scales(weight: Array, form: Format) -> Array:
    """One scale per output channel (axis 0), float32 (O,); at least `SMALLEST_SCALE`."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(1)
    return np.maximum(largest / form.highest, SMALLEST_SCALE).astype(np.float32)


def _positive(scale: float) -> float:
    # As the graph stores it, so that fake quantisation here rounds as the engine does.
    return float(np.float32(scale)) if scale > SMALLEST_SCALE else 1.0
