"""From the network's coarse scores to labels, in tiles: classes x height x width never exists as a whole.

Only the coarse scores of each window are kept. For each tile of the label map every pass gives the block it needs
(in slide mode: windows enlarged, softmaxed if so asked, added, divided by how many cover each pixel), the block is
resampled straight to the size of the label map, the passes are averaged and the tile's largest class is taken, the
first of equal ones. Where everything after the network is linear, mirrored pairs are added up on the coarse grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from isnet_trt.geometry import Pass, Window, coarse_size
from isnet_trt.resample import CHUNK, Array, Part, Span, column_taps, combine, taps
from isnet_trt.settings import Size
from isnet_trt.windows import Plan

TILE_ROWS = 32
TILE_VALUES = 2**18
"""Scores in a tile: 1 MiB, so that its steps stay in a core's cache."""
BLOCK_VALUES = 2**19
"""Scores in what a volume gives for one tile; much more than the tile's where a small picture was enlarged."""

Pairs = Sequence[tuple[int, int]]
"""Classes that change places in mirrored passes."""
TileSink = Callable[[slice, slice, Array], None]
"""Receives each finished tile of merged scores (K, rows, columns), from several threads, no tile twice."""


@dataclass(frozen=True)
class Head:
    """What the network puts out: ``classes`` scores per ``stride`` pixels; ``pairs`` change places when mirrored."""

    classes: int
    stride: int
    pairs: Pairs = ()


class _Volume(Protocol):
    """Scores of one scale over (height, width) = ``size``, filled from the top while windows arrive."""

    size: Size

    def add(self, window: Window, scores: Array) -> None: ...

    def ready(self) -> int:
        """Number of rows from the top that are complete."""
        ...

    def block(self, rows: Span, columns: Span) -> Array:
        """Scores (K, rows, columns) of a part; a view or a new array, not to be written to."""
        ...

    def forget(self, row: int) -> None:
        """Rows above ``row`` are needed no more."""
        ...


@dataclass
class _Coarse:
    """Whole mode: the coarse grid of one scale, the plain and the mirrored pass added up."""

    size: Size
    missing: int
    softmax: bool
    pairs: Pairs
    scores: Array | None = None

    def add(self, window: Window, scores: Array) -> None:
        if self.softmax:
            softmax(scores, out=scores)
        if self.scores is None:
            self.scores = _mirror(scores, self.pairs) if window.of.mirrored else scores
        elif window.of.mirrored:
            _add_mirrored(self.scores, scores, self.pairs)
        else:
            self.scores += scores
        self.missing -= 1

    def ready(self) -> int:
        return 0 if self.missing else self.size[0]

    def block(self, rows: Span, columns: Span) -> Array:
        assert self.scores is not None
        return self.scores[:, slice(*rows), slice(*columns)]

    def forget(self, row: int) -> None:
        if row >= self.size[0]:
            self.scores = None


@dataclass
class _Mosaic:
    """Slide mode: the windows of one pass at their places in the scaled picture."""

    size: Size
    softmax: bool
    pairs: Pairs
    outstanding: list[Window]
    covers: tuple[Array, Array]
    placed: list[tuple[Window, Array]] = field(default_factory=list)

    @classmethod
    def of(cls, one: Pass, windows: list[Window], softmax: bool, pairs: Pairs) -> _Mosaic:
        rows = _cover(one.size[0], {(w.top, w.bottom) for w in windows})
        columns = _cover(one.size[1], {(w.left, w.right) for w in windows})
        return cls(one.size, softmax, pairs, sorted(windows, key=lambda w: w.top), (rows, columns))

    def add(self, window: Window, scores: Array) -> None:
        self.outstanding.remove(window)
        self.placed.append((window, _mirror(scores, self.pairs) if window.of.mirrored else scores))

    def ready(self) -> int:
        return self.outstanding[0].top if self.outstanding else self.size[0]

    def block(self, rows: Span, columns: Span) -> Array:
        pieces = [piece for window, scores in self.placed if (piece := self._piece(window, scores, rows, columns))]
        count = self.covers[0][slice(*rows), None] * self.covers[1][slice(*columns)]
        if count.max() == 1 and len(pieces) == 1:
            return pieces[0][2]
        out = np.zeros((pieces[0][2].shape[0], *count.shape), np.float32)
        for y, x, scores in pieces:
            out[:, y, x] += scores
        out /= count
        return out

    def _piece(self, window: Window, scores: Array, rows: Span, columns: Span) -> tuple[slice, slice, Array] | None:
        """The part of ``window`` inside the block: where it lies there, and its scores."""
        top, bottom = max(rows[0], window.top), min(rows[1], window.bottom)
        left, right = max(columns[0], window.left), min(columns[1], window.right)
        if top >= bottom or left >= right:
            return None
        y = taps(scores.shape[1], window.size[0], top - window.top, bottom - window.top)
        span, x = column_taps(scores.shape[2], window.size[1], left - window.left, right - window.left)
        piece = combine([Part(scores[:, slice(*y.span), slice(*span)], y.matrix, x)])
        if self.softmax:
            softmax(piece, out=piece)
        return slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], right - columns[0]), piece

    def forget(self, row: int) -> None:
        self.placed = [(window, scores) for window, scores in self.placed if window.bottom > row]


def _cover(length: int, spans: set[Span]) -> Array:
    """How many of ``spans`` cover each position."""
    count = np.zeros(length, np.float32)
    for start, stop in spans:
        count[start:stop] += 1
    return count


def softmax(scores: Array, out: Array | None = None) -> Array:
    """Softmax over axis 0 (classes); ``out`` may be ``scores`` itself."""
    out = np.subtract(scores, scores.max(axis=0), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=0)
    return out


def largest(scores: Array) -> NDArray[np.unsignedinteger]:
    """Arg max over axis 0 of (K, …), the first of equal classes; uint8, or uint16 above 256 classes.

    Whole-array comparisons: several times faster than np.argmax along an axis that is not the last.
    """
    classes = scores.shape[0]
    code = np.uint8 if classes < 256 else np.uint16
    codes = np.arange(classes, 0, -1).astype(code).reshape(-1, *[1] * (scores.ndim - 1))
    hits = np.equal(scores, scores.max(axis=0))
    best = np.multiply(hits.view(np.uint8), codes, dtype=code).max(axis=0)
    return (classes - best.astype(np.int32)).astype(label_type(classes))


def label_type(classes: int) -> type[np.unsignedinteger]:
    """The smallest type that holds the class numbers."""
    return np.uint8 if classes <= 256 else np.uint16


def tile_size(classes: int, output: Size, volumes: Sequence[Size]) -> Size:
    """(rows, columns) of a tile of the output such that neither it nor any volume's block for it grows large."""
    rows, columns = TILE_ROWS, max(1, TILE_VALUES // (TILE_ROWS * classes * CHUNK)) * CHUNK
    vertical = max(size[0] for size in volumes) / output[0]
    horizontal = max(size[1] for size in volumes) / output[1]
    while classes * (rows * vertical + 2) * (columns * horizontal + 2) > BLOCK_VALUES and rows * columns > 1:
        if rows == 1 or (columns > 1 and columns * horizontal >= rows * vertical):
            columns = -(-columns // 2)
        else:
            rows = -(-rows // 2)
    return rows, columns


class Merger:
    """Takes windows' scores in any order, hands finished tiles of merged scores (K, rows, columns) to ``sink``.

    ``output`` is the (height, width) of the merged scores. Memory: the coarse scores of windows that unfinished rows
    need, and a few tiles per thread.
    """

    def __init__(self, plan: Plan, head: Head, output: Size, sink: TileSink, threads: int = 1) -> None:
        self._output, self._sink, self._threads = output, sink, max(1, threads)
        self._head = head
        self._softmax = plan.inference.softmax_before_resize
        self._whole = plan.inference.mode == "whole"
        self._passes = len(plan.passes)
        self._next = 0
        self._volume_of: dict[int, _Volume] = {}
        self._volumes = self._make_volumes(plan)
        self._tile_size = tile_size(head.classes, output, [volume.size for volume in self._volumes])

    def _make_volumes(self, plan: Plan) -> list[_Volume]:
        volumes: list[_Volume] = []
        for one in plan.passes:
            if self._whole and one.mirrored:
                self._volume_of[one.index] = volumes[-1]
                continue
            windows = [window for window in plan.windows if window.of == one]
            volumes.append(self._volume(one, windows, 1 + plan.inference.flip))
            self._volume_of[one.index] = volumes[-1]
        return volumes

    def _volume(self, one: Pass, windows: list[Window], shows: int) -> _Volume:
        if self._whole:
            return _Coarse(coarse_size(one.size, self._head.stride), shows, self._softmax, self._head.pairs)
        return _Mosaic.of(one, windows, self._softmax, self._head.pairs)

    def add(self, window: Window, logits: Array) -> None:
        """The network's output (K, h, w) for ``window``; from now on it belongs to the merger, which may change it."""
        self._volume_of[window.of.index].add(window, logits)

    def work(self) -> bool:
        """Merge the rows whose windows have all been added; True once the whole map is done."""
        bands = []
        while self._next < self._output[0]:
            band = (self._next, min(self._next + self._tile_size[0], self._output[0]))
            if not all(v.ready() >= self._needs(v, band)[1] for v in self._volumes):
                break
            bands.append(band)
            self._next = band[1]
        self._run(bands)
        self._forget()
        return self._next == self._output[0]

    def _needs(self, volume: _Volume, band: Span) -> Span:
        return taps(volume.size[0], self._output[0], *band).span

    def _run(self, bands: list[Span]) -> None:
        if self._threads == 1 or len(bands) < 2:
            for band in bands:
                self._band(band)
            return
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(self._band, bands))

    def _forget(self) -> None:
        done = self._next == self._output[0]
        for volume in self._volumes:
            rows = volume.size[0] if done else self._needs(volume, (self._next, self._next + 1))[0]
            volume.forget(rows)

    def _band(self, rows: Span) -> None:
        width = self._output[1]
        for left in range(0, width, self._tile_size[1]):
            columns = (left, min(left + self._tile_size[1], width))
            self._sink(slice(*rows), slice(*columns), self._tile(rows, columns))

    def _tile(self, rows: Span, columns: Span) -> Array:
        parts, total = [], None
        for volume in self._volumes:
            if volume.size == self._output:
                block = volume.block(rows, columns)
                total = block if total is None else total + block
                continue
            y = taps(volume.size[0], self._output[0], *rows)
            span, x = column_taps(volume.size[1], self._output[1], *columns)
            parts.append(Part(volume.block(y.span, span), y.matrix, x))
        if parts:
            resampled = combine(parts)
            total = resampled if total is None else np.add(resampled, total, out=resampled)
        assert total is not None
        return total / np.float32(self._passes) if self._passes > 1 else total


def _mirror(scores: Array, pairs: Pairs) -> Array:
    """Scores of a mirrored picture as those of the picture: columns reversed, left and right classes exchanged."""
    out = np.zeros_like(scores)
    _add_mirrored(out, scores, pairs)
    return out


def _add_mirrored(total: Array, scores: Array, pairs: Pairs) -> None:
    """``total += mirror(scores)``, class by class, so that no copy of all scores is made."""
    source = np.arange(len(scores))
    for a, b in pairs:
        source[[a, b]] = source[[b, a]]
    for out, k in zip(total, source, strict=True):
        out += scores[k, :, ::-1]
