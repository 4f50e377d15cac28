"""The input shapes that an engine is built for: its optimisation profiles.

One profile reaches from the smallest input to the largest one of the recipe's documented inference and is tuned for
the window (or the test size). Where pictures keep their ratio there is a second one for upright pictures, with height
and width exchanged: one profile for both would reach to a square of the longer side, and so would the engine's memory.
More profiles would serve only pictures of other sizes in whole mode, and both libraries keep kernels for each profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isnet_trt.export.graph import INPUT
from isnet_trt.merging.geometry import padded_size, scaled_size
from isnet_trt.recipes import NetworkRecipe, Recipe
from isnet_trt.settings import Size

Shape = tuple[int, int, int, int]
_SMALLEST = 32
_NOT_RESIZED = (1024, 2048)
"""Largest image that engines of a recipe without resize are built for, upright or not."""


@dataclass(frozen=True)
class Shapes:
    """Smallest, usual and largest input (B, 3, H, W) of an engine; all equal for a static one.

    With ``both_ways`` it also takes these with height and width exchanged.
    """

    smallest: Shape
    usual: Shape
    largest: Shape
    both_ways: bool = False

    @property
    def static(self) -> bool:
        return self.smallest == self.largest

    @property
    def profiles(self) -> tuple[tuple[Shape, Shape, Shape], ...]:
        """(smallest, usual, largest) of each profile."""
        plain = self.smallest, self.usual, self.largest
        if not self.both_ways:
            return (plain,)
        smallest, usual, largest = ((b, c, w, h) for b, c, h, w in plain)
        # Turned square shapes are the same: one profile.
        return tuple(dict.fromkeys((plain, (smallest, usual, largest))))


def shapes_for(recipe: Recipe | NetworkRecipe, batch: int = 1, static: Size | None = None) -> Shapes:
    """The optimisation profiles of a recipe: its window or test size as usual, up to the largest documented scale."""
    if static:
        shape = (batch, 3, *static)
        return Shapes(shape, shape, shape)
    if isinstance(recipe, NetworkRecipe):
        return _of_presets(recipe, batch)
    usual = recipe.ms_flip.window or recipe.crop
    reach = recipe.preprocess.size or recipe.crop
    long, short = max(reach), min(reach)
    if recipe.ms_flip.mode == "whole":
        factor = max(recipe.ms_flip.scales)
        long, short = int(long * factor), int(short * factor)
    largest = (short, long) if recipe.preprocess.keep_ratio else (long, long)
    largest = (max(largest[0], usual[0]), max(largest[1], usual[1]))
    least = (1, 3, _SMALLEST, _SMALLEST)
    return Shapes(least, (batch, 3, *usual), (batch, 3, *largest), recipe.preprocess.keep_ratio)


def _of_presets(recipe: NetworkRecipe, batch: int) -> Shapes:
    """From the presets of a recipe: each window, and whole images at each scale, padded as the network needs it."""
    size = recipe.preprocess.size or _NOT_RESIZED
    both_ways = recipe.preprocess.size is None or recipe.preprocess.keep_ratio
    whole = (min(size), max(size)) if both_ways else size
    inputs = {name: preset.window or whole for name, preset in recipe.presets.items()}
    reached = [preset.window or scaled_size(whole, max(1.0, *preset.scales)) for preset in recipe.presets.values()]
    largest = max(height for height, _ in reached), max(width for _, width in reached)
    least, usual, most = (padded_size(s, recipe.network) for s in ((_SMALLEST,) * 2, inputs["default"], largest))
    return Shapes((1, 3, *least), (batch, 3, *usual), (batch, 3, *most), both_ways)


def set_shapes(builder: Any, config: Any, shapes: Shapes) -> None:
    """Give a build configuration its profiles; a graph of one static shape needs none."""
    if shapes.static:
        return
    for smallest, usual, largest in shapes.profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, smallest, usual, largest)
        config.add_optimization_profile(profile)
