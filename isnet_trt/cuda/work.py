"""How a kernel's work is divided, as pure functions: shared by the kernels' descriptions and by the runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Axis = Sequence[tuple[str, int]]
"""Blocks along one axis of the grid: the product over (argument, divisor) of ceil(argument / divisor); () is 1."""

SPLIT_COST = 4
"""What one more part costs, in steps of the inner loop: its partial result is written, read and combined."""
MOST_SPLITS = 16
MOST_CLASSES = 4096
"""Of which `accumulate` keeps a pixel's scores in the registers of a block."""


def blocks(grid: Sequence[Axis], arguments: Mapping[str, int | float]) -> tuple[int, int, int]:
    """The grid (x, y, z) for integer ``arguments``."""
    x, y, z = (math.prod(-(-int(arguments[name]) // size) for name, size in axis) for axis in grid)
    return x, y, z


def splits(tiles: int, steps: int, slots: int) -> int:
    """Into how many parts to cut an inner loop of ``steps``, so that ``tiles`` blocks keep ``slots`` of them busy.

    ``slots`` is the number of multiprocessors times the blocks that fit on one. The time of s parts is taken as
    waves * (steps per part + SPLIT_COST), without the cost where s = 1; the smallest s of the least time wins.
    """

    def time(parts: int) -> int:
        return -(-tiles * parts // slots) * (-(-steps // parts) + (SPLIT_COST if parts > 1 else 0))

    return min(range(1, max(1, min(MOST_SPLITS, steps)) + 1), key=time)


def padded(classes: int) -> int:
    """The number of classes that kernels of compile-time size are compiled for: the next of 32, 64, 128, …"""
    return max(32, 1 << (classes - 1).bit_length())


def label_code(classes: int) -> str:
    """Triton's name of the type of labels: uint8, or uint16 above 256 classes."""
    return "u8" if classes <= 256 else "u16"
