"""The stored reference models: weights from names, and what the reference computed with them."""

import functools
import json
from typing import Any

import numpy as np
import torch
from golden_files import GOLDEN, load_golden

from isnet_trt import Inference
from isnet_trt.recipes import RECIPES
from isnet_trt.training.model import ISNet

FILL = load_golden("fill")
NAMES = tuple(name for name in RECIPES if name != "isnet_demo")


def spec(name: str) -> list[tuple[str, list[int], str]]:
    return json.loads((GOLDEN / f"state_dict_{name}.json").read_text("utf-8"))


@functools.lru_cache(maxsize=1)
def weights(name: str) -> dict[str, torch.Tensor]:
    """The fixtures' weights; the last model's stay in memory, since making them takes seconds."""
    return {key: torch.from_numpy(value) for key, value in FILL.fill(spec(name)).items()}


def model(name: str) -> ISNet:
    """The model of a recipe on the fixtures' `weights` (shared, not copied), in evaluation mode."""
    with torch.device("meta"):
        net = ISNet(RECIPES[name].architecture)
    net.load_state_dict(weights(name), assign=True)
    return net.eval()


def inference_of(stored: dict[str, Any]) -> Inference:
    """The inference that the fixtures' stored settings describe."""
    forward, tta = stored["forward"], stored["tta"]
    windows = [tuple(forward[key]) if forward["mode"] == "slide" else None for key in ("cropsize", "stride")]
    scales, before = tuple(tta["multiscale"]), tta["use_probs_before_resize"]
    return Inference(forward["mode"], *windows, scales, tta["flip"], before)


def picture(seed: int, height: int, width: int) -> torch.Tensor:
    """(1, 3, height, width) float32, normalised."""
    return torch.from_numpy(FILL.network_input(FILL.image(int(seed), int(height), int(width))))


def target(seed: int, height: int, width: int, classes: int) -> np.ndarray:
    return FILL.target(int(seed), int(height), int(width), classes)
