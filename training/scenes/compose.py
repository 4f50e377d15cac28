"""Puts a scene together: who stands where, drawn from far to near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError
from isnet_trt.training.scenes.buildings import draw_house, random_houses
from isnet_trt.training.scenes.canvas import Camera, Canvas, Kind
from isnet_trt.training.scenes.cars import Car, Pose
from isnet_trt.training.scenes.light import Light, draw_sky, finish, random_light
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

Thing = tuple[float, Callable[[], None]]
"""Depth in metres and what draws it."""


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
    draw_sky(canvas, light, camera.horizon, rng, detail)
    draw_backdrop(canvas, camera, light, rng)
    draw_ground(canvas, camera, street, light, rng)
    draw_markings(canvas, camera, street, light, rng)
    for house in random_houses(street, rng):
        draw_house(canvas, camera, house, light, rng)
    surface_texture(canvas, camera, street, detail)
    _cast_shadows(canvas, camera, street, light, rng)
    things = _trees(canvas, camera, street, light, rng)
    cars = _cars(street, rng)
    movers: list[Car | Person] = [*cars, *_people(street, cars, rng)]
    things += [(mover.z, _drawing(mover, canvas, camera, light)) for mover in movers]
    for _, draw in sorted(things, key=lambda thing: -thing[0]):
        draw()
    finish(canvas, light, rng, detail)
    return Scene(canvas.image, canvas.labels)


def _cast_shadows(canvas: Canvas, camera: Camera, street: Street, light: Light, rng: np.random.Generator) -> None:
    """The shaded strip that the houses on the sun's side throw over pavement and road."""
    if light.sun and rng.random() < 0.6:
        wall = street.wall(light.sun)
        reach = wall - light.sun * float(rng.uniform(2, 7))
        z0 = float(rng.uniform(1, 12))
        canvas.darken(camera.ground(min(wall, reach), max(wall, reach), z0, 90), 0.72, 0.004 * canvas.height)


def _trees(canvas: Canvas, camera: Camera, street: Street, light: Light, rng: np.random.Generator) -> list[Thing]:
    things: list[Thing] = []
    for side in (-1, 1):
        if rng.random() < 0.3:
            continue
        z = float(rng.uniform(5.5, 14))
        while z < 70:
            x = street.kerb(side) + side * float(rng.uniform(0.7, 1.1))
            if not _in_junction(street, z):
                things.append((z, _tree(canvas, camera, x, z, light, rng)))
            z += float(rng.uniform(6, 16))
    for _ in range(int(rng.integers(0, 5))):
        side, z = int(rng.choice([-1, 1])), float(rng.uniform(4, 25))
        if not _in_junction(street, z):
            things.append((z, _bush(canvas, camera, street.wall(side) - side * 0.6, z, light, rng)))
    return things


def _tree(
    canvas: Canvas, camera: Camera, x: float, z: float, light: Light, rng: np.random.Generator
) -> Callable[[], None]:
    own = np.random.default_rng(rng.integers(1 << 62))
    return lambda: draw_tree(canvas, camera, x, z, light, own)


def _bush(
    canvas: Canvas, camera: Camera, x: float, z: float, light: Light, rng: np.random.Generator
) -> Callable[[], None]:
    own = np.random.default_rng(rng.integers(1 << 62))
    return lambda: draw_bush(canvas, camera, x, z, light, own)


def _in_junction(street: Street, z: float) -> bool:
    return street.junction is not None and street.junction[0] - 1 < z < street.junction[1] + 1


def _cars(street: Street, rng: np.random.Generator) -> list[Car]:
    """Parked at the kerbs, driving in both lanes (keeping right or keeping left), crossing in the side street."""
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
    reach = 5.2 + (5.0 if max(a.model.width, b.model.width) > 2.3 else 0.0)
    return abs(a.pose.x - b.pose.x) > 2.0 or abs(a.pose.z - b.pose.z) > reach


def _drawing(thing: Car | Person, canvas: Canvas, camera: Camera, light: Light) -> Callable[[], None]:
    return lambda: thing.draw(canvas, camera, light)


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
