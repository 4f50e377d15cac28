"""What isnet_trt is measured against, each peer in its best fair form; `PEERS` names them in the order of a report."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from benchmarks.peers.base import Missing, Output, Runner, Setup

__all__ = ["BUNDLE", "ORACLE", "PEERS", "Missing", "Output", "Runner", "Setup", "load"]


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
}
"""Peer name -> what it is. All but the first two merge scores class by class with OpenCV."""
ORACLE = "reference"
"""The peer whose labels the others are compared with."""
BUNDLE = "bundle"
"""The kind of a contender that is no peer."""


def load(setup: Setup) -> Runner:
    """The contender of ``setup``, loaded.

    Raises:
        Missing: it cannot run here.
    """
    if setup.kind not in (BUNDLE, *PEERS):
        raise Missing(f"no peer is called {setup.kind!r}; there are: {', '.join(PEERS)}")
    peer = PEERS.get(setup.kind, Peer("a bundle", "bundle"))
    return getattr(importlib.import_module(f"benchmarks.peers.{peer.module}"), peer.function)(setup)
