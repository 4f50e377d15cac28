"""The confusion matrix as a picture: one row per true class, its pixels' shares by predicted class."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isnet_trt.metrics import Confusion

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
    """A PNG; small sets with the per cent in each cell, large ones with smaller cells and every class still named.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    few, short = len(names) <= _WITH_NUMBERS, [name.split(",")[0][:_LONGEST] for name in names]
    room = 0.5 + 0.068 * max(map(len, short))  # inches, at 8 points
    figure, axes, beside = _layout(Figure, len(names) * (0.42 if few else 0.17), room, 0.1 if few else room)
    shares = row_shares(confusion.counts)
    # The square root shows a few per cent as well as the nearly full diagonal.
    colours = colormaps["viridis"].with_extremes(bad="0.85")
    shown = axes.imshow(np.sqrt(shares), cmap=colours, vmin=0, vmax=1, aspect="auto")
    _name_axes(axes, short)
    figure.suptitle(title, y=0.99, fontsize=10 if few else 20)
    if few:
        _write_numbers(axes, shares)
    else:
        _draw_tens(axes, len(names))
    scale = figure.colorbar(shown, cax=beside, ticks=np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]))
    scale.ax.set_yticklabels(["0", "1", "10", "25", "50", "100"])
    scale.set_label("% of the true class's pixels (grey: no such pixel)")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _layout(kind: type[Figure], side: float, room: float, beyond: float) -> tuple[Figure, Axes, Axes]:
    """A figure with a square and a colour scale beside it.

    ``side`` of the square, ``room`` to the left of and below it, ``beyond`` to the right and above, all in inches.

    Laid out by hand: matplotlib's own layout measures hundreds of names several times over, which takes seconds.
    """
    width, height = room + side + beyond + _SCALE, room + side + beyond + _TITLE
    figure = kind(figsize=(width, height), dpi=_DPI)
    square = figure.add_axes((room / width, room / height, side / width, side / height))
    tall = min(side, 6.0)
    place = (room + side + beyond + 0.2) / width, (room + (side - tall) / 2) / height
    return figure, square, figure.add_axes((*place, 0.16 / width, tall / height))


def row_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row over its sum; NaN in the rows of classes without pixels."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)


def _name_axes(axes: Axes, names: list[str]) -> None:
    """Class names at the left and below; around a large matrix on all sides, so that each cell has one in sight."""
    places, large = np.arange(len(names)), len(names) > _WITH_NUMBERS
    axes.set_xticks(places, names, rotation=90, fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.tick_params(which="both", length=0, labeltop=large, labelright=large)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")


def _draw_tens(axes: Axes, classes: int) -> None:
    """Thin lines every ten classes, which keep the eye on its row."""
    axes.set_xticks(np.arange(9.5, classes, 10), minor=True)
    axes.set_yticks(np.arange(9.5, classes, 10), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.4, alpha=0.6)


def _write_numbers(axes: Axes, shares: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.0005:  # NaN is not
            colour = "black" if share > 0.5 else "white"
            figure = f"{100 * share:.0f}" if share >= 0.095 else f"{100 * share:.1f}"
            axes.text(column, row, figure, ha="center", va="center", fontsize=7, color=colour)
