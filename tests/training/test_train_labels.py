"""What training says about labels before its first iteration, and about scores that mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own_pictures import make_masks, mask
from tiny_training import TINY, data, rows

from isnet_trt import cli
from isnet_trt.errors import DataError, TrainingError
from isnet_trt.recipes import IGNORE
from isnet_trt.training import train
from isnet_trt.training.trainer import Data, Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def run(file: Path, *options: str) -> int:
    out = file.parent / "run"
    fixed = ("--epochs", "1", "--batch", "2", "--workers", "0", "--threads", "1", "--device", "cpu")
    return cli.run(train.main, ["--recipe", str(file), "--out", str(out), *fixed, *options])


def test_a_class_that_never_occurs_is_a_warning_and_gives_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(make_masks(tmp_path, [mask(0, 255)] * 6)) == 0
    printed = capsys.readouterr()
    assert "warning: binary train: no label map has the class 'crack' (stored as 1)" in printed.err
    assert "{0: background, 255: crack}" in printed.err
    assert printed.err.index("warning:") < printed.err.index("it/s"), "before the bar of the iterations"
    assert "held-out mIoU – (only 1 of 2 classes occur in the labels)" in printed.out
    assert rows(tmp_path / "run" / "epochs.csv")[1][2] == "nan"


def test_the_score_says_over_how_many_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_masks(tmp_path, [mask(0, 1)] * 6, classes=["background", "crack", "left"])
    assert run(file) == 0
    printed = capsys.readouterr()
    assert "the class 'left' (stored as 2): add pictures" in printed.err
    assert " % (2 of 3 classes occur in the labels)" in printed.out
    assert rows(tmp_path / "run" / "epochs.csv")[1][2] != "nan"


def test_sound_labels_bring_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_masks(tmp_path, [mask(0, 1)] * 6)
    assert run(file) == 0
    printed = capsys.readouterr()
    latest = tmp_path / "run" / "checkpoints-epoch-latest.pth"
    assert printed.out.splitlines()[-1].endswith(f"build --ckpt {latest} --recipe {file} --out DIR")
    assert "warning" not in printed.err
    assert "classes occur" not in printed.out


@pytest.mark.parametrize("unlabelled", ["train", "val"])
def test_nothing_labelled_is_refused_and_nothing_is_written(
    tmp_path: Path, unlabelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"train": "train.txt", "val": "val.txt"}
    masks = [mask(255 if unlabelled == "train" else 0, 255)] * 4 + [mask(255 if unlabelled == "val" else 0, 255)]
    file = make_masks(tmp_path, masks, split=parts, classes=["background", "crack"])
    (tmp_path / "train.txt").write_text("p0\np1\np2\np3")
    (tmp_path / "val.txt").write_text("p4")
    assert run(file) == cli.ERROR
    assert f"error: binary {unlabelled}: not one pixel has a class" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_held_out_pictures_that_are_not_scored_need_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_masks(tmp_path, [mask(0, 1)] * 4 + [mask(255)], split={"train": "train.txt", "val": "val.txt"})
    (tmp_path / "train.txt").write_text("p0\np1\np2\np3")
    (tmp_path / "val.txt").write_text("p4")
    assert run(file, "--val-limit", "0") == 0
    assert "mIoU" not in capsys.readouterr().out
    assert len(rows(tmp_path / "run" / "epochs.csv")) == 1


class Sparse:
    """The tiny scenes with one labelled pixel, in a corner that no crop of the first epoch has."""

    def __init__(self) -> None:
        self.scenes = data().train

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.full(self.scenes[index][1].shape, IGNORE, np.int16)
        labels[0, 0] = 1 if index == 0 else IGNORE
        return self.scenes[index][0], labels


def test_an_epoch_without_a_labelled_crop_ends_the_run(tmp_path: Path) -> None:
    options = Options(tmp_path / "run", epochs=2, batch=2, seed=1, workers=0)
    with pytest.raises(TrainingError, match="no crop of epoch 1 has a labelled pixel"):
        Trainer(TINY, options, Data(Sparse(), data().val)).run()
    assert not list((tmp_path / "run").glob("*.pth"))


def test_any_source_of_pictures_without_labels_is_refused(tmp_path: Path) -> None:
    class Empty(Sparse):
        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            image, labels = super().__getitem__(index)
            return image, np.full_like(labels, IGNORE)

    with pytest.raises(DataError, match="none of the pictures for training has a labelled pixel"):
        Trainer(TINY, Options(tmp_path / "run", 1, 2, workers=0), Data(Empty(), data().val)).run()
    assert not (tmp_path / "run").exists()
