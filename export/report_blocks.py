"""The values of each block's output as two histograms, and the error of each block as a bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isnet_trt.export.parity import ParityResult
from isnet_trt.metrics import rounded
from isnet_trt.opencv import cv2
from isnet_trt.pages import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _WIDTH, _HEIGHT, _DPI = 3, 4.0, 2.6, 90
"""Panels in a row; inches of a panel."""


@dataclass(frozen=True)
class BlockFigures:
    """All panels as one PNG, and each as a figure of its own in HTML."""

    sheet: bytes
    panels: str


def draw_blocks(result: ParityResult) -> BlockFigures:
    """Draw the figure; its last panel, the bars, takes what is left of its row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(result.histograms)
    rows = len(names) // _COLUMNS + 1
    # Without pyplot, which would keep the figure and may look for a display.
    canvas = FigureCanvasAgg(Figure(figsize=(_WIDTH * _COLUMNS, _HEIGHT * rows), dpi=_DPI))
    cells = [(index // _COLUMNS, index % _COLUMNS, 1) for index in range(len(names) + 1)]
    cells[-1] = (*cells[-1][:2], _COLUMNS - len(names) % _COLUMNS)
    for name, cell in zip(names, cells, strict=False):
        axis = canvas.figure.add_axes(_inside(cell, rows, 0.12))
        _histogram(axis, result, name)
        if name == names[0]:
            axis.legend(fontsize=7)
    bars = canvas.figure.add_axes(_inside(cells[-1], rows, 0.36 / cells[-1][2]))
    bars.barh(names[::-1], [result.blocks[name].rms for name in names[::-1]], color="tab:red")
    bars.set_title("rms error over standard deviation", fontsize=8)
    bars.tick_params(labelsize=7)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., 2::-1])
    captions = [f"Values of {name}" for name in names] + ["Errors of all blocks"]
    panels = (figure(_png(_cut(pixels, cell)), "image/png", text) for cell, text in zip(cells, captions, strict=True))
    return BlockFigures(_png(pixels), f'<div class="figures wide">{"".join(panels)}</div>')


def _inside(cell: tuple[int, int, int], rows: int, left: float) -> tuple[float, float, float, float]:
    """The rectangle of the axes in a cell (row, column, columns that it spans), in shares of the figure."""
    row, column, span = cell
    width, height = span / _COLUMNS, 1 / rows
    return (
        column / _COLUMNS + left * width,
        1 - (row + 1) * height + 0.13 * height,
        (0.96 - left) * width,
        0.75 * height,
    )


def _cut(pixels: NDArray[np.uint8], cell: tuple[int, int, int]) -> NDArray[np.uint8]:
    row, column, span = cell
    height, width = round(_HEIGHT * _DPI), round(_WIDTH * _DPI)
    return pixels[row * height : (row + 1) * height, column * width : (column + span) * width]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def _histogram(axis: Axes, result: ParityResult, name: str) -> None:
    edges, reference, values = result.histograms[name]
    axis.stairs(reference, edges, fill=True, color="0.8", label="reference")
    axis.stairs(values, edges, color="tab:red", label="engine's graph")
    axis.set_yscale("symlog")
    axis.set_title(f"{name}: cosine {rounded(result.blocks[name].cosine, 5)}", fontsize=8)
    axis.tick_params(labelsize=7)
