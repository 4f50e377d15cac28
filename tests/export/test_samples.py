"""What a build shows to the network, from folders as users have them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from own_pictures import write_pngs

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.export.network_inputs import NetworkInput, load_inputs
from isnet_trt.export.samples import COMPARED, EVERY, FEWEST, samples
from isnet_trt.recipes import recipe

DEMO = recipe("isnet_demo")


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Two pictures, and between them one that is none."""
    folder = tmp_path / "street"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "c.ppm"):
        cv2.imwrite(str(folder / name), random.integers(0, 255, (60, 90, 3), np.uint8))
    (folder / "b.jpg").write_bytes(b"a text")
    return folder


def file_of(item: NetworkInput) -> str:
    return item.name.partition(", window")[0]


def test_unreadable_pictures_are_left_out_whatever_is_built(street: Path) -> None:
    for static in (None, (33, 47)):
        result = samples(DEMO, street, 8, None, static)
        assert [file_of(picture) for picture in result.gate[:2]] == ["a.png", "c.ppm"]
        assert len(result.left_out) == 1
        assert "b.jpg" in result.left_out[0]
    assert [picture.pixels.shape[2:] for picture in result.gate] == [(33, 47)] * 2


def test_ranges_are_those_of_typical_pictures(street: Path, tmp_path: Path) -> None:
    """Also where the gate has pictures of its own."""
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((60, 90, 3), np.uint8))
    result = samples(DEMO, street, 8, tmp_path / "black.png", None)
    assert [picture.name for picture in result.gate] == ["black.png"]
    assert {file_of(picture) for picture in result.typical} == {"a.png", "c.ppm"}
    without = samples(DEMO, None, 8, tmp_path / "black.png", None)
    assert without.typical is without.gate
    assert without.calibration is None


def test_no_more_pictures_are_read_than_are_compared(tmp_path: Path) -> None:
    write_pngs(tmp_path, [np.full((40, 60, 3), number, np.uint8) for number in range(COMPARED + 2)])
    (tmp_path / f"{COMPARED:02}.png").write_bytes(b"a text")
    assert len(samples(DEMO, None, 8, tmp_path, (33, 47)).gate) == COMPARED
    with pytest.raises(ImageError, match=f"{COMPARED:02}.png"):
        load_inputs(DEMO.preprocess, tmp_path, (33, 47))


def test_some_pictures_are_held_out_of_calibration_where_there_are_enough(tmp_path: Path) -> None:
    images = [np.full((40, 60, 3), 9 * number, np.uint8) for number in range(FEWEST)]
    write_pngs(tmp_path, images)
    result = samples(DEMO, tmp_path, 8, None, None)
    names = sorted(path.name for path in tmp_path.iterdir())
    held_out = names[EVERY - 1 :: EVERY]
    assert [image.name for image in result.evidence.images] == held_out
    assert {file_of(item) for item in result.gate} == set(held_out)
    assert result.calibration is not None
    assert [file.name for file in result.calibration.files] == [name for name in names if name not in held_out]
    assert not {file_of(item) for item in result.typical} & set(held_out)
    assert (result.evidence.origin, result.evidence.independent) == ("held out", True)
    assert (result.evidence.available, result.evidence.calibrated) == (FEWEST, FEWEST - 2)
    (tmp_path / names[0]).unlink()
    few = samples(DEMO, tmp_path, 8, None, None)
    assert (few.evidence.origin, few.evidence.independent) == ("calibration", False)
    assert [item.name for item in few.gate] == [item.name for item in few.typical]


def test_all_held_out_pictures_unreadable(tmp_path: Path) -> None:
    write_pngs(tmp_path, [np.full((40, 60, 3), 9 * number, np.uint8) for number in range(FEWEST)])
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names[EVERY - 1 :: EVERY]:
        (tmp_path / name).write_bytes(b"a text")
    result = samples(DEMO, tmp_path, 8, None, None)
    assert result.evidence.origin == "calibration"
    assert len({line.partition(":")[0] for line in result.left_out}) == 2


def test_given_pictures_that_are_calibrated_on_are_found_by_content(tmp_path: Path) -> None:
    for folder, numbers in (("calib", (1, 2)), ("proof", (2, 3))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            name = f"{folder}{number}.png"
            cv2.imwrite(str(tmp_path / folder / name), np.full((40, 60, 3), 60 * number, np.uint8))
    result = samples(DEMO, tmp_path / "calib", 8, tmp_path / "proof", None)
    assert [(image.name, image.calibrated) for image in result.evidence.images] == [
        ("proof2.png", True),
        ("proof3.png", False),
    ]
    assert not result.evidence.independent
    (tmp_path / "calib" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert samples(DEMO, tmp_path / "calib", 8, tmp_path / "proof", None).evidence.images == result.evidence.images
    assert samples(DEMO, None, 8, None, None).evidence.origin == "built-in"
    assert len(samples(DEMO, tmp_path / "calib", 8, tmp_path / "proof", None, 1).gate) == 1


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: there is no such picture"):
        samples(DEMO, None, 8, tmp_path / "none.png", None)
    cv2.imwrite(str(tmp_path / "line.png"), np.zeros((1, 5000, 3), np.uint8))
    with pytest.raises(ImageError, match=r"line\.png: .*too narrow"):
        samples(DEMO, None, 8, tmp_path, None)
    with pytest.raises(SettingsError, match="none of the 1 pictures"):
        samples(DEMO, tmp_path, 8, None, None)
