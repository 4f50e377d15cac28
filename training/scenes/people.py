"""People who walk towards the viewer; each one's own right and left half are two classes.

A person facing the viewer has the right side at the image's left. Every part is drawn in two halves or belongs to one
side, and nothing but the side tells the halves apart: bags, gestures and light fall on either side alike.
Local coordinates: metres, x to the image's right, y down from the ground (so upwards is negative), before perspective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isnet_trt.training.scenes.canvas import Colour, Kind, Points, ellipse, palette, times
from isnet_trt.training.scenes.view import View

_SKIN = palette("f0c8ac e0ac8a be8260 8c5c42 624030 fad6be")
_HAIR = palette("261c18 543622 966838 cea862 787472 923e20")
_CLOTH = palette("c42e30 2c4e96 e8e2d6 32343a e8b63c 3a7858 965082 7896b4 d27640 6a6e4c e696a4")
_TROUSERS = palette("2c3654 3a3a3e 705c46 968e7e 242428 566880")


@dataclass(frozen=True)
class Looks:
    """Clothes, hair and posture of a person; ``turn`` −1..1 is how far the body faces to the image's right."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    coat: float
    skirt: bool
    long_hair: bool
    hat: bool
    bag: int
    wave: int
    closure: str
    step: float
    turn: float
    build: float


def random_looks(rng: np.random.Generator) -> Looks:
    """Colours, clothes, pose and build, all drawn from ``rng``."""

    def pick(colours: tuple[Colour, ...]) -> Colour:
        return times(colours[int(rng.integers(len(colours)))], float(rng.uniform(0.85, 1.12)))

    return Looks(
        skin=pick(_SKIN),
        hair=pick(_HAIR),
        top=pick(_CLOTH),
        bottom=pick(_TROUSERS),
        shoes=pick(_HAIR),
        coat=float(rng.choice([0.9, 0.9, 0.62])),
        skirt=bool(rng.random() < 0.25),
        long_hair=bool(rng.random() < 0.4),
        hat=bool(rng.random() < 0.22),
        bag=int(rng.choice([-1, 0, 1], p=[0.2, 0.6, 0.2])),
        wave=int(rng.choice([-1, 0, 1], p=[0.08, 0.84, 0.08])),
        closure=str(rng.choice(["zip", "buttons", "tie", "plain"], p=[0.35, 0.25, 0.15, 0.25])),
        step=float(rng.uniform(-1, 1)),
        turn=float(np.clip(rng.normal(0, 0.35), -0.8, 0.8)),
        build=float(rng.uniform(0.9, 1.2)),
    )


class Person:
    """One person standing at (x, z), ``height`` metres tall."""

    def __init__(self, x: float, z: float, height: float, looks: Looks) -> None:
        self.x, self.z, self.height, self.looks = x, z, height, looks

    def draw(self, view: View) -> None:
        """Draw shadow, hair behind, legs, far arm, torso, near arm, head."""
        _Drawing(self, view).draw()


class _Drawing:
    """The drawing of one person; points are local coordinates."""

    def __init__(self, person: Person, view: View) -> None:
        self.looks, self.canvas, self.light, self.z = person.looks, view.canvas, view.light, person.z
        self.foot = view.camera.project((person.x, 0.0, person.z))
        self.size = view.camera.scale(person.z) * person.height / 1.75
        self.wide = person.looks.build
        self.middle = 0.15 * person.looks.turn * self.wide

    def draw(self) -> None:
        self.canvas.darken(ellipse(self.foot, 0.42 * self.size, 0.1 * self.size), 0.5, 0.06 * self.size)
        if self.looks.long_hair:
            self._halves(ellipse((0, -1.52), 0.155, 0.24, n=24), self.looks.hair, 0.0)
        for side in (-1, 1):
            self._leg(side)
        back = 1 if self.looks.step > 0 else -1
        self._arm(back)
        self._torso()
        self._arm(-back)
        self._head()

    def _put(self, points: ArrayLike, colour: Colour, kind: Kind | None = None, side: float = 0.0) -> None:
        self.canvas.fill([self.foot + np.asarray(points) * self.size], self.light.shade(colour, self.z, side), kind)

    def _kind(self, side: int) -> Kind:
        return Kind.PERSON_RIGHT if side < 0 else Kind.PERSON_LEFT

    def _halves(self, outline: ArrayLike, colour: Colour, middle: float) -> None:
        """A convex outline cut at x = middle, each half with its class and its share of the light."""
        for side in (-1, 1):
            self._put(_clip(np.asarray(outline), middle, side), colour, self._kind(side), 0.6 * side)

    def _leg(self, side: int) -> None:
        lift = max(0.0, self.looks.step * side) * 0.16
        hip, foot = side * 0.095 * self.wide, side * (0.11 + 0.02 * abs(self.looks.step))
        skin = self.looks.skin if self.looks.skirt else self.looks.bottom
        w = 0.5 if self.looks.skirt else 0.85
        right = [(hip + 0.1 * w, -0.92), (hip + 0.085 * w, -0.5), (foot + 0.07 * w, -0.06 - lift)]
        left = [(foot - 0.07 * w, -0.06 - lift), (hip - 0.085 * w, -0.5), (hip - 0.1 * w, -0.92)]
        self._put([left[2], *right, *left[:2]], times(skin, 0.86 if lift else 1.0), self._kind(side), 0.5 * side)
        shoe = ellipse((foot + 0.02 * side, -0.035 - lift), 0.075, 0.06 if lift else 0.05, n=14)
        self._put(shoe, self.looks.shoes, self._kind(side))

    def _torso(self) -> None:
        low, w = -self.looks.coat, self.wide
        hem = (0.2 if self.looks.coat < 0.8 else 0.17) * w
        shoulders = [(-0.2 * w, -1.42), (-0.07, -1.49), (0.07, -1.49), (0.2 * w, -1.42)]
        outline = [*shoulders, (0.165 * w, -1.12), (hem, low), (-hem, low), (-0.165 * w, -1.12)]
        if self.looks.skirt:
            skirt = [(-0.16 * w, -1.0), (0.16 * w, -1.0), (0.25 * w, -0.5), (-0.25 * w, -0.5)]
            self._halves(skirt, self.looks.bottom, self.middle)
        self._halves(outline, self.looks.top, self.middle)
        self._closure(low)

    def _closure(self, low: float) -> None:
        """Zip, buttons, tie or a plain collar along the middle of the chest; it splits like the torso."""
        top, m, dark = self.looks.top, self.middle, times(self.looks.top, 0.55)
        collar = [(-0.065, -1.49), (0.065, -1.49), (0.8 * m, -1.37)]
        self._halves(collar, self.looks.skin if self.looks.closure != "tie" else (238, 236, 230), 0.6 * m)
        if self.looks.closure == "zip":
            self._put([(m - 0.012, -1.4), (m + 0.012, -1.4), (m + 0.012, low), (m - 0.012, low)], dark)
        elif self.looks.closure == "buttons":
            for y in np.arange(-1.3, low - 0.05, 0.12):
                self._put(ellipse((m, y), 0.016, 0.016, n=8), times(top, 1.5))
        elif self.looks.closure == "tie":
            tie = [(m - 0.02, -1.44), (m + 0.02, -1.44), (m + 0.035, -1.1), (m, -1.04), (m - 0.035, -1.1)]
            self._put(tie, (150, 34, 44))

    def _arm(self, side: int) -> None:
        swing = self.looks.step * side
        shoulder = np.array([side * 0.2 * self.wide, -1.38])
        elbow = shoulder + np.array([side * 0.065, 0.27])
        hand = elbow + np.array([side * (0.0 if swing > 0 else 0.03), 0.25 - 0.07 * abs(swing)])
        if self.looks.wave == side:
            elbow, hand = shoulder + np.array([side * 0.18, 0.1]), shoulder + np.array([side * 0.26, -0.2])
        kind, sleeve = self._kind(side), times(self.looks.top, 0.88)
        self._put(_limb(shoulder, elbow, 0.062, 0.052), sleeve, kind, 0.7 * side)
        self._put(_limb(elbow, hand, 0.052, 0.042), sleeve, kind, 0.7 * side)
        if self.looks.bag == side and self.looks.wave != side:
            bag = np.array([(-0.12, 0.1), (0.12, 0.1), (0.14, 0.36), (-0.14, 0.36)]) + hand
            self._put(bag, times(self.looks.shoes, 1.3), kind)
            handle = np.array([(-0.07, 0.1), (-0.04, 0.01), (0.04, 0.01), (0.07, 0.1)]) + hand
            self._put(handle, times(self.looks.shoes, 0.7), kind)
        self._put(ellipse(hand, 0.045, 0.052, n=12), self.looks.skin, kind)

    def _head(self) -> None:
        face, m = self.looks, 0.06 * self.looks.turn
        neck = [(-0.05, -1.54), (0.05, -1.54), (0.055, -1.44), (-0.055, -1.44)]
        self._halves(neck, times(face.skin, 0.86), self.middle * 0.4)
        self._halves(ellipse((0, -1.625), 0.108, 0.14, n=28), face.skin, m)
        self._halves(ellipse((0, -1.655), 0.116, 0.128, 180, 360, 20), face.hair, m)
        for side in (-1, 1):
            eye = ellipse((m + side * 0.042, -1.63), 0.012, 0.014, n=8)
            self._put(eye, (30, 26, 26))
            self._put(ellipse((side * 0.108, -1.62), 0.018, 0.032, n=10), times(face.skin, 0.9), self._kind(side))
        self._put([(m, -1.62), (m + 0.018, -1.575), (m - 0.018, -1.575)], times(face.skin, 0.82))  # nose
        self._put(ellipse((m * 0.9, -1.552), 0.03, 0.011, 0, 180, 8), (150, 60, 58))  # mouth
        if face.hat:
            self._halves(ellipse((0, -1.69), 0.112, 0.12, 180, 360, 16), times(face.bottom, 1.1), m)  # crown
            self._halves(ellipse((m * 0.5, -1.69), 0.165, 0.026, n=20), times(face.bottom, 0.8), m)  # brim


def _limb(a: Points, b: Points, wa: float, wb: float) -> Points:
    """A tapered capsule from a to b."""
    along = (b - a) / (np.linalg.norm(b - a) + 1e-9)
    across = np.array([-along[1], along[0]])
    angle = np.linspace(-np.pi / 2, np.pi / 2, 6)
    end = b + wb * (np.cos(angle)[:, None] * along + np.sin(angle)[:, None] * across)
    start = a + wa * (np.cos(angle + np.pi)[:, None] * along + np.sin(angle + np.pi)[:, None] * across)
    return np.vstack([end, start])


def _clip(outline: Points, x: float, side: int) -> Points:
    """The part of a convex outline at one side of the vertical line at x (Sutherland and Hodgman 1974)."""
    kept = []
    for a, b in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        inside_a, inside_b = (a[0] - x) * side >= 0, (b[0] - x) * side >= 0
        if inside_a:
            kept.append(a)
        if inside_a != inside_b:
            kept.append(a + (b - a) * (x - a[0]) / (b[0] - a[0]))
    return np.array(kept) if kept else np.zeros((0, 2))
