"""Deterministic made-up weights for the published recipes: those of the test fixtures (``tests/golden/fill.py``).

Speed does not depend on what the weights are; agreement of random networks is harder than that of trained ones.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from isnet_trt.errors import SettingsError
from isnet_trt.training.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "golden"


def filled_checkpoint(recipe: str, path: Path) -> Path:
    """A checkpoint of ``recipe`` with the fixtures' weights at ``path``.

    Raises:
        SettingsError: the fixtures have no such recipe.
    """
    shapes = FIXTURES / f"state_dict_{recipe}.json"
    if not shapes.is_file():
        known = sorted(p.stem.removeprefix("state_dict_") for p in FIXTURES.glob("state_dict_*.json"))
        raise SettingsError(f"there are no made-up weights for {recipe!r}; there are for: {', '.join(known)}")
    weights = _fill().fill(json.loads(shapes.read_text("utf-8")))
    save_checkpoint(path, {name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return path


def _fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", FIXTURES / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
