"""The input shapes that an engine is built for: its optimisation profile.

One profile, from the smallest input to the largest one of the recipe's documented inference, tuned at the window (or
the test size). The windows of all passes have one size, so that a second profile would serve only pictures that differ
from it in whole mode; both libraries keep a set of kernels, and TensorRT its workspace, for each profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isnet_trt.export.graph import INPUT
from isnet_trt.settings import Size
from isnet_trt.training.recipes import Recipe

Shape = tuple[int, int, int, int]
_SMALLEST = 32


@dataclass(frozen=True)
class Shapes:
    """Smallest, usual and largest input (B, 3, H, W) of an engine; all equal for a static one."""

    smallest: Shape
    usual: Shape
    largest: Shape

    @property
    def static(self) -> bool:
        return self.smallest == self.largest


def shapes_for(recipe: Recipe, batch: int = 1, static: Size | None = None) -> Shapes:
    """The optimisation profile of a recipe: its window or test size as usual, up to the largest documented scale."""
    if static:
        one = (batch, 3, *static)
        return Shapes(one, one, one)
    usual = recipe.ms_flip.window or recipe.crop
    reach = recipe.preprocess.size
    long, short = max(reach), min(reach)
    if recipe.ms_flip.mode == "whole":
        factor = max(recipe.ms_flip.scales)
        long, short = int(long * factor), int(short * factor)
    # Either orientation may be the long one; a square profile would ask for the longer side twice over.
    largest = (short, long) if recipe.preprocess.keep_ratio else (long, long)
    largest = (max(largest[0], usual[0]), max(largest[1], usual[1]))
    return Shapes((1, 3, _SMALLEST, _SMALLEST), (batch, 3, *usual), (batch, 3, *largest))


def set_shapes(builder: Any, config: Any, shapes: Shapes) -> None:
    """Give a build configuration its profile; a graph of one static shape needs none."""
    if shapes.static:
        return
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, shapes.smallest, shapes.usual, shapes.largest)
    config.add_optimization_profile(profile)
