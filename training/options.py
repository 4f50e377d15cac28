"""Options of training runs, as plain data: command lines read them without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isnet_trt.settings import Size
from isnet_trt.training.scenes import SCENE_SIZE


@dataclass(frozen=True)
class Options:
    """Options of a run, besides its recipe and its data.

    Attributes:
        out: folder of checkpoints and logs.
        epochs: passes over the training set.
        batch: crops in a batch, of all processes together.
        seed: decides initial weights, order, crops and dropout.
        workers: processes that read and crop, for each training process.
        amp: None (float32), "bf16" or "fp16" (with loss scaling).
        compile: run the network through torch.compile.
        save_every: iterations between two checkpoints within an epoch; 0: save after each epoch only.
        keep: number of epochs whose checkpoints are kept; None: all.
        val_every: epochs between two scorings of the held-out pictures; the last epoch is always scored.
        val_limit: number of held-out pictures that are scored; None: all.
        stop_after: iteration after which the run ends early.
        timeout: seconds that the workers may take for a batch.
    """

    out: Path
    epochs: int
    batch: int
    seed: int = 0
    workers: int = 2
    amp: str | None = None
    compile: bool = False
    save_every: int = 500
    keep: int | None = None
    val_every: int = 1
    val_limit: int | None = None
    stop_after: int | None = None
    timeout: float = 600


@dataclass(frozen=True)
class Tuning:
    """Settings of a fine-tuning run.

    ``lr`` falls to a hundredth by the recipe's polynomial rule; weight decay is 0, since the batch-norms are folded.
    """

    epochs: int = 1
    batch: int = 4
    lr: float = 5e-4
    seed: int = 0
    workers: int = 2
    repeats: int = 1
    stop_after: int | None = None


@dataclass(frozen=True)
class SceneSet:
    """Number of training scenes, their size, and the crops of each in an epoch."""

    count: int = 400
    size: Size = SCENE_SIZE
    repeats: int = 5
