"""The polynomial schedule against the reference's learning rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isnet_trt.recipes import recipe

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_pipeline.npz"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("poly_default", "isnet_resnet50os8_ade20k"),
        ("poly_s101ade", "isnet_resnest101os8_ade20k"),
        ("poly_s101coco", "isnet_resnest101os8_cocostuff10k"),
    ],
)
def test_learning_rates_of_the_reference(key: str, name: str) -> None:
    golden = np.load(GOLDEN)
    total = int(golden["poly_max_iters"])
    rates = [recipe(name).optimiser.rate(int(i), total) for i in golden["poly_iters"]]
    np.testing.assert_allclose(rates, golden[key], rtol=1e-12)  # float64


def test_beyond_the_end_it_stays_at_the_minimum() -> None:
    rule = recipe("isnet_demo").optimiser
    assert rule.rate(11, 10) == pytest.approx(rule.min_lr)
