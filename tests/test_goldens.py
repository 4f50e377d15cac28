"""The reference's outputs, met through the whole chain: checkpoint file, bundle, engine, runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden_model
import numpy as np
import pytest
import torch
from golden_files import GOLDEN, NEAR_TIES, load_golden

from isnet_trt import Segmenter
from isnet_trt.bundle import Bundle
from isnet_trt.export import EngineOptions, PrecisionOptions, build

CHECK = load_golden("check_example")
WINDOWED = ("isnet_resnet50os8_ade20k", "isnet_resnest101os8_lip")
"""Two of the four fixtures with label maps of windows, scales and flip: in float16 a CPU takes minutes for each. The
logits of all twelve are in test_precision_goldens."""


class Candidate:
    """A segmenter as the fixtures' comparison wants to see it."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.logits = segmenter.logits
        self.segmenter = segmenter

    def scores(self, x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
        return self.segmenter.score(x, tuple(settings["output_size"]), golden_model.inference_of(settings))


def marked(quick: tuple[str, ...]) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in golden_model.NAMES]


def missed(recipe: str, folder: Path, precision: str) -> tuple[list[str], Bundle]:
    """The comparisons out of their bounds, of a bundle built from the fixtures' weights."""
    torch.save({"model": golden_model.weights(recipe), "cur_epoch": 1}, folder / "released.pth")
    bundle = build(
        folder / "released.pth",
        folder / "bundle",
        engine=EngineOptions("onnxruntime"),
        precision=PrecisionOptions(precision),
    )
    with Segmenter.open(folder / "bundle") as segmenter:
        rows = list(CHECK.rows(recipe, str(GOLDEN), lambda *_: Candidate(segmenter), CHECK.BOUNDS[precision]))
    stored = np.load(GOLDEN / f"golden_{recipe}.npz").files
    merged = sum(name.endswith("_settings") for name in stored)
    assert len(rows) == 4 + 3 * merged  # none was left out
    return [f"{compared}: {text}" for compared, within, text in rows if not within], bundle


@pytest.mark.parametrize("recipe", marked(("isnet_resnet50os8_ade20k",)))
def test_bundle_meets_the_reference(recipe: str, tmp_path: Path) -> None:
    wrong, bundle = missed(recipe, tmp_path, "fp32")
    assert not wrong
    assert bundle.manifest.recipe == recipe  # found from the file's content


@pytest.mark.slow
@pytest.mark.parametrize("recipe", WINDOWED)
def test_half_precision_meets_the_reference(recipe: str, tmp_path: Path) -> None:
    """Label maps of the float16 graph under ONNX Runtime, which stores float16, sums in float32, and is slow at it."""
    wrong, bundle = missed(recipe, tmp_path, "fp16")
    assert not [text for text in wrong if not text.startswith(NEAR_TIES.get(recipe, "none"))]
    assert bundle.manifest.precision == "fp16"
    islands = bundle.manifest.parity["graph"]["islands"]
    assert all("ReduceMean" in reason for reason in islands.values())
