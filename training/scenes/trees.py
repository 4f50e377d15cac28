"""Trees of several habits, and bushes: all of class tree."""

from __future__ import annotations

import numpy as np

from isnet_trt.training.scenes.canvas import Colour, Kind, Points, ellipse, mix, palette, times
from isnet_trt.training.scenes.view import View

_GREENS = palette("4a7634 60843c 3c623a 768e42 34582e")
_AUTUMN = palette("c88430 ba602c d4a83e")


class _Plant:
    """The drawing of one plant at (x, z); ``foot`` in pixels, ``size`` in pixels per metre, ``leaf`` its colour."""

    def __init__(self, view: View, x: float, z: float, leaf: Colour, rng: np.random.Generator) -> None:
        self.canvas, self.light, self.z, self.leaf, self.rng = view.canvas, view.light, z, leaf, rng
        self.foot, self.size = view.camera.project((x, 0.0, z)), view.camera.scale(z)

    def tone(self, level: float, side: float = 0.0) -> Colour:
        """The leaf colour at a level of brightness, on a side −1..1 of the plant."""
        towards = float(np.clip(side, -1, 1)) * 1.1 if self.light.sun else 0.0
        return self.light.shade(times(self.leaf, level), self.z, towards)

    def trunk(self, top: float) -> None:
        bark = self.light.shade((104 + self.rng.normal(0, 10), 84, 64), self.z)
        w, lean = float(self.rng.uniform(0.12, 0.2)), float(self.rng.normal(0, 0.12))
        shape = np.array([(-w * 1.4, 0), (w * 1.4, 0), (w * 0.6 + lean, -top), (-w * 0.6 + lean, -top)])
        self.canvas.fill([self.foot + shape * self.size], bark, Kind.TREE)
        if self.light.sun:
            lit = np.array([(0.2 * w, 0), (w * 1.4, 0), (w * 0.6 + lean, -top), (0.1 * w + lean, -top)])
            lit[:, 0] *= self.light.sun
            lit[2:, 0] += lean * (1 - self.light.sun)
            self.canvas.fill([self.foot + lit * self.size], times(bark, 1.22))

    def crown(self, tall: float, habit: str) -> None:
        """Clumps of leaves around a dark core, from the lowest to the highest."""
        rx = tall * {"round": 0.34, "oval": 0.27, "column": 0.14}[habit]
        ry = tall * {"round": 0.3, "oval": 0.34, "column": 0.42}[habit]
        centre = self.foot - [0, (tall - ry) * self.size]
        clumps = int(self.rng.integers(14, 22) + 260 / self.z)
        angle, reach = self.rng.uniform(0, 2 * np.pi, clumps), np.sqrt(self.rng.uniform(0.05, 0.8, clumps))
        offsets = np.stack([rx * reach * np.cos(angle), ry * reach * np.sin(angle)], -1)
        radii = self.rng.uniform(0.32, 0.52, clumps) * min(rx, ry) * (18 / clumps) ** 0.5
        core = ellipse(centre, rx * 0.8 * self.size, ry * 0.8 * self.size)
        self.canvas.fill([core], self.light.shade(times(self.leaf, 0.6), self.z), Kind.TREE)
        for i in np.argsort(-offsets[:, 1]):
            tone = self.tone(0.86 - 0.26 * offsets[i, 1] / ry, offsets[i, 0] / rx)
            self.canvas.disc(centre + offsets[i] * self.size, radii[i] * self.size, tone, Kind.TREE)
        self.tufts(centre, offsets, radii)

    def tufts(self, centre: Points, offsets: Points, radii: Points) -> None:
        """Leaves at the rims of the clumps and inside, so that neither outline nor surface is smooth."""
        count = int(40 + 1200 / self.z)
        clumps, angle = self.rng.integers(len(radii), size=count), self.rng.uniform(0, 2 * np.pi, count)
        reach = radii[clumps] * self.rng.uniform(0.5, 1.12, count)
        positions = offsets[clumps] + np.stack([np.cos(angle), np.sin(angle)], -1) * reach[:, None]
        tones = self.rng.uniform(0.62, 1.35, count)
        widths = self.rng.uniform(0.05, 0.13, count) * radii.mean() / 0.4
        for position, tone, width in zip(positions, tones, widths, strict=True):
            colour = self.tone(float(tone), float(position[0]))
            self.canvas.disc(centre + position * self.size, max(width * 2.2 * self.size, 0.8), colour, Kind.TREE)

    def conifer(self, tall: float) -> None:
        """Tiers of drooping branches, the half towards the sun brighter."""
        tiers = int(self.rng.integers(5, 8))
        for i in range(tiers):
            low = 0.7 + (tall - 0.7) * i / tiers
            high = min(low + 1.9 * tall / tiers, tall)
            w = 0.24 * tall * (1 - i / tiers) + 0.15
            drop = np.where(np.arange(9) % 2 == 0, 0.0, 0.22) + self.rng.uniform(0, 0.1, 9)
            rim = np.stack([np.linspace(-w, w, 9), -(low + drop)], -1)
            shape = self.foot + np.vstack([rim, [[0, -high]]]) * self.size
            self.canvas.fill([shape], self.tone(0.8 + 0.07 * i), Kind.TREE)
            if self.light.sun:
                half = self.foot + np.vstack([rim[4:] if self.light.sun > 0 else rim[:5], [[0, -high]]]) * self.size
                self.canvas.fill([half], self.tone(0.98 + 0.07 * i))


def draw_tree(view: View, x: float, z: float, rng: np.random.Generator) -> None:
    """Draw a tree of 4 to 9 m on the ground at (x, z): trunk, crown of leaf clumps lit from the sun's side."""
    tall = float(rng.uniform(4.2, 8.5))
    habit = str(rng.choice(["round", "oval", "column", "conifer"], p=[0.45, 0.25, 0.15, 0.15]))
    leaf = _leaf(_AUTUMN if rng.random() < 0.14 else _GREENS, (0.85, 1.15), rng)
    plant = _Plant(view, x, z, mix(leaf, (34, 70, 52), 0.6) if habit == "conifer" else leaf, rng)
    view.canvas.darken(ellipse(plant.foot, 1.4 * plant.size, 0.28 * plant.size), 0.62, 0.15 * plant.size)
    if habit == "conifer":
        plant.trunk(tall * 0.35)
        plant.conifer(tall)
    else:
        plant.trunk(tall * 0.75)
        plant.crown(tall, habit)


def draw_bush(view: View, x: float, z: float, rng: np.random.Generator) -> None:
    """Draw a shrub of about one metre, low on the ground."""
    plant = _Plant(view, x, z, _leaf(_GREENS, (0.8, 1.2), rng), rng)
    view.canvas.darken(ellipse(plant.foot, 0.8 * plant.size, 0.16 * plant.size), 0.6, 0.08 * plant.size)
    radii = rng.uniform(0.25, 0.45, 7)
    offsets = np.stack([np.linspace(-0.5, 0.5, 7), -radii * 0.9 - 0.1], -1)
    for offset, radius in zip(offsets, radii, strict=True):
        plant.canvas.disc(plant.foot + offset * plant.size, radius * plant.size, plant.tone(0.8), Kind.TREE)
    plant.tufts(plant.foot, offsets, radii)


def _leaf(colours: tuple[Colour, ...], levels: tuple[float, float], rng: np.random.Generator) -> Colour:
    return times(colours[int(rng.integers(len(colours)))], float(rng.uniform(*levels)))
