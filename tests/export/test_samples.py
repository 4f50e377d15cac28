"""What a build shows to the network, from folders as users have them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from own_pictures import write_pngs

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.export.network_inputs import load_inputs
from isnet_trt.export.samples import COMPARED, samples
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


def test_unreadable_pictures_are_left_out_whatever_is_built(street: Path) -> None:
    for static in (None, (33, 47)):
        result = samples(DEMO, street, 8, None, static)
        assert [picture.name.partition(":")[0] for picture in result.gate[:2]] == ["a.png", "c.ppm"]
        assert len(result.left_out) == 1
        assert "b.jpg" in result.left_out[0]
    assert [picture.pixels.shape[2:] for picture in result.gate] == [(33, 47)] * 2


def test_ranges_are_those_of_typical_pictures(street: Path, tmp_path: Path) -> None:
    """Also where the gate has pictures of its own."""
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((60, 90, 3), np.uint8))
    result = samples(DEMO, street, 8, tmp_path / "black.png", None)
    assert [picture.name for picture in result.gate] == ["black.png"]
    assert {picture.name.partition(":")[0] for picture in result.typical} == {"a.png", "c.ppm"}
    without = samples(DEMO, None, 8, tmp_path / "black.png", None)
    assert without.typical is without.gate
    assert without.calibration is None


def test_no_more_pictures_are_read_than_are_compared(tmp_path: Path) -> None:
    write_pngs(tmp_path, [np.full((40, 60, 3), number, np.uint8) for number in range(COMPARED + 2)])
    (tmp_path / f"{COMPARED:02}.png").write_bytes(b"a text")
    assert len(samples(DEMO, None, 8, tmp_path, (33, 47)).gate) == COMPARED
    with pytest.raises(ImageError, match=f"{COMPARED:02}.png"):
        load_inputs(DEMO.preprocess, tmp_path, (33, 47))


def test_pictures_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: there is no such picture"):
        samples(DEMO, None, 8, tmp_path / "none.png", None)
    cv2.imwrite(str(tmp_path / "line.png"), np.zeros((1, 5000, 3), np.uint8))
    with pytest.raises(ImageError, match=r"line\.png: .*too narrow"):
        samples(DEMO, None, 8, tmp_path, None)
    with pytest.raises(SettingsError, match="none of the 1 pictures"):
        samples(DEMO, tmp_path, 8, None, None)
