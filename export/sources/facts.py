"""The recipe of a network completed with what was found by running it, or refused where the two contradict."""

from __future__ import annotations

import dataclasses

from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.export.intake.graph import Intake, are_probabilities
from isnet_trt.recipes import NetworkRecipe
from isnet_trt.settings import LARGEST_MULTIPLE, Activation, Inference, Preprocess, Size, size_text


def settle(recipe: NetworkRecipe, intake: Intake, source: str, static: Size | None = None) -> NetworkRecipe:
    """The recipe with the facts of an intake: activation, enlargement, size multiple.

    Raises:
        SettingsError: recipe or ``static`` contradict the network; the message names both.
        BuildError: the network takes one size only, and a preset shows others.
    """
    probed, facts = intake.probed, recipe.network
    multiple = _multiple(facts.size_multiple, intake, source)
    if static and probed.size not in (None, static):
        raise SettingsError(f"--static {size_text(static)}: {source} takes {size_text(probed.size or static)} only")
    if static and any(side % multiple for side in static):
        raise SettingsError(f"--static {size_text(static)}: {source} takes multiples of {multiple} only")
    for name, preset in recipe.presets.items():
        _check_size(probed.size, name, preset, recipe.preprocess, source)
    network = dataclasses.replace(
        facts,
        activation=_activation(facts.activation, intake, source),
        upsampling=intake.enlargement or "none",
        size_multiple=multiple,
    )
    return dataclasses.replace(recipe, network=network)


def _activation(stated: Activation, intake: Intake, source: str) -> Activation:
    """What the output is: as graph and values say, else as the recipe says and the values allow."""
    if intake.activation != "none":
        if stated not in ("none", intake.activation):
            raise SettingsError(
                f"activation: {stated} contradicts {source}, whose output is that of a {intake.activation}; remove the "
                "key"
            )
        return intake.activation
    if stated != "none" and not are_probabilities(intake.sample, stated):
        raise SettingsError(
            f"activation: {stated} contradicts {source}, whose output has values from {intake.sample.min():.3g} to "
            f"{intake.sample.max():.3g}: which {stated} cannot give. The key says what the output already is: remove it"
        )
    return stated


def _multiple(stated: int, intake: Intake, source: str) -> int:
    """What sides are padded to: of a network of one square size that size, else as recipe or network demand."""
    size, needed = intake.probed.size, intake.probed.multiple
    if size is not None:
        # Images smaller than the only window are padded to it.
        return size[0] if size[0] == size[1] <= LARGEST_MULTIPLE else 1
    if stated > 1 and stated % needed:
        raise SettingsError(
            f"size_multiple: {stated} contradicts {source}, which takes multiples of {needed} only; remove the key, or "
            f"give a multiple of {needed}"
        )
    return max(stated, needed)


def _check_size(size: Size | None, name: str, preset: Inference, preprocess: Preprocess, source: str) -> None:
    """Refuse a preset that gives a network of one fixed size inputs of other sizes."""
    if size is None or preset.window == size:
        return
    exact = preset.window is None and preprocess.size == size and not preprocess.keep_ratio and preset.scales == (1.0,)
    if not exact:
        height, width = size
        raise BuildError(
            f"{source} takes inputs of {size_text(size)} only, and the preset {name!r} gives it others: give the "
            f"preset window: [{height}, {width}], or export the network with free height and width"
        )
