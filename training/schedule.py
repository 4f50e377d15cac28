"""The learning rate of each iteration."""

from __future__ import annotations

from isnet_trt.recipes import Optimiser


def poly(optimiser: Optimiser, iteration: int, total: int) -> float:
    """lr = (base − min) · (1 − i/T) ** power + min, for iteration i = 0 … T − 1 before its step."""
    left = max(0.0, 1 - iteration / total)
    return (optimiser.lr - optimiser.min_lr) * left**optimiser.power + optimiser.min_lr
