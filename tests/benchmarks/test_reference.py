"""The peer that speed is measured against is itself the reference: checked with the same fixtures."""

from __future__ import annotations

from typing import Any

import golden_model
import numpy as np
import torch
from golden_files import GOLDEN, load_golden

from benchmarks.peers import reference

CHECK = load_golden("check_example")
NAME = "isnet_resnet50os8_ade20k"


class Candidate:
    def __init__(self) -> None:
        self.model = golden_model.model(NAME)

    @torch.inference_mode()
    def logits(self, x: np.ndarray) -> np.ndarray:
        return reference.network(self.model, torch.from_numpy(x)).numpy()

    def scores(self, x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
        size, inference = tuple(settings["output_size"]), golden_model.inference_of(settings)
        return reference.scores(self.model, torch.from_numpy(x), size, inference).numpy()


def test_peer_meets_the_reference() -> None:
    candidate = Candidate()
    rows = list(CHECK.rows(NAME, str(GOLDEN), lambda *_: candidate, CHECK.BOUNDS["fp32"]))
    assert [f"{what}: {text}" for what, within, text in rows if not within] == []
    assert len(rows) == 10
