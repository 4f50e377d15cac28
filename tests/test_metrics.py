"""Confusion counts and figures, against the reference's numbers and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from isnet_trt.errors import SettingsError
from isnet_trt.metrics import Agreement, Confusion, bytes_text, percent, rounded

GOLDEN = Path(__file__).parent / "golden" / "golden_pipeline.npz"


def test_figures_of_the_reference() -> None:
    golden = np.load(GOLDEN)
    confusion = Confusion(19)
    for predicted, truth in zip(golden["metric_pred"], golden["metric_gt"], strict=True):
        confusion.add(predicted, truth)
    metrics = confusion.metrics()
    tolerance = 1e-12  # float64 ratios of whole numbers
    np.testing.assert_allclose(metrics.iou, golden["metric_iou"], atol=tolerance)
    np.testing.assert_allclose(metrics.accuracy, golden["metric_accuracy"], atol=tolerance)
    assert metrics.miou == pytest.approx(float(golden["metric_miou"]), abs=tolerance)
    assert metrics.all_accuracy == pytest.approx(float(golden["metric_all_accuracy"]), abs=tolerance)


def test_by_hand() -> None:
    confusion = Confusion(4)
    confusion.add(np.array([[0, 0, 1], [2, 1, 1]]), np.array([[0, 1, 1], [1, -1, 255]]))
    metrics = confusion.metrics()
    np.testing.assert_allclose(metrics.iou, [1 / 2, 1 / 3, 0, np.nan])
    np.testing.assert_allclose(metrics.dice, [2 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(metrics.accuracy, [1, 1 / 3, np.nan, np.nan])
    assert metrics.miou == pytest.approx((1 / 2 + 1 / 3) / 3)  # a class predicted but never present counts 0
    assert metrics.all_accuracy == pytest.approx(1 / 2)
    assert metrics.mean_accuracy == pytest.approx((1 + 1 / 3) / 2)  # classes 2 and 3 have no pixel in the truth
    assert metrics.mean_dice == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_nothing_counted_is_nan() -> None:
    confusion = Confusion(3)
    confusion.add(np.zeros((2, 2), np.uint8), np.full((2, 2), -100))
    metrics = confusion.metrics()
    assert np.isnan([metrics.miou, metrics.all_accuracy, metrics.mean_accuracy]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64])
def test_label_types_do_not_overflow(dtype: type) -> None:
    confusion = Confusion(100)
    confusion.add(np.full((3, 5), 99, dtype), np.full((3, 5), 98, dtype))
    assert confusion.counts[98, 99] == 15
    assert confusion.counts.sum() == 15


def test_wrong_shapes_and_values_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"\(2, 3\).*\(3, 2\)"):
        Confusion(2).add(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(SettingsError, match=r"0\.\.5 do not fit 2 classes"):
        Confusion(2).add(np.array([0, 5]), np.array([0, 1]))


def test_mistakes_are_the_largest_cells_beside_the_diagonal() -> None:
    confusion = Confusion(3)
    confusion.counts[:] = [[90, 3, 7], [0, 50, 0], [1, 7, 0]]
    assert confusion.mistakes(3) == [(0, 2, 7, 0.07), (2, 1, 7, 0.875), (0, 1, 3, 0.03)]
    assert confusion.mistakes(99)[-1] == (2, 0, 1, 0.125)
    assert len(confusion.mistakes(99)) == 4
    assert not Confusion(3).mistakes(5)


def test_agreement_of_all_and_of_labelled_pixels() -> None:
    truth = np.array([[0, 1, -100], [255, 2, 1]], np.int16)
    agreement = Agreement(3)
    agreement.add(np.array([[0, 1, 2], [2, 2, 2]], np.uint8), np.array([[0, 0, 2], [1, 2, 2]], np.uint8), truth, "a")
    assert agreement.all_pixels == 4 / 6
    assert agreement.labelled_pixels == 3 / 4
    same = np.zeros((5, 7), np.uint8)
    agreement.add(same, same, np.zeros((5, 7), np.int16), "b")
    assert agreement.least == (4 / 6, "a")
    assert agreement.all_pixels == (4 + 35) / (6 + 35)
    assert np.isnan(Agreement(3).all_pixels)


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (1.0, 3, "100.000"),
        (0.999997, 3, "99.999"),
        (0.999997, 2, "99.99"),
        (math.nextafter(1, 0), 2, "99.99"),
        (0.9999, 0, "99"),
        (0.99995, 3, "99.995"),
        (0.12345, 1, "12.3"),
        (0.0, 2, "0.00"),
        (math.nan, 2, "–"),
        (None, 2, "–"),
    ],
)
def test_a_hundred_per_cent_is_exactly_that(share: float | None, digits: int, text: str) -> None:
    assert percent(share, digits) == text


def test_a_cosine_of_one_is_exactly_that() -> None:
    assert [rounded(value, 6) for value in (1.0, 0.9999999, 0.25)] == ["1.000000", "0.999999", "0.250000"]
    assert rounded(1.2, 1) == "1.2"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (49_400, "49 kB"),
        (999_500, "1.0 MB"),
        (44_560_000, "44.6 MB"),
        (999_960_000, "1.00 GB"),
        (1_250_000_000, "1.25 GB"),
    ],
)
def test_bytes_for_people(size: int, text: str) -> None:
    assert bytes_text(size) == text
