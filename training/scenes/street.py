"""The street itself: ground, markings, buildings on both sides, and what closes the view at its end.

World metres: x to the right of the camera, y up, z ahead. A `Street` holds what other parts need to place things.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np

from isnet_trt.training.scenes.canvas import Camera, Canvas, Colour, Kind, Points, mix, noise, times
from isnet_trt.training.scenes.light import Light

NEAR, FAR = 1.2, 400.0


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


def draw_ground(canvas: Canvas, camera: Camera, street: Street, light: Light, rng: np.random.Generator) -> None:
    """Pavement everywhere below the horizon, the road and a side street over it, kerbs between them."""
    stone = _pick(rng, ((178, 172, 163), (190, 184, 176), (188, 168, 148), (164, 163, 168)))
    asphalt = _pick(rng, ((84, 84, 88), (70, 72, 78), (94, 91, 88), (88, 84, 88)))
    kerb = mix(stone, (225, 222, 215), 0.6)
    _bands(canvas, camera, (-300, 300), stone, Kind.PAVEMENT, light)
    _bands(canvas, camera, (street.left, street.right), asphalt, Kind.ROAD, light)
    for side in (-1, 1):
        edge = street.kerb(side)
        _bands(canvas, camera, (edge, edge + side * 0.22), kerb, Kind.PAVEMENT, light)
    if street.junction:
        z0, z1 = street.junction
        canvas.fill([camera.ground(-300, 300, z0, z1)], light.shade(asphalt, (z0 + z1) / 2), Kind.ROAD)


def _bands(canvas: Canvas, camera: Camera, x: tuple[float, float], colour: Colour, kind: Kind, light: Light) -> None:
    """A strip along the street, in steps of depth so that haze grows along it."""
    edges = (NEAR / 2, 6, 9, 13, 19, 28, 45, 80, FAR)
    for z0, z1 in itertools.pairwise(edges):
        canvas.fill([camera.ground(*x, z0, z1)], light.shade(colour, z0 if z0 > 6 else 6), kind)


def draw_markings(canvas: Canvas, camera: Camera, street: Street, light: Light, rng: np.random.Generator) -> None:
    """Centre dashes, edge lines, a zebra crossing, arrows and parking bays; worn by a random amount."""
    white = mix((242, 240, 232), (150, 150, 148), float(rng.uniform(0, 0.35)))
    paint = (232, 190, 74) if rng.random() < 0.15 else white
    blocks = [street.junction] if street.junction else []
    if rng.random() < 0.65:
        z = float(rng.uniform(4.5, 11)) if not street.junction else street.junction[0] - 5
        blocks.append((z - 1.2, z + 4.2))
        _zebra(canvas, camera, street, white, light, z)
    _dashes(canvas, camera, street, paint, light, rng, blocks)
    if rng.random() < 0.6:
        _edges(canvas, camera, street, white, light, blocks, bays=rng.random() < 0.5)
    if rng.random() < 0.45:
        lane = (street.right - street.left) / 4
        x = street.centre + lane * float(rng.choice([-1, 1]))
        _arrow(canvas, camera, x, float(rng.uniform(4, 10)), white, light)


def _paint(canvas: Canvas, camera: Camera, corners: Points, colour: Colour, light: Light) -> None:
    flat = np.stack([corners[:, 0], np.zeros(len(corners)), np.maximum(corners[:, 1], NEAR / 2)], -1)
    canvas.fill([camera.project(flat)], light.shade(colour, float(flat[:, 2].mean())), Kind.MARKING)


def _box(x0: float, x1: float, z0: float, z1: float) -> Points:
    return np.array([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], np.float64)


def _blocked(z0: float, z1: float, blocks: list) -> bool:
    return any(z0 < b and z1 > a for a, b in blocks)


def _zebra(canvas: Canvas, camera: Camera, street: Street, colour: Colour, light: Light, z: float) -> None:
    for x in np.arange(street.left + 0.4, street.right - 0.7, 1.1):
        _paint(canvas, camera, _box(x, x + 0.6, z, z + 3.2), colour, light)


def _dashes(
    canvas: Canvas,
    camera: Camera,
    street: Street,
    colour: Colour,
    light: Light,
    rng: np.random.Generator,
    blocks: list,
) -> None:
    length, gap, width = float(rng.uniform(2, 4)), float(rng.uniform(1.5, 4)), float(rng.uniform(0.1, 0.16))
    if rng.random() < 0.2:
        gap = 0.0
    for z in np.arange(float(rng.uniform(-2, 1)), 60, length + gap):
        if z + length > NEAR and not _blocked(z, z + length, blocks):
            _paint(canvas, camera, _box(street.centre - width, street.centre + width, z, z + length), colour, light)


def _edges(
    canvas: Canvas, camera: Camera, street: Street, colour: Colour, light: Light, blocks: list, bays: bool
) -> None:
    inset = 2.2 if bays else 0.3
    for side in (-1, 1):
        x = street.kerb(side) - side * inset
        for z in np.arange(0, 50, 2.5):
            if not _blocked(z, z + 2.5, blocks):
                _paint(canvas, camera, _box(x - 0.1, x + 0.1, z, z + 2.5), colour, light)
                if bays and z % 5 == 0:
                    kerb = street.kerb(side) - side * 0.1
                    _paint(canvas, camera, _box(min(x, kerb), max(x, kerb), z, z + 0.14), colour, light)


def _arrow(canvas: Canvas, camera: Camera, x: float, z: float, colour: Colour, light: Light) -> None:
    _paint(canvas, camera, _box(x - 0.14, x + 0.14, z, z + 2.2), colour, light)
    _paint(canvas, camera, np.array([(x - 0.5, z + 2.0), (x + 0.5, z + 2.0), (x, z + 3.4)]), colour, light)


def surface_texture(canvas: Canvas, camera: Camera, street: Street, rng: np.random.Generator) -> None:
    """Multiply asphalt, stone and brick grain into ground and walls, in their own perspective, fading with distance."""
    tile = _grain_tile(rng)
    height, width = canvas.height, canvas.width
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(camera.horizon)
    x = np.arange(width, dtype=np.float32)[None] - np.float32(camera.x)
    wall_z = np.minimum(
        np.where(x < 0, street.wall_left, street.wall_right) * camera.focal / np.where(x == 0, 1, x), 90
    )
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


def draw_backdrop(canvas: Canvas, camera: Camera, light: Light, rng: np.random.Generator) -> None:
    """What stands at the end of the street: a hazy row of houses, or of trees, or hills of trees."""
    z = 120.0
    if rng.random() < 0.75:
        for x in np.arange(-260, 260, 14.0):
            tall = float(rng.uniform(5, 22))
            colour = mix(_pick(rng, FACADES), light.horizon, float(rng.uniform(0.35, 0.6)))
            box = np.array([(x, 0, z), (x + 15, 0, z), (x + 15, tall, z), (x, tall, z)])
            canvas.fill([camera.project(box)], light.shade(colour, z / 3), Kind.BUILDING)
    green = mix((70, 104, 58), light.horizon, 0.3)
    for x in np.arange(-260, 260, 9.0):
        if rng.random() < 0.45:
            centre = camera.project(np.array([x, 2.0, z - 10]))
            tone = light.shade(times(green, float(rng.uniform(0.8, 1.15))), 40)
            canvas.disc(centre, camera.scale(z) * float(rng.uniform(4, 8)), tone, Kind.TREE)


FACADES: tuple[Colour, ...] = (
    (196, 106, 82),
    (214, 178, 138),
    (226, 214, 190),
    (170, 178, 186),
    (148, 92, 76),
    (206, 150, 110),
    (182, 192, 172),
    (140, 152, 170),
    (230, 196, 150),
    (160, 120, 108),
    (205, 205, 208),
    (120, 98, 92),
)
