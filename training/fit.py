"""Match a set of weights with a recipe by the names and shapes of its entries."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isnet_trt.errors import first_few
from isnet_trt.recipes import RECIPES, Recipe
from isnet_trt.recipes.architecture import Architecture
from isnet_trt.training.model import ISNet
from isnet_trt.training.stored import StoredTensor

Shapes = Mapping[str, tuple[int, ...]]
AUXILIARY = "auxiliary_decoder."
COUNTER = ".num_batches_tracked"
CLASSIFIER = "decoder_stage1.4.weight"


@dataclass(frozen=True)
class Differences:
    """Names of the entries that differ between a file and a model; ``misshapen`` with both shapes, ready to print."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of entries that differ; 0 means that the weights can be loaded."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def describe(self) -> str:
        """One indented line for each kind of difference, with the first few names."""
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.misshapen))
        return "\n".join(f"  {len(names)} {kind}: {first_few(names)}" for kind, names in kinds if names)


@dataclass(frozen=True)
class Fit:
    """A recipe and how the entries of a file differ from those of its model."""

    recipe: Recipe
    differences: Differences


def shapes_of(state: Mapping[str, StoredTensor | Tensor] | Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each entry."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@functools.cache
def expected(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's state dict, in its order; no memory is allocated for the weights."""
    with torch.device("meta"):
        return shapes_of(ISNet(architecture).state_dict())


def differences(shapes: Shapes, model: Shapes) -> Differences:
    """The entries that differ between a file's ``shapes`` and those of ``model``; batch counters may be missing."""
    missing = (name for name in model if name not in shapes and not name.endswith(COUNTER))
    unexpected = (name for name in shapes if name not in model)
    misshapen = (
        f"{name} {list(shapes[name])} instead of {list(shape)}"
        for name, shape in model.items()
        if name in shapes and shapes[name] != shape
    )
    return Differences(tuple(missing), tuple(unexpected), tuple(misshapen))


def compare(shapes: Shapes, recipe: Recipe) -> Fit:
    """The fit of a file's entries to ``recipe``'s model.

    The auxiliary head may be missing as a whole: inference does not need it.
    """
    model: Shapes = expected(recipe.architecture)
    if not any(name.startswith(AUXILIARY) for name in shapes):
        model = {name: shape for name, shape in model.items() if not name.startswith(AUXILIARY)}
    return Fit(recipe, differences(shapes, model))


def fits(shapes: Shapes) -> list[Fit]:
    """The fit to every recipe, the best first; among equals the one with the nearest number of classes."""
    classes = next(iter(shapes.get(CLASSIFIER, ())), 0)
    compared = (compare(shapes, recipe) for recipe in RECIPES.values())
    return sorted(compared, key=lambda fit: (fit.differences.count, abs(fit.recipe.labels.count - classes)))
