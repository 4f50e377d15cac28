"""What isnet_trt is measured against, each peer in its best fair form; `PEERS` names them in the order of a report.

A contender is a bundle or a peer: described by a `Setup`, loaded as a `Runner`, which labels pictures; `Missing` says
why it cannot run.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isnet_trt import Segmenter
from isnet_trt.errors import IsnetError
from isnet_trt.settings import Inference

if TYPE_CHECKING:  # torch, which the --help of the commands does without
    from isnet_trt.training.checkpoint import Checkpoint


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
        from isnet_trt.training.checkpoint import load_checkpoint

        return load_checkpoint(self.ckpt)


@dataclass(frozen=True)
class Output:
    """A label map (H, W) and seconds by stage; ``clear``, where there is one, computes the clear pixels (H, W) bool."""

    labels: NDArray[Any]
    stages: dict[str, float] = field(default_factory=dict)
    clear: Callable[[], NDArray[np.bool_]] | None = None


class Runner(ABC):
    """A loaded contender."""

    description: str
    """Library, version, device and form in one line."""

    @abstractmethod
    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """Label one uint8 (H, W, 3) RGB picture."""

    def close(self) -> None:  # noqa: B027
        """Free engines and memory; by default the end of the process frees them."""


class Peer(NamedTuple):
    """What a peer is, and the function ``load(setup) -> Runner`` of `benchmarks.peers` that loads it."""

    description: str
    module: str
    function: str = "load"


PEERS = {
    "reference": Peer("the plain reference form: loop over classes, dense attention, whole volumes", "reference"),
    "checkout": Peer("a checkout of the public reference implementation (--reference PATH)", "checkout"),
    "pytorch": Peer("PyTorch eager: batch-norm folded, contexts collapsed, channels last", "networks", "eager"),
    "compile": Peer("torch.compile (Inductor, frozen weights) of the folded network", "networks", "compiled"),
    "onnxruntime": Peer("ONNX Runtime on the plainly exported training form", "networks", "onnxruntime_cpu"),
    "openvino": Peer("OpenVINO on the plainly exported training form", "networks", "openvino_cpu"),
    "onnxruntime-cuda": Peer("the same with ONNX Runtime's CUDA provider", "networks", "onnxruntime_cuda"),
    "torch-tensorrt": Peer("Torch-TensorRT, half precision, on the folded network", "networks", "torch_tensorrt"),
    "torch-loop": Peer("a PyTorch loop around the bundle's graph in ONNX Runtime", "pipelines", "TorchLoop"),
    "numpy-loop": Peer("the same loop in NumPy with OpenCV's resize", "pipelines", "NumpyLoop"),
    "monai": Peer("MONAI's sliding_window_inference around the same session", "pipelines", "Monai"),
    "transformers": Peer("transformers' post-processing of its logits", "pipelines", "Transformers"),
    "transformers-pipeline": Peer("transformers' pipeline around the session", "pipelines", "TransformersPipeline"),
}
"""Peer name -> what it is. Those up to torch-tensorrt run the checkpoint, the others the graph of the first bundle."""
ORACLES = ("reference", "torch-loop")
"""The peers whose labels the others are compared with: the first that is there."""
BUNDLE = "bundle"
"""The kind of a contender that is no peer."""


class BundleRunner(Runner):
    """A bundle under isnet_trt itself, with the engine that it was built for.

    Raises:
        Missing: no bundle was given, or it cannot be opened here.
    """

    def __init__(self, setup: Setup) -> None:
        if setup.bundle is None:
            raise Missing("no bundle was given")
        try:
            self.segmenter = Segmenter.open(setup.bundle, threads=setup.threads)
        except IsnetError as error:
            raise Missing(str(error)) from None
        if setup.batch:
            self.segmenter.runtime.batch = setup.batch
        self.description = self.segmenter.engine.description

    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """See `Runner.run`."""
        segmentation = self.segmenter(image, inference=inference)
        return Output(segmentation.labels, segmentation.seconds)

    def close(self) -> None:
        """Close the engine."""
        self.segmenter.close()


def load(setup: Setup) -> Runner:
    """The contender of ``setup``, loaded.

    Raises:
        Missing: it cannot run here.
    """
    if setup.kind not in (BUNDLE, *PEERS):
        raise Missing(f"no peer is called {setup.kind!r}; there are: {', '.join(PEERS)}")
    if setup.kind == BUNDLE:
        return BundleRunner(setup)
    peer = PEERS[setup.kind]
    return getattr(importlib.import_module(f"benchmarks.peers.{peer.module}"), peer.function)(setup)
