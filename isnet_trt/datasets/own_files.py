"""Find the pictures and label files of the user's own dataset, and divide them into training and validation."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from isnet_trt.datasets.listing import matching
from isnet_trt.datasets.picture_set import Files, LabelValues, PictureSet
from isnet_trt.datasets.reading import check_packages, read_ids
from isnet_trt.errors import DataError, first_few
from isnet_trt.files import is_missing
from isnet_trt.pictures.finding import SUFFIXES
from isnet_trt.pictures.results import is_result
from isnet_trt.recipes.custom import FilePatterns, read_custom

_WILDCARDS = "*?["


def open_custom(path: Path, root: Path | None, split: str) -> PictureSet:
    """One split of the pictures that a YAML file describes, under ``root`` or beside the file.

    Raises:
        SettingsError: as `isnet_trt.recipes.custom.read_custom`, or a package for reading labels is missing.
        DataError: there are no pictures, or some have no labels.
    """
    custom = read_custom(path)
    check_packages(str(path), PurePosixPath(custom.files.labels).suffix)
    names, files = find_pairs(custom.files, root or path.resolve().parent, split)
    values = LabelValues(custom.values, custom.assumed)
    return PictureSet(custom.recipe.name, split, custom.recipe.labels, names, files, values, own=True)


def find_pairs(patterns: FilePatterns, root: Path, split: str) -> tuple[tuple[str, ...], Files]:
    """Names, pictures and label files of one split; DataError if any is missing, or two pictures have one name."""
    by_folder = "{split}" in patterns.images
    folder = patterns.places[split] if by_folder and patterns.places else ""
    images, labels = (pattern.replace("{split}", folder) for pattern in (patterns.images, patterns.labels))
    pictures = _pictures(root, images)
    if by_folder:
        names = tuple(sorted(pictures))
    elif patterns.places is not None:
        names = _listed(root / patterns.places[split], pictures)
    else:
        names = _drawn(sorted(pictures), patterns.share or 0.0, split)
    files = tuple((pictures[name], root / labels.replace("{name}", name)) for name in names)
    missing = [str(label) for _, label in files if is_missing(label)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} pictures ({images}) have no labels; missing are {first_few(missing)}. "
            "Add them, or give 'images' a pattern that leaves those pictures out (such as 'photos/*.jpg')"
        )
    return names, files


def _pictures(root: Path, pattern: str) -> dict[str, Path]:
    """Name -> file of the pictures that match."""
    parts = PurePosixPath(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if any(c in part for c in _WILDCARDS)), len(parts))
    folder = root.joinpath(*parts[:fixed])
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder (images: {pattern!r}); paths are relative to {root}")
    paths = matching(folder, parts[fixed:] or ("**", "*"))
    names = (path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    files = {path for path in names if not is_result(path)}
    pictures: dict[str, Path] = {}
    for file in sorted(files):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in pictures:
            raise DataError(f"{pictures[name]} and {file} have one name, so they would share labels; rename one")
        pictures[name] = file
    if not pictures:
        raise DataError(f"{folder} holds no pictures (images: {pattern!r}; {' '.join(sorted(SUFFIXES))})")
    return pictures


def _listed(path: Path, pictures: Mapping[str, Path]) -> tuple[str, ...]:
    names = read_ids(path)
    absent = [name for name in names if name not in pictures]
    if absent:
        raise DataError(f"{path}: {len(absent)} names without a picture: {first_few(absent)}; names have no suffix")
    return names


def _drawn(names: list[str], share: float, split: str) -> tuple[str, ...]:
    """Divide by a checksum of the names, so that an added picture moves few of the others to the other split."""
    if len(names) < 2:
        raise DataError("there is only one picture; training and validation need at least one each")
    count = min(max(1, round(share * len(names))), len(names) - 1)
    held_out = set(sorted(names, key=lambda name: (zlib.crc32(name.encode()), name))[:count])
    return tuple(name for name in names if (name in held_out) == (split == "val"))
