"""Composes a scene: what stands where, drawn from far to near."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError
from isnet_trt.training.scenes.buildings import draw_house, random_houses
from isnet_trt.training.scenes.canvas import Camera, Canvas, Kind
from isnet_trt.training.scenes.cars import Car, Pose
from isnet_trt.training.scenes.light import draw_sky, finish, random_light
from isnet_trt.training.scenes.people import Person, random_looks
from isnet_trt.training.scenes.street import (
    Street,
    draw_backdrop,
    draw_ground,
    draw_markings,
    random_street,
    surface_texture,
)
from isnet_trt.training.scenes.trees import draw_bush, draw_tree
from isnet_trt.training.scenes.view import View

Thing = tuple[float, Callable[[], None]]
"""Depth in metres, and the function that draws the thing."""


@dataclass(frozen=True)
class Scene:
    """``image`` uint8 H×W×3 (RGB) and its exact ``labels`` uint8 H×W (`Kind`)."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def draw_scene(seed: int, height: int = 512, width: int = 1024) -> Scene:
    """The street scene number ``seed``; the same seed and size give the same bytes.

    The same seed at another size shows the same street. Mirroring a scene and exchanging the two person classes
    gives a scene that could have been drawn as well.

    Raises:
        SettingsError: a side is smaller than 32 pixels or the seed is negative.
    """
    if seed < 0 or min(height, width) < 32:
        raise SettingsError(f"a scene needs a seed >= 0 and sides >= 32, not seed {seed}, {height}×{width}")
    rng, detail = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    light, street = random_light(rng), random_street(rng)
    camera = Camera(
        focal=height * float(rng.uniform(0.85, 1.15)),
        x=width * float(rng.uniform(0.36, 0.64)),
        horizon=height * float(rng.uniform(0.36, 0.5)),
        height=float(rng.uniform(1.5, 2.3)),
    )
    canvas = Canvas.blank(height, width, Kind.SKY)
    view = View(canvas, camera, light)
    draw_sky(canvas, light, camera.horizon, rng, detail)
    draw_backdrop(view, rng)
    draw_ground(view, street, rng)
    draw_markings(view, street, rng)
    for house in random_houses(street, rng):
        draw_house(view, house, rng)
    surface_texture(view, street, detail)
    _cast_shadows(view, street, rng)
    things = _trees(view, street, rng)
    cars = _cars(street, rng)
    movers: list[Car | Person] = [*cars, *_people(street, cars, rng)]
    things += [(mover.z, functools.partial(mover.draw, view)) for mover in movers]
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    finish(canvas, light, rng, detail)
    return Scene(canvas.image, canvas.labels)


def _cast_shadows(view: View, street: Street, rng: np.random.Generator) -> None:
    """Darken the strip of pavement and road in the shadow of the houses on the sun's side."""
    sun = view.light.sun
    if sun and rng.random() < 0.6:
        wall = street.wall(sun)
        reach = wall - sun * float(rng.uniform(2, 7))
        strip = view.camera.ground(min(wall, reach), max(wall, reach), float(rng.uniform(1, 12)), 90)
        view.canvas.darken(strip, 0.72, 0.004 * view.canvas.height)


def _trees(view: View, street: Street, rng: np.random.Generator) -> list[Thing]:
    """Rows of trees along the kerbs, and some bushes at the walls."""
    things: list[Thing] = []
    for side in (-1, 1):
        if rng.random() < 0.3:
            continue
        z = float(rng.uniform(5.5, 14))
        while z < 70:
            x = street.kerb(side) + side * float(rng.uniform(0.7, 1.1))
            if not _in_junction(street, z):
                things.append(_plant(draw_tree, view, x, z, rng))
            z += float(rng.uniform(6, 16))
    for _ in range(int(rng.integers(0, 5))):
        side, z = int(rng.choice([-1, 1])), float(rng.uniform(4, 25))
        if not _in_junction(street, z):
            things.append(_plant(draw_bush, view, street.wall(side) - side * 0.6, z, rng))
    return things


def _plant(draw: Callable[..., None], view: View, x: float, z: float, rng: np.random.Generator) -> Thing:
    """A tree or bush with a generator of its own, so that what it draws does not depend on the drawing order."""
    return z, functools.partial(draw, view, x, z, np.random.default_rng(rng.integers(1 << 62)))


def _in_junction(street: Street, z: float) -> bool:
    return street.junction is not None and street.junction[0] - 1 < z < street.junction[1] + 1


def _cars(street: Street, rng: np.random.Generator) -> list[Car]:
    """Cars parked at the kerbs, driving in both lanes (on the right or on the left), crossing in the side street."""
    cars, rule = [], int(rng.choice([-1, 1]))
    for side in (-1, 1):
        heading = 0.0 if side == rule else np.pi
        if rng.random() < 0.6 and street.right - street.left > 8:
            z = float(rng.uniform(4, 16))
            for _ in range(int(rng.integers(1, 6))):
                cars.append(Car(Pose(street.kerb(side) - side * 1.1, z, heading + float(rng.normal(0, 0.02))), rng))
                z += float(rng.uniform(5.4, 12))
        z, lane = float(rng.uniform(6, 28)), street.centre + side * (street.right - street.left) / 6
        while z < 70:
            if rng.random() < 0.6:
                cars.append(Car(Pose(lane, z, heading + float(rng.normal(0, 0.04))), rng))
            z += float(rng.uniform(9, 26))
    if street.junction and rng.random() < 0.6:
        heading = float(rng.choice([-1, 1])) * np.pi / 2
        cars.append(Car(Pose(float(rng.uniform(-7, 7)), sum(street.junction) / 2, heading), rng))
    kept: list[Car] = []
    for car in cars:
        if car.nearest > 1.6 and all(_apart(car, other) for other in kept):
            kept.append(car)
    return kept


def _apart(a: Car, b: Car) -> bool:
    reach = 5.2 + (5.0 if (a.model.is_bus or b.model.is_bus) else 0.0)
    return abs(a.pose.x - b.pose.x) > 2.0 or abs(a.pose.z - b.pose.z) > reach


def _people(street: Street, cars: list[Car], rng: np.random.Generator) -> list[Person]:
    """Walkers on both pavements, a few on the road, near enough to be seen and not inside a car."""
    people = []
    for _ in range(int(rng.integers(5, 13))):
        z = float(3.2 + 13 * rng.random() ** 1.5)
        if rng.random() < 0.72:
            side = int(rng.choice([-1, 1]))
            x = street.kerb(side) + side * float(rng.uniform(0.5, abs(street.wall(side) - street.kerb(side)) - 0.7))
        else:
            x = float(rng.uniform(street.left, street.right))
        tall = float(rng.uniform(1.05, 1.4)) if rng.random() < 0.15 else float(rng.normal(1.73, 0.09))
        person = Person(x, z, tall, random_looks(rng))
        if not any(car.covers(x, z) for car in cars):
            people.append(person)
    return people
