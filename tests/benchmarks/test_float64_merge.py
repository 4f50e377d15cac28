"""The plain merge in float64 gives the scores of the tests' own reference, and knows ties and thresholds."""

from __future__ import annotations

from typing import Any

import network_reference
import numpy as np
import pytest

from benchmarks import float64_merge
from isnet_trt.settings import Inference, NetworkFacts

WEIGHT = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
IMAGE = np.random.default_rng(1).integers(0, 256, (53, 71, 3), np.uint8)
PADDED = {"size_multiple": 32, "padding_side": "centre", "padding_value": [1, 2, 200], "channel_order": "bgr"}
RECIPE = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "pixel_range": 1}
MEANS = {"average": "probabilities", "flip": True, "scales": [0.75, 1, 1.5]}


def network(pixels: np.ndarray) -> np.ndarray:
    """Five scores of each cell of 4 x 4 pixels."""
    rows, columns = -pixels.shape[2] % 4, -pixels.shape[3] % 4
    pixels = np.pad(pixels, [(0, 0), (0, 0), (0, rows), (0, columns)])
    batch, channels, height, width = pixels.shape
    cells = pixels.reshape(batch, channels, height // 4, 4, width // 4, 4).mean((3, 5))
    return np.einsum("kc,bchw->bkhw", WEIGHT, cells)


@pytest.mark.parametrize("padding", [{}, {"size_multiple": 32}, PADDED], ids=["none", "mean", "centre"])
@pytest.mark.parametrize("settings", [{}, MEANS, {"window": [32, 40], "stride": [20, 24], **MEANS}])
def test_the_scores_of_the_other_reference(padding: dict[str, Any], settings: dict[str, Any]) -> None:
    recipe = RECIPE | padding
    scores = float64_merge.merged(network, IMAGE, recipe, settings)
    sizes = [tuple(settings[key]) if key in settings else None for key in ("window", "stride")]
    mode: Any = "slide" if "window" in settings else "whole"
    scales = tuple(settings.get("scales", [1.0]))
    inference = Inference(mode, *sizes, scales, settings.get("flip", False), "average" in settings)  # type: ignore[arg-type]
    facts = NetworkFacts(
        size_multiple=padding.get("size_multiple", 1), padding_side=padding.get("padding_side", "bottom_right")
    )
    value = np.multiply(padding.get("padding_value", np.multiply(RECIPE["mean"], 255)), 1 / 255)
    value = (value - RECIPE["mean"]) / RECIPE["std"]
    planes = float64_merge.normalised(IMAGE, recipe)
    expected = network_reference.scores(network, facts, planes, value, IMAGE.shape[:2], inference)
    # The other one does not round positions to float32, as PyTorch does.
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert np.ptp(scores) > 0.1


def test_ties() -> None:
    scores = np.zeros((3, 1, 4))
    scores[1, 0] = [1, 1e-6, -1, 0.5]
    labels, ties = float64_merge.labelled(scores, RECIPE, {})
    assert labels.tolist() == [[1, 1, 0, 1]]
    assert ties.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize(("activation", "score"), [("none", -1.0), ("sigmoid", 0.26)])
def test_a_threshold_applies_to_the_probability(activation: str, score: float) -> None:
    recipe = RECIPE | {"threshold": 0.25, "activation": activation}
    scores = np.array([[[score, score - 0.2]]])
    assert float64_merge.labelled(scores, recipe, {}).labels.tolist() == [[1, 0]]
