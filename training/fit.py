"""Which recipe a set of weights belongs to, from the names and shapes of its entries."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from isnet_trt.recipes import RECIPES, Recipe
from isnet_trt.recipes.architecture import Architecture
from isnet_trt.training.model import ISNet

Shapes = Mapping[str, tuple[int, ...]]
AUXILIARY = "auxiliary_decoder."
COUNTER = ".num_batches_tracked"
CLASSIFIER = "decoder_stage1.4.weight"
_LISTED = 5


@dataclass(frozen=True)
class Fit:
    """How the entries of a file differ from those that a recipe's model has.

    Batch counters may be missing, and so may the auxiliary head as a whole: neither is needed for inference.
    """

    recipe: Recipe
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    """Each with both shapes, ready to print."""

    @property
    def differences(self) -> int:
        """Number of entries that differ; 0 means that the weights can be loaded."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def describe(self) -> str:
        """One indented line for each kind of difference, with the first few names."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.misshapen))
        return "\n".join(f"  {len(names)} {kind}: {few(names)}" for kind, names in kinds if names)


@functools.cache
def expected(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's state dict, in its order; no memory is taken for the weights."""
    with torch.device("meta"):
        state = ISNet(architecture).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def compare(shapes: Shapes, recipe: Recipe) -> Fit:
    """The differences between a file's entries and ``recipe``'s model."""
    wanted = expected(recipe.architecture)
    headless = not any(name.startswith(AUXILIARY) for name in shapes)
    optional = (AUXILIARY,) if headless else ()
    missing = [n for n in wanted if n not in shapes and not n.endswith(COUNTER) and not n.startswith(optional)]
    unexpected = [name for name in shapes if name not in wanted]
    misshapen = [
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and tuple(shapes[name]) != shape
    ]
    return Fit(recipe, tuple(missing), tuple(unexpected), tuple(misshapen))


def fits(shapes: Shapes) -> list[Fit]:
    """All recipes, the best fit first; among equals the one with the nearest number of classes."""
    classes = next(iter(shapes.get(CLASSIFIER, ())), 0)
    found = [compare(shapes, recipe) for recipe in RECIPES.values()]
    return sorted(found, key=lambda fit: (fit.differences, abs(fit.recipe.labels.count - classes)))


def few(names: tuple[str, ...] | list[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f", … ({more} more)" if more > 0 else "")
