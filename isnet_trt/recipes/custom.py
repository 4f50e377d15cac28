"""A recipe for the user's own pictures and labels, from a small YAML file. ``docs/fine-tuning.md`` explains every key.

    name: tiles                          # used in checkpoints and bundles
    images: "{split}/*.jpg"              # relative to this file; {split} is train or val
    labels: "{split}/{name}.png"         # one number per pixel; {name} is the picture's name without suffix
    classes: [background, tile, crack]   # stored as 0, 1, 2; or by stored value: {0: background, 7: tile}

The other keys have defaults, those of the recipe named by ``like``. Reading the file needs no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isnet_trt.errors import SettingsError
from isnet_trt.files import named
from isnet_trt.recipes import yaml_fields as fields
from isnet_trt.recipes.architecture import BACKBONES
from isnet_trt.recipes.published import RECIPES
from isnet_trt.recipes.recipe import IGNORE, Augmentation, Optimiser, Recipe
from isnet_trt.recipes.yaml_fields import Fields
from isnet_trt.settings import MOST_CLASSES, Inference, Labels, Size

LIKE = "isnet_resnet50os8_ade20k"
_SMALLEST_CROP, _LARGEST_SIDE = 32, 32_768
_SIDES = f"from {_SMALLEST_CROP} to {_LARGEST_SIDE} pixels"
_LARGEST_BATCH, _MOST_EPOCHS = 65_536, 1_000_000
_LARGEST_VALUE = 65535
"""The largest value of a 16-bit PNG."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class FilePatterns:
    """Locations of pictures and labels, relative to a root.

    ``images`` is a folder (with all below it) or a pattern; ``labels`` has ``{name}``, the picture's path below the
    fixed part of ``images``, without suffix. ``{split}`` in both stands for ``places["train"]`` or ``places["val"]``.
    Without it ``places`` are list files with the names of each split; if it is None, ``share`` of the pictures are for
    validation, drawn by a checksum of their names.
    """

    images: str
    labels: str
    places: Mapping[str, str] | None
    share: float | None


@dataclass(frozen=True)
class Custom:
    """Content of a YAML file: the recipe, the patterns of the files, and the meaning of stored label values.

    ``values``: stored label value -> training id 0..K−1 or `IGNORE`; ``assumed``: values that are ignored by default,
    without a key ``ignore`` in the file.
    """

    recipe: Recipe
    files: FilePatterns
    values: Mapping[int, int]
    assumed: frozenset[int] = frozenset()


def custom_recipe(path: Path) -> Recipe:
    """The recipe that a YAML file describes; its ``dataset`` is the file's absolute path.

    Raises:
        SettingsError: as `read_custom`.
    """
    return read_custom(path).recipe


def read_custom(path: Path) -> Custom:
    """The checked content of a YAML file.

    Raises:
        SettingsError: the file cannot be read, or a key or value is wrong; the message has file, key and value.
    """
    try:
        return _custom(Fields(path))
    except SettingsError as error:  # of `isnet_trt.settings`, which knows no file
        raise SettingsError(named(path, error)) from None


def _custom(file: Fields) -> Custom:
    name = read_name(file)
    like = file.get("like", RECIPES[LIKE], f"one of the recipes {', '.join(RECIPES)}", _one_of(RECIPES))
    stored = file.take("classes", "a list of class names, or a mapping of stored values to class names", _classes)
    labels = read_labels(file, list(stored.values()))
    values, assumed = _values(file, tuple(stored))
    files = _files(file)
    recipe = _recipe(file, name, like, labels)
    file.finish()
    return Custom(recipe, files, values, assumed)


def _recipe(file: Fields, name: str, like: Recipe, labels: Labels) -> Recipe:
    backbone = file.get("backbone", like.architecture.backbone, f"one of {', '.join(BACKBONES)}", _one_of(BACKBONES))
    sides = "[longer side, shorter side]" if like.preprocess.keep_ratio else "[height, width]"
    expected = f"{sides} of the network's input, each {_SIDES}"
    test_size = like.preprocess.size or like.crop
    size = file.get("size", test_size, expected, fields.pair(side))
    return Recipe(
        name=name,
        architecture=dataclasses.replace(like.architecture, backbone=backbone, num_classes=labels.count),
        dataset=str(file.path.resolve()),
        labels=labels,
        preprocess=dataclasses.replace(like.preprocess, size=size),
        crop=file.get("crop", like.crop, f"[height, width], each {_SIDES}, or one number for both", _crop),
        augmentation=_augmentation(file, like, size, test_size),
        optimiser=_optimiser(file, like.optimiser),
        batch=_count(file, "batch", like.batch, _LARGEST_BATCH),
        epochs=_count(file, "epochs", like.epochs, _MOST_EPOCHS),
        default=Inference(),
        ms_flip=like.ms_flip,
    )


def _count(file: Fields, key: str, default: int, highest: int) -> int:
    return file.get(key, default, f"a whole number from 1 to {highest}", fields.whole(1, highest))


def _augmentation(file: Fields, like: Recipe, size: tuple[int, int], test_size: tuple[int, int]) -> Augmentation:
    """``like``'s, with the training size in the same ratio to the test size, which was ``test_size``."""
    rule = like.augmentation
    base = tuple(side * old // test for side, old, test in zip(size, rule.base, test_size, strict=True))
    factors = file.get("scales", rule.factors, "[smallest, largest] factor from 0.1 to 10", _scales)
    rotation = file.get("rotation", rule.rotation, "[probability, largest angle from 1 to 180], or null", _rotation)
    photometric = file.get("photometric", rule.photometric, "true or false", fields.flag)
    # One's own pictures have both orientations, but all samples of a batch must have one size.
    return dataclasses.replace(
        rule, base=(base[0], base[1]), factors=factors, rotation=rotation, photometric=photometric, pad_turns=False
    )


def _optimiser(file: Fields, like: Optimiser) -> Optimiser:
    lr = file.get("lr", like.lr, "a learning rate within 1e-7..10", fields.number(1e-7, 10))
    low = like.min_lr * (lr / like.lr)
    return dataclasses.replace(
        like,
        lr=lr,
        min_lr=file.get("min_lr", low, f"a learning rate within 0..{lr:g}", fields.number(0, lr)),
        weight_decay=file.get("weight_decay", like.weight_decay, "a number within 0..1", fields.number(0, 1)),
    )


def read_name(file: Fields) -> str:
    """The key ``name``."""
    expected = "a name of up to 100 letters, digits, '_', '-' and '.' that no published recipe has"
    return file.take("name", expected, _name)


def read_labels(file: Fields, names: list[str], default: tuple[Colour, ...] | None = None) -> Labels:
    """Classes called ``names`` with what the keys ``palette`` (default: `colours`) and ``flip_pairs`` say of them."""
    expected = f"{len(names)} colours, one per class, each [red, green, blue] of 0..255 or '#rrggbb'"
    palette = file.get("palette", default or colours(len(names)), expected, functools.partial(_palette, len(names)))
    return Labels(tuple(names), palette, read_flip_pairs(file, names))


def read_flip_pairs(file: Fields, names: list[str]) -> tuple[tuple[int, int], ...]:
    """The key ``flip_pairs``, as class numbers."""
    none: tuple[tuple[int, int], ...] = ()
    return file.get("flip_pairs", none, "a list of pairs of two class names", functools.partial(_pairs, names))


def _values(file: Fields, stored: tuple[int, ...]) -> tuple[dict[int, int], frozenset[int]]:
    """Training ids by stored value, and the values that are ignored by default."""
    expected = "a stored value (or a list of them) that no class has, or null"
    default: tuple[int, ...] = () if 255 in stored else (255,)
    ignored = file.get("ignore", default, expected, functools.partial(_ignored, stored))
    assumed = frozenset(default if ignored is default else ())
    return {**{value: i for i, value in enumerate(stored)}, **dict.fromkeys(ignored, IGNORE)}, assumed


def _files(file: Fields) -> FilePatterns:
    images = file.take("images", "a folder, or a pattern such as 'photos/**/*.jpg', relative to this file", fields.text)
    expected = "a path with {name} in it, such as 'labels/{name}.png'"
    labels = file.get("labels", "labels/{name}.png", expected, _with_name)
    if "{split}" in images:
        expected = "{train: …, val: …}, the texts that replace {split} in images"
        folders = file.get("split", {"train": "train", "val": "val"}, expected, _two_texts)
        return FilePatterns(images, labels, folders, None)
    if "{split}" in labels:
        texts = fields.shown(labels), fields.shown(images)
        raise SettingsError(f"{file.path}: labels: {texts[0]} has {{split}}, but images ({texts[1]}) has not")
    expected = "the share of pictures to validate on (above 0, below 1), or {train: FILE, val: FILE} with picture names"
    default: float | dict[str, str] = 0.1
    split = file.get("split", default, expected, _share_or_lists)
    lists, share = (None, split) if isinstance(split, float) else (split, None)
    return FilePatterns(images, labels, lists, share)


def _name(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", fields.text(value)) or value in RECIPES:
        raise ValueError
    return value


def _one_of(table: Mapping[str, Any]) -> Any:
    def convert(value: Any) -> Any:
        if not isinstance(value, str) or value not in table:
            raise ValueError
        return table[value]

    return convert


def _classes(value: Any) -> dict[int, str]:
    """Stored value -> name, in the order of the training ids."""
    classes = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(classes, dict) or not 2 <= len(classes) <= MOST_CLASSES:
        raise ValueError(f"two classes at least, and {MOST_CLASSES} at most")
    for stored in classes:
        if isinstance(stored, bool) or not isinstance(stored, int) or not 0 <= stored <= _LARGEST_VALUE:
            value = fields.shown(stored)
            raise ValueError(f"{value} is no stored value; they are whole numbers from 0 to {_LARGEST_VALUE}")
    check_class_names(list(classes.values()))
    return classes


def check_class_names(names: list[Any]) -> None:
    """Raise ValueError unless all are texts, each of them once."""
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{fields.shown(name)} is no name; put it in quotes")
        if fields.text(name) in seen:
            raise ValueError(f"{fields.shown(name)} is there twice")
        seen.add(name)


def _palette(count: int, value: Any) -> tuple[Colour, ...]:
    if not isinstance(value, list) or len(value) != count:
        raise ValueError
    return tuple(map(colour, value))


def colour(value: Any) -> Colour:
    """Convert [red, green, blue] or '#rrggbb' to a colour."""
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        red, green, blue = bytes.fromhex(value[1:])
        return red, green, blue
    byte = fields.whole(0, 255)
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{fields.shown(value)} is no colour")
    return byte(value[0]), byte(value[1]), byte(value[2])


def colours(count: int) -> tuple[Colour, ...]:
    """``count`` colours (R, G, B): bits 0, 1, 2 of the class go to bit 7 of R, G, B, the next three to bit 6, …

    The colour map of the PASCAL VOC devkit, which many tools use; class 0 is black.
    """

    def channel(number: int, offset: int) -> int:
        return sum((number >> (3 * i + offset) & 1) << (7 - i) for i in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def _pairs(names: list[str], value: Any) -> tuple[tuple[int, int], ...]:
    if not isinstance(value, list):
        raise ValueError
    pairs = [fields.pair(fields.text)(item) for item in value]
    paired = [name for pair in pairs for name in pair]
    numbers = {name: number for number, name in enumerate(names)}
    unknown = next((name for name in paired if name not in numbers), None)
    if unknown is not None:
        raise ValueError(f"no class is called {fields.shown(unknown)}")
    if len(set(paired)) < len(paired):
        raise ValueError("a class can change places with one other only")
    return tuple((numbers[a], numbers[b]) for a, b in pairs)


def _ignored(stored: tuple[int, ...], value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    values = tuple(fields.whole(0, _LARGEST_VALUE)(item) for item in listed)
    taken = next(iter(set(values).intersection(stored)), None)
    if taken is not None:
        raise ValueError(f"{taken} is a class")
    return values


def _with_name(value: Any) -> str:
    if "{name}" not in fields.text(value):
        raise ValueError
    return value


def _two_texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or set(value) != {"train", "val"}:
        raise ValueError
    return {split: fields.text(text) for split, text in value.items()}


def _share_or_lists(value: Any) -> float | dict[str, str]:
    return _two_texts(value) if isinstance(value, dict) else fields.number(1e-6, 1 - 1e-6)(value)


def side(value: Any) -> int:
    """Convert to a side in pixels that an input may have."""
    return fields.whole(_SMALLEST_CROP, _LARGEST_SIDE)(value)


def _crop(value: Any) -> Size:
    return fields.pair(side)(value) if isinstance(value, list) else (side(value), side(value))


def _scales(value: Any) -> tuple[float, float]:
    low, high = fields.pair(fields.number(0.1, 10))(value)
    if low > high:
        raise ValueError
    return low, high


def _rotation(value: Any) -> tuple[float, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError
    return fields.number(0, 1)(value[0]), fields.whole(1, 180)(value[1])
