"""The confusion matrix as an image and as an interactive figure.

One row per true class with the shares of its pixels by predicted class.
"""

from __future__ import annotations

import io
import json
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isnet_trt.metrics import Confusion, percent
from isnet_trt.pages import data_uri
from isnet_trt.settings import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WITH_NUMBERS = 30
"""Classes up to which the cells are large enough for figures."""
_GROUPED = 24
"""Classes that are shown beside the rest as one."""
_MOST_CELLS = 20_000
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

    few, short = len(names) <= _WITH_NUMBERS, [short_name(name, _LONGEST) for name in names]
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


def grouped(confusion: Confusion, names: tuple[str, ...]) -> tuple[Confusion, tuple[str, ...]]:
    """The classes that are confused on most pixels, those confused with each other side by side, the rest as one.

    Up to `_WITH_NUMBERS` classes nothing is grouped.
    """
    if len(names) <= _WITH_NUMBERS:
        return confusion, names
    wrong = confusion.counts - np.diag(np.diag(confusion.counts))
    mutual = wrong + wrong.T
    rest = [int(k) for k in np.argsort(-mutual.sum(1), kind="stable")[:_GROUPED]]
    order = [rest.pop(0)]
    while rest:  # next the class that is confused most with the one before
        order.append(rest.pop(max(range(len(rest)), key=lambda index: mutual[order[-1], rest[index]])))
    place = np.full(len(names), len(order))
    place[order] = range(len(order))
    result = Confusion(len(order) + 1)
    np.add.at(result.counts, (place[:, None], place[None]), confusion.counts)
    return result, (*(names[k] for k in order), f"{len(names) - len(order)} other classes")


def interactive(confusion: Confusion, names: tuple[str, ...], static: bytes) -> str:
    """The matrix as HTML that a script draws: by label order or by confusions, with figures under the pointer.

    ``static`` is shown where scripts do not run.
    """
    truth, predicted = np.nonzero(confusion.counts)
    largest = np.argsort(-confusion.counts[truth, predicted], kind="stable")[:_MOST_CELLS]
    cells = np.stack([truth, predicted, confusion.counts[truth, predicted]], 1)[largest]
    data = {"names": names, "totals": confusion.counts.sum(1).tolist(), "cells": cells.tolist()}
    # A name must not end the element.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    fallback = f'<noscript><img alt="" src="{data_uri(static, "image/png")}"></noscript>'
    script = resources.files(__package__).joinpath("confusion.js").read_text("utf-8")
    return (
        f'<div class="confusion"><script type="application/json">{text}</script></div>{fallback}'
        f"<script>{script}</script>"
    )


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
