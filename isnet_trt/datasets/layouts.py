"""The four public datasets on disk, and `open_dataset`, which also opens one's own data by its YAML file.

`LAYOUTS` says where each dataset's files are. The id lists are those of the reference's packages; without them the
folders are as unpacked from the official archives. Where the reference's root folder is called ``R`` (`Layout.root`),
`open_dataset` takes ``R``, the folder that contains ``R``, and what the official archives unpack to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.cli import system_message
from isnet_trt.datasets.listing import matching
from isnet_trt.datasets.own_files import open_custom
from isnet_trt.datasets.picture_set import Files, LabelValues, PictureSet
from isnet_trt.datasets.reading import check_packages, read_ids
from isnet_trt.errors import DataError, SettingsError, first_few, nearest
from isnet_trt.recipes import DATASETS, is_described, label_table

SPLITS = ("train", "val")
"""The splits with labels."""
TEST = "test"
"""The split whose labels only the evaluation servers have."""


@dataclass(frozen=True)
class Layout:
    """Locations of a dataset's files, relative to the root.

    A picture is ``images/NAME + image_end`` and its labels ``annotations/NAME + label_end``. Of alternative places the
    first that exists is used. ``{split}`` in a place is ``train`` or ``val``, ``{folder}`` is ``folders[split]``.

    Attributes:
        root: name of the reference's folder.
        about: the folders in one or two lines, for ``--help``.
        lists: files with the names (without suffix) of a split's pictures; if none exists, every picture of the folder
            belongs to the split.
        complete: number of pictures of the complete dataset, by split.
        test: folders of the test pictures, which have no labels.
        nested: the pictures are in one folder per city.
        needs_list: both splits share a folder, so that only a list tells them apart.
    """

    root: str
    about: str
    images: tuple[str, ...]
    annotations: tuple[str, ...]
    lists: tuple[str, ...]
    image_end: str
    label_end: str
    complete: Mapping[str, int]
    folders: Mapping[str, str]
    test: tuple[str, ...] = ()
    nested: bool = False
    needs_list: bool = False

    def places(self, alternatives: Sequence[str], split: str) -> list[str]:
        """``alternatives`` with the names of ``split`` filled in."""
        return [place.format(split=split, folder=self.folders[split]) for place in alternatives]


def _below(tops: Sequence[str], place: str) -> tuple[str, ...]:
    return tuple(top + place for top in tops)


_SAME = {split: split for split in SPLITS}
_ADE, _COCO = ("ADEChallengeData2016/", ""), ("", "cocostuff-10k-v1.1/")
_LIP, _LIP_LABELS = (("", f"{top}/", f"{top}/{top}/") for top in ("TrainVal_images", "TrainVal_parsing_annotations"))
LAYOUTS = {
    "ade20k": Layout(
        root="ADE20k",
        about="ADEChallengeData2016/{images,annotations}/{training,validation}",
        images=_below(_ADE, "images/{folder}"),
        annotations=_below(_ADE, "annotations/{folder}"),
        lists=_below(_ADE, "{split}.txt"),
        image_end=".jpg",
        label_end=".png",
        complete={"train": 20210, "val": 2000},
        folders={"train": "training", "val": "validation"},
        test=(*_below(_ADE, "images/testing"), "release_test/testing"),
    ),
    "cityscapes": Layout(
        root="CityScapes",
        about="leftImg8bit/{train,val}/CITY, gtFine/{train,val}/CITY (…_gtFine_labelIds.png)",
        images=_below(("", "leftImg8bit_trainvaltest/"), "leftImg8bit/{folder}"),
        annotations=_below(("", "gtFine_trainvaltest/"), "gtFine/{folder}"),
        lists=("{split}.txt",),
        image_end="_leftImg8bit.png",
        label_end="_gtFine_labelIds.png",
        complete={"train": 2975, "val": 500},
        folders=_SAME,
        test=_below(("", "leftImg8bit_trainvaltest/"), "leftImg8bit/test"),
        nested=True,
    ),
    "cocostuff10k": Layout(
        root="COCOStuff10k",
        about="images, annotations (*.mat), imageLists/{train,test}.txt",
        images=_below(_COCO, "images"),
        annotations=_below(_COCO, "annotations"),
        lists=_below(_COCO, "imageLists/{folder}.txt"),
        image_end=".jpg",
        label_end=".mat",
        complete={"train": 9000, "val": 1000},
        folders={"train": "train", "val": "test"},
        needs_list=True,
    ),
    "lip": Layout(
        root="LIP",
        about="{train,val}_images, {train,val}_segmentations, also below TrainVal_images and\n"
        "TrainVal_parsing_annotations",
        images=_below(_LIP, "{split}_images"),
        annotations=_below(_LIP_LABELS, "{split}_segmentations"),
        lists=_below(_LIP, "{split}_id.txt"),
        image_end=".jpg",
        label_end=".png",
        complete={"train": 30462, "val": 10000},
        folders=_SAME,
        test=_below(("", "Testing_images/"), "testing_images"),
    ),
}
"""Layout by dataset; the names are those of `isnet_trt.recipes.DATASETS`."""


def open_dataset(name: str, root: Path | None, split: str) -> PictureSet:
    """One split of a dataset on disk.

    Args:
        name: a key of `LAYOUTS`, or the path of a YAML file that describes one's own data (`isnet_trt.recipes.custom`).
        root: its folder. None: the reference's folder name (``ADE20k``, …) in the working directory; for a YAML file
            the folder that the file is in.
        split: ``train``, ``val`` (COCO-Stuff's ``test``), or `TEST` for pictures without labels.

    Raises:
        DataError: folders are missing or half unpacked; the message names them and what was expected.
        SettingsError: no such dataset or split, or a package for reading it is missing.
    """
    if split not in (*SPLITS, TEST):
        raise SettingsError(f"split {split!r} is unknown; use 'train', 'val' or 'test'")
    if split == TEST and (name not in LAYOUTS or not LAYOUTS[name].test):
        others = ", ".join(other for other, layout in LAYOUTS.items() if layout.test)
        raise SettingsError(f"{name} has no test pictures without labels; {others} have")
    try:
        return _opened(name, root, split)
    except OSError as error:
        raise DataError(f"{name} cannot be opened: {system_message(error)}") from None


def _opened(name: str, root: Path | None, split: str) -> PictureSet:
    if is_described(name):
        return open_custom(Path(name), root, split)
    if name not in LAYOUTS:
        known = f"there are {', '.join(LAYOUTS)}, or give a .yaml file"
        raise SettingsError(f"no dataset is called {name!r}; {known}{nearest(name, LAYOUTS)}")
    layout = LAYOUTS[name]
    check_packages(name, layout.label_end)
    root = root or Path(layout.root)
    names, files = _test_pictures(root, layout) if split == TEST else _pairs(name, root, layout, split)
    return PictureSet(name, split, DATASETS[name].labels, names, files, label_values(name))


def label_values(name: str) -> LabelValues:
    """The stored label values of one of the four datasets; LIP stores its training ids 0..19."""
    entry = label_table()[name]
    # Cityscapes' id −1 (licence plate) is never drawn into its label pictures, which could not hold it.
    stored = {int(value): int(number) for value, number in entry["label_map"].items() if int(value) >= 0}
    return LabelValues(stored or {i: i for i in range(entry["num_classes"])})


def _pairs(name: str, root: Path, layout: Layout, split: str) -> tuple[tuple[str, ...], Files]:
    """Names, pictures and label files of a split, each checked to exist."""
    image_places, label_places = (layout.places(all_, split) for all_ in (layout.images, layout.annotations))
    base = _base(name, root, layout, image_places, label_places)
    images, annotations = _folder(base, image_places), _folder(base, label_places)
    pictures = _names(images, layout.image_end, layout.nested)
    labels = _names(annotations, layout.label_end, layout.nested)
    lists = [base / place for place in layout.places(layout.lists, split)]
    id_list = next((path for path in lists if path.is_file()), None)
    if id_list is None and layout.needs_list:
        raise DataError(f"{lists[0]} is missing: it tells training from test pictures; unpack it again")
    if id_list is not None:
        suffix = Path(layout.image_end).suffix
        names = tuple((listed + suffix).removesuffix(layout.image_end) for listed in read_ids(id_list))
    else:
        names = tuple(sorted(pictures))
        _refuse_missing(sorted(labels - pictures), images, layout.image_end, annotations)
    _refuse_missing([n for n in names if n not in pictures], images, layout.image_end, id_list or annotations)
    _refuse_missing([n for n in names if n not in labels], annotations, layout.label_end, id_list or images)
    if not names:
        raise DataError(f"{images} holds no picture *{layout.image_end}; unpack it again")
    return names, tuple((images / (n + layout.image_end), annotations / (n + layout.label_end)) for n in names)


def _test_pictures(root: Path, layout: Layout) -> tuple[tuple[str, ...], Files]:
    """Names and pictures of the test split; there are no label files."""
    folders = [base / place for base in (root, root / layout.root) for place in layout.test]
    folder = next((path for path in folders if path.is_dir()), None)
    if folder is None:
        raise DataError(f"{folders[0]} is missing: unpack the test pictures too")
    names = tuple(sorted(_names(folder, layout.image_end, layout.nested)))
    if not names:
        raise DataError(f"{folder} holds no picture *{layout.image_end}; unpack it again")
    return names, tuple((folder / (name + layout.image_end), None) for name in names)


def _base(name: str, root: Path, layout: Layout, images: list[str], annotations: list[str]) -> Path:
    """``root``, or the folder of the reference's name in it, whichever holds pictures or labels."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give the one that {name} was unpacked to")
    for base in (root, root / layout.root):
        if any((base / place).is_dir() for place in (*images, *annotations)):
            return base
    content = first_few(sorted(path.name for path in root.iterdir())) or "nothing"
    raise DataError(
        f"{root} does not look like {name}: expected {images[0]} and {annotations[0]} in it; it holds {content}"
    )


def _folder(base: Path, places: list[str]) -> Path:
    folder = next((base / place for place in places if (base / place).is_dir()), None)
    if folder is None:
        raise DataError(f"{base / places[0]} is missing: the dataset is half unpacked; unpack its archive too")
    return folder


def _names(folder: Path, end: str, nested: bool) -> set[str]:
    """Names (relative, without ``end``) of the files in a folder; a leading dot marks files of the operating system.

    A link that leads nowhere is one of them: reading it says so. Raises `DataError` for a suffix in capitals.
    """
    paths = [path for path in matching(folder, ("*", "*") if nested else ("*",)) if not path.name.startswith(".")]
    paths = [path for path in paths if path.name.lower().endswith(end.lower())]
    other = [str(path) for path in paths if not path.name.endswith(end)]
    if other:
        raise DataError(f"{len(other)} files in {folder} do not end in {end!r}: {first_few(other)}; rename them")
    return {path.relative_to(folder).as_posix().removesuffix(end) for path in paths}


def _refuse_missing(names: list[str], folder: Path, end: str, listed_by: Path) -> None:
    """Raise `DataError` where ``names``, which ``listed_by`` has or lists, have no file in ``folder``."""
    if names:
        raise DataError(
            f"{folder}: {len(names)} file{'s' if len(names) > 1 else ''} missing that {listed_by} calls for: "
            f"{first_few([name + end for name in names])}; unpack the archive again"
        )
