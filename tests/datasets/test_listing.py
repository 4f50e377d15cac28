"""Files of a set that cannot be read: each is named with the reason, none is left out in silence."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from miniature import make_ade20k, make_cityscapes
from own_pictures import make_masks, mask
from permissions import as_nobody
from PIL import Image

from isnet_trt import cli
from isnet_trt.datasets.check import examine, main
from isnet_trt.datasets.coverage import refuse_unreadable_files
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.datasets.listing import matching
from isnet_trt.datasets.reading import read_ids, read_labels
from isnet_trt.errors import DataError, SettingsError
from isnet_trt.training import train


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_masks(tmp_path, [mask(0, 1)] * 6)


def link_to_nothing(path: Path) -> None:
    path.symlink_to("moved.png")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a dead link": (link_to_nothing, r"a link to moved\.png, which does not exist"),
    "a link to itself": (link_to_itself, "symbolic links"),
    "a folder": (Path.mkdir, "it is a folder"),
    "a FIFO": (os.mkfifo, "it is a FIFO"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
}


def problems(name: str, root: Path | None) -> list[str]:
    """What the check says about the pictures of both parts."""
    return [line for split in ("train", "val") for line in examine(open_dataset(name, root, split)).problems]


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("file", ["photos/p3.png", "masks/p3.png"])
def test_own_files_that_cannot_be_read(own: Path, kind: str, file: str) -> None:
    spoil, reason = SPOILT[kind]
    (own.parent / file).unlink()
    spoil(own.parent / file)
    (problem,) = problems(str(own), None)
    assert re.search(rf"{file}.*{reason}", problem)
    train_set = open_dataset(str(own), None, "train")
    assert "p3" in train_set.names
    with pytest.raises(DataError, match=rf"1 of 8 files of binary train cannot be read: .*{file} \(.*{reason}"):
        refuse_unreadable_files(train_set)


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("file", ["images/{}.jpg", "annotations/{}.png"])
def test_files_of_a_published_set_that_cannot_be_read(tmp_path: Path, kind: str, file: str) -> None:
    make_ade20k(tmp_path)
    spoil, reason = SPOILT[kind]
    path = tmp_path / "ADEChallengeData2016" / file.format("training/ADE_train_00000002")
    path.unlink()
    spoil(path)
    (problem,) = problems("ade20k", tmp_path)
    assert re.search(rf"{path.name}.*{reason}", problem)
    with pytest.raises(DataError, match=rf"1 of 6 files of ade20k train .*{path.name} \(.*{reason}"):
        refuse_unreadable_files(open_dataset("ade20k", tmp_path, "train"))


def test_check_and_training_say_what_cannot_be_read(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own.parent / "photos/p3.png").unlink()
    (own.parent / "photos/p3.png").symlink_to("gone")
    assert cli.run(main, ["check", str(own), "--out", str(own.parent / "page.png")]) == cli.FAILED
    assert re.search(r"cannot be used: .*p3\.png.*a link to gone, which does not exist", capsys.readouterr().out)
    arguments = ["--recipe", str(own), "--out", str(own.parent / "run"), "--batch", "2", "--workers", "0"]
    assert cli.run(train.main, arguments) == cli.ERROR
    error = capsys.readouterr().err.splitlines()[-1]
    assert "photos/p3.png (it is a link to gone, which does not exist)" in error
    assert not (own.parent / "run").exists()


def test_files_of_the_system_are_no_pictures(own: Path) -> None:
    for name in (".DS_Store", "._p0.png", "Thumbs.db", "notes.txt", ".hidden.jpg"):
        (own.parent / "photos" / name).write_bytes(b"\0")
    (own.parent / "photos" / ".dead.png").symlink_to("gone")
    assert len(open_dataset(str(own), None, "train")) + len(open_dataset(str(own), None, "val")) == 6


def test_pictures_of_one_name_and_empty_folders(own: Path) -> None:
    shutil.copy(own.parent / "photos/p1.png", own.parent / "photos/p1.JPEG")
    with pytest.raises(DataError, match=r"p1\.JPEG and .*p1\.png have one name"):
        open_dataset(str(own), None, "train")
    shutil.rmtree(own.parent / "photos")
    (own.parent / "photos/empty").mkdir(parents=True)
    with pytest.raises(DataError, match="photos holds no pictures"):
        open_dataset(str(own), None, "train")


def test_links_to_folders_are_followed_and_circles_named(own: Path, tmp_path: Path) -> None:
    more = tmp_path / "elsewhere"
    for kind in ("photos", "masks"):
        (more / kind).mkdir(parents=True)
        shutil.copy(own.parent / kind / "p0.png", more / kind / "x.png")
        (own.parent / kind / "more").symlink_to(more / kind)
    names = {name for split in ("train", "val") for name in open_dataset(str(own), None, split).names}
    assert names == {"more/x", *(f"p{i}" for i in range(6))}
    (more / "photos/back").symlink_to(own.parent / "photos")
    with pytest.raises(DataError, match="more/back is a link to a folder above it"):
        open_dataset(str(own), None, "train")


def test_patterns_match_as_path_glob_does(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "a/b/y.jpg", "a/b/c/z.jpg", "ab/x.JPG", "top.jpg", "q[1].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for pattern in ("**/*", "*.jpg", "*/*.jpg", "**/b/*", "a*/**/?.jpg", "**/b/**/*.jpg", "[ab]/*/*.jpg", "q[[]1].jpg"):
        assert set(matching(tmp_path, pattern.split("/"))) == set(tmp_path.glob(pattern)), pattern


def test_a_published_sets_suffix_in_capitals(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    for folder, end in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", "_gtFine_labelIds.png")):
        path = next((tmp_path / folder / "train").rglob(f"*{end}"))
        path.rename(path.with_suffix(".PNG"))
    with pytest.raises(DataError, match=r"do not end in '_leftImg8bit\.png': .*\.PNG; rename"):
        open_dataset("cityscapes", tmp_path, "train")


@pytest.mark.parametrize("place", ["photos", "masks", "photos/p2.png", "masks/p2.png", "own.yaml", "list.txt"])
def test_without_permission(place: str, open_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = make_masks(open_folder, [mask(0, 1)] * 4, split={"train": "list.txt", "val": "list.txt"})
    (open_folder / "list.txt").write_text("p0\np1\np2\np3\n")
    (open_folder / "out").mkdir()
    (open_folder / "out").chmod(0o777)
    (open_folder / place).chmod(0)
    try:
        with as_nobody():
            status = cli.run(main, ["check", str(own), "--out", str(open_folder / "out/page.png")])
            with pytest.raises((DataError, SettingsError), match=rf"{place}.*[Pp]ermission"):
                refuse_unreadable_files(open_dataset(str(own), None, "train"))
    finally:
        (open_folder / place).chmod(0o755)
    printed = capsys.readouterr()
    assert status in (cli.FAILED, cli.ERROR)
    assert re.search(rf"{place}.*[Pp]ermission", printed.out + printed.err)


def test_the_page_of_samples_replaces_no_picture(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("photos", "masks"):
        before = (own.parent / kind / "p0.png").read_bytes()
        assert cli.run(main, ["check", str(own), "--out", str(own.parent / kind / "p0.png")]) == cli.ERROR
        assert (own.parent / kind / "p0.png").read_bytes() == before
    assert "would be replaced" in capsys.readouterr().err


def test_masks_of_jpeg_are_refused(tmp_path: Path) -> None:
    Image.fromarray(mask(0, 1)).save(tmp_path / "mask.jpg")
    with pytest.raises(DataError, match="JPEG changes the values of labels"):
        read_labels(tmp_path / "mask.jpg")


def test_values_of_a_matrix_do_not_wrap(tmp_path: Path) -> None:
    from scipy.io import savemat

    for value, expected in ((2**32 + 3, 2**31 - 1), (-5, -1), (7, 7)):
        savemat(tmp_path / "x.mat", {"S": np.full((2, 2), value, np.int64)})
        assert read_labels(tmp_path / "x.mat").tolist() == [[expected] * 2] * 2


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "latin.txt").write_bytes("bücher\n".encode("latin-1"))
    (tmp_path / "link.txt").symlink_to("gone.txt")
    for name, reason in (("fifo", "a FIFO"), ("latin", "save it as UTF-8"), ("link", "which does not exist")):
        with pytest.raises(DataError, match=rf"{name}\.txt.*{reason}"):
            read_ids(tmp_path / f"{name}.txt")
