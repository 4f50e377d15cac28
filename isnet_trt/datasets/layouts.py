"""The four datasets as they lie on disk, with the id lists of the reference's packages or as unpacked from the
official archives, and datasets of one's own described by a YAML file.

Where the reference's root folder is called ``R``, `open_dataset` takes ``R``, the folder that contains ``R``, and what
the official archives unpack to:

    ade20k        R = ADE20k        ADEChallengeData2016/{images,annotations}/{training,validation}
    cityscapes    R = CityScapes    leftImg8bit/{train,val}/CITY, gtFine/{train,val}/CITY
    cocostuff10k  R = COCOStuff10k  images, annotations, imageLists/{train,test}.txt
    lip           R = LIP           {train,val}_images, {train,val}_segmentations
                                    (also under TrainVal_images and TrainVal_parsing_annotations)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.datasets.own_files import open_custom
from isnet_trt.datasets.picture_set import LabelValues, PictureSet
from isnet_trt.datasets.reading import read_ids
from isnet_trt.errors import DataError, SettingsError
from isnet_trt.recipes import DATASETS, is_described, label_table

SPLITS = ("train", "val")
_LISTED = 3


@dataclass(frozen=True)
class Layout:
    """Where the files of one split are, each place relative to the root with alternatives, the first that exists.

    A picture is ``images/NAME + image_end`` and its labels ``annotations/NAME + label_end``. ``lists`` are the files
    with the names (without suffix) of the split's pictures; None of them: every picture in the folder.
    """

    root: str
    images: tuple[str, ...]
    annotations: tuple[str, ...]
    lists: tuple[str, ...]
    image_end: str
    label_end: str
    complete: int
    """Pictures of the complete dataset."""
    nested: bool = False
    """Whether the pictures lie in folders by city."""
    needs_list: bool = False
    """Whether both splits share a folder, so that only a list tells them apart."""


def _ade20k(split: str) -> Layout:
    folder = {"train": "training", "val": "validation"}[split]
    tops = ("ADEChallengeData2016/", "")
    return Layout(
        "ADE20k",
        tuple(f"{top}images/{folder}" for top in tops),
        tuple(f"{top}annotations/{folder}" for top in tops),
        tuple(f"{top}{split}.txt" for top in tops),
        ".jpg",
        ".png",
        {"train": 20210, "val": 2000}[split],
    )


def _cityscapes(split: str) -> Layout:
    return Layout(
        "CityScapes",
        (f"leftImg8bit/{split}", f"leftImg8bit_trainvaltest/leftImg8bit/{split}"),
        (f"gtFine/{split}", f"gtFine_trainvaltest/gtFine/{split}"),
        (f"{split}.txt",),
        "_leftImg8bit.png",
        "_gtFine_labelIds.png",
        {"train": 2975, "val": 500}[split],
        nested=True,
    )


def _cocostuff10k(split: str) -> Layout:
    tops = ("", "cocostuff-10k-v1.1/")
    return Layout(
        "COCOStuff10k",
        tuple(f"{top}images" for top in tops),
        tuple(f"{top}annotations" for top in tops),
        tuple(f"{top}imageLists/{'test' if split == 'val' else split}.txt" for top in tops),
        ".jpg",
        ".mat",
        {"train": 9000, "val": 1000}[split],
        needs_list=True,
    )


def _lip(split: str) -> Layout:
    pictures, parsing = "TrainVal_images/", "TrainVal_parsing_annotations/"
    return Layout(
        "LIP",
        tuple(f"{top}{split}_images" for top in ("", pictures, pictures * 2)),
        tuple(f"{top}{split}_segmentations" for top in ("", parsing, parsing * 2)),
        tuple(f"{top}{split}_id.txt" for top in ("", pictures, pictures * 2)),
        ".jpg",
        ".png",
        {"train": 30462, "val": 10000}[split],
    )


_LAYOUTS = {"ade20k": _ade20k, "cityscapes": _cityscapes, "cocostuff10k": _cocostuff10k, "lip": _lip}
DATASET_NAMES = tuple(_LAYOUTS)


def open_dataset(name: str, root: Path | None, split: str) -> PictureSet:
    """One split of a dataset on disk.

    Args:
        name: ``ade20k``, ``cityscapes``, ``cocostuff10k``, ``lip``, or the path of a YAML file that describes a
            dataset of one's own (`isnet_trt.recipes.custom`).
        root: its folder. None: the reference's folder name (``ADE20k``, …) in the working directory; for a YAML
            file the folder that the file names.
        split: ``train`` or ``val`` (COCO-Stuff's ``test``).

    Raises:
        DataError: folders are missing or half unpacked; the message names them and what was expected.
        SettingsError: no such dataset or split.
    """
    if split not in SPLITS:
        raise SettingsError(f"split {split!r} is unknown; use 'train' or 'val'")
    if is_described(name):
        return open_custom(Path(name), root, split)
    if name not in _LAYOUTS:
        raise SettingsError(f"no dataset is called {name!r}; there are {', '.join(_LAYOUTS)}, or give a .yaml file")
    layout = layout_of(name, split)
    base = _base(name, root or Path(layout.root), layout)
    names, files = _pairs(base, layout)
    return PictureSet(name, split, DATASETS[name].labels, names, files, label_values(name))


def layout_of(name: str, split: str) -> Layout:
    """The layout of one of the four datasets."""
    return _LAYOUTS[name](split)


def label_values(name: str) -> LabelValues:
    """The stored label values of one of the four datasets; LIP stores its training ids 0..19."""
    entry = label_table()[name]
    # Cityscapes' id −1 (licence plate) is never drawn into its label pictures, which could not hold it.
    stored = {int(value): int(number) for value, number in entry["label_map"].items() if int(value) >= 0}
    return LabelValues(stored or {i: i for i in range(entry["num_classes"])})


def _base(name: str, root: Path, layout: Layout) -> Path:
    """``root``, or the folder of the reference's name in it, whichever holds pictures or labels."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the one that {name} was unpacked to")
    for base in (root, root / layout.root):
        if any((base / place).is_dir() for place in (*layout.images, *layout.annotations)):
            return base
    raise DataError(
        f"{root} does not look like {name}: expected {layout.images[0]} and {layout.annotations[0]} in it; "
        f"it holds {_few(sorted(p.name for p in root.iterdir()))}"
    )


def _pairs(base: Path, layout: Layout) -> tuple[tuple[str, ...], tuple[tuple[Path, Path], ...]]:
    """Names and files of a split, each checked to be there."""
    images, annotations = _folder(base, layout.images), _folder(base, layout.annotations)
    pictures = _names(images, layout.image_end, layout.nested)
    labels = _names(annotations, layout.label_end, layout.nested)
    listed = next((base / place for place in layout.lists if (base / place).is_file()), None)
    if listed is None and layout.needs_list:
        raise DataError(f"{base / layout.lists[0]} is missing: it tells training from test pictures; unpack it again")
    if listed is not None:
        names = tuple(
            (name + Path(layout.image_end).suffix).removesuffix(layout.image_end) for name in read_ids(listed)
        )
    else:
        names = tuple(sorted(pictures))
        refuse_missing(sorted(labels - pictures), images, layout.image_end, annotations)
    refuse_missing([n for n in names if n not in pictures], images, layout.image_end, listed or annotations)
    refuse_missing([n for n in names if n not in labels], annotations, layout.label_end, listed or images)
    if not names:
        raise DataError(f"{images} holds no picture *{layout.image_end}; unpack it again")
    files = tuple((images / (n + layout.image_end), annotations / (n + layout.label_end)) for n in names)
    return names, files


def _folder(base: Path, places: tuple[str, ...]) -> Path:
    found = next((base / place for place in places if (base / place).is_dir()), None)
    if found is None:
        raise DataError(f"{base / places[0]} is missing: the dataset is half unpacked; unpack its archive too")
    return found


def _names(folder: Path, end: str, nested: bool) -> set[str]:
    """Names (relative, without ``end``) of the files in a folder; those with a leading dot are a system's own."""
    found = folder.glob("*/*" if nested else "*")
    return {
        path.relative_to(folder).as_posix().removesuffix(end)
        for path in found
        if path.name.endswith(end) and not path.name.startswith(".")
    }


def refuse_missing(names: list[str], folder: Path, end: str, wanted_by: Path) -> None:
    """Raise `DataError` where ``names``, which ``wanted_by`` has or lists, have no file in ``folder``."""
    if names:
        raise DataError(
            f"{folder}: {len(names)} file{'s' if len(names) > 1 else ''} missing that {wanted_by} calls for: "
            f"{_few([name + end for name in names])}; unpack the archive again"
        )


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    more = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f", … ({more} more)" if more > 0 else "") if shown else "nothing"
