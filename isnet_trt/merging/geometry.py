"""Sizes, passes and windows: which parts of an image the network sees, computed from sizes and settings alone.

Sizes are (height, width) in pixels. A *pass* shows the whole picture once, at one scale, plain or mirrored. A *window*
is the part of a pass that the network sees at once; in whole mode it is all of the pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import starmap

from isnet_trt.errors import ImageError
from isnet_trt.settings import Inference, NetworkFacts, Size, size_text


@dataclass(frozen=True)
class Pass:
    """One showing of the picture: resampled by the factor ``scale`` to ``size``, then mirrored if ``mirrored``."""

    index: int
    scale: float
    mirrored: bool
    size: Size


@dataclass(frozen=True)
class Window:
    """Rows ``top:bottom`` and columns ``left:right`` of a pass, in the orientation of the *unmirrored* picture.

    For a mirrored pass the network sees that part mirrored left to right.
    """

    of: Pass
    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> Size:
        """(height, width) of the window."""
        return self.bottom - self.top, self.right - self.left


def scaled_size(size: Size, scale: float) -> Size:
    """floor(side * scale) for both sides; ImageError if one would become 0."""
    # Rounded down, as the reference evaluation computes sizes from a factor.
    height, width = (math.floor(side * scale) for side in size)
    if min(height, width) < 1:
        raise ImageError(
            f"scale {scale:g} shrinks a picture of {size_text(size)} to {size_text((height, width))} pixels; "
            "leave that scale out or use a larger picture"
        )
    return height, width


def starts(length: int, window: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows along one side.

    There are floor(max(n - c + s - 1, 0) / s) + 1 of them; window i ends at min(i*s + c, n) and starts at
    max(end - c, 0): the last is shifted inwards, and where n < c the only window is the side itself.
    """
    ends = (min(i * stride + window, length) for i in range(_count(length, window, stride)))
    return [(max(end - window, 0), end) for end in ends]


def _count(length: int, window: int, stride: int) -> int:
    return max(length - window + stride - 1, 0) // stride + 1


def passes(size: Size, inference: Inference) -> tuple[Pass, ...]:
    """The passes over an image of ``size``: for each scale in order a plain one and, with flip, a mirrored one.

    Raises ImageError if a scale leaves no pixel.
    """
    # Mirrored right after plain: `isnet_trt.cuda.plan` finds the passes of a scale by their index.
    sides = (False, True) if inference.flip else (False,)
    kinds = [(scale, mirrored) for scale in inference.scales for mirrored in sides]
    return tuple(Pass(i, s, mirrored, scaled_size(size, s)) for i, (s, mirrored) in enumerate(kinds))


def windows(pass_: Pass, inference: Inference) -> list[Window]:
    """The windows of a pass, row by row as the network sees the pass."""
    height, width = pass_.size
    if inference.mode == "whole" or inference.window is None or inference.stride is None:
        return [Window(pass_, 0, height, 0, width)]
    rows = starts(height, inference.window[0], inference.stride[0])
    columns = starts(width, inference.window[1], inference.stride[1])
    if pass_.mirrored:
        # The windows are laid out from the left edge of the mirrored pass but stated in columns of the plain one.
        columns = [(width - end, width - start) for start, end in columns]
    return [Window(pass_, *row, *column) for row in rows for column in columns]


def window_count(size: Size, inference: Inference) -> int:
    """How many windows the network sees for a picture of ``size`` (all scales and flips)."""
    if inference.mode == "whole" or inference.window is None or inference.stride is None:
        return len(passes(size, inference))
    sides = [zip(pass_.size, inference.window, inference.stride, strict=True) for pass_ in passes(size, inference)]
    return sum(math.prod(starmap(_count, side)) for side in sides)


def padded_size(size: Size, network: NetworkFacts) -> Size:
    """Size of the network's input for a window of ``size``: both sides rounded up to the network's multiple."""
    height, width = (-(-side // network.size_multiple) * network.size_multiple for side in size)
    return height, width


def padding_before(size: Size, network: NetworkFacts) -> Size:
    """Rows above and columns left of a window of ``size`` in the network's input, as the network sees the window."""
    if network.padding_side == "bottom_right":
        return 0, 0
    rows, columns = ((padded - side) // 2 for side, padded in zip(size, padded_size(size, network), strict=True))
    return rows, columns


def coarse_size(size: Size, stride: int) -> Size:
    """Size of the network's output grid, ceil(side / stride), for an input of ``size``."""
    return -(-size[0] // stride), -(-size[1] // stride)
