"""Recipes, the definitions of models: published ones by name, those for the user's data from a YAML file. No torch."""

from __future__ import annotations

from pathlib import Path

from isnet_trt.errors import SettingsError, nearest
from isnet_trt.recipes.architecture import Architecture, Backbone
from isnet_trt.recipes.custom import custom_recipe
from isnet_trt.recipes.network import network_recipe
from isnet_trt.recipes.published import DATASETS, DEMO_LABELS, RECIPES
from isnet_trt.recipes.recipe import (
    IGNORE,
    PRESETS,
    Augmentation,
    Dataset,
    NetworkRecipe,
    Optimiser,
    Recipe,
    label_table,
)
from isnet_trt.recipes.yaml_fields import Fields

__all__ = [
    "DATASETS",
    "DEMO_LABELS",
    "IGNORE",
    "PRESETS",
    "RECIPES",
    "Architecture",
    "Augmentation",
    "Backbone",
    "Dataset",
    "NetworkRecipe",
    "Optimiser",
    "Recipe",
    "any_recipe",
    "is_described",
    "label_table",
    "network_recipe",
    "recipe",
]


def recipe(name: str) -> Recipe:
    """The recipe called ``name``, or described by the YAML file ``name`` (`isnet_trt.recipes.custom`).

    Raises:
        SettingsError: there is none (the message lists all), or the file has a wrong key or value.
    """
    if is_described(name):
        return custom_recipe(Path(name))
    if name not in RECIPES:
        known = f"there are: {', '.join(RECIPES)}, or give a .yaml file"
        raise SettingsError(f"no recipe is called {name!r}; {known}{nearest(name, RECIPES)}")
    return RECIPES[name]


def any_recipe(name: str) -> Recipe | NetworkRecipe:
    """As `recipe`, and the recipe of any network in a YAML file that describes no pictures to train on.

    Raises:
        SettingsError: as `recipe` and `network_recipe`.
    """
    if is_described(name) and "images" not in Fields(Path(name)).keys:
        return network_recipe(Path(name))
    return recipe(name)


def is_described(name: str) -> bool:
    """Whether ``name`` is the path of a YAML file, not the name of a recipe or dataset."""
    return name.lower().endswith((".yaml", ".yml"))
