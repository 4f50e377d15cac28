"""Open a model for evaluation: a bundle as a service opens it, or a checkpoint in the same runtime with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isnet_trt.bundle import CheckpointInfo, read_bundle
from isnet_trt.errors import CheckpointError, SettingsError
from isnet_trt.evaluation.labelled import Labelled, check_labels
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference

TORCH = "torch"
"""The engine kind of a checkpoint."""


@dataclass(frozen=True)
class Model:
    """An open model: its source, and the segmenter that runs it with ``inference``, its ``preset``."""

    path: str
    kind: Literal["bundle", "checkpoint"]
    recipe: str
    checkpoint: CheckpointInfo
    preset: str
    inference: Inference
    segmenter: Segmenter


@dataclass(frozen=True)
class Choice:
    """Options for opening a model: preset, engine kind, and for a checkpoint its recipe and torch's device."""

    preset: str = "default"
    engine: str | None = None
    recipe: str | None = None
    device: str | None = None
    threads: int | None = None


def open_model(path: str, pictures: Labelled, choice: Choice) -> Model:
    """Open a bundle's folder or a checkpoint's file whose classes are those of ``pictures``.

    Raises:
        SettingsError: the classes differ, the preset is unknown, or an option does not belong to this kind of model.
        BundleError, CheckpointError, EngineUnavailable, EngineError: the model cannot be opened; each says why.
    """
    return _open_bundle(path, pictures, choice) if Path(path).is_dir() else _open_checkpoint(path, pictures, choice)


def _open_bundle(path: str, pictures: Labelled, choice: Choice) -> Model:
    if choice.engine == TORCH:
        raise SettingsError(f"{path} is a bundle: --engine torch is for checkpoints")
    # The segmenter verifies the files when it opens the bundle.
    manifest = read_bundle(path, verify=False).manifest
    check_labels(manifest.labels, pictures, path)
    inference = manifest.preset(choice.preset)
    segmenter = Segmenter.open(path, engine=choice.engine, preset=choice.preset, threads=choice.threads)
    return Model(path, "bundle", manifest.recipe, manifest.checkpoint, choice.preset, inference, segmenter)


def _open_checkpoint(path: str, pictures: Labelled, choice: Choice) -> Model:
    if choice.engine not in (None, TORCH):
        raise SettingsError(
            f"{path} is a checkpoint, which PyTorch runs: --engine {choice.engine} is for bundles; build one with "
            f"python -m isnet_trt.build --ckpt {path} --engine {choice.engine} --out DIR"
        )
    if not (Path(path).exists() or Path(path).is_symlink()):
        raise CheckpointError(f"{path}: there is neither a bundle's folder nor a checkpoint's file")
    try:
        from isnet_trt.training.checkpoint import load_checkpoint
        from isnet_trt.training.torch_engine import open_checkpoint
    except ImportError as error:
        raise SettingsError(
            f"evaluating a checkpoint needs PyTorch ({error}); pip install 'isnet_trt[train]'"
        ) from None
    checkpoint = load_checkpoint(path, choice.recipe)
    check_labels(checkpoint.recipe.labels, pictures, path)
    inference = checkpoint.recipe.preset(choice.preset)
    segmenter = open_checkpoint(checkpoint, device=choice.device, inference=inference, threads=choice.threads)
    source = CheckpointInfo(checkpoint.path.name, checkpoint.sha256)
    return Model(path, "checkpoint", checkpoint.recipe.name, source, choice.preset, inference, segmenter)
