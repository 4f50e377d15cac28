"""A real bundle, small enough to write in milliseconds: a stride-8 ONNX network of three classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper
from onnx_networks import save_network

from isnet_trt.bundle import CUDA_ONNX, ENGINE, ONNX, Bundle, CheckpointInfo, Manifest, new_bundle, read_bundle
from isnet_trt.engines.info import EngineInfo
from isnet_trt.settings import Inference, Labels, Preprocess

LABELS = Labels(("left", "right", "sky"), ((1, 2, 3), (4, 5, 6), (70, 130, 255)), ((0, 1),))
SLIDE = Inference("slide", (33, 65), (21, 43), (0.5, 1.0, 1.75), flip=True, softmax_before_resize=True)


def save_model(path: Path, height: int | str = "height", width: int | str = "width", external: bool = False) -> Path:
    """Write an average over 8x8 cells followed by a 1x1 convolution to three classes."""
    weight = np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1) / 8 - 0.5
    nodes = [
        helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[8, 8], strides=[8, 8], ceil_mode=1),
        helper.make_node("Conv", ["cells", "weight"], ["logits"]),
    ]
    options = {"save_as_external_data": external, "location": "model.onnx.data", "size_threshold": 0}
    return save_network(path, nodes, 3, {"weight": weight}, (height, width), **options)


def expected(batch: np.ndarray) -> np.ndarray:
    """What `save_model`'s network computes, for sizes that are multiples of 8; float64."""
    count, _, height, width = batch.shape
    cells = batch.astype(np.float64).reshape(count, 3, height // 8, 8, width // 8, 8).mean((3, 5))
    return np.einsum("kc,bchw->bkhw", np.arange(9).reshape(3, 3) / 8 - 0.5, cells)


def image(seed: int, height: int = 70, width: int = 107) -> np.ndarray:
    """An image of blocks of 8x8 pixels, in which `save_model`'s network sees several classes."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


def manifest(engine: EngineInfo | None = None, **changes: object) -> Manifest:
    """A manifest with every kind of field in use."""
    fields: dict = {
        "recipe": "isnet_small",
        "labels": LABELS,
        "preprocess": Preprocess((473, 473), keep_ratio=False),
        "presets": {"default": Inference(), "ms-flip": SLIDE},
        "output_stride": 8,
        "precision": "fp32",
        "engine": engine or EngineInfo("onnxruntime", "1.32.0", ONNX),
        "checkpoint": CheckpointInfo("small.pth", "ab" * 32),
        "parity": {"engine": "ONNX Runtime", "pictures": [{"picture": "a.png", "max": 1e-5}], "none": None},
        "created_at": "2026-01-02T03:04:05+00:00",
        "isnet_trt_version": "0.1.0",
    }
    return Manifest(**(fields | changes))


def write_bundle(out: Path, engine: EngineInfo | None = None, force: bool = False, **changes: object) -> Bundle:
    """A whole bundle at ``out``; an engine other than ONNX Runtime gets a file with arbitrary bytes."""
    with new_bundle(out, force) as draft:
        save_model(draft.folder / ONNX)
        if engine is not None and engine.file == CUDA_ONNX:
            save_model(draft.folder / CUDA_ONNX, height="rows")
        if engine is not None and engine.file == ENGINE:
            (draft.folder / ENGINE).write_bytes(b"no engine of any library")
        draft.finish(manifest(engine, **changes))
    return read_bundle(out)
