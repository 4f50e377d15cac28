"""What isnet_trt is measured against, each in its best fair form.

A peer is a function ``load(setup) -> Runner`` in a module of its own; it raises `Missing` where what it needs is not
there. Names, in the order of a report, are in `PEERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isnet_trt.settings import Inference

PEERS = {
    "reference": "the plain reference form in PyTorch eager: per-class loop, dense attention, whole score volumes",
    "checkout": "a checkout of the public reference implementation (--reference PATH)",
    "pytorch": "PyTorch eager: batch-norm folded, contexts collapsed, channels last; scores merged class by class",
    "compile": "torch.compile (Inductor, frozen weights) of the folded network; scores merged class by class",
    "onnxruntime": "ONNX Runtime on the plainly exported training form; scores merged class by class with OpenCV",
    "openvino": "OpenVINO on the plainly exported training form; scores merged class by class with OpenCV",
    "onnxruntime-cuda": "ONNX Runtime's CUDA provider on the plainly exported training form",
    "torch-tensorrt": "Torch-TensorRT, half precision, on the folded network",
    "trtexec": "NVIDIA's trtexec on the plainly exported training form, network alone (its answer is not checked)",
}
"""Peer name -> what it is."""
ORACLE = "reference"
"""The peer whose answer the others are compared with."""
MODULES = {
    "reference": "reference",
    "checkout": "checkout",
    "pytorch": "eager",
    "compile": "compiled",
    "onnxruntime": "ort",
    "openvino": "openvino_peer",
    "onnxruntime-cuda": "ort_cuda",
    "torch-tensorrt": "torch_tensorrt_peer",
}


class Missing(Exception):
    """This contender cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Setup:
    """What a contender is made from; it is sent to a process of its own, so it holds no arrays."""

    name: str
    kind: str
    """``bundle``, or a key of `PEERS`."""
    threads: int
    ckpt: Path | None = None
    bundle: Path | None = None
    batch: int | None = None
    checkout: Path | None = None


@dataclass(frozen=True)
class Answer:
    """A label map (H, W) and seconds by stage; ``clear`` finds out which pixels are clear (H, W) bool, if it can."""

    labels: NDArray[Any]
    stages: dict[str, float] = field(default_factory=dict)
    clear: Callable[[], NDArray[np.bool_]] | None = None


class Runner(Protocol):
    """A loaded contender."""

    description: str
    """Library, version, device and form in one line."""

    def run(self, image: NDArray[np.uint8], inference: Inference) -> Answer:
        """Label one uint8 (H, W, 3) RGB picture."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


def load(setup: Setup) -> Runner:
    """The contender of ``setup``, loaded.

    Raises:
        Missing: it cannot run here.
    """
    if setup.kind == "bundle":
        from benchmarks.peers import ours

        return ours.load(setup)
    if setup.kind not in MODULES:
        raise Missing(f"no peer is called {setup.kind!r}; there are: {', '.join(PEERS)}")
    if setup.ckpt is None:
        raise Missing("a peer needs the checkpoint; give it with --ckpt")
    return importlib.import_module(f"benchmarks.peers.{MODULES[setup.kind]}").load(setup)
