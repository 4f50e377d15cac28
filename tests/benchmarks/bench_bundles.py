"""Real bundles of one convolution, which run in a millisecond."""

from __future__ import annotations

from pathlib import Path

import small_bundle
import tiny_model

from isnet_trt.bundle import ONNX, new_bundle
from isnet_trt.settings import Inference, Preprocess


def tiny(out: Path, gain: float = 1.0, batch: int | str = "batch", **changes: object) -> Path:
    """A bundle whose network is `tiny_model`'s with three classes; ``gain=-1`` makes the wrong answer of it, a fixed
    ``batch`` one that takes nothing else."""
    presets = {"default": Inference(), "ms-flip": Inference(scales=(0.75, 1.0), flip=True)}
    with new_bundle(out) as draft:
        tiny_model.write_model(draft.folder / ONNX, 3, gain, batch)
        fields = {"preprocess": Preprocess((97, 65)), "presets": presets, **changes}
        draft.finish(small_bundle.manifest(None, **fields))
    return out
