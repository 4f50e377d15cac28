"""Which classes occur in the labels of a split, and whether that can be meant: for the check, and before training."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.datasets.listing import refuse_unreadable
from isnet_trt.datasets.picture_set import PictureSet, Source
from isnet_trt.datasets.reading import RawLabels
from isnet_trt.errors import DataError, first_few
from isnet_trt.metrics import percent

_FEWEST, _MOST = 50, 2000
"""Label maps of the user's own data that `survey` reads at least, and of any set at most if something is labelled."""
_CHUNK, _READERS = 32, 4
_LARGE_SHARE = 0.5
"""Share of the pixels from which a value that is ignored by default is reported."""
_LISTED = 8


@dataclass
class Coverage:
    """Counts over label maps: ``pixels`` int64 (K,) of each class, ``pictures`` int64 (K,) in which it occurs.

    ``ignored`` counts the other pixels, ``ignored_values`` the same by stored value. ``beside``, by ignored value, has
    bool (K,): which classes share a picture with it.
    """

    pixels: NDArray[np.int64]
    pictures: NDArray[np.int64]
    ignored: int = 0
    ignored_values: dict[int, int] = field(default_factory=dict)
    beside: dict[int, NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: NDArray[np.integer], stored: RawLabels | None, classes: int) -> Coverage:
        """The counts of one label map in training ids; ``stored`` has the values of its file, if there is one."""
        valid = labels >= 0
        pixels = np.bincount(labels[valid], minlength=classes).astype(np.int64)
        counts: dict[int, int] = {}
        if stored is not None and not valid.all():
            counts = {
                int(value): int(n) for value, n in zip(*np.unique(stored[~valid], return_counts=True), strict=True)
            }
        beside = dict.fromkeys(counts, pixels > 0)
        return cls(pixels, (pixels > 0).astype(np.int64), int((~valid).sum()), counts, beside)

    @property
    def occurring(self) -> int:
        """Number of classes that occur."""
        return int((self.pixels > 0).sum())

    @property
    def total(self) -> int:
        """Number of pixels."""
        return int(self.pixels.sum()) + self.ignored

    def add(self, other: Coverage) -> None:
        """Add the counts of other label maps."""
        self.pixels += other.pixels
        self.pictures += other.pictures
        self.ignored += other.ignored
        for value, count in other.ignored_values.items():
            self.ignored_values[value] = self.ignored_values.get(value, 0) + count
            self.beside[value] = other.beside[value] | self.beside.get(value, np.False_)


def survey(source: Source, classes: int, count: int | None = None) -> Coverage:
    """The counts over as many of a set's first ``count`` label maps as it takes to see which classes occur.

    They are read in random order, the same each time, until all classes have been seen (of a published set, which may
    have classes without a pixel, two; of drawn scenes, one), or `_MOST` label maps of which one has a labelled pixel.

    Raises:
        DataError: a label file cannot be used.
    """
    needed, fewest = 1, 1
    if isinstance(source, PictureSet):
        needed, fewest = (classes, _FEWEST) if source.own else (2, 1)
    coverage = Coverage(np.zeros(classes, np.int64), np.zeros(classes, np.int64))
    indices = np.random.default_rng(0).permutation(len(source) if count is None else min(count, len(source)))
    for number, part in enumerate(_parts(source, classes, indices.tolist()), 1):
        coverage.add(part)
        if number >= fewest and (coverage.occurring >= needed or (number >= _MOST and coverage.occurring)):
            break
    return coverage


def _parts(source: Source, classes: int, indices: list[int]) -> Iterator[Coverage]:
    def read(index: int) -> Coverage:
        if isinstance(source, PictureSet) and (annotation := source.files[index][1]):
            return Coverage.of(*source.label_map(annotation), classes)
        return Coverage.of(source[index][1], None, classes)

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(indices), _CHUNK):
            yield from pool.map(read, indices[start : start + _CHUNK])


def refuse_unreadable_files(source: Source, count: int | None = None) -> None:
    """Raise `DataError` if one of the files of a set's first ``count`` pictures cannot be opened."""
    if isinstance(source, PictureSet):
        files = [file for pair in source.files[:count] for file in pair if file]
        refuse_unreadable(files, f"files of {source.name} {source.split}")


def refuse_unlabelled(source: Source, coverage: Coverage, part: str) -> None:
    """Raise `DataError` if no pixel has a class; ``part``, training or validation, is for sets without a name."""
    if coverage.occurring:
        return
    if not isinstance(source, PictureSet):
        raise DataError(f"none of the pictures for {part} has a labelled pixel; give {part} pictures with labels")
    raise DataError(_unlabelled(source, coverage))


def doubts(pictures: PictureSet, coverage: Coverage, complete: bool = True) -> list[str]:
    """Why the labels of a split are probably not what is meant, a message each, with what to do about it.

    ``complete``: ``coverage`` counts all of the split, so that what was not seen does not occur.
    """
    if not coverage.total:
        return []
    if not coverage.occurring:
        return [_unlabelled(pictures, coverage)]
    absent = np.flatnonzero(coverage.pixels == 0)
    messages = []
    if pictures.own and pictures.split == "train" and complete and absent.size:
        messages.append(_absent(pictures, coverage, absent))
    elif coverage.occurring == 1 and (complete or coverage.ignored):
        messages.append(_one_class(pictures, coverage))
    return messages or _assumed(pictures, coverage)


def shared_pictures(train: PictureSet, val: PictureSet) -> list[str]:
    """A message if pictures are in both splits, whose scores then say little."""
    both = [str(picture) for picture in sorted({file for file, _ in train.files} & {file for file, _ in val.files})]
    if not both:
        return []
    return [
        f"{len(both)} of the {len(val)} pictures to validate on are trained on too, so their scores will be too good: "
        f"{first_few(both, _LISTED)}; take them out of one of the two lists"
    ]


def _unlabelled(pictures: PictureSet, coverage: Coverage) -> str:
    advice = (
        "give the stored values of your classes under 'classes', and leave them out of 'ignore'"
        if pictures.own
        else f"these are not the annotations of {pictures.name}; unpack them again"
    )
    return (
        f"{pictures.name} {pictures.split}: not one pixel has a class, since only values that are ignored occur "
        f"({_ignored(coverage)}): {advice}"
    )


def _absent(pictures: PictureSet, coverage: Coverage, absent: NDArray[np.intp]) -> str:
    stored, names = pictures.values.stored, pictures.labels.names
    listed = first_few([f"{names[c]!r} (stored as {stored[c]})" for c in absent], _LISTED)
    start = f"{pictures.name} {pictures.split}: no label map has the class{'es' if absent.size > 1 else ''} {listed}"
    if not coverage.ignored_values:
        return f"{start}: add pictures with it, or take it out of 'classes'"
    value = max(coverage.ignored_values, key=lambda v: coverage.ignored_values[v])
    values = [value if c == absent[0] else stored[c] for c in range(len(names))]
    classes = first_few([f"{v}: {name}" for v, name in zip(values, names, strict=True)], _LISTED)
    return (
        f"{start}, but values that are ignored occur ({_ignored(coverage)}). If {value} means {names[absent[0]]!r}, "
        f"write 'classes: {{{classes}}}' and leave {value} out of 'ignore'; otherwise add pictures with the class, or "
        "take it out of 'classes'"
    )


def _one_class(pictures: PictureSet, coverage: Coverage) -> str:
    name = pictures.labels.names[int(coverage.pixels.argmax())]
    ignored = f", and values that are ignored ({_ignored(coverage)})" if coverage.ignored_values else ""
    advice = (
        "if an ignored value means a class, name it under 'classes'; otherwise choose pictures with more classes"
        if pictures.own
        else "choose pictures with more classes"
    )
    return (
        f"{pictures.name} {pictures.split}: {name!r} is the only class of {pictures.labels.count} that occurs{ignored}"
        f", so a score would say nothing: {advice}"
    )


def _assumed(pictures: PictureSet, coverage: Coverage) -> list[str]:
    """Doubts about values that are ignored although the YAML file does not name them under 'ignore'."""
    messages = []
    for value in sorted(set(coverage.ignored_values) & pictures.values.assumed):
        share = coverage.ignored_values[value] / coverage.total
        apart = [pictures.labels.names[c] for c in np.flatnonzero(~coverage.beside[value] & (coverage.pixels > 0))]
        if pictures.labels.count == 2 and apart:
            reason = f"never occurs beside {apart[0]!r}. If some files store that class as {value}, correct them"
        elif share > _LARGE_SHARE:
            reason = f"covers {percent(share, 1)} % of the pixels. If it is a class, name it under 'classes'"
        else:
            continue
        messages.append(
            f"{pictures.name} {pictures.split}: the value {value}, ignored although the YAML file does not say so, "
            f"{reason}; if it is to be ignored, write 'ignore: {value}'"
        )
    return messages


def _ignored(coverage: Coverage) -> str:
    """The ignored values with their shares of all pixels, the largest first."""
    ordered = sorted(coverage.ignored_values.items(), key=lambda item: -item[1])
    shares = [f"{value} at {percent(pixels / coverage.total, 1)} % of the pixels" for value, pixels in ordered]
    return first_few(shares, _LISTED)
