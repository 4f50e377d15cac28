"""Synthetic inputs: weights for the published recipes, and drawn street scenes as files.

The weights are those of the test fixtures (``tests/golden/fill.py``). Speed does not depend on their values; labels of
random networks agree less than those of trained ones.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from isnet_trt.errors import SettingsError
from isnet_trt.pictures.files import write_png
from isnet_trt.settings import Size
from isnet_trt.training.scenes import draw_scene

FIXTURES = Path(__file__).parents[1] / "tests" / "golden"


def filled_checkpoint(recipe: str, path: Path) -> Path:
    """A checkpoint of ``recipe`` with the fixtures' weights at ``path``.

    Raises:
        SettingsError: the fixtures have no such recipe.
    """
    import torch

    from isnet_trt.training.checkpoint import save_checkpoint

    shapes = FIXTURES / f"state_dict_{recipe}.json"
    if not shapes.is_file():
        known = sorted(p.stem.removeprefix("state_dict_") for p in FIXTURES.glob("state_dict_*.json"))
        raise SettingsError(f"there are no synthetic weights for {recipe!r}; there are for: {', '.join(known)}")
    fill = runpy.run_path(str(FIXTURES / "fill.py"))["fill"]
    weights = fill(json.loads(shapes.read_text("utf-8")))
    save_checkpoint(path, {name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return path


def scene_files(folder: Path, seeds: Iterable[int], size: Size) -> Path:
    """Draw the scenes that ``folder`` lacks, as SEED.png; returns the folder.

    Files are written whole, so that a stopped run can be continued.

    Raises:
        ImageError: one cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for path, seed in ((folder / f"{seed}.png", seed) for seed in seeds):
        if not path.exists():
            write_png(path, draw_scene(seed, *size).image[..., ::-1])
    return folder
