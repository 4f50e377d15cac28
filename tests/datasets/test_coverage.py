"""Which classes occur: masks that cannot be meant as they are stored, in the check and before a set is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import make_lip
from own_pictures import make_masks, mask
from PIL import Image

from isnet_trt import cli
from isnet_trt.datasets import coverage
from isnet_trt.datasets.check import main
from isnet_trt.datasets.coverage import Coverage, doubts, refuse_unlabelled, survey
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.errors import DataError
from isnet_trt.recipes import DATASETS

SOUND = [mask(0, 1)] * 8
CASES: dict[str, tuple[list[np.ndarray], dict[str, Any], str]] = {
    "255 for the second class": (
        [mask(0, 255)] * 8,
        {},
        "no label map has the class 'crack' (stored as 1), but values that are ignored occur (255 at 12.5 % of the "
        "pixels). If 255 means 'crack', write 'classes: {0: background, 255: crack}'",
    ),
    "the same, ignored by name": ([mask(0, 255)] * 8, {"ignore": 255}, "no label map has the class 'crack'"),
    "three classes as 0, 1, 255": (
        [mask(0, 1, 255)] * 8,
        {"classes": ["sky", "road", "car"]},
        "If 255 means 'car', write 'classes: {0: sky, 1: road, 255: car}'",
    ),
    "128 ignored": ([mask(0, 128)] * 8, {"ignore": [128]}, "write 'classes: {0: background, 128: crack}'"),
    "a class in no mask": (
        [mask(0, 1)] * 8,
        {"classes": ["a", "b", "c", "d"]},
        "no label map has the classes 'c' (stored as 2), 'd' (stored as 3): add pictures",
    ),
    "background only": ([mask(0)] * 8, {}, "no label map has the class 'crack' (stored as 1): add pictures"),
    "nothing labelled": ([mask(255)] * 8, {}, "not one pixel has a class"),
    "some masks 0 and 1, some 0 and 255": (
        [mask(0, 255 if i % 2 else 1) for i in range(16)],
        {},
        "the value 255, ignored although the YAML file does not say so, never occurs beside 'crack'",
    ),
    "mostly a value ignored by default": ([mask(255, 0, 1)] * 8, {}, "covers 75.0 % of the pixels"),
    "a validation part of one class": (
        [mask(0, 1), mask(0, 1), mask(0)],
        {"split": {"train": "train.txt", "val": "val.txt"}},
        "binary val: 'background' is the only class of 2 that occurs",
    ),
    "one list for both parts": (
        SOUND,
        {"split": {"train": "train.txt", "val": "train.txt"}},
        "2 of the 2 pictures to validate on are trained on too",
    ),
}


def check(file: Path, *options: str) -> int:
    return cli.run(main, ["check", str(file), "--out", str(file.parent / "page.png"), *options])


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def make(masks: list[np.ndarray], **changes: Any) -> Path:
        (tmp_path / "train.txt").write_text("p0\np1\n")
        (tmp_path / "val.txt").write_text("p2\n")
        return make_masks(tmp_path, masks, **changes)

    return make


@pytest.mark.parametrize("case", CASES)
def test_labels_that_cannot_be_meant_fail_the_check(case: str, make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    masks, changes, message = CASES[case]
    assert check(make(masks, **changes)) == cli.FAILED
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("masks", "changes"),
    [
        (SOUND, {}),
        ([mask(0, 255)] * 8, {"classes": {0: "background", 255: "crack"}}),
        ([mask(0, 1, 255)] * 8, {}),
        ([mask(255, 0, 1)] * 8, {"ignore": 255}),
        ([mask(0, 255 if i % 2 else 1) for i in range(16)], {"ignore": 255}),
        ([mask(0, 1).astype(np.uint16) * 300] * 8, {"classes": {0: "background", 300: "crack"}}),
    ],
)
def test_labels_that_can_be_meant_pass(masks: list[np.ndarray], changes: Any, make: Any) -> None:
    assert check(make(masks, **changes), "--split", "train") == 0


def test_a_part_of_the_pictures_proves_no_absence(make: Any) -> None:
    file = make([mask(0), mask(0, 1), mask(0), mask(0, 1)], split={"train": "all.txt", "val": "val.txt"})
    (file.parent / "all.txt").write_text("p0\np1\np3\n")
    (file.parent / "val.txt").write_text("p3\n")
    assert check(file, "--limit", "1", "--split", "train") == 0
    assert check(make([mask(0, 255)] * 4), "--limit", "1") == cli.FAILED


def test_a_published_set_of_one_class_fails_and_one_with_absent_classes_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_lip(tmp_path, train=2)
    arguments = ["check", "lip", str(tmp_path), "--out", str(tmp_path / "page.png")]
    assert cli.run(main, arguments) == 0
    for _, label in open_dataset("lip", tmp_path, "train").files:
        Image.fromarray(np.zeros_like(np.asarray(Image.open(label)))).save(label)
    assert cli.run(main, arguments) == cli.FAILED
    assert f"lip train: {DATASETS['lip'].labels.names[0]!r} is the only class of 20 that occurs, so a score" in (
        capsys.readouterr().out
    )


def test_a_survey_reads_no_more_than_it_needs(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_CHUNK", 1)
    monkeypatch.setattr(coverage, "_FEWEST", 3)
    seen = survey(open_dataset(str(make([mask(0, 1)] * 20)), None, "train"), 2)
    assert seen.pictures.tolist() == [3, 3]
    monkeypatch.setattr(coverage, "_MOST", 5)
    assert survey(open_dataset(str(make([mask(0)] * 20)), None, "train"), 2).pictures.tolist() == [5, 0]
    train = open_dataset(str(make([mask(255)] * 20)), None, "train")
    assert survey(train, 2).ignored == len(train) * 48 * 64  # to the end, for one labelled pixel
    assert survey(train, 2, count=2).ignored == 2 * 48 * 64


def test_sets_without_a_labelled_pixel_are_refused(make: Any) -> None:
    train = open_dataset(str(make([mask(255)] * 4)), None, "train")
    with pytest.raises(DataError, match=r"binary train: not one pixel has a class.*255 at 100\.0 %"):
        refuse_unlabelled(train, survey(train, 2), "training")
    Image.fromarray(mask(255, 1)).save(train.files[0][1])
    refuse_unlabelled(train, survey(train, 2), "training")


def test_counts_add_up() -> None:
    first = Coverage.of(np.array([[0, -100], [2, -100]]), np.array([[0, 7], [2, 255]]), 3)
    first.add(Coverage.of(np.array([[1, -100]]), np.array([[1, 7]]), 3))
    assert first.pixels.tolist() == first.pictures.tolist() == [1, 1, 1]
    assert first.ignored_values == {7: 2, 255: 1}
    assert first.beside[7].tolist() == [True, True, True]
    assert first.beside[255].tolist() == [True, False, True]
    assert (first.ignored, first.total, first.occurring) == (3, 6, 3)


def test_nothing_read_is_no_doubt(make: Any) -> None:
    train = open_dataset(str(make(SOUND)), None, "train")
    assert not doubts(train, Coverage(np.zeros(2, np.int64), np.zeros(2, np.int64)))
