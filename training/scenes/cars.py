"""Cars, vans and buses: two convex prisms (body and cabin) seen in true perspective, with wheels, glass and lamps.

Local coordinates of a vehicle in metres: u forwards, v to its left, y up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isnet_trt.training.scenes.canvas import Colour, Kind, Points, mix, palette, times
from isnet_trt.training.scenes.view import View

Profile = tuple[tuple[float, float], ...]
"""Outline of a side view, (u, y), anticlockwise when u points right."""


@dataclass(frozen=True)
class Model:
    """A type of vehicle: outlines of body and cabin, width, wheel positions and radius; ``boxy``: lamps sit higher."""

    body: Profile
    cabin: Profile
    width: float
    axles: tuple[float, ...]
    wheel: float
    boxy: bool = False

    @property
    def half_length(self) -> float:
        return max(abs(u) for u, _ in self.body)

    @property
    def is_bus(self) -> bool:
        return self.width > 2.3


MODELS = {
    "hatchback": Model(
        ((-1.9, 0.3), (1.9, 0.3), (1.92, 0.68), (1.1, 0.92), (-1.85, 0.95)),
        ((-1.85, 0.93), (1.1, 0.9), (0.35, 1.46), (-1.45, 1.5)),
        1.75,
        (-1.2, 1.2),
        0.32,
    ),
    "saloon": Model(
        ((-2.3, 0.3), (2.25, 0.3), (2.28, 0.66), (1.2, 0.9), (-2.25, 0.92)),
        ((-1.7, 0.9), (1.15, 0.88), (0.35, 1.4), (-1.0, 1.42)),
        1.8,
        (-1.4, 1.4),
        0.33,
    ),
    "estate": Model(
        ((-2.3, 0.32), (2.2, 0.32), (2.24, 0.72), (1.2, 0.98), (-2.28, 1.0)),
        ((-2.26, 0.98), (1.15, 0.96), (0.35, 1.58), (-2.0, 1.6)),
        1.85,
        (-1.4, 1.35),
        0.36,
    ),
    "van": Model(
        ((-2.5, 0.35), (2.4, 0.35), (2.45, 0.95), (1.75, 1.2), (-2.5, 1.2)),
        ((-2.5, 1.18), (1.75, 1.18), (1.1, 2.15), (-2.48, 2.2)),
        1.95,
        (-1.6, 1.55),
        0.36,
        True,
    ),
    "bus": Model(
        ((-5, 0.4), (5, 0.4), (5, 1.35), (-5, 1.35)),
        ((-5, 1.33), (5, 1.33), (4.95, 3.0), (-5, 3.0)),
        2.5,
        (-3.0, 3.1),
        0.48,
        True,
    ),
}
_PAINTS = palette("b22226 22428c e4e4e6 24262a 969aa0 e2b02c 286852 7896b0 c46028 622036 468296")
_GLASS: Colour = (40, 50, 62)
_WHEEL: tuple[tuple[float, Colour], ...] = ((1.0, (24, 24, 26)), (0.58, (158, 160, 166)), (0.2, (70, 70, 74)))
"""Tyre, rim and hub: share of the wheel's radius, and colour."""


@dataclass(frozen=True)
class Pose:
    """Pose of a vehicle: ground position and heading (radians, 0 = away from the camera, towards +z)."""

    x: float
    z: float
    heading: float

    def place(self, local: Points) -> Points:
        """Local (…, 3) u, v, y to world x, y, z."""
        u, v, y = local[..., 0], local[..., 1], local[..., 2]
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        return np.stack([self.x + u * sin - v * cos, y, self.z + u * cos + v * sin], -1)


class Car:
    """One vehicle to draw; everything random is decided when it is created."""

    def __init__(self, pose: Pose, rng: np.random.Generator) -> None:
        kind = str(rng.choice(list(MODELS), p=[0.3, 0.28, 0.2, 0.15, 0.07]))
        self.model, self.pose = MODELS[kind], pose
        paint = _PAINTS[int(rng.integers(len(_PAINTS)))]
        self.paint = times(paint, float(rng.uniform(0.85, 1.12)))
        self.taxi = kind in ("saloon", "estate") and rng.random() < 0.12

    @property
    def z(self) -> float:
        """Depth of its middle, in metres."""
        return self.pose.z

    @property
    def nearest(self) -> float:
        """Smallest depth (m) of any part."""
        sin, cos = np.sin(self.pose.heading), np.cos(self.pose.heading)
        return self.pose.z - (self.model.half_length * abs(cos) + self.model.width / 2 * abs(sin))

    def covers(self, x: float, z: float) -> bool:
        """Whether a person at (x, z) would stand inside the vehicle."""
        sin, cos = np.sin(self.pose.heading), np.cos(self.pose.heading)
        dx, dz = x - self.pose.x, z - self.pose.z
        along, across = abs(dx * sin + dz * cos), abs(dx * cos - dz * sin)
        return bool(along < self.model.half_length + 0.4 and across < self.model.width / 2 + 0.35)

    def draw(self, view: View) -> None:
        """Draw shadow, underside, body, cabin, wheels, lamps."""
        _Drawing(self, view).draw()


class _Drawing:
    """The drawing of one vehicle; points are local coordinates u, v, y in metres."""

    def __init__(self, car: Car, view: View) -> None:
        self.view, self.light, self.pose, self.model, self.car = view, view.light, car.pose, car.model, car
        self.half, self.scale = car.model.width / 2, view.camera.scale(car.pose.z)

    def _pixels(self, local: ArrayLike) -> Points:
        return self.view.camera.project(self.pose.place(np.asarray(local, np.float64)))

    def _fill(self, local: ArrayLike, colour: Colour, kind: Kind | None = None) -> None:
        self.view.canvas.fill([self._pixels(local)], colour, kind)

    def draw(self) -> None:
        half, ends = self.half, [u for u, _ in self.model.body]
        ground = [(u, v, 0.0) for u, v in _rect(min(ends) - 0.1, max(ends) + 0.1, -half - 0.1, half + 0.1)]
        self.view.canvas.darken(self._pixels(ground), 0.35, 0.12 * self.scale)
        half, low = half - 0.1, self.model.body[0][1] + 0.1
        for u in self.model.axles:
            self._fill([(u - 0.1, v, y) for v, y in _rect(-half, half, 0.0, low)], (20, 20, 22), Kind.CAR)
        self._prism(self.model.body, cabin=False)
        self._prism(self.model.cabin, cabin=True)
        self._wheels()
        self._ends()

    def _prism(self, profile: Profile, cabin: bool) -> None:
        """A convex solid: ``profile`` on both sides, a cabin leaning inwards, and the faces between them."""
        foot = profile[0][1] + 0.1
        outline = np.array([(u, self.half - (0.14 if cabin and y > foot else 0.0), y) for u, y in profile])
        mirrored, inside = outline * [1, -1, 1], outline.mean(0) * [1, 0, 1]
        for i, j in zip(range(len(profile)), [*range(1, len(profile)), 0], strict=True):
            quad = np.array([outline[i], outline[j], mirrored[j], mirrored[i]])
            glass = cabin and abs(outline[i, 2] - outline[j, 2]) > 0.2
            if self._face(quad, inside) and glass:
                middle = quad.mean(0)
                self._fill(middle + (quad - middle) * [0.8, 0.84, 0.8], mix(_GLASS, self.light.horizon, 0.28))
        for side in (mirrored, outline):
            if self._face(side, inside):
                self._side_windows(side) if cabin else self._side_line(side)

    def _face(self, outline: Points, inside: Points) -> bool:
        """Fill one face of a convex solid around ``inside`` if it is turned to the camera; True if so."""
        world, eye = self.pose.place(outline), np.array([0, self.view.camera.height, 0])
        normal, middle = _normal(world), world.mean(0)
        outwards = np.sign(np.dot(normal, middle - self.pose.place(inside)))
        if np.dot(normal * outwards, eye - middle) <= 0:
            return False
        self._fill(outline, self._tone(outline), Kind.CAR)
        return True

    def _tone(self, outline: Points) -> Colour:
        """The paint on a face: brighter if it faces upwards or the sun."""
        world = self.pose.place(outline)
        normal = _normal(world)
        x = float(normal[0]) * (1 if np.dot(normal, world.mean(0) - [0, 1.5, 0]) < 0 else -1)
        return self.light.shade(times(self.car.paint, 0.82 + 0.34 * abs(float(normal[1]))), self.pose.z, x)

    def _side_line(self, outline: Points) -> None:
        line = outline[[0, -1]].copy()
        line[:, 2] = self.model.body[0][1] + 0.22
        self.view.canvas.lines([self._pixels(line)], times(self._tone(outline), 0.72), 0.035 * self.scale)

    def _side_windows(self, outline: Points) -> None:
        middle = outline.mean(0)
        pane = middle + (outline - middle) * [0.9, 1, 0.74]
        by_height = pane[np.argsort(pane[:, 2])]
        low, high = (edge[np.argsort(edge[:, 0])] for edge in (by_height[:2], by_height[2:4]))  # from rear to front
        glass = self.light.shade(mix(_GLASS, self.light.horizon, 0.18), self.pose.z)
        for a, b in itertools.pairwise(np.linspace(0.02, 0.98, 8 if self.model.is_bus else 3)):
            a, b = a + 0.015, b - 0.015
            self._fill([_between(low, a), _between(low, b), _between(high, b), _between(high, a)], glass)

    def _wheels(self) -> None:
        """Tyre, rim and hub of the wheels on the side that faces the camera."""
        angle = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        for side in (-1, 1):
            middle, skin = self.pose.place(np.array([(0.0, 0.0, 0.0), (0.0, side * self.half, 0.0)]))
            if np.dot(skin - middle, skin) >= 0:
                continue
            for u, (share, tone) in itertools.product(self.model.axles, _WHEEL):
                r, y, v = self.model.wheel * share, self.model.wheel, side * (self.half + 0.01)
                ring = np.stack([u + r * np.cos(angle), np.full(18, v), y + r * np.sin(angle)], -1)
                self._fill(ring, self.light.shade(tone, self.pose.z), Kind.CAR)

    def _ends(self) -> None:
        """Lamps and number plate on the end that faces the camera; a taxi sign on the roof."""
        cos = np.cos(self.pose.heading)
        if -0.25 <= cos <= 0.25:
            return
        ends, away = [u for u, _ in self.model.body], cos > 0.25
        u, y = min(ends) - 0.02 if away else max(ends) + 0.02, 0.9 if self.model.boxy else 0.72
        lamp: Colour = (214, 30, 28) if away else (250, 246, 226)
        for v in (-self.half + 0.22, self.half - 0.22):
            self._fill([(u, a, b) for a, b in _rect(v - 0.17, v + 0.17, y - 0.16, y)], lamp)
            if self.light.lit >= 0.3:
                self.view.canvas.glow(self._pixels((u, v, y - 0.08)), self.scale * (0.5 if away else 0.9), lamp, 0.7)
        self._fill([(u, a, b) for a, b in _rect(-0.26, 0.26, 0.42, 0.54)], (236, 232, 200))
        if self.car.taxi:
            top = max(y for _, y in self.model.cabin)
            self._fill([(0.0, a, b) for a, b in _rect(-0.25, 0.25, top, top + 0.16)], (255, 214, 60), Kind.CAR)


def _rect(a0: float, a1: float, b0: float, b1: float) -> list[tuple[float, float]]:
    return [(a0, b0), (a1, b0), (a1, b1), (a0, b1)]


def _between(edge: Points, t: float) -> Points:
    return edge[0] + (edge[1] - edge[0]) * t


def _normal(world: Points) -> Points:
    """Unit normal of a plane outline (its sign follows the direction of the outline)."""
    normal = np.cross(world[1] - world[0], world[2] - world[0])
    return normal / (np.linalg.norm(normal) + 1e-9)
