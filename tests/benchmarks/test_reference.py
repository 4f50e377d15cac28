"""The peer that speed is measured against is itself the reference: checked with the same fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from golden_files import GOLDEN, load_golden

from benchmarks.peers import reference
from isnet_trt import Inference
from isnet_trt.recipes import recipe
from isnet_trt.training.model import ISNet

CHECK = load_golden("check_example")
NAME = "isnet_resnet50os8_ade20k"


class Candidate:
    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.model = ISNet(recipe(NAME).architecture).eval()
        self.model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in weights.items()})

    @torch.inference_mode()
    def logits(self, x: np.ndarray) -> np.ndarray:
        return reference.network(self.model, torch.from_numpy(x)).numpy()

    def scores(self, x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
        forward, tta = settings["forward"], settings["tta"]
        inference = Inference(
            forward["mode"],
            forward["cropsize"] and tuple(forward["cropsize"]),
            forward["stride"] and tuple(forward["stride"]),
            tuple(tta["multiscale"]),
            tta["flip"],
            tta["use_probs_before_resize"],
        )
        return reference.scores(self.model, torch.from_numpy(x), tuple(settings["output_size"]), inference).numpy()


def test_peer_meets_the_reference(filled: Callable[[str], dict[str, np.ndarray]]) -> None:
    candidate = Candidate(filled(NAME))
    rows = list(CHECK.rows(NAME, str(GOLDEN), lambda *_: candidate, CHECK.BOUNDS["fp32"]))
    assert [f"{what}: {text}" for what, within, text in rows if not within] == []
    assert len(rows) == 10
