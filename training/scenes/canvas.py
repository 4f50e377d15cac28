"""An image and its labels, drawn by the same polygons, and the pinhole camera that maps world points to pixels."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isnet_trt.opencv import cv2

Colour = tuple[float, float, float]
Points = NDArray[np.float64]
"""Positions in pixels, (n, 2) as x, y; or in metres, (n, 3) as x to the right, y up, z away from the camera."""

_SHIFT = 4


class Kind(enum.IntEnum):
    """The classes of a scene; the order is that of the demo recipe's labels."""

    ROAD = 0
    MARKING = 1
    PAVEMENT = 2
    BUILDING = 3
    SKY = 4
    TREE = 5
    CAR = 6
    PERSON_RIGHT = 7
    PERSON_LEFT = 8


@dataclass
class Canvas:
    """``image`` uint8 H×W×3 (RGB) and ``labels`` uint8 H×W, changed in place by drawing.

    ``smooth`` uint8 H×W is 1 where a surface has no grain (glass).
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    smooth: NDArray[np.uint8]

    @classmethod
    def blank(cls, height: int, width: int, label: Kind) -> Canvas:
        plain = np.zeros((height, width), np.uint8)
        return cls(np.zeros((height, width, 3), np.uint8), np.full((height, width), label, np.uint8), plain)

    @property
    def height(self) -> int:
        return int(self.labels.shape[0])

    @property
    def width(self) -> int:
        return int(self.labels.shape[1])

    def fill(self, polygons: Sequence[Points], colour: Colour, label: Kind | None = None, smooth: bool = False) -> None:
        """Fill polygons that do not overlap each other; without a label the class underneath stays."""
        fixed = [_fixed(p) for p in polygons if len(p) > 2]
        if not fixed:
            return
        cv2.fillPoly(self.image, fixed, rgb(colour), cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.labels, fixed, int(label), cv2.LINE_8, _SHIFT)
        if smooth or label is not None:
            cv2.fillPoly(self.smooth, fixed, int(smooth), cv2.LINE_8, _SHIFT)

    def lines(self, lines: Sequence[Points], colour: Colour, width: float) -> None:
        """Open lines of ``width`` pixels over what is there (its class stays); thinner than half a pixel: none."""
        if width >= 0.5 and lines:
            fixed = [_fixed(p) for p in lines]
            cv2.polylines(self.image, fixed, False, rgb(colour), max(1, round(width)), cv2.LINE_AA, _SHIFT)

    def disc(self, centre: Points, radius: float, colour: Colour, label: Kind | None = None) -> None:
        """A filled circle, in pixels."""
        x, y = _fixed(centre)
        r = round(max(radius, 0.3) * (1 << _SHIFT))
        cv2.circle(self.image, (int(x), int(y)), r, rgb(colour), -1, cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.circle(self.labels, (int(x), int(y)), r, int(label), -1, cv2.LINE_8, _SHIFT)

    def darken(self, polygon: Points, factor: float, softness: float) -> None:
        """Multiply the picture by ``factor`` inside a polygon whose edge is blurred by ``softness`` pixels."""
        box = self._box(np.array([polygon.min(0) - 2 * softness, polygon.max(0) + 2 * softness]))
        if box is None:
            return
        rows, columns = box
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        cv2.fillPoly(mask, [_fixed(polygon - [columns.start, rows.start])], 255, cv2.LINE_AA, _SHIFT)
        if softness >= 0.5:
            mask = cv2.GaussianBlur(mask, (0, 0), softness)
        keep = cv2.merge([cv2.convertScaleAbs(mask, alpha=factor - 1, beta=255)] * 3)
        patch = np.ascontiguousarray(self.image[rows, columns])
        self.image[rows, columns] = cv2.multiply(patch, keep, scale=1 / 255)

    def glow(self, centre: Points, radius: float, colour: Colour, strength: float) -> None:
        """Add light that falls off from ``centre`` (pixels) to nothing at ``radius``."""
        box = self._box(np.array([centre - radius, centre + radius]))
        if box is None:
            return
        rows, columns = box
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(centre[1])
        x = np.arange(columns.start, columns.stop, dtype=np.float32)[None] - np.float32(centre[0])
        fall = np.clip(1 - np.sqrt(x * x + y * y) / np.float32(radius), 0, 1) ** 2 * np.float32(strength)
        light = (fall[..., None] * np.asarray(colour, np.float32)).astype(np.uint8)
        self.image[rows, columns] = cv2.add(np.ascontiguousarray(self.image[rows, columns]), light)

    def _box(self, corners: Points) -> tuple[slice, slice] | None:
        (x0, y0), (x1, y1) = np.floor(corners[0]), np.ceil(corners[1]) + 1
        x0, y0 = max(int(x0), 0), max(int(y0), 0)
        x1, y1 = min(int(x1), self.width), min(int(y1), self.height)
        return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera: ``focal`` and the vanishing point (``x``, ``horizon``) in pixels, ``height`` in m."""

    focal: float
    x: float
    horizon: float
    height: float

    def project(self, world: ArrayLike) -> Points:
        """World metres (…, 3) to pixels (…, 2); z must be positive."""
        points = np.asarray(world, np.float64)
        scale = self.focal / points[..., 2]
        return np.stack([self.x + scale * points[..., 0], self.horizon + scale * (self.height - points[..., 1])], -1)

    def scale(self, z: float) -> float:
        """Pixels per metre at depth z."""
        return self.focal / z

    def ground(self, x0: float, x1: float, z0: float, z1: float) -> Points:
        """The outline in pixels of a rectangle on the ground."""
        return self.project([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])


def palette(colours: str) -> tuple[Colour, ...]:
    """Colours from their hexadecimal forms ``rrggbb``, separated by spaces."""
    return tuple((r, g, b) for r, g, b in map(bytes.fromhex, colours.split()))


def rgb(colour: Colour) -> tuple[int, int, int]:
    """The colour rounded and clipped to 0..255."""
    r, g, b = (min(max(round(float(c)), 0), 255) for c in colour)
    return r, g, b


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """a at t = 0, b at t = 1."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def times(colour: Colour, factor: float) -> Colour:
    """The colour made brighter or darker."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def ellipse(
    centre: Sequence[float] | Points, rx: float, ry: float, start: float = 0, stop: float = 360, n: int = 20
) -> Points:
    """``n`` points on an ellipse, or on its arc from ``start`` to ``stop`` (degrees, from +x towards +y)."""
    angle = np.linspace(np.radians(start), np.radians(stop), n, endpoint=stop - start < 360)
    return np.stack([centre[0] + rx * np.cos(angle), centre[1] + ry * np.sin(angle)], -1)


def noise(rng: np.random.Generator, height: int, width: int, cells: int, octaves: int = 4) -> NDArray[np.float32]:
    """Smooth noise of about −1..1, float32 (height, width); the coarsest octave has ``cells`` features across."""
    out = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        across = cells << octave
        grid = rng.uniform(-1, 1, (max(2, across * height // width), max(2, across))).astype(np.float32)
        out += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(0.55 * 0.55**octave)
    return out


def _fixed(points: Points) -> NDArray[np.int32]:
    return np.round(np.clip(points, -60000, 60000) * (1 << _SHIFT)).astype(np.int32)
