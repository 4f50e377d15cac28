"""A view of the scene: the canvas, the camera in front of it, and the light."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from isnet_trt.training.scenes.canvas import Camera, Canvas, Colour, Kind
from isnet_trt.training.scenes.light import Light


@dataclass(frozen=True)
class View:
    """Canvas, camera and light of a scene; coordinates are world metres (x to the right, y up, z ahead)."""

    canvas: Canvas
    camera: Camera
    light: Light

    def fill(
        self, outlines: Iterable[ArrayLike], colour: Colour, kind: Kind | None = None, smooth: bool = False
    ) -> None:
        """Fill polygons, each (n, 3) world metres, as `Canvas.fill` does."""
        self.canvas.fill([self.camera.project(outline) for outline in outlines], colour, kind, smooth)
