"""``python -m isnet_trt.training.data check``: counts, complaints, page of samples and exit status."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniature import MAKERS, make_ade20k, make_lip, stored
from own_pictures import make_pictures, write
from PIL import Image

from isnet_trt import cli
from isnet_trt.datasets.check import examine, main, page, report, spread
from isnet_trt.datasets.layouts import open_dataset
from isnet_trt.recipes import DATASETS, IGNORE


@pytest.mark.parametrize("name", MAKERS)
def test_a_sound_dataset(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MAKERS[name](tmp_path / "set")
    out = tmp_path / "pages" / "page.png"
    assert cli.run(main, ["check", name, str(tmp_path / "set"), "--out", str(out), "--samples", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{name} train: 3 pictures" in text
    assert f"{name} val: 2 pictures" in text
    assert "0 bad" in text
    assert "47x101 to 97x59" in text
    drawn = cv2.imread(str(out))
    assert drawn is not None
    assert drawn.shape[0] > 4 * 100
    assert list(out.parent.iterdir()) == [out]


def test_classes_are_counted_exactly(tmp_path: Path) -> None:
    truth = make_ade20k(tmp_path, train=7)["train"]
    for workers in (1, 3):
        examined = examine(open_dataset("ade20k", tmp_path, "train"), workers=workers)
        whole = np.concatenate([labels.ravel() for labels in truth.values()])
        np.testing.assert_array_equal(examined.pixels, np.bincount(whole[whole >= 0], minlength=150))
        assert examined.pictures.sum() == sum(len(np.unique(labels[labels >= 0])) for labels in truth.values())
        assert examined.ignored == (whole == IGNORE).sum()
        assert examined.usable == list(range(7))
        assert sorted(examined.sizes) == sorted(labels.shape for labels in truth.values())


def test_the_report_names_common_and_absent_classes(tmp_path: Path) -> None:
    make_ade20k(tmp_path, train=1)
    opened = open_dataset("ade20k", tmp_path, "train")
    examined = examine(opened)
    text = report(opened, examined, 20210)
    assert "the complete dataset has 20210" in text
    assert "complete" not in report(opened, examined, 1)
    share = 100 * examined.pixels.max() / (examined.pixels.sum() + examined.ignored)
    assert f"{share:.1f} %        1  {DATASETS['ade20k'].labels.names[examined.pixels.argmax()].split(',')[0]}" in text
    assert f"absent:  {(examined.pixels == 0).sum()} of 150 classes" in text
    assert f"ignored: {100 * examined.ignored / (61 * 83):.1f} %" in text


def test_every_bad_file_is_told_and_the_others_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = make_lip(tmp_path, train=5)
    opened = open_dataset("lip", tmp_path, "train")
    values = stored("lip", truth["train"][opened.names[0]])
    values[4, 6] = 77
    Image.fromarray(values).save(opened.files[0][1])
    opened.files[2][0].write_bytes(b"\xff\xd8\xff no picture")
    Image.fromarray(values[:-1]).save(opened.files[3][1])
    out = tmp_path / "page.png"
    assert cli.run(main, ["check", "lip", str(tmp_path), "--split", "train", "--out", str(out)]) == cli.FAILED
    text = capsys.readouterr().out
    assert "5 pictures (the complete dataset has 30462), 5 read, 3 bad" in text
    assert f"{opened.files[0][1]}: label value 77 at 1 of" in text
    assert "row 4, column 6" in text
    assert f"{opened.files[2][0]}: not a picture" in text
    assert f"{opened.files[3][0]} is " in text
    assert "the labels must have the picture's size" in text
    assert out.exists()


def test_a_set_with_nothing_usable_draws_no_page(tmp_path: Path) -> None:
    make_lip(tmp_path, train=2)
    for i in range(2):
        open_dataset("lip", tmp_path, "train").files[i][0].write_bytes(b"x")
    out = tmp_path / "page.png"
    assert cli.run(main, ["check", "lip", str(tmp_path), "--split", "train", "--out", str(out)]) == cli.FAILED
    assert not out.exists()


def test_what_cannot_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(main, ["check", "lip", str(tmp_path)]) == cli.ERROR
    assert "does not look like lip" in capsys.readouterr().err
    assert cli.run(main, ["check", "nothing", str(tmp_path)]) == cli.ERROR
    assert "no dataset is called 'nothing'" in capsys.readouterr().err


def test_ones_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(tmp_path)
    file = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.run(main, ["check", str(file), "--limit", "2", "--samples", "1"]) == 0
    text = capsys.readouterr().out
    assert "tiles train: 7 pictures, 2 read, 0 bad" in text
    assert (tmp_path / "tiles_check.png").exists()
    text = (tmp_path / "tiles_check.html").read_text("utf-8")
    assert "7 pictures, 2 read" in text
    assert re.search(r"<figcaption>[ab]/shot\.\d\d\.jpg</figcaption>", text)  # names of files


def test_the_html_page_has_every_class_with_its_counts_and_what_is_wrong(tmp_path: Path) -> None:
    truth = make_lip(tmp_path, train=5)["train"]
    opened = open_dataset("lip", tmp_path, "train")
    opened.files[2][0].write_bytes(b"\xff\xd8\xff no picture")
    del truth[opened.names[2]]
    out = tmp_path / "page.html"
    assert cli.run(main, ["check", "lip", str(tmp_path), "--split", "train", "--out", str(out)]) == cli.FAILED
    text = out.read_text("utf-8")
    assert "no picture</p>" not in text
    assert f"cannot be used: {opened.files[2][0]}: not a picture" in text
    whole = np.concatenate([labels.ravel() for labels in truth.values()])
    for number, name in enumerate(opened.labels.names):
        present = sum(int((labels == number).any()) for labels in truth.values())
        row = re.search(rf"<td>{name}</td><td[^>]*>([\d,]+)</td><td[^>]*>[^<]*</td><td[^>]*>(\d+)</td>", text)
        assert row, name
        assert (row[1], row[2]) == (f"{(whole == number).sum():,}", str(present))
    assert "<td>(ignored)</td>" in text
    assert text.count("data:image/webp;base64,") == 8
    assert not re.search(r"""(?:src|href)=["']https?:""", text)


@pytest.mark.parametrize(
    ("out", "files"),
    [
        ("page", ["page.html", "page.png"]),
        ("page.html", ["page.html"]),
        ("page.PNG", ["page.PNG"]),
        ("page.webp", ["page.webp"]),
    ],
)
def test_the_suffix_is_the_format_of_the_page(tmp_path: Path, out: str, files: list[str]) -> None:
    make_lip(tmp_path / "set", train=1)
    assert cli.run(main, ["check", "lip", str(tmp_path / "set"), "--out", str(tmp_path / "out" / out)]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    starts = {".html": b"<!doctype", ".png": b"\x89PNG", ".webp": b"RIFF"}
    for name in files:
        content = (tmp_path / "out" / name).read_bytes()
        assert content.startswith(starts[Path(name).suffix.lower()])


def test_a_page_of_another_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_lip(tmp_path, train=1)
    assert cli.run(main, ["check", "lip", str(tmp_path), "--out", str(tmp_path / "page.pdf")]) == cli.ERROR
    assert ".html, .png, .jpg" in capsys.readouterr().err
    assert not (tmp_path / "page.pdf").exists()


def test_the_page_shows_picture_labels_and_ignored_pixels(tmp_path: Path) -> None:
    make_ade20k(tmp_path)
    opened = open_dataset("ade20k", tmp_path, "train")
    image, labels = opened[0]
    drawn = page([(opened, 0)])
    factor = 260 / 61
    y, x = round(30 * factor) + 22, round(5 * factor)  # below the caption, left of the box
    np.testing.assert_allclose(drawn[y, x], image[30, 5, ::-1], atol=30)  # noise and averaging
    colour = np.array(opened.labels.palette[labels[30, 5]])
    right = drawn[y, x + 371].astype(int)
    assert np.abs(right - (0.8 * colour + 0.2 * image[30, 5, ::-1])).max() < 15
    # Ignored: the picture as it is, but for lines of black or white across it.
    height, width = 260, round(83 * factor)
    where = cv2.resize((labels == IGNORE).astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    source, ignored = drawn[22 : 22 + height, :width][where], drawn[22 : 22 + height, 371 : 371 + width][where]
    lines = (ignored != source).any(-1)
    assert 0.1 < lines.mean() < 0.6
    assert set(np.unique(np.abs(ignored[lines].astype(int) - source[lines]).max(-1) > 40)) == {True}


def test_samples_are_spread() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 9) == [0, 1, 2]
    assert spread(0, 4) == []
