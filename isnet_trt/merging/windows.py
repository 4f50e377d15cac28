"""The queue of windows: planned over all passes, gathered into batches one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from isnet_trt.errors import SettingsError
from isnet_trt.merging import geometry
from isnet_trt.merging.geometry import Pass, Window
from isnet_trt.merging.resample import Array, scale_rows
from isnet_trt.settings import Inference, NetworkFacts, Size, size_text

LOOK_AHEAD = 4
"""A batch is filled from the first ``LOOK_AHEAD * batch`` windows of the queue: looking further would keep the results
of early windows in memory for longer."""
MOST_WINDOWS = 1 << 20
"""Windows of an image: a stride of 1, which a client of a service may name, would take hours and all of the memory."""


@dataclass(frozen=True)
class Plan:
    """All passes over a picture of ``size``, and their windows from the top of the picture to its bottom."""

    size: Size
    inference: Inference
    passes: tuple[Pass, ...]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Padding:
    """How a network's inputs are padded, and the normalised value of each channel (3,) there."""

    network: NetworkFacts
    values: Array


NO_PADDING = Padding(NetworkFacts(), np.zeros(3, np.float32))


def plan(size: Size, inference: Inference) -> Plan:
    """The queue for a normalised picture of ``size``.

    Windows of all passes are ordered by their upper edge in the picture, so that the merge can finish the top of the
    label map, and forget what belongs to it, while windows further down have not been run. Large scales come first:
    their temporary arrays are gone before the results of the others take up memory.

    Raises:
        ImageError: a scale leaves no pixel.
        SettingsError: there are more than `MOST_WINDOWS`.
    """
    if (count := geometry.window_count(size, inference)) > MOST_WINDOWS:
        raise SettingsError(
            f"an image of {size_text(size)} with {inference.describe()} is {count} windows; at most {MOST_WINDOWS} are "
            "allowed: use a larger stride or window"
        )
    passes = geometry.passes(size, inference)
    queue = [window for pass_ in passes for window in geometry.windows(pass_, inference)]
    queue.sort(key=lambda w: (w.top / w.of.size[0], -w.of.scale, w.of.index))
    return Plan(size, inference, passes, tuple(queue))


def batches(queue: Sequence[Window], batch: int) -> Iterator[list[Window]]:
    """Groups of at most ``batch`` windows of one size, across passes; the first in the queue is never overtaken."""
    # Across passes: a plain and a mirrored window of one size share a batch, which fills it sooner.
    waiting, near = iter(queue), list[Window]()
    while near := near + list(islice(waiting, LOOK_AHEAD * batch - len(near))):
        group = [window for window in near if window.size == near[0].size][:batch]
        taken = set(map(id, group))  # by identity: a window's hash would be computed from all its fields
        near = [window for window in near if id(window) not in taken]
        yield group


def gather(
    planes: Array, queue: Sequence[Window], batch: int = 1, padding: Padding = NO_PADDING
) -> Iterator[tuple[list[Window], Array]]:
    """Windows with their pixels (B, 3, h, w) float32, C-contiguous, mirrored where the pass is, then padded.

    ``planes`` (3, H, W) are the normalised image. Only rows in use are resampled and kept: memory does not grow with
    the number of scales.
    """
    rows = _Rows(planes, queue)
    for group in batches(queue, batch):
        # No name here refers to the pixels: they would stay alive while the network's output is merged.
        yield group, _pixels(rows, group, padding)


def _pixels(rows: _Rows, group: Sequence[Window], padding: Padding) -> Array:
    pixels, inside = _frame(len(group), group[0].size, padding)
    for out, window in zip(inside, group, strict=True):
        view = rows.take(window)[:, :, window.left : window.right]
        out[...] = view[:, :, ::-1] if window.of.mirrored else view
    return pixels


def _frame(count: int, size: Size, padding: Padding) -> tuple[Array, Array]:
    """Uninitialised pixels (count, 3, *size) with their padding around them; these, and the part inside."""
    pixels = np.empty((count, 3, *geometry.padded_size(size, padding.network)), np.float32)
    if pixels.shape[2:] == size:
        return pixels, pixels
    pixels[...] = padding.values[:, None, None]
    y, x = geometry.padding_before(size, padding.network)
    return pixels, pixels[:, :, y : y + size[0], x : x + size[1]]


def padded(planes: Array, padding: Padding) -> Array:
    """A normalised image (3, H, W) as an input (1, 3, h, w) of the network, C-contiguous."""
    pixels, inside = _frame(1, (planes.shape[1], planes.shape[2]), padding)
    inside[0] = planes
    return pixels


class _Rows:
    """Resampled rows of the picture, each kept from its first window to its last."""

    def __init__(self, planes: Array, queue: Sequence[Window]) -> None:
        self._planes = planes
        self._uses = Counter(map(self._key, queue))
        self._rows: dict[tuple[float, int, int], Array] = {}

    @staticmethod
    def _key(window: Window) -> tuple[float, int, int]:
        return window.of.scale, window.top, window.bottom

    def take(self, window: Window) -> Array:
        key = self._key(window)
        if key not in self._rows:
            self._rows[key] = scale_rows(self._planes, key[0], window.of.size[1], *key[1:])
        # Windows side by side, plain and mirrored, share the rows; the last of them takes the rows out of memory.
        self._uses[key] -= 1
        return self._rows[key] if self._uses[key] else self._rows.pop(key)
