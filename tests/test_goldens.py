"""The reference's outputs, met through the whole chain: checkpoint file, bundle, engine, runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_files import GOLDEN, load_golden

from isnet_trt import Inference, Segmenter
from isnet_trt.export import build
from isnet_trt.training.recipes import RECIPES

CHECK = load_golden("check_example")
QUICK = ("isnet_resnet50os8_ade20k", "isnet_resnest101os8_lip")
PUBLISHED = [name for name in RECIPES if name != "isnet_demo"]


class Candidate:
    """A segmenter as the fixtures' comparison wants to see it."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.logits = segmenter.logits
        self.segmenter = segmenter

    def scores(self, x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
        forward, tta = settings["forward"], settings["tta"]
        slide = forward["mode"] == "slide"
        inference = Inference(
            forward["mode"],
            tuple(forward["cropsize"]) if slide else None,
            tuple(forward["stride"]) if slide else None,
            tuple(tta["multiscale"]),
            tta["flip"],
            tta["use_probs_before_resize"],
        )
        return self.segmenter.score(x, tuple(settings["output_size"]), inference)


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_bundle_meets_the_reference(
    recipe: str, filled: Callable[[str], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    weights = {name: torch.from_numpy(np.array(value)) for name, value in filled(recipe).items()}
    torch.save({"model": weights, "cur_epoch": 1}, tmp_path / "released.pth")
    bundle = build(tmp_path / "released.pth", tmp_path / "bundle", engine="onnxruntime")
    assert bundle.manifest.recipe == recipe  # found from the file's content
    with Segmenter.open(tmp_path / "bundle") as segmenter:
        rows = list(CHECK.rows(recipe, str(GOLDEN), lambda *_: Candidate(segmenter), CHECK.BOUNDS["fp32"]))
    missed = [f"{what}: {text}" for what, within, text in rows if not within]
    assert not missed
    stored = np.load(GOLDEN / f"golden_{recipe}.npz").files
    assert len(rows) == 4 + 3 * sum(name.endswith("_settings") for name in stored)  # none was left out
