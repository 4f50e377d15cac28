"""What a contender is: how it is described before it is loaded, what it gives for a picture, how it says it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isnet_trt.settings import Inference
from isnet_trt.training.checkpoint import Checkpoint, load_checkpoint


class Missing(Exception):
    """This contender cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Setup:
    """What a contender is loaded from; it is sent to a process of its own, so it holds no arrays."""

    name: str
    kind: str
    """``bundle``, or a key of `benchmarks.peers.PEERS`."""
    threads: int
    ckpt: Path | None = None
    bundle: Path | None = None
    batch: int | None = None
    checkout: Path | None = None

    def checkpoint(self) -> Checkpoint:
        """The checkpoint, read.

        Raises:
            Missing: none was given.
        """
        if self.ckpt is None:
            raise Missing("a peer needs the checkpoint; give it with --ckpt")
        return load_checkpoint(self.ckpt)


@dataclass(frozen=True)
class Output:
    """A label map (H, W) and seconds by stage; ``clear``, where there is one, computes the clear pixels (H, W) bool."""

    labels: NDArray[Any]
    stages: dict[str, float] = field(default_factory=dict)
    clear: Callable[[], NDArray[np.bool_]] | None = None


class Runner(Protocol):
    """A loaded contender."""

    description: str
    """Library, version, device and form in one line."""

    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """Label one uint8 (H, W, 3) RGB picture."""
        ...

    def close(self) -> None:
        """Free engines and memory; peers without any leave it to the end of their process."""
        ...
