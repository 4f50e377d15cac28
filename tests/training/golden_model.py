"""The stored reference models: weights from names, and what the reference computed with them."""

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from isnet_trt.recipes import RECIPES
from isnet_trt.training.model import ISNet

FOLDER = Path(__file__).parents[1] / "golden"
NAMES = tuple(name for name in RECIPES if name != "isnet_demo")


@functools.cache
def module(name: str) -> ModuleType:
    """``fill`` or ``check_example``, which lie beside the fixtures."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def spec(name: str) -> list[tuple[str, list[int], str]]:
    return json.loads((FOLDER / f"state_dict_{name}.json").read_text("utf-8"))


@functools.lru_cache(maxsize=1)
def weights(name: str) -> dict[str, torch.Tensor]:
    """The fixtures' weights; the last model's stay in memory, since making them takes seconds."""
    return {key: torch.from_numpy(value) for key, value in module("fill").fill(spec(name)).items()}


def model(name: str) -> ISNet:
    """The model of a recipe on the fixtures' `weights` (shared, not copied), in evaluation mode."""
    with torch.device("meta"):
        net = ISNet(RECIPES[name].architecture)
    net.load_state_dict(weights(name), assign=True)
    return net.eval()


def picture(seed: int, height: int, width: int) -> torch.Tensor:
    """(1, 3, height, width) float32, normalised."""
    fill = module("fill")
    return torch.from_numpy(fill.network_input(fill.image(int(seed), int(height), int(width))))


def target(seed: int, height: int, width: int, classes: int) -> np.ndarray:
    return module("fill").target(int(seed), int(height), int(width), classes)
