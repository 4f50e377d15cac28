"""The confusion matrix as a picture: one row per true class, its pixels' shares by predicted class."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isnet_trt.metrics import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WITH_NUMBERS = 30
"""Classes up to which the cells are large enough for figures."""
_LONGEST = 24
_DPI = 120


def draw(confusion: Confusion, names: tuple[str, ...], title: str) -> bytes:
    """A PNG; small sets with the per cent in each cell, large ones with smaller cells and every class still named.

    Raises:
        ImportError: matplotlib is missing.
    """
    from matplotlib.figure import Figure

    few = len(names) <= _WITH_NUMBERS
    side = len(names) * (0.42 if few else 0.17)
    figure = Figure(figsize=(side + 3.6, side + 2.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    shares = row_shares(confusion.counts)
    # The square root shows a few per cent as well as the nearly full diagonal.
    shown = axes.imshow(np.sqrt(shares), cmap="viridis", vmin=0, vmax=1, aspect="equal")
    shown.cmap.set_bad("0.85")
    _name_axes(axes, [name.split(",")[0][:_LONGEST] for name in names], 8 if few else 6)
    axes.set_title(title, fontsize=10 if few else 16)
    if few:
        _write_numbers(axes, shares)
    else:
        # A grid of tens keeps the eye on its row.
        axes.set_xticks(np.arange(9.5, len(names), 10), minor=True)
        axes.set_yticks(np.arange(9.5, len(names), 10), minor=True)
        axes.grid(which="minor", color="white", linewidth=0.4, alpha=0.6)
    scale = figure.colorbar(shown, ax=axes, shrink=0.6, aspect=30, ticks=np.sqrt([0, 0.01, 0.1, 0.25, 0.5, 1]))
    scale.ax.set_yticklabels(["0", "1", "10", "25", "50", "100"])
    scale.set_label("% of the true class's pixels (grey: no such pixel)")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def row_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row over its sum; NaN in the rows of classes without pixels."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(1, keepdims=True)


def _name_axes(axes: Axes, names: list[str], size: int) -> None:
    places = np.arange(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")


def _write_numbers(axes: Axes, shares: NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.0005:  # NaN is not
            colour = "black" if share > 0.5 else "white"
            figure = f"{100 * share:.0f}" if share >= 0.095 else f"{100 * share:.1f}"
            axes.text(column, row, figure, ha="center", va="center", fontsize=7, color=colour)
