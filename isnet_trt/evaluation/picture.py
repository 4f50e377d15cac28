"""The confusion matrix as an image: one row per true class with the shares of its pixels by predicted class."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isnet_trt.metrics import Confusion, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WITH_NUMBERS = 30
"""Classes up to which the cells are large enough for figures."""
_LONGEST = 24
_DPI = 120
_SCALE, _TITLE = 1.0, 0.5
"""Inches for the colour scale, the title."""


def draw(confusion: Confusion, names: tuple[str, ...], title: str) -> bytes:
    """The matrix as PNG; each cell has its per cent up to `_WITH_NUMBERS` classes, beyond that cells are smaller.

    Raises ImportError if matplotlib is missing.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    few, short = len(names) <= _WITH_NUMBERS, [name.split(",")[0][:_LONGEST] for name in names]
    margin = 0.5 + 0.068 * max(map(len, short))  # inches, at 8 points
    figure, axes, scale_axes = _layout(Figure, len(names) * (0.42 if few else 0.17), margin, 0.1 if few else margin)
    shares = row_shares(confusion.counts)
    # The square root shows a few per cent as well as the nearly full diagonal.
    colours = colormaps["viridis"].with_extremes(bad="0.85")
    matrix = axes.imshow(np.sqrt(shares), cmap=colours, vmin=0, vmax=1, aspect="auto")
    _name_axes(axes, short)
    figure.suptitle(title, y=0.99, fontsize=10 if few else 20)
    if few:
        _write_numbers(axes, shares)
    else:
        _draw_tens(axes, len(names))
    scale = figure.colorbar(matrix, cax=scale_axes, ticks=np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]))
    scale.ax.set_yticklabels(["0", "1", "10", "25", "50", "100"])
    scale.set_label("% of the true class's pixels (grey: no such pixel)")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _layout(kind: type[Figure], side: float, near: float, far: float) -> tuple[Figure, Axes, Axes]:
    """A figure with a square and a colour scale beside it.

    ``side`` of the square, margin ``near`` to the left of and below it, ``far`` to the right and above, all in inches.

    Computed here: matplotlib's own layout measures hundreds of names several times, which takes seconds.
    """
    width, height = near + side + far + _SCALE, near + side + far + _TITLE
    figure = kind(figsize=(width, height), dpi=_DPI)
    square = figure.add_axes((near / width, near / height, side / width, side / height))
    tall = min(side, 6.0)
    corner = (near + side + far + 0.2) / width, (near + (side - tall) / 2) / height
    return figure, square, figure.add_axes((*corner, 0.16 / width, tall / height))


def row_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row over its sum; NaN in the rows of classes without pixels."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)


def _name_axes(axes: Axes, names: list[str]) -> None:
    """Class names at the left and below; around a large matrix on all sides, so that one is near each cell."""
    ticks, large = np.arange(len(names)), len(names) > _WITH_NUMBERS
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.tick_params(which="both", length=0, labeltop=large, labelright=large)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")


def _draw_tens(axes: Axes, classes: int) -> None:
    """Thin lines every ten classes, to follow a row by."""
    axes.set_xticks(np.arange(9.5, classes, 10), minor=True)
    axes.set_yticks(np.arange(9.5, classes, 10), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.4, alpha=0.6)


def _write_numbers(axes: Axes, shares: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.0005:  # NaN is not
            colour = "black" if share > 0.5 else "white"
            figure = percent(share, 0 if share >= 0.095 else 1)
            axes.text(column, row, figure, ha="center", va="center", fontsize=7, color=colour)
