"""The scene generator: the same bytes again, exact labels, every class, and a person's right and left side."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from isnet_trt.errors import SettingsError
from isnet_trt.recipes import DEMO_LABELS
from isnet_trt.training.scenes import draw_scene
from isnet_trt.training.scenes.__main__ import main
from isnet_trt.training.scenes.canvas import Camera, Canvas, Kind
from isnet_trt.training.scenes.light import random_light
from isnet_trt.training.scenes.people import Person, random_looks
from isnet_trt.training.scenes.view import View


def test_classes_are_those_of_the_recipe() -> None:
    assert tuple(kind.name.lower() for kind in Kind) == DEMO_LABELS.names
    assert DEMO_LABELS.flip_pairs == ((Kind.PERSON_RIGHT, Kind.PERSON_LEFT),)


@pytest.mark.parametrize("size", [(128, 256), (97, 211)])
def test_same_seed_and_size_give_the_same_bytes(size: tuple[int, int]) -> None:
    first, second, other = draw_scene(7, *size), draw_scene(7, *size), draw_scene(8, *size)
    assert first.image.shape == (*size, 3)
    assert first.labels.shape == size
    assert first.image.dtype == first.labels.dtype == np.uint8
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.labels, second.labels)
    assert (first.labels != other.labels).any()


def test_every_class_occurs_and_none_beyond() -> None:
    counts = sum(np.bincount(draw_scene(seed, 128, 256).labels.ravel(), minlength=len(Kind)) for seed in range(12))
    assert len(counts) == len(Kind)
    assert (counts > 0.004 * counts.sum()).all()


def test_the_same_street_at_another_size() -> None:
    small, large = draw_scene(3, 128, 256), draw_scene(3, 256, 512)
    nearest = cv2.resize(large.labels, (256, 128), interpolation=cv2.INTER_NEAREST)
    assert (nearest == small.labels).mean() > 0.95


def test_labels_follow_the_polygon_to_the_pixel() -> None:
    canvas = Canvas.blank(40, 60, Kind.SKY)
    square = np.array([(10, 5), (29, 5), (29, 24), (10, 24)], np.float64)
    canvas.fill([square], (255, 255, 255), Kind.CAR)
    expected = np.full((40, 60), Kind.SKY, np.uint8)
    expected[5:25, 10:30] = Kind.CAR
    np.testing.assert_array_equal(canvas.labels, expected)
    np.testing.assert_array_equal((canvas.image[..., 0] > 127), expected == Kind.CAR)


def test_a_detail_without_label_keeps_the_class_below() -> None:
    canvas = Canvas.blank(20, 20, Kind.ROAD)
    canvas.fill([np.array([(2, 2), (12, 2), (12, 12), (2, 12)], np.float64)], (200, 10, 10))
    assert canvas.image.max() == 200
    assert (canvas.labels == Kind.ROAD).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_person_has_the_right_side_at_the_left_of_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    canvas = Canvas.blank(200, 200, Kind.ROAD)
    camera = Camera(focal=200, x=100, horizon=80, height=1.6)
    Person(0, 3, 1.75, random_looks(rng)).draw(View(canvas, camera, random_light(rng)))
    right, left = (np.nonzero(canvas.labels == kind) for kind in (Kind.PERSON_RIGHT, Kind.PERSON_LEFT))
    assert right[1].mean() < left[1].mean() - 5
    share = len(right[0]) / (len(right[0]) + len(left[0]))
    assert 0.25 < share < 0.75


def test_the_two_sides_have_the_same_colours() -> None:
    """Only the side tells the halves apart, so over many scenes their mean colours agree."""
    means = {kind: np.zeros(3) for kind in (Kind.PERSON_RIGHT, Kind.PERSON_LEFT)}
    for kind in means:
        pixels = [scene.image[scene.labels == kind] for scene in (draw_scene(s, 96, 192) for s in range(24))]
        means[kind] = np.concatenate(pixels).mean(0)
    np.testing.assert_allclose(means[Kind.PERSON_RIGHT], means[Kind.PERSON_LEFT], atol=9)  # grey levels


def test_unusable_sizes_and_seeds_are_refused() -> None:
    with pytest.raises(SettingsError, match="16×64"):
        draw_scene(0, 16, 64)
    with pytest.raises(SettingsError, match="seed -1"):
        draw_scene(-1)


def test_command_line_writes_pictures_labels_and_sheet(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path), "--count", "3", "--size", "64", "128", "--seed", "5", "--labels"]) == 0
    labels = cv2.imread(str(tmp_path / "scene_6_labels.png"), cv2.IMREAD_UNCHANGED)
    picture = cv2.imread(str(tmp_path / "scene_6.png"))
    scene = draw_scene(6, 64, 128)
    np.testing.assert_array_equal(labels, scene.labels)
    np.testing.assert_array_equal(picture[..., ::-1], scene.image)
    assert (tmp_path / "contact_sheet.png").exists()
    assert len(list(tmp_path.iterdir())) == 10
