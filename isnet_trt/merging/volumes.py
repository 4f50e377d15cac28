"""Low-resolution logits of one scale, collected while windows arrive: of the whole image, or of many windows.

Both kinds of `Volume` give blocks of scores to the merge (`isnet_trt.merging.merge`), which resamples them to the
label map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from isnet_trt.merging.geometry import Window, padded_size, padding_before
from isnet_trt.merging.resample import Array, Part, Span, column_taps, combine, taps
from isnet_trt.opencv import cv2
from isnet_trt.settings import NetworkFacts, Size

Pairs = Sequence[tuple[int, int]]
"""Classes that change places in mirrored passes."""
_LOGITS = NetworkFacts()
EXPONENT = 64.0
"""exp of scores up to here, and sums of thousands of them, neither overflow nor underflow in float32."""


@dataclass
class Coarse:
    """Whole mode: the low-resolution grid (height, width) = ``size`` of one scale, plain and mirrored pass added up.

    ``missing`` counts the passes that have not arrived; ``pairs`` change places when mirrored.
    """

    size: Size
    missing: int
    softmax: bool
    pairs: Pairs
    scores: Array | None = None

    def add(self, window: Window, scores: Array) -> None:
        """Take the scores (K, h, w) of a window; they may be changed.

        On one thread: in each of these few short steps, waking a second one costs what it would save.
        """
        self.missing -= 1
        scores = np.ascontiguousarray(scores)
        # Softmax is not linear: where probabilities are averaged, it has to come before the passes are added up.
        if self.softmax:
            probabilities(scores, out=scores)
        if self.scores is None and not window.of.mirrored:
            self.scores = scores  # the first pass becomes the sum: no second array of this size
            return
        # Windows come in any order: a mirrored pass that is first needs a sum to be added to.
        self.scores = np.zeros_like(scores) if self.scores is None else self.scores
        if window.of.mirrored:
            add_mirrored(self.scores, scores, self.pairs)
        else:
            self.scores += scores

    def ready(self) -> int:
        """Number of rows from the top that are complete."""
        # Whole mode has one window per pass: there are no complete rows before the last pass has arrived.
        return 0 if self.missing else self.size[0]

    def block(self, rows: Span, columns: Span) -> Array:
        """Scores (K, rows, columns) of a part; a view, not to be written to."""
        assert self.scores is not None
        return self.scores[:, slice(*rows), slice(*columns)]

    def forget(self, row: int) -> None:
        """Free the memory of rows above ``row``: here of all rows at the end."""
        if row >= self.size[0]:
            self.scores = None


class Mosaic:
    """Slide mode: the windows of one pass at their places in the scaled image of (height, width) = ``size``.

    ``outstanding`` windows have not arrived, sorted by their upper edge; ``covers`` counts for each row and for each
    column how many windows lie there: a pixel's count is the product of the two, since the windows are a grid.
    """

    def __init__(
        self, size: Size, windows: list[Window], softmax: bool, pairs: Pairs, network: NetworkFacts = _LOGITS
    ) -> None:
        self.size = size
        self.network = network
        self.softmax = softmax
        self.pairs = pairs
        self.outstanding = sorted(windows, key=lambda window: window.top)
        self.placed: list[tuple[Window, Array]] = []
        rows = _cover(size[0], {(window.top, window.bottom) for window in windows})
        self.covers = rows, _cover(size[1], {(window.left, window.right) for window in windows})

    def add(self, window: Window, scores: Array) -> None:
        # Not softmaxed here: in slide mode softmax follows the enlargement to the window (`_enlarged`).
        self.outstanding.remove(window)
        if window.of.mirrored:
            # Mirrored once at low resolution, instead of in every block that is enlarged from it.
            plain, scores = scores, np.zeros_like(scores)
            add_mirrored(scores, plain, self.pairs)
        self.placed.append((window, scores))

    def ready(self) -> int:
        # Every window that covers a row above the first outstanding one begins above it too: it has arrived.
        return self.outstanding[0].top if self.outstanding else self.size[0]

    def block(self, rows: Span, columns: Span) -> Array:
        """Scores (K, rows, columns) of a part, a new array: the mean of the windows at each pixel."""
        count = self.covers[0][slice(*rows), None] * self.covers[1][slice(*columns)]
        total: Array | None = None
        for y, x, scores in self._pieces(rows, columns):
            if total is None and scores.shape[1:] == count.shape:  # the first piece is the block: no copy
                # Scores of the window's own size are views of its logits, which other blocks still need.
                total = scores if scores.base is None or count.max() == 1 else scores.copy()
                continue
            if total is None:
                total = np.zeros((len(scores), *count.shape), np.float32)
            total[:, y, x] += scores
        assert total is not None
        # Where no windows overlap the division would change nothing.
        return total if count.max() == 1 else np.divide(total, count, out=total)

    def _pieces(self, rows: Span, columns: Span) -> Iterator[tuple[slice, slice, Array]]:
        """The part of each window inside the block, one at a time: its rows and columns there, and its scores."""
        for window, scores in self.placed:
            top, bottom = max(rows[0], window.top), min(rows[1], window.bottom)
            left, right = max(columns[0], window.left), min(columns[1], window.right)
            if top < bottom and left < right:
                part = (top - window.top, bottom - window.top), (left - window.left, right - window.left)
                inside = slice(top - rows[0], bottom - rows[0]), slice(left - columns[0], right - columns[0])
                yield *inside, self._enlarged(window, scores, *part)

    def _enlarged(self, window: Window, scores: Array, rows: Span, columns: Span) -> Array:
        """Rows and columns of a window, from its scores enlarged to the size of the network's input."""
        size = padded_size(window.size, self.network)
        top, left = padding_before(window.size, self.network)
        if window.of.mirrored:  # the scores were mirrored back, and the padding with them
            left = size[1] - window.size[1] - left
        rows, columns = (rows[0] + top, rows[1] + top), (columns[0] + left, columns[1] + left)
        if scores.shape[1:] == size:
            piece = scores[:, slice(*rows), slice(*columns)]
            if not self.softmax:
                return piece
            # Copied first: each class lies in pages of its own, and softmax reads its scores several times.
            piece = piece.copy()
            return probabilities(piece, out=piece)
        aligned = self.network.upsampling == "align_corners"
        y = taps(scores.shape[1], size[0], *rows, aligned)
        span, x = column_taps(scores.shape[2], size[1], *columns, aligned)
        source = scores[:, slice(*y.span), slice(*span)]
        piece = combine([Part(source, y.matrix, x)])
        return probabilities(piece, out=piece, within=source) if self.softmax else piece

    def forget(self, row: int) -> None:
        """Free the memory of windows that end above ``row``."""
        self.placed = [(window, scores) for window, scores in self.placed if window.bottom > row]


Volume = Coarse | Mosaic


def _cover(length: int, spans: set[Span]) -> Array:
    """How many of ``spans`` cover each position."""
    count = np.zeros(length, np.float32)
    for start, stop in spans:
        count[start:stop] += 1
    return count


def probabilities(scores: Array, out: Array | None = None, within: Array | None = None) -> Array:
    """Probabilities of the classes (axis 0) from logits: `softmax`, or of one class its sigmoid."""
    if len(scores) > 1:
        return softmax(scores, out, within)
    # Clamped, so that exp does not overflow; a probability of exp(-64) differs from 0 in no merged score.
    out = np.exp(np.minimum(np.negative(scores, out=out), EXPONENT), out=out)
    out += 1
    return np.divide(1, out, out=out)


def softmax(scores: Array, out: Array | None = None, within: Array | None = None) -> Array:
    """Softmax over axis 0 (classes); ``out`` may be ``scores`` itself.

    ``within``: no score lies outside the range of these (default: the scores). Where that range is safe for exp the
    usual subtraction of the largest score, which changes nothing else, is left out.
    """
    # Bilinear interpolation stays within its inputs: the small source bounds the enlarged scores at less cost.
    bounds = scores if within is None else within
    if bounds.size and bounds.min() > -EXPONENT and bounds.max() < EXPONENT:
        out = np.exp(scores, out=out)
    else:
        out = np.subtract(scores, scores.max(axis=0), out=out)
        np.exp(out, out=out)
    out /= out.sum(axis=0)
    return out


def add_mirrored(total: Array, scores: Array, pairs: Pairs) -> None:
    """``total += mirror(scores)``: columns reversed, left and right classes exchanged.

    Class by class, so that no copy of all scores is made.
    """
    source = np.arange(len(scores))
    for a, b in pairs:
        source[[a, b]] = source[[b, a]]
    for out, k in zip(total, source, strict=True):
        out += cv2.flip(scores[k], 1)  # over twice as fast as with a view of negative stride
