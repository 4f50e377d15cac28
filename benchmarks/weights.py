"""Deterministic synthetic weights for the published recipes: those of the test fixtures (``tests/golden/fill.py``).

Speed does not depend on what the weights are; labels of random networks agree less than those of trained ones.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import torch

from isnet_trt.errors import SettingsError
from isnet_trt.training.checkpoint import save_checkpoint

FIXTURES = Path(__file__).parents[1] / "tests" / "golden"


def filled_checkpoint(recipe: str, path: Path) -> Path:
    """A checkpoint of ``recipe`` with the fixtures' weights at ``path``.

    Raises:
        SettingsError: the fixtures have no such recipe.
    """
    shapes = FIXTURES / f"state_dict_{recipe}.json"
    if not shapes.is_file():
        known = sorted(p.stem.removeprefix("state_dict_") for p in FIXTURES.glob("state_dict_*.json"))
        raise SettingsError(f"there are no synthetic weights for {recipe!r}; there are for: {', '.join(known)}")
    fill = runpy.run_path(str(FIXTURES / "fill.py"))["fill"]
    weights = fill(json.loads(shapes.read_text("utf-8")))
    save_checkpoint(path, {name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return path
