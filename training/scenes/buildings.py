"""Houses along both sides of a street: walls in perspective, windows, shops, cornices, chimneys, lamps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from isnet_trt.training.scenes.canvas import Camera, Canvas, Colour, Kind, Points, mix, times
from isnet_trt.training.scenes.light import Light
from isnet_trt.training.scenes.street import FACADES, NEAR, Street

_LAMPLIT: Colour = (255, 214, 128)


@dataclass(frozen=True)
class House:
    """One house: side −1 / 1, wall at ``x``, from depth ``z0`` to ``z1`` (m), storeys, colours."""

    side: int
    x: float
    z0: float
    z1: float
    storeys: int
    storey: float
    wall: Colour
    trim: Colour
    shop: bool

    @property
    def height(self) -> float:
        return self.storeys * self.storey + 0.8


def random_houses(street: Street, rng: np.random.Generator) -> list[House]:
    """Houses of both sides, farthest first; none stands in the side street, some plots are left open."""
    houses = []
    for side in (-1, 1):
        z, tall = float(rng.uniform(-12, 0)), int(rng.integers(2, 6))
        while z < 110:
            length = float(rng.uniform(8, 17))
            if street.junction and z < street.junction[1] + 2 and z + length > street.junction[0] - 2:
                if z > street.junction[0] - 6:
                    z = street.junction[1] + 2.5
                else:
                    length = street.junction[0] - 2.5 - z
            house = _house(side, street.wall(side), z, z + length, tall, rng)
            if rng.random() > 0.08 and length > 2:
                houses.append(house)
            z += length + (float(rng.uniform(1, 7)) if rng.random() < 0.15 else 0.0)
    return sorted(houses, key=lambda h: -h.z0)


def _house(side: int, x: float, z0: float, z1: float, tall: int, rng: np.random.Generator) -> House:
    base, jitter = FACADES[int(rng.integers(len(FACADES)))], float(rng.normal(0, 12))
    wall = (base[0] + jitter, base[1] + jitter, base[2] + jitter)
    trim = mix(wall, (245, 240, 228), 0.65) if rng.random() < 0.7 else times(wall, 0.62)
    storeys = max(1, tall + int(rng.integers(-2, 4)))
    return House(side, x, z0, z1, storeys, float(rng.uniform(2.8, 3.6)), wall, trim, bool(rng.random() < 0.55))


def draw_house(canvas: Canvas, camera: Camera, house: House, light: Light, rng: np.random.Generator) -> None:
    """The gable towards the camera, the wall along the street, and what is on them. Behind the camera: nothing."""
    if house.z1 <= NEAR + 0.5:
        return
    z = max(house.z0, NEAR)
    facing = light.shade(times(house.wall, 0.86), z)
    far = house.x + house.side * 13
    if house.z0 > NEAR:
        _chimneys(canvas, camera, house, light, rng)
        gable = [(house.x, 0), (far, 0), (far, house.height), (house.x, house.height)]
        if rng.random() < 0.35:
            gable[3:3] = [((house.x + far) / 2, house.height + 3.5)]
        outline = np.array([(x, y, house.z0) for x, y in gable])
        canvas.fill([camera.project(outline)], facing, Kind.BUILDING)
        _gable_windows(canvas, camera, house, light, rng)
    _wall(canvas, camera, house, light)
    _windows(canvas, camera, house, light, rng)
    _ground_floor(canvas, camera, house, light, rng)


def _quads(house: House, boxes: list[tuple[float, float, float, float]], camera: Camera) -> list[Points]:
    """Rectangles on the street wall, each (z0, z1, y0, y1), in pixels; parts behind the camera are cut off."""
    quads = []
    for z0, z1, y0, y1 in boxes:
        if z1 > NEAR:
            z0 = max(z0, NEAR)
            corners = [(house.x, y0, z0), (house.x, y0, z1), (house.x, y1, z1), (house.x, y1, z0)]
            quads.append(camera.project(np.array(corners)))
    return quads


def _wall(canvas: Canvas, camera: Camera, house: House, light: Light) -> None:
    edges = np.linspace(max(house.z0, NEAR), house.z1, 5)
    for z0, z1 in itertools.pairwise(edges):
        tone = light.shade(house.wall, float(z0), -house.side)
        canvas.fill(_quads(house, [(z0, z1, 0, house.height)], camera), tone, Kind.BUILDING)
    z = max(house.z0, NEAR)
    bands = [(house.z0, house.z1, house.height - 0.5, house.height)]
    bands += [(house.z0, house.z1, house.storey * s - 0.1, house.storey * s + 0.1) for s in range(1, house.storeys)]
    canvas.fill(_quads(house, bands, camera), light.shade(house.trim, z, -house.side))
    foot = _quads(house, [(house.z0, house.z1, 0, 0.5)], camera)
    canvas.fill(foot, light.shade(times(house.wall, 0.6), z, -house.side))


def _chimneys(canvas: Canvas, camera: Camera, house: House, light: Light, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(0, 3))):
        x, z = house.x + house.side * float(rng.uniform(0.5, 4)), float(rng.uniform(house.z0, house.z1))
        top = house.height + float(rng.uniform(0.8, 1.8))
        box = np.array([(x, 0, z), (x + house.side * 0.9, 0, z), (x + house.side * 0.9, top, z), (x, top, z)])
        canvas.fill([camera.project(box)], light.shade(times(house.wall, 0.7), z), Kind.BUILDING)


def _windows(canvas: Canvas, camera: Camera, house: House, light: Light, rng: np.random.Generator) -> None:
    """Rows of windows with frames; dark or sky-reflecting panes, some lit, a glazing bar on the near ones."""
    bay = float(rng.uniform(2.0, 3.4))
    count = max(1, int((house.z1 - house.z0) / bay))
    bay = (house.z1 - house.z0) / count
    wide, tall, arch = bay * float(rng.uniform(0.4, 0.62)), float(rng.uniform(0.45, 0.68)), rng.random() < 0.5
    boxes = []
    for storey in range(1 if house.shop else 0, house.storeys):
        y = house.storey * storey + 0.85
        for i in range(count):
            z = house.z0 + bay * (i + 0.5)
            boxes.append((z - wide / 2, z + wide / 2, y, y + house.storey * tall))
    near = max(house.z0, NEAR)
    frames = [(a - 0.12, b + 0.12, c - 0.14, d + 0.12) for a, b, c, d in boxes]
    canvas.fill(_quads(house, frames, camera), light.shade(house.trim, near, -house.side))
    _panes(canvas, camera, house, boxes, light, rng)
    bars = [_bar(house, box, camera) for box in boxes if NEAR < box[0] < 30]
    canvas.lines(bars, light.shade(house.trim, near, -house.side), 0.07 * camera.scale(max(near, 6)))
    if arch:
        sills = [(a - 0.22, b + 0.22, c - 0.26, c - 0.12) for a, b, c, _ in boxes]
        canvas.fill(_quads(house, sills, camera), light.shade(times(house.trim, 0.8), near, -house.side))


def _bar(house: House, box: tuple[float, float, float, float], camera: Camera) -> Points:
    middle = (box[0] + box[1]) / 2
    return camera.project(np.array([(house.x, box[2], middle), (house.x, box[3], middle)]))


def _panes(canvas: Canvas, camera: Camera, house: House, boxes: list, light: Light, rng: np.random.Generator) -> None:
    near = max(house.z0, NEAR)
    glass = mix((38, 46, 58), light.zenith, float(rng.uniform(0.05, 0.45)))
    lit = rng.random(len(boxes)) < light.lit
    canvas.fill(_quads(house, boxes, camera), light.shade(glass, near), smooth=True)
    warm = [box for box, on in zip(boxes, lit, strict=True) if on]
    canvas.fill(_quads(house, warm, camera), light.shade(mix(_LAMPLIT, (255, 246, 214), float(rng.random())), near))
    dark = [box for box, on in zip(boxes, lit, strict=True) if not on]
    gleam = [(a, (a + b) / 2, (c + d) / 2, d) for a, b, c, d in dark]
    canvas.fill(_quads(house, gleam, camera), light.shade(mix(glass, light.horizon, 0.25), near))


def _gable_windows(canvas: Canvas, camera: Camera, house: House, light: Light, rng: np.random.Generator) -> None:
    glass = light.shade((52, 60, 72), house.z0)
    quads = []
    for storey in range(1, house.storeys):
        for offset in (2.5, 6.5, 10.5):
            if rng.random() < 0.55:
                x, y = house.x + house.side * offset, house.storey * storey + 0.9
                corners = [(x - 0.6, y), (x + 0.6, y), (x + 0.6, y + 1.5), (x - 0.6, y + 1.5)]
                quads.append(camera.project(np.array([(a, b, house.z0) for a, b in corners])))
    canvas.fill(quads, glass, smooth=True)


def _ground_floor(canvas: Canvas, camera: Camera, house: House, light: Light, rng: np.random.Generator) -> None:
    """A shop front with sign and awning, or a door with a lamp above it."""
    near, side = max(house.z0, NEAR), -house.side
    length = house.z1 - house.z0
    if not house.shop:
        z = house.z0 + length * float(rng.uniform(0.3, 0.7))
        door = (float(rng.uniform(40, 150)), float(rng.uniform(30, 90)), float(rng.uniform(30, 90)))
        canvas.fill(_quads(house, [(z - 0.7, z + 0.7, 0, 2.5)], camera), light.shade(house.trim, near, side))
        canvas.fill(_quads(house, [(z - 0.55, z + 0.55, 0, 2.3)], camera), light.shade(door, near, side))
        _lamp(canvas, camera, house, z + 1.0, light)
        return
    sign = _any_colour(rng, 30, 220)
    glass = _LAMPLIT if rng.random() < light.lit + 0.15 else mix((50, 60, 70), light.horizon, 0.2)
    panes = [(z + 0.15, min(z + 2.6, house.z1 - 0.3), 0.5, 2.4) for z in np.arange(house.z0 + 0.4, house.z1 - 1.5, 2.9)]
    top = house.storey - 0.15
    canvas.fill(
        _quads(house, [(house.z0 + 0.2, house.z1 - 0.2, 0, top)], camera), light.shade(times(sign, 0.55), near, side)
    )
    canvas.fill(_quads(house, panes, camera), light.shade(glass, near), smooth=True)
    canvas.fill(_quads(house, [(house.z0 + 0.2, house.z1 - 0.2, 2.5, top)], camera), light.shade(sign, near, side))
    if rng.random() < 0.6:
        _awnings(canvas, camera, house, panes, light, rng)


def _awnings(canvas: Canvas, camera: Camera, house: House, panes: list, light: Light, rng: np.random.Generator) -> None:
    """Striped cloth that slopes out over the pavement; part of the building."""
    cloth = _any_colour(rng, 60, 230)
    reach = house.x - house.side * 1.1
    for z0, z1, _, _ in panes:
        edges = np.linspace(max(z0, NEAR), z1, 6)
        if z1 <= NEAR + 0.2:
            continue
        for i, (a, b) in enumerate(itertools.pairwise(edges)):
            strip = np.array([(house.x, 2.75, a), (house.x, 2.75, b), (reach, 2.25, b), (reach, 2.25, a)])
            tone = cloth if i % 2 else (240.0, 236.0, 226.0)
            canvas.fill([camera.project(strip)], light.shade(tone, float(a), -house.side), Kind.BUILDING)


def _any_colour(rng: np.random.Generator, low: float, high: float) -> Colour:
    r, g, b = rng.uniform(low, high, 3)
    return float(r), float(g), float(b)


def _lamp(canvas: Canvas, camera: Camera, house: House, z: float, light: Light) -> None:
    if z < NEAR + 0.5:
        return
    at, size = camera.project(np.array([house.x - house.side * 0.25, 2.5, z])), camera.scale(z)
    canvas.disc(at, 0.14 * size, (250, 240, 205), Kind.BUILDING)
    if light.lit >= 0.3:
        canvas.glow(at, 1.6 * size, _LAMPLIT, 0.75)
