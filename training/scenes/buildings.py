"""Houses along both sides of a street: walls in perspective, windows, shops, cornices, chimneys, lamps."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from isnet_trt.training.scenes.canvas import Colour, Kind, mix, times
from isnet_trt.training.scenes.street import FACADES, NEAR, Street
from isnet_trt.training.scenes.view import View

_LAMPLIGHT: Colour = (255, 214, 128)
Box = tuple[float, float, float, float]
"""A rectangle on the street wall: z0, z1, y0, y1."""


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
            house = _house(side, street.wall(side), (z, z + length), tall, rng)
            if rng.random() > 0.08 and length > 2:
                houses.append(house)
            z += length + (float(rng.uniform(1, 7)) if rng.random() < 0.15 else 0.0)
    return sorted(houses, key=lambda h: -h.z0)


def _house(side: int, x: float, span: tuple[float, float], tall: int, rng: np.random.Generator) -> House:
    base, jitter = FACADES[int(rng.integers(len(FACADES)))], float(rng.normal(0, 12))
    wall = (base[0] + jitter, base[1] + jitter, base[2] + jitter)
    trim = mix(wall, (245, 240, 228), 0.65) if rng.random() < 0.7 else times(wall, 0.62)
    storeys = max(1, tall + int(rng.integers(-2, 4)))
    return House(side, x, *span, storeys, float(rng.uniform(2.8, 3.6)), wall, trim, bool(rng.random() < 0.55))


def draw_house(view: View, house: House, rng: np.random.Generator) -> None:
    """Draw the gable towards the camera, the wall along the street, and what is on them; behind the camera nothing."""
    if house.z1 > NEAR + 0.5:
        _Drawing(view, house, rng).draw()


class _Drawing:
    """The drawing of one house; ``near`` is the depth of its nearest visible corner."""

    def __init__(self, view: View, house: House, rng: np.random.Generator) -> None:
        self.view, self.house, self.rng = view, house, rng
        self.near = max(house.z0, NEAR)

    def draw(self) -> None:
        if self.house.z0 > NEAR:
            self._chimneys()
            self._gable()
        self._wall()
        self._windows()
        if self.house.shop:
            self._shop()
        else:
            self._door()

    def _facing(self, colour: Colour) -> Colour:
        """``colour`` on a surface that faces the camera."""
        return self.view.light.shade(colour, self.near)

    def _along(self, colour: Colour) -> Colour:
        """``colour`` on the wall along the street."""
        return self.view.light.shade(colour, self.near, -self.house.side)

    def _fill(self, boxes: Iterable[Box], colour: Colour, kind: Kind | None = None, smooth: bool = False) -> None:
        """Fill rectangles on the street wall; parts behind the camera are cut off."""
        x, spans = self.house.x, ((max(z0, NEAR), z1, y0, y1) for z0, z1, y0, y1 in boxes if z1 > NEAR)
        quads = [[(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)] for z0, z1, y0, y1 in spans]
        self.view.fill(quads, colour, kind, smooth)

    def _chimneys(self) -> None:
        house, rng = self.house, self.rng
        for _ in range(int(rng.integers(0, 3))):
            x, z = house.x + house.side * float(rng.uniform(0.5, 4)), float(rng.uniform(house.z0, house.z1))
            top, other = house.height + float(rng.uniform(0.8, 1.8)), x + house.side * 0.9
            tone = self.view.light.shade(times(house.wall, 0.7), z)
            self.view.fill([[(x, 0, z), (other, 0, z), (other, top, z), (x, top, z)]], tone, Kind.BUILDING)

    def _gable(self) -> None:
        house, rng = self.house, self.rng
        x, far, top = house.x, house.x + house.side * 13, house.height
        outline = [(x, 0.0), (far, 0.0), (far, top), (x, top)]
        if rng.random() < 0.35:
            outline[3:3] = [((x + far) / 2, top + 3.5)]
        colour = self._facing(times(house.wall, 0.86))
        self.view.fill([[(a, b, house.z0) for a, b in outline]], colour, Kind.BUILDING)
        windows = []
        for storey in range(1, house.storeys):
            for offset in (2.5, 6.5, 10.5):
                if rng.random() < 0.55:
                    a, b = x + house.side * offset, house.storey * storey + 0.9
                    corners = ((a - 0.6, b), (a + 0.6, b), (a + 0.6, b + 1.5), (a - 0.6, b + 1.5))
                    windows.append([(*corner, house.z0) for corner in corners])
        self.view.fill(windows, self._facing((52, 60, 72)), smooth=True)

    def _wall(self) -> None:
        house = self.house
        for z0, z1 in itertools.pairwise(np.linspace(self.near, house.z1, 5)):
            tone = self.view.light.shade(house.wall, float(z0), -house.side)
            self._fill([(z0, z1, 0, house.height)], tone, Kind.BUILDING)
        cornice = (house.z0, house.z1, house.height - 0.5, house.height)
        heights = [house.storey * storey for storey in range(1, house.storeys)]
        bands = [(house.z0, house.z1, y - 0.1, y + 0.1) for y in heights]
        self._fill([cornice, *bands], self._along(house.trim))
        self._fill([(house.z0, house.z1, 0, 0.5)], self._along(times(house.wall, 0.6)))

    def _windows(self) -> None:
        """Rows of windows with frames; a glazing bar on the near ones, sills on some houses."""
        house, rng = self.house, self.rng
        count = max(1, int((house.z1 - house.z0) / float(rng.uniform(2.0, 3.4))))
        bay = (house.z1 - house.z0) / count
        wide, tall, sills = bay * float(rng.uniform(0.4, 0.62)), float(rng.uniform(0.45, 0.68)), rng.random() < 0.5
        heights = [house.storey * storey + 0.85 for storey in range(1 if house.shop else 0, house.storeys)]
        middles = [house.z0 + bay * (i + 0.5) for i in range(count)]
        boxes = [(z - wide / 2, z + wide / 2, y, y + house.storey * tall) for y in heights for z in middles]
        trim, camera = self._along(house.trim), self.view.camera
        self._fill([(a - 0.12, b + 0.12, c - 0.14, d + 0.12) for a, b, c, d in boxes], trim)
        self._panes(boxes)
        bars = [[(house.x, y, (a + b) / 2) for y in (c, d)] for a, b, c, d in boxes if NEAR < a < 30]
        self.view.canvas.lines([camera.project(bar) for bar in bars], trim, 0.07 * camera.scale(max(self.near, 6)))
        if sills:
            colour = self._along(times(house.trim, 0.8))
            self._fill([(a - 0.22, b + 0.22, c - 0.26, c - 0.12) for a, b, c, _ in boxes], colour)

    def _panes(self, boxes: list[Box]) -> None:
        """Dark panes that reflect the sky in their upper half, and some that are lit."""
        light, rng = self.view.light, self.rng
        glass = mix((38, 46, 58), light.zenith, float(rng.uniform(0.05, 0.45)))
        lit = rng.random(len(boxes)) < light.lit
        self._fill(boxes, self._facing(glass), smooth=True)
        warm = mix(_LAMPLIGHT, (255, 246, 214), float(rng.random()))
        self._fill([box for box, on in zip(boxes, lit, strict=True) if on], self._facing(warm))
        dark = [box for box, on in zip(boxes, lit, strict=True) if not on]
        gleam = self._facing(mix(glass, light.horizon, 0.25))
        self._fill([(a, (a + b) / 2, (c + d) / 2, d) for a, b, c, d in dark], gleam)

    def _door(self) -> None:
        """A door with its frame and a lamp beside it."""
        house, rng = self.house, self.rng
        z = house.z0 + (house.z1 - house.z0) * float(rng.uniform(0.3, 0.7))
        door = (float(rng.uniform(40, 150)), float(rng.uniform(30, 90)), float(rng.uniform(30, 90)))
        self._fill([(z - 0.7, z + 0.7, 0, 2.5)], self._along(house.trim))
        self._fill([(z - 0.55, z + 0.55, 0, 2.3)], self._along(door))
        self._lamp(z + 1.0)

    def _lamp(self, z: float) -> None:
        if z < NEAR + 0.5:
            return
        view = self.view
        at, size = view.camera.project((self.house.x - self.house.side * 0.25, 2.5, z)), view.camera.scale(z)
        view.canvas.disc(at, 0.14 * size, (250, 240, 205), Kind.BUILDING)
        if view.light.lit >= 0.3:
            view.canvas.glow(at, 1.6 * size, _LAMPLIGHT, 0.75)

    def _shop(self) -> None:
        """A shop front: window panes, a sign above them, and on some an awning."""
        house, rng, light = self.house, self.rng, self.view.light
        sign = self._random_colour(30, 220)
        glass = _LAMPLIGHT if rng.random() < light.lit + 0.15 else mix((50, 60, 70), light.horizon, 0.2)
        starts = np.arange(house.z0 + 0.4, house.z1 - 1.5, 2.9)
        panes = [(z + 0.15, min(z + 2.6, house.z1 - 0.3), 0.5, 2.4) for z in starts]
        z0, z1, top = house.z0 + 0.2, house.z1 - 0.2, house.storey - 0.15
        self._fill([(z0, z1, 0, top)], self._along(times(sign, 0.55)))
        self._fill(panes, self._facing(glass), smooth=True)
        self._fill([(z0, z1, 2.5, top)], self._along(sign))
        if rng.random() < 0.6:
            self._awnings(panes)

    def _awnings(self, panes: list[Box]) -> None:
        """Striped cloth that slopes out over the pavement; part of the building."""
        house, cloth = self.house, self._random_colour(60, 230)
        x, reach = house.x, house.x - house.side * 1.1
        for z0, z1, _, _ in panes:
            if z1 <= NEAR + 0.2:
                continue
            for i, (a, b) in enumerate(itertools.pairwise(np.linspace(max(z0, NEAR), z1, 6))):
                tone = self.view.light.shade(cloth if i % 2 == 1 else (240, 236, 226), float(a), -house.side)
                self.view.fill([[(x, 2.75, a), (x, 2.75, b), (reach, 2.25, b), (reach, 2.25, a)]], tone, Kind.BUILDING)

    def _random_colour(self, low: float, high: float) -> Colour:
        r, g, b = self.rng.uniform(low, high, 3)
        return float(r), float(g), float(b)
