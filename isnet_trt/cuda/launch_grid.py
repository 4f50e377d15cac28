"""The launch grid: how a kernel's work is divided among blocks, as pure functions of sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Axis = Sequence[tuple[str, int]]
"""Blocks along one axis of the grid: the product over (argument, divisor) of ceil(argument / divisor); () is 1."""
Grid = tuple[Axis, Axis, Axis]
"""Axes x, y and z."""

SPLIT_COST = 4
"""What one more part costs, in steps of the inner loop: its partial result is written, read and combined."""
MOST_SPLITS = 16


def cdiv(size: int, step: int) -> int:
    """``size`` / ``step`` rounded up."""
    return -(-size // step)


def aligned(size: int, to: int) -> int:
    """``size`` rounded up to a multiple of ``to``."""
    return cdiv(size, to) * to


def blocks(grid: Grid, arguments: Mapping[str, int | float]) -> tuple[int, int, int]:
    """The number of blocks (x, y, z) for the integers among ``arguments``."""
    x, y, z = (math.prod(cdiv(int(arguments[name]), size) for name, size in axis) for axis in grid)
    return x, y, z


def splits(tiles: int, steps: int, slots: int) -> int:
    """Into how many parts to cut an inner loop of ``steps``, so that ``tiles`` blocks keep ``slots`` of them busy.

    ``slots`` is the number of multiprocessors times the blocks that fit on one. The smallest number of the least
    `time_in_parts` wins.
    """
    return min(
        range(1, max(1, min(MOST_SPLITS, steps)) + 1), key=lambda parts: time_in_parts(tiles, steps, slots, parts)
    )


def time_in_parts(tiles: int, steps: int, slots: int, parts: int) -> int:
    """The time of ``parts`` in steps: waves * (steps per part + SPLIT_COST), without the cost for one part."""
    return cdiv(tiles * parts, slots) * (cdiv(steps, parts) + (SPLIT_COST if parts > 1 else 0))
