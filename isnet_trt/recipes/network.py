"""A recipe for any segmentation network, from a small YAML file. ``docs/any-network.md`` explains every key.

    name: road_scenes               # used in bundles
    classes: 19                     # or names: [road, car]; or names with colours: {road: '#804080', car: [0, 0, 142]}
    mean: [0.485, 0.456, 0.406]     # per channel, in the network's channel order
    std: [0.229, 0.224, 0.225]
    pixel_range: 1                  # mean and std are for pixels of 0..1; 255 (default): of 0..255

The other keys have defaults: pictures are not resized, RGB, without padding, and the output is logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from isnet_trt.errors import SettingsError
from isnet_trt.files import named
from isnet_trt.recipes import custom
from isnet_trt.recipes import yaml_fields as fields
from isnet_trt.recipes.recipe import NetworkRecipe
from isnet_trt.recipes.yaml_fields import Fields
from isnet_trt.settings import (
    LARGEST_MULTIPLE,
    MOST_CLASSES,
    Activation,
    ChannelOrder,
    Inference,
    Labels,
    NetworkFacts,
    PaddingSide,
    Preprocess,
    Size,
)

_TRAINING = ("images", "labels", "like", "backbone", "lr", "crop", "batch", "epochs", "split", "ignore")
"""Keys by which the recipe of a training is recognised."""
_BACKGROUND = "background"
_SIDES = "from 1 to 32768 pixels"
_SIDE = fields.whole(1, 32_768)


def network_recipe(path: Path) -> NetworkRecipe:
    """The recipe in a YAML file without keys of training.

    Raises:
        SettingsError: the file cannot be read, or a key or value is wrong; the message has file, key and value.
    """
    file = Fields(path)
    try:
        if training := [key for key in file.keys if key in _TRAINING]:
            raise SettingsError(
                f"{training[0]} belongs to the recipe of a training (docs/fine-tuning.md); that of a network from "
                "elsewhere has classes, mean and std (docs/any-network.md)"
            )
        recipe = _recipe(file)
    except SettingsError as error:  # of `isnet_trt.settings`, which knows no file
        raise SettingsError(named(path, error)) from None
    file.finish()
    return recipe


def _recipe(file: Fields) -> NetworkRecipe:
    name = custom.read_name(file)
    labels, threshold = _labels(file)
    expected = "mean, or the pixel value of each channel, within 0..255"
    facts = NetworkFacts(
        activation=_one_of(file, "activation", Activation),
        threshold=threshold,
        size_multiple=_multiple(file),
        padding_side=_one_of(file, "padding_side", PaddingSide),
        padding_value=file.get("padding_value", None, expected, _padding),
    )
    return NetworkRecipe(name, labels, _preprocess(file), facts, _presets(file, facts.activation))


def _labels(file: Fields) -> tuple[Labels, float | None]:
    """The label set, and the threshold of a network of one class, whose label set has the background too."""
    expected = "the number of classes, a list of their names, or a mapping of names to colours"
    classes = file.take("classes", expected, _classes)
    names = list(classes)
    default = 0.5 if len(names) == 1 else None
    threshold = file.get("threshold", default, "a probability above 0 and below 1", fields.number(1e-6, 1 - 1e-6))
    if threshold is not None and len(names) > 2:
        raise SettingsError(f"threshold belongs to networks of one class, but classes has {len(names)}")
    alone = len(names) == 1
    palette = tuple(colour for colour in classes.values() if colour is not None)
    if palette:
        if "palette" in file.keys:
            raise SettingsError("the colours are in classes already; remove palette")
        labels = Labels(tuple(names), palette, custom.read_flip_pairs(file, names))
    else:
        labels = custom.read_labels(file, names, custom.colours(len(names) + alone)[alone:])
    if alone:
        background = _BACKGROUND if names[0] != _BACKGROUND else f"not {_BACKGROUND}"
        labels = Labels((background, *labels.names), ((0, 0, 0), *labels.palette))
    return labels, threshold


def _classes(value: Any) -> dict[str, custom.Colour | None]:
    """Name -> colour, or None where the file gives none."""
    if isinstance(value, int):
        count = fields.whole(1, MOST_CLASSES)(value)
        return {"foreground": None} if count == 1 else {f"class {number}": None for number in range(count)}
    if not isinstance(value, list | dict) or not 1 <= len(value) <= MOST_CLASSES:
        raise ValueError
    custom.check_class_names(list(value))
    return {n: custom.colour(c) for n, c in value.items()} if isinstance(value, dict) else dict.fromkeys(value)


def _preprocess(file: Fields) -> Preprocess:
    pixel_range = file.get("pixel_range", None, "1 or 255: mean and std are for pixels of 0..1 or 0..255", _range)
    unit = 255 // (pixel_range or 255)
    number = fields.number(-1e6, 1e6)
    mean = file.take("mean", "three numbers, one per channel of the network's input", fields.triple(number))
    expected = "three positive numbers, one per channel of the network's input"
    std = file.take("std", expected, fields.triple(fields.number(1e-6, 1e6)))
    if pixel_range is None and min(std) < 1:
        raise SettingsError(
            f"std: {list(std)} with pixels of 0..255 would give inputs of up to {255 / min(std):.0f}; write "
            "pixel_range: 1 if mean and std are for pixels of 0..1, else pixel_range: 255"
        )
    expected = f"[height, width], {{long: …, short: …}} (the ratio is kept), each {_SIDES}, or null for no resize"
    as_it_is: tuple[Size | None, bool] = (None, True)
    size, keep_ratio = file.get("size", as_it_is, expected, _size)
    order = _one_of(file, "channel_order", ChannelOrder)
    mean, std = ((values[0] * unit, values[1] * unit, values[2] * unit) for values in (mean, std))
    return Preprocess(size, keep_ratio, mean, std, order)


def _one_of(file: Fields, key: str, kind: Any) -> Any:
    """One of the values of the Literal ``kind``, of which the first is the default."""
    names = get_args(kind)
    return file.get(key, names[0], f"one of {', '.join(names)}", fields.choice(*names))


def _range(value: Any) -> int:
    return value if fields.whole(1, 255)(value) == 1 else fields.whole(255, 255)(value)


def _size(value: Any) -> tuple[Size | None, bool]:
    if value is None:
        return None, True
    if isinstance(value, dict):
        if set(value) != {"long", "short"}:
            raise ValueError
        long, short = _SIDE(value["long"]), _SIDE(value["short"])
        if long < short:
            raise ValueError("long is below short")
        return (long, short), True
    return fields.pair(_SIDE)(value), False


def _multiple(file: Fields) -> int:
    expected = f"a whole number of pixels from 1 to {LARGEST_MULTIPLE}"
    return file.get("size_multiple", 1, expected, fields.whole(1, LARGEST_MULTIPLE))


def _padding(value: Any) -> tuple[float, float, float] | None:
    return None if value == "mean" else fields.triple(fields.number(0, 255))(value)


def _presets(file: Fields, activation: Activation) -> dict[str, Inference]:
    whole: dict[str, Any] = {"default": {}}
    presets = file.get("presets", whole, "a mapping of preset names to settings, one called default", _named)
    return {
        name: _inference(file.below(f"presets: {name}", settings), activation) for name, settings in presets.items()
    }


def _named(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "default" not in value:
        raise ValueError
    for name in value:
        fields.text(name)
    return {name: {} if settings is None else settings for name, settings in value.items()}


def _inference(file: Fields, activation: Activation) -> Inference:
    """The settings of one preset: whole pictures, or windows where there is a key ``window``."""
    expected = f"[height, width], each {_SIDES}"
    window = file.get("window", None, expected, fields.pair(_SIDE))
    step = None if window is None else (-(-window[0] * 2 // 3), -(-window[1] * 2 // 3))
    stride = file.get("stride", step, f"{expected}, the distance of the windows", fields.pair(_SIDE))
    if stride is not None and window is None:
        raise SettingsError("presets: stride belongs to a window; add the key window")
    plain: tuple[float, ...] = (1.0,)
    scales = file.get("scales", plain, "a list of factors above 0 and up to 16", _scales)
    flip = file.get("flip", False, "true or false", fields.flag)
    expected = "logits or probabilities, of which the mean over windows, scales and mirrored pictures is taken"
    average = file.get("average", None, expected, fields.choice("logits", "probabilities"))
    if average == "logits" and activation != "none":
        raise SettingsError(f"presets: average: there are no logits with activation: {activation}; remove average")
    file.finish()
    mode: Any = "whole" if window is None else "slide"
    return Inference(mode, window, stride, scales, flip, average == "probabilities")


def _scales(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return tuple(map(fields.number(1e-6, 16), value))
