"""Cars, vans and buses: two convex prisms (body and cabin) seen in true perspective, with wheels, glass and lamps.

Local coordinates of a vehicle in metres: u forwards, v to its left, y up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from isnet_trt.training.scenes.canvas import Camera, Canvas, Colour, Kind, Points, mix, times
from isnet_trt.training.scenes.light import Light

Profile = tuple[tuple[float, float], ...]
"""Outline of a side view, (u, y), anticlockwise when u points right."""


@dataclass(frozen=True)
class Model:
    """A kind of vehicle: outlines of body and cabin, width, wheel positions and radius."""

    body: Profile
    cabin: Profile
    width: float
    axles: tuple[float, ...]
    wheel: float
    boxy: bool = False


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
_PAINTS: tuple[Colour, ...] = (
    (178, 34, 38),
    (34, 66, 140),
    (228, 228, 230),
    (36, 38, 42),
    (150, 154, 160),
    (226, 176, 44),
    (40, 104, 82),
    (120, 150, 176),
    (196, 96, 40),
    (98, 32, 54),
    (70, 130, 150),
)
_GLASS: Colour = (40, 50, 62)


@dataclass(frozen=True)
class Pose:
    """Where a vehicle stands: ground position and heading (radians, 0 = away from the camera, towards +z)."""

    x: float
    z: float
    heading: float

    def place(self, local: Points) -> Points:
        """Local (…, 3) u, v, y to world x, y, z."""
        u, v, y = local[..., 0], local[..., 1], local[..., 2]
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        return np.stack([self.x + u * sin - v * cos, y, self.z + u * cos + v * sin], -1)


class Car:
    """One vehicle to draw; everything random is decided when it is made."""

    def __init__(self, pose: Pose, rng: np.random.Generator, kind: str | None = None) -> None:
        kind = kind or str(rng.choice(list(MODELS), p=[0.3, 0.28, 0.2, 0.15, 0.07]))
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
        length = max(abs(u) for u, _ in self.model.body)
        reach = length * abs(np.cos(self.pose.heading)) + self.model.width / 2 * abs(np.sin(self.pose.heading))
        return self.pose.z - reach

    def covers(self, x: float, z: float) -> bool:
        """Whether somebody at (x, z) would stand in the vehicle."""
        sin, cos = np.sin(self.pose.heading), np.cos(self.pose.heading)
        dx, dz = x - self.pose.x, z - self.pose.z
        length = max(abs(u) for u, _ in self.model.body)
        return bool(abs(dx * sin + dz * cos) < length + 0.4 and abs(dx * cos - dz * sin) < self.model.width / 2 + 0.35)

    def draw(self, canvas: Canvas, camera: Camera, light: Light) -> None:
        """Shadow, far wheels, body, cabin, near wheels, lamps."""
        half = self.model.width / 2
        ends = [u for u, _ in self.model.body]
        foot = np.array([(u, v, 0.0) for u, v in _rect(min(ends) - 0.1, max(ends) + 0.1, -half - 0.1, half + 0.1)])
        scale = camera.scale(self.pose.z)
        canvas.darken(camera.project(self.pose.place(foot)), 0.35, 0.12 * scale)
        self._underside(canvas, camera)
        for profile, cabin in ((self.model.body, False), (self.model.cabin, True)):
            self._prism(canvas, camera, light, profile, cabin)
        self._wheels(canvas, camera, light)
        self._ends(canvas, camera, light)

    def _underside(self, canvas: Canvas, camera: Camera) -> None:
        half, low = self.model.width / 2 - 0.1, self.model.body[0][1] + 0.1
        for u in self.model.axles:
            ring = [(u - 0.1, -half, 0.0), (u - 0.1, half, 0.0), (u - 0.1, half, low), (u - 0.1, -half, low)]
            canvas.fill([camera.project(self.pose.place(np.array(ring)))], (20, 20, 22), Kind.CAR)

    def _prism(self, canvas: Canvas, camera: Camera, light: Light, profile: Profile, cabin: bool) -> None:
        half, foot = self.model.width / 2, profile[0][1] + 0.1
        outline = np.array([(u, half - (0.14 if cabin and y > foot else 0.0), y) for u, y in profile])
        mirrored, inside = outline * [1, -1, 1], outline.mean(0) * [1, 0, 1]
        for i, j in zip(range(len(profile)), [*range(1, len(profile)), 0], strict=True):
            quad = np.array([outline[i], outline[j], mirrored[j], mirrored[i]])
            glass = cabin and abs(outline[i, 2] - outline[j, 2]) > 0.2
            self._face(canvas, camera, light, quad, inside, glass)
        for side in (mirrored, outline):
            if self._face(canvas, camera, light, side, inside):
                self._side_details(canvas, camera, light, side, cabin)

    def _face(
        self, canvas: Canvas, camera: Camera, light: Light, outline: Points, inside: Points, glass: bool = False
    ) -> bool:
        """Fill one face of a convex solid around ``inside`` if it is turned to the camera; True if so."""
        world, eye = self.pose.place(outline), np.array([0, camera.height, 0])
        normal, middle = _normal(world), world.mean(0)
        outwards = np.sign(np.dot(normal, middle - self.pose.place(inside)))
        if np.dot(normal * outwards, eye - middle) <= 0:
            return False
        canvas.fill([camera.project(world)], self._tone(light, outline), Kind.CAR)
        if glass:
            centre = outline.mean(0)
            pane = centre + (outline - centre) * [0.8, 0.84, 0.8]
            canvas.fill([camera.project(self.pose.place(pane))], mix(_GLASS, light.horizon, 0.28))
        return True

    def _tone(self, light: Light, outline: Points) -> Colour:
        world = self.pose.place(outline)
        normal = _normal(world)
        up = abs(float(normal[1]))
        x = float(normal[0]) * (1 if np.dot(normal, world.mean(0) - [0, 1.5, 0]) < 0 else -1)
        return light.shade(times(self.paint, 0.82 + 0.34 * up), self.pose.z, x)

    def _side_details(self, canvas: Canvas, camera: Camera, light: Light, outline: Points, cabin: bool) -> None:
        if not cabin:
            line = outline[[0, -1]].copy()
            line[:, 2] = self.model.body[0][1] + 0.22
            dark = times(self._tone(light, outline), 0.72)
            canvas.lines([camera.project(self.pose.place(line))], dark, 0.035 * camera.scale(self.pose.z))
            return
        middle = outline.mean(0)
        pane = middle + (outline - middle) * [0.9, 1, 0.74]
        cuts = np.linspace(0.02, 0.98, 8 if len(self.model.axles) and self.model.width > 2.3 else 3)
        low, high = self._pane_edges(pane)
        for a, b in itertools.pairwise(cuts):
            a, b = a + 0.015, b - 0.015
            quad = [_along(low, a), _along(low, b), _along(high, b), _along(high, a)]
            glass = mix(_GLASS, light.horizon, 0.18)
            canvas.fill([camera.project(self.pose.place(np.array(quad)))], light.shade(glass, self.pose.z))

    @staticmethod
    def _pane_edges(pane: Points) -> tuple[Points, Points]:
        """Lower and upper edge of the side window, both from rear to front."""
        order = np.argsort(pane[:, 2])
        low, high = pane[order[:2]], pane[order[2:4]]
        return low[np.argsort(low[:, 0])], high[np.argsort(high[:, 0])]

    def _wheels(self, canvas: Canvas, camera: Camera, light: Light) -> None:
        angle = np.linspace(0, 2 * np.pi, 18, endpoint=False)
        for side in (-1, 1):
            middle, skin = self.pose.place(np.array([(0.0, 0.0, 0.0), (0.0, side * self.model.width / 2, 0.0)]))
            if np.dot(skin - middle, skin) >= 0:
                continue
            for u in self.model.axles:
                for share, tone in (
                    (1.0, (24.0, 24.0, 26.0)),
                    (0.58, (158.0, 160.0, 166.0)),
                    (0.2, (70.0, 70.0, 74.0)),
                ):
                    r = self.model.wheel * share
                    y, v = self.model.wheel, side * (self.model.width / 2 + 0.01)
                    ring = np.stack([u + r * np.cos(angle), np.full(18, v), y + r * np.sin(angle)], -1)
                    canvas.fill([camera.project(self.pose.place(ring))], light.shade(tone, self.pose.z), Kind.CAR)

    def _ends(self, canvas: Canvas, camera: Camera, light: Light) -> None:
        """Lamps and number plate on the end that faces the camera; a taxi sign on the roof."""
        away = np.cos(self.pose.heading) > 0.25
        if not away and np.cos(self.pose.heading) > -0.25:
            return
        us = [u for u, _ in self.model.body]
        u = min(us) - 0.02 if away else max(us) + 0.02
        half, y = self.model.width / 2, 0.72 if not self.model.boxy else 0.9
        lamp: Colour = (214, 30, 28) if away else (250, 246, 226)
        for v in (-half + 0.22, half - 0.22):
            box = np.array([(u, a, b) for a, b in _rect(v - 0.17, v + 0.17, y - 0.16, y)])
            canvas.fill([camera.project(self.pose.place(box))], lamp)
            if light.lit >= 0.3:
                at = camera.project(self.pose.place(np.array([u, v, y - 0.08])))
                canvas.glow(at, camera.scale(self.pose.z) * (0.5 if away else 0.9), lamp, 0.7)
        plate = np.array([(u, a, b) for a, b in _rect(-0.26, 0.26, 0.42, 0.54)])
        canvas.fill([camera.project(self.pose.place(plate))], (236, 232, 200))
        if self.taxi:
            top = max(y for _, y in self.model.cabin)
            sign = np.array([(0.0, a, b) for a, b in _rect(-0.25, 0.25, top, top + 0.16)])
            canvas.fill([camera.project(self.pose.place(sign))], (255, 214, 60), Kind.CAR)


def _rect(a0: float, a1: float, b0: float, b1: float) -> list[tuple[float, float]]:
    return [(a0, b0), (a1, b0), (a1, b1), (a0, b1)]


def _along(edge: Points, t: float) -> Points:
    return edge[0] + (edge[1] - edge[0]) * t


def _normal(world: Points) -> Points:
    """Unit normal of a plane outline (its sign follows the direction of the outline)."""
    normal = np.cross(world[1] - world[0], world[2] - world[0])
    return normal / (np.linalg.norm(normal) + 1e-9)
