"""The street itself: ground, markings, the texture of all surfaces, and what closes the view at the street's end.

World metres: x to the right of the camera, y up, z ahead.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isnet_trt.opencv import cv2
from isnet_trt.training.scenes.canvas import Colour, Kind, mix, noise, palette, times
from isnet_trt.training.scenes.view import View

NEAR, FAR = 1.2, 400.0
FACADES = palette("c46a52 d6b28a e2d6be aab2ba 945c4c ce966e b6c0ac 8c98aa e6c496 a0786c cdcdd0 78625c")
_STONE = palette("b2aca3 beb8b0 bca894 a4a3a8")
_ASPHALT = palette("545458 46484e 5e5b58 585458")
Blocks = list[tuple[float, float]]
"""Spans of depth (z0, z1) in which no lengthwise marking is painted."""


@dataclass(frozen=True)
class Street:
    """Road from ``left`` to ``right`` (x, m), pavements to ``wall_left`` / ``wall_right``; a side street or None."""

    left: float
    right: float
    wall_left: float
    wall_right: float
    junction: tuple[float, float] | None

    def kerb(self, side: int) -> float:
        return self.right if side > 0 else self.left

    def wall(self, side: int) -> float:
        return self.wall_right if side > 0 else self.wall_left

    @property
    def centre(self) -> float:
        return (self.left + self.right) / 2


def random_street(rng: np.random.Generator) -> Street:
    """Two lanes with or without parking, pavements of 2.5 to 5.5 m; the camera stands on the road or on a pavement."""
    half = float(rng.uniform(3.4, 6.2))
    centre = float(rng.uniform(-0.9, 0.9)) * half
    widths = rng.uniform(2.6, 5.5, 2)
    junction = (float(rng.uniform(11, 26)), float(rng.uniform(6, 9))) if rng.random() < 0.4 else None
    span = (junction[0], junction[0] + junction[1]) if junction else None
    return Street(centre - half, centre + half, centre - half - widths[0], centre + half + widths[1], span)


def draw_ground(view: View, street: Street, rng: np.random.Generator) -> None:
    """Draw pavement everywhere below the horizon, the road and a side street over it, kerbs between them."""
    stone, asphalt = _pick(rng, _STONE), _pick(rng, _ASPHALT)
    _strip(view, (-300, 300), stone, Kind.PAVEMENT)
    _strip(view, (street.left, street.right), asphalt, Kind.ROAD)
    for side in (-1, 1):
        edge = street.kerb(side)
        _strip(view, (edge, edge + side * 0.22), mix(stone, (225, 222, 215), 0.6), Kind.PAVEMENT)
    if street.junction:
        z0, z1 = street.junction
        view.canvas.fill([view.camera.ground(-300, 300, z0, z1)], view.light.shade(asphalt, (z0 + z1) / 2), Kind.ROAD)


def _strip(view: View, x: tuple[float, float], colour: Colour, kind: Kind) -> None:
    """Fill a strip along the street, in steps of depth so that haze grows along it."""
    for z0, z1 in itertools.pairwise((NEAR / 2, 6, 9, 13, 19, 28, 45, 80, FAR)):
        view.canvas.fill([view.camera.ground(*x, z0, z1)], view.light.shade(colour, z0 if z0 > 6 else 6), kind)


def draw_markings(view: View, street: Street, rng: np.random.Generator) -> None:
    """Draw centre dashes, edge lines, a zebra crossing, arrows and parking bays, worn by a random amount."""
    white = mix((242, 240, 232), (150, 150, 148), float(rng.uniform(0, 0.35)))
    centre_paint = (232, 190, 74) if rng.random() < 0.15 else white
    blocks = [street.junction] if street.junction else []
    if rng.random() < 0.65:
        z = float(rng.uniform(4.5, 11)) if not street.junction else street.junction[0] - 5
        blocks.append((z - 1.2, z + 4.2))
        for x in np.arange(street.left + 0.4, street.right - 0.7, 1.1):  # the zebra crossing
            _paint(view, _box(x, x + 0.6, z, z + 3.2), white)
    _dashes(view, street.centre, centre_paint, rng, blocks)
    if rng.random() < 0.6:
        _edge_lines(view, street, white, blocks, bays=rng.random() < 0.5)
    if rng.random() < 0.45:
        lane = (street.right - street.left) / 4
        x = street.centre + lane * float(rng.choice([-1, 1]))
        _arrow(view, x, float(rng.uniform(4, 10)), white)


def _paint(view: View, corners: ArrayLike, colour: Colour) -> None:
    """Fill a marking whose ``corners`` are (x, z)."""
    x, z = np.asarray(corners, np.float64).T
    outline = np.stack([x, np.zeros(len(x)), np.maximum(z, NEAR / 2)], -1)
    view.fill([outline], view.light.shade(colour, float(outline[:, 2].mean())), Kind.MARKING)


def _box(x0: float, x1: float, z0: float, z1: float) -> list[tuple[float, float]]:
    return [(x0, z0), (x1, z0), (x1, z1), (x0, z1)]


def _blocked(z0: float, z1: float, blocks: Blocks) -> bool:
    return any(z0 < b and z1 > a for a, b in blocks)


def _dashes(view: View, centre: float, colour: Colour, rng: np.random.Generator, blocks: Blocks) -> None:
    length, gap, width = float(rng.uniform(2, 4)), float(rng.uniform(1.5, 4)), float(rng.uniform(0.1, 0.16))
    if rng.random() < 0.2:
        gap = 0.0
    for z in np.arange(float(rng.uniform(-2, 1)), 60, length + gap):
        if z + length > NEAR and not _blocked(z, z + length, blocks):
            _paint(view, _box(centre - width, centre + width, z, z + length), colour)


def _edge_lines(view: View, street: Street, colour: Colour, blocks: Blocks, bays: bool) -> None:
    """Lines along both kerbs; with ``bays`` they are the outer lines of parking bays."""
    for side in (-1, 1):
        x = street.kerb(side) - side * (2.2 if bays else 0.3)
        for z in np.arange(0, 50, 2.5):
            if not _blocked(z, z + 2.5, blocks):
                _paint(view, _box(x - 0.1, x + 0.1, z, z + 2.5), colour)
                if bays and z % 5 == 0:
                    kerb = street.kerb(side) - side * 0.1
                    _paint(view, _box(min(x, kerb), max(x, kerb), z, z + 0.14), colour)


def _arrow(view: View, x: float, z: float, colour: Colour) -> None:
    _paint(view, _box(x - 0.14, x + 0.14, z, z + 2.2), colour)
    _paint(view, [(x - 0.5, z + 2.0), (x + 0.5, z + 2.0), (x, z + 3.4)], colour)


def surface_texture(view: View, street: Street, rng: np.random.Generator) -> None:
    """Multiply asphalt, stone and brick grain into ground and walls, in their own perspective, fading with distance."""
    canvas, camera, tile = view.canvas, view.camera, _grain_tile(rng)
    y = np.arange(canvas.height, dtype=np.float32)[:, None] - np.float32(camera.horizon)
    x = np.arange(canvas.width, dtype=np.float32)[None] - np.float32(camera.x)
    # A pixel shows the ground or the wall, whichever its ray meets first.
    wall_x = np.where(x < 0, street.wall_left, street.wall_right)
    wall_z = np.minimum(wall_x * camera.focal / np.where(x == 0, 1, x), 90)
    ground_z = np.clip(camera.focal * camera.height / np.maximum(y, 0.5), 0.1, 90)
    ground = (y > 0) & (ground_z < wall_z)
    z = np.where(ground, ground_z, wall_z).astype(np.float32)
    u = np.where(ground, x * z / camera.focal, z).astype(np.float32) * 40
    v = np.where(ground, z, y * z / camera.focal).astype(np.float32) * 40
    grain = cv2.remap(tile, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    asphalt, paving = canvas.labels <= Kind.MARKING, canvas.labels == Kind.PAVEMENT
    surface = np.where(asphalt, grain[..., 0], np.where(paving, grain[..., 1], grain[..., 2]))
    fade = np.exp(z * np.float32(-0.05))
    level = np.where((canvas.labels == Kind.SKY) | (canvas.smooth > 0), 0, fade) * (surface.astype(np.float32) - 200)
    texture = cv2.merge([np.clip(200 + level, 0, 255).astype(np.uint8)] * 3)
    canvas.image[:] = cv2.multiply(canvas.image, texture, scale=1 / 200)


def _grain_tile(rng: np.random.Generator) -> np.ndarray:
    """A tile of 512×512 (40 pixels a metre) around 200 with three channels: asphalt, paving slabs, brickwork."""
    size = 512
    stains = 20 * noise(rng, size, size, 6, 4)
    asphalt = stains + rng.normal(0, 10, (size, size)).astype(np.float32)
    slabs, bricks = stains.copy(), stains.copy()
    joint = int(rng.choice([20, 24, 32]))
    slabs += np.kron(rng.normal(0, 7, (size // joint + 1,) * 2), np.ones((joint, joint)))[:size, :size]
    for edge in (0, 1):
        slabs[edge::joint] -= 38
        slabs[:, edge::joint] -= 38
    bricks[::10] -= 24
    for row in range(0, size, 20):
        bricks[row : row + 10, ::22] -= 20
        bricks[row + 10 : row + 20, 11::22] -= 20
    return np.clip(200 + np.stack([asphalt, slabs, bricks], -1), 90, 255).astype(np.uint8)


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...], spread: float = 9) -> Colour:
    base, jitter = colours[int(rng.integers(len(colours)))], rng.normal(0, spread, 2)
    return (base[0] + jitter[0] + jitter[1], base[1] + jitter[0], base[2] + jitter[0] - jitter[1])


def draw_backdrop(view: View, rng: np.random.Generator) -> None:
    """Draw what stands at the end of the street: trees, on most streets behind a hazy row of houses."""
    z, light = 120.0, view.light
    if rng.random() < 0.75:
        for x in np.arange(-260, 260, 14.0):
            tall = float(rng.uniform(5, 22))
            colour = mix(_pick(rng, FACADES), light.horizon, float(rng.uniform(0.35, 0.6)))
            outline = [(x, 0, z), (x + 15, 0, z), (x + 15, tall, z), (x, tall, z)]
            view.fill([outline], light.shade(colour, z / 3), Kind.BUILDING)
    green = mix((70, 104, 58), light.horizon, 0.3)
    for x in np.arange(-260, 260, 9.0):
        if rng.random() < 0.45:
            tone = light.shade(times(green, float(rng.uniform(0.8, 1.15))), 40)
            radius = view.camera.scale(z) * float(rng.uniform(4, 8))
            view.canvas.disc(view.camera.project((x, 2.0, z - 10)), radius, tone, Kind.TREE)
