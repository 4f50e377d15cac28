"""Open a model for evaluation: a bundle as a service opens it, or a checkpoint in the same runtime with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isnet_trt.bundle import MANIFEST, CheckpointInfo, read_bundle, sha256
from isnet_trt.errors import CheckpointError, SettingsError, needs
from isnet_trt.evaluation.labelled import Labelled, check_labels
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference

if TYPE_CHECKING:
    from isnet_trt.training.checkpoint import Checkpoint

TORCH = "torch"
"""The engine kind of a checkpoint."""


@dataclass(frozen=True)
class Model:
    """An open model: its source, and the segmenter that runs it with ``inference``, its ``preset``.

    ``digest`` is the SHA-256 of a bundle's manifest, which covers all its files; empty for a checkpoint.
    """

    path: str
    kind: Literal["bundle", "checkpoint"]
    recipe: str
    checkpoint: CheckpointInfo
    preset: str
    inference: Inference
    segmenter: Segmenter
    digest: str = ""


def open_model(
    path: str,
    pictures: Labelled,
    *,
    preset: str = "default",
    engine: str | None = None,
    recipe: str | None = None,
    weights: Literal["plain", "ema"] = "plain",
    device: str = "auto",
    threads: int | None = None,
) -> Model:
    """Open a bundle's folder or a checkpoint's file whose classes are those of ``pictures``.

    ``engine`` is the engine kind; ``recipe`` and ``weights`` (as `load_checkpoint` takes them) are for checkpoints;
    ``device`` is as `isnet_trt.settings.Placement.parse` takes it.

    Raises:
        SettingsError: the classes differ, the preset is unknown, or an option does not belong to this kind of model.
        BundleError, CheckpointError, EngineUnavailable, EngineError: the model cannot be opened; each says why.
    """
    if Path(path).is_dir():
        if engine == TORCH:
            raise SettingsError(f"{path} is a bundle: --engine torch is for checkpoints")
        # The segmenter verifies the files when it opens the bundle.
        manifest = read_bundle(path, verify=False).manifest
        check_labels(manifest.labels, pictures, path)
        segmenter = Segmenter.open(path, engine=engine, preset=preset, threads=threads, device=device)
        source, digest = manifest.checkpoint, sha256(Path(path) / MANIFEST)
        return Model(path, "bundle", manifest.recipe, source, preset, segmenter.inference, segmenter, digest)
    checkpoint = _load_checkpoint(path, engine, recipe, weights)
    check_labels(checkpoint.recipe.labels, pictures, path)
    from isnet_trt.training.torch_engine import open_checkpoint

    inference = checkpoint.recipe.preset(preset)
    segmenter = open_checkpoint(checkpoint, device=device, inference=inference, threads=threads)
    source = CheckpointInfo(checkpoint.path.name, checkpoint.sha256)
    return Model(path, "checkpoint", checkpoint.recipe.name, source, preset, inference, segmenter)


def _load_checkpoint(path: str, engine: str | None, recipe: str | None, weights: Literal["plain", "ema"]) -> Checkpoint:
    if engine not in (None, TORCH):
        raise SettingsError(
            f"{path} is a checkpoint, which PyTorch runs: --engine {engine} is for bundles; build one with "
            f"python -m isnet_trt.build --ckpt {path} --engine {engine} --out DIR"
        )
    if not (Path(path).exists() or Path(path).is_symlink()):
        raise CheckpointError(f"{path}: there is neither a bundle's folder nor a checkpoint's file")
    with needs("evaluating a checkpoint", "train"):
        from isnet_trt.training.checkpoint import load_checkpoint
    return load_checkpoint(path, recipe, weights)
