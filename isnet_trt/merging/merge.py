"""From the network's low-resolution logits to labels, in tiles: classes x height x width never exists as a whole.

Only the low-resolution logits of each window are kept. For each tile of the label map every pass gives the block that
it needs; in slide mode the block is made of windows, enlarged, with softmax if the settings say so, added, and divided
by the number of windows at each pixel. The block is resampled straight to the size of the label map, the passes are
averaged, and the tile's largest class is taken, the first of equal ones. Where everything after the network is linear,
mirrored pairs are added up at low resolution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import EngineError
from isnet_trt.merging.geometry import Window, coarse_size, padded_size
from isnet_trt.merging.resample import CHUNK, Array, Part, Span, column_taps, combine, taps
from isnet_trt.merging.volumes import Coarse, Mosaic, Pairs, Volume
from isnet_trt.merging.windows import Plan
from isnet_trt.settings import Inference, Labels, NetworkFacts, Size

TILE_ROWS = 32
TILE_VALUES = 2**18
"""Scores in a tile: 1 MiB, so that its steps stay in a core's cache."""
BLOCK_VALUES = 2**19
"""Scores in what a volume gives for one tile; much more than the tile's where a small picture was enlarged."""

TileSink = Callable[[slice, slice, Array], None]
"""Receives each finished tile of merged scores (K, rows, columns), from several threads, no tile twice."""


@dataclass(frozen=True)
class Head:
    """What the network puts out: ``classes`` scores per ``stride`` pixels; ``pairs`` change places when mirrored.

    ``network`` says what the scores are. With a threshold there is one score, and there are two labels.
    """

    classes: int
    stride: int
    pairs: Pairs = ()
    network: NetworkFacts = field(default_factory=NetworkFacts)

    @classmethod
    def of(cls, labels: Labels, stride: int, network: NetworkFacts) -> Head:
        """The head of a network for a label set; SettingsError where they do not belong together."""
        network.check_labels(labels)
        return cls(network.channels(labels), stride, labels.flip_pairs, network)

    @property
    def label_count(self) -> int:
        """Number of labels: the classes, or two with a threshold."""
        return self.classes if self.network.threshold is None else 2

    def softmax(self, inference: Inference) -> bool:
        """Whether logits are turned into probabilities before they are averaged; False where they are already."""
        return inference.softmax_before_resize and self.network.activation == "none"

    def gives_probabilities(self, inference: Inference) -> bool:
        """Whether merged scores are probabilities."""
        return inference.softmax_before_resize or self.network.activation != "none"

    def enlarges(self, size: Size, output: Size, softmax: bool) -> bool:
        """Whether scores of a whole pass of ``size`` are first enlarged and cropped to that size (`NetworkFacts`).

        False also where resampling the output grid to ``output`` in one step, or not at all, has the same result.
        """
        facts = self.network
        padded = padded_size(size, facts) != size
        if self.stride == 1 or (facts.upsampling == "none" and facts.size_multiple == 1):
            return padded
        return padded or softmax or size != output or facts.upsampling == "align_corners"

    def limit(self, inference: Inference) -> float:
        """The merged score of one class above which its label is 1."""
        threshold = self.network.threshold or 0.5
        return threshold if self.gives_probabilities(inference) else math.log(threshold / (1 - threshold))

    def labels(self, scores: Array, inference: Inference) -> NDArray[np.unsignedinteger]:
        """Labels of merged scores (K, …): the largest class, the first of equal ones; or scores above the threshold."""
        if self.network.threshold is None:
            return largest(scores)
        return (scores[0] > np.float32(self.limit(inference))).view(np.uint8)

    def class_scores(self, scores: Array, inference: Inference) -> Array:
        """Merged scores of every label (K, …); with a threshold the background's come first: 1 - p, or a logit of 0."""
        if self.network.threshold is None:
            return scores
        other = 1 - scores if self.gives_probabilities(inference) else np.zeros_like(scores)
        return np.concatenate([other, scores])

    def swapped_classes(self) -> NDArray[np.int32]:
        """The class that each one is in a mirrored image, (K,)."""
        order = np.arange(self.classes, dtype=np.int32)
        for a, b in self.pairs:
            order[[a, b]] = order[[b, a]]
        return order

    def check_output(self, shape: Sequence[int], output: Sequence[int]) -> None:
        """Raise EngineError unless the ``output`` shape for an input of ``shape`` is the one for this label set."""
        expected = (shape[0], self.classes, *coarse_size((shape[2], shape[3]), self.stride))
        if tuple(output) != expected:
            count = f"{self.classes} class{'es' * (self.classes > 1)} at stride {self.stride}"
            raise EngineError(
                f"the network's output for an input of {tuple(shape)} is {tuple(output)}, not {expected} for {count}: "
                "the model and the label set do not belong together"
            )


def not_finite(shape: Sequence[int]) -> EngineError:
    """The error for logits that are NaN or infinite; ``shape`` is that of the network's input."""
    return EngineError(
        f"the network's output for an input of {tuple(shape)} has NaN or infinite values; if the engine is of low "
        "precision, build it again with --precision fp32"
    )


def largest(scores: Array) -> NDArray[np.unsignedinteger]:
    """Arg max over axis 0 of (K, …), the first of equal classes; uint8, or uint16 above 256 classes.

    Whole-array comparisons: several times faster than np.argmax along an axis that is not the last.
    """
    codes = _codes(len(scores)).reshape(-1, *[1] * (scores.ndim - 1))
    # Earlier classes have larger codes, so that the largest code among equal scores is the first class's.
    hits = np.equal(scores, scores.max(axis=0))
    # Booleans taken as bytes 0 and 1: the products stay as narrow as the codes.
    best = np.multiply(hits.view(np.uint8), codes, dtype=codes.dtype).max(axis=0)
    np.subtract(codes.flat[0], best, out=best)
    return best.astype(label_type(len(scores)), copy=False)


@functools.lru_cache(maxsize=64)
def _codes(classes: int) -> NDArray[np.unsignedinteger]:
    """classes, …, 1: the first class has the largest."""
    # Codes run from 1 to the number of classes: 256 classes need uint16 here, although labels 0 to 255 do not.
    code: type[np.unsignedinteger] = np.uint8 if classes < 256 else np.uint16
    codes: NDArray[np.unsignedinteger] = np.arange(classes, 0, -1).astype(code)
    codes.flags.writeable = False
    return codes


def label_type(classes: int) -> type[np.unsignedinteger]:
    """The smallest type that holds the class numbers."""
    return np.uint8 if classes <= 256 else np.uint16


def tile_size(classes: int, output: Size, volumes: Sequence[Size]) -> Size:
    """(rows, columns) of a tile of the output such that neither it nor any volume's block for it grows large."""
    # Whole chunks: `combine` takes CHUNK columns per product, and a remainder would be a small product of its own.
    rows, columns = TILE_ROWS, max(1, TILE_VALUES // (TILE_ROWS * classes * CHUNK)) * CHUNK
    vertical = max(size[0] for size in volumes) / output[0]
    horizontal = max(size[1] for size in volumes) / output[1]
    # A block has one more sample than its tile needs on each side. Halve the side along which the block is longer.
    while classes * (rows * vertical + 2) * (columns * horizontal + 2) > BLOCK_VALUES and rows * columns > 1:
        if rows == 1 or (columns > 1 and columns * horizontal >= rows * vertical):
            columns = -(-columns // 2)
        else:
            rows = -(-rows // 2)
    return rows, columns


class Merger:
    """Takes windows' scores in any order, hands finished tiles of merged scores (K, rows, columns) to ``sink``.

    ``output`` is the (height, width) of the merged scores. Memory: the logits of windows that unfinished rows
    need, and a few tiles per thread.
    """

    def __init__(self, plan: Plan, head: Head, output: Size, sink: TileSink, threads: int = 1) -> None:
        self._output, self._sink, self._threads = output, sink, max(1, threads)
        self._head = head
        self._softmax = head.softmax(plan.inference)
        self._whole = plan.inference.mode == "whole"
        self._passes = len(plan.passes)
        self._pool: ThreadPoolExecutor | None = None
        self._next = 0
        self._volume_of: dict[int, Volume] = {}
        self._volumes = self._make_volumes(plan)
        self._tile_size = tile_size(head.classes, output, [volume.size for volume in self._volumes])

    def _make_volumes(self, plan: Plan) -> list[Volume]:
        """One volume for each pass; in whole mode, where everything is linear, usually one for both of a scale."""
        volumes: list[Volume] = []
        for pass_ in plan.passes:
            if not self._whole or self._head.enlarges(pass_.size, self._output, self._softmax):
                windows = [window for window in plan.windows if window.of == pass_]
                volumes.append(Mosaic(pass_.size, windows, self._softmax, self._head.pairs, self._head.network))
            elif not pass_.mirrored:
                size, count = coarse_size(pass_.size, self._head.stride), 1 + plan.inference.flip
                volumes.append(Coarse(size, count, self._softmax, self._head.pairs))
            # In whole mode a mirrored pass goes into the volume of the plain pass before it.
            self._volume_of[pass_.index] = volumes[-1]
        return volumes

    def add(self, window: Window, logits: Array) -> None:
        """The network's output (K, h, w) for ``window``; from now on it belongs to the merger, which may change it."""
        self._volume_of[window.of.index].add(window, logits)

    def work(self) -> bool:
        """Merge the rows whose windows have all been added; True once the whole map is done."""
        bands = []
        # Rows are finished from the top down, in the order of the windows: what they needed can then be freed.
        while self._next < self._output[0]:
            band = (self._next, min(self._next + self._tile_size[0], self._output[0]))
            if not all(volume.ready() >= self._needs(volume, band)[1] for volume in self._volumes):
                break
            bands.append(band)
            self._next = band[1]
        # NumPy releases the GIL in its long operations, so that threads merge bands in parallel.
        if self._threads > 1 and len(bands) > 1:
            # Started when there are two bands at once: one band at a time needs no threads.
            self._pool = self._pool or ThreadPoolExecutor(self._threads)
            # list() waits for every band and raises what one of them raised.
            list(self._pool.map(self._band, bands))
        else:
            for band in bands:
                self._band(band)
        if bands:
            self._forget()
        done = self._next == self._output[0]
        if done and self._pool:
            self._pool.shutdown()
        return done

    def _needs(self, volume: Volume, band: Span) -> Span:
        """The rows of a volume that a band of the output needs."""
        return taps(volume.size[0], self._output[0], *band).span

    def _forget(self) -> None:
        """Free what no later band needs."""
        done = self._next == self._output[0]
        for volume in self._volumes:
            volume.forget(volume.size[0] if done else self._needs(volume, (self._next, self._next + 1))[0])

    def _band(self, rows: Span) -> None:
        width = self._output[1]
        # A band is cut into tiles, so that each step's arrays stay in the cache of the core that runs it.
        for left in range(0, width, self._tile_size[1]):
            columns = (left, min(left + self._tile_size[1], width))
            self._sink(slice(*rows), slice(*columns), self._tile(rows, columns))

    def _tile(self, rows: Span, columns: Span) -> Array:
        """The mean over all passes of the scores at these rows and columns of the output."""
        parts, total = [], None
        for volume in self._volumes:
            if volume.size == self._output:  # nothing to resample
                block = volume.block(rows, columns)
                total = block if total is None else total + block
                continue
            y = taps(volume.size[0], self._output[0], *rows)
            span, x = column_taps(volume.size[1], self._output[1], *columns)
            parts.append(Part(volume.block(y.span, span), y.matrix, x))
        # `_passes` and not the number of volumes: in whole mode a volume is the sum of two passes.
        share = np.float32(1 / self._passes)
        if total is not None and self._passes > 1:
            total = total * share
        if parts:
            resampled = combine(parts, share)  # all passes in one product: see there
            total = resampled if total is None else np.add(resampled, total, out=resampled)
        assert total is not None
        return total
