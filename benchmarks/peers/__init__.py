"""What isnet_trt is measured against, each peer in its best fair form; `PEERS` names them in the order of a report."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from benchmarks.peers.base import Missing, Output, Runner, Setup

__all__ = ["ORACLE", "PEERS", "TRTEXEC", "Missing", "Output", "Runner", "Setup", "load"]


class Peer(NamedTuple):
    """What a peer is, and the function ``load(setup) -> Runner`` of `benchmarks.peers` that loads it."""

    description: str
    module: str = ""
    function: str = "load"


PEERS = {
    "reference": Peer(
        "the plain reference form in PyTorch eager: per-class loop, dense attention, whole score volumes", "reference"
    ),
    "checkout": Peer("a checkout of the public reference implementation (--reference PATH)", "checkout"),
    "pytorch": Peer(
        "PyTorch eager: batch-norm folded, contexts collapsed, channels last; scores merged class by class",
        "networks",
        "eager",
    ),
    "compile": Peer(
        "torch.compile (Inductor, frozen weights) of the folded network; scores merged class by class",
        "networks",
        "compiled",
    ),
    "onnxruntime": Peer(
        "ONNX Runtime on the plainly exported training form; scores merged class by class with OpenCV",
        "networks",
        "onnxruntime_cpu",
    ),
    "openvino": Peer(
        "OpenVINO on the plainly exported training form; scores merged class by class with OpenCV",
        "networks",
        "openvino_cpu",
    ),
    "onnxruntime-cuda": Peer(
        "ONNX Runtime's CUDA provider on the plainly exported training form", "networks", "onnxruntime_cuda"
    ),
    "torch-tensorrt": Peer("Torch-TensorRT, half precision, on the folded network", "networks", "torch_tensorrt"),
    "trtexec": Peer("NVIDIA's trtexec on the plainly exported training form, network alone (its output is unchecked)"),
}
"""Peer name -> what it is. trtexec labels no pictures: it is no `Runner`, see `benchmarks.peers.trtexec`."""
ORACLE, TRTEXEC = "reference", "trtexec"
"""The peer whose labels the others are compared with; the peer that is timed by its own tool."""


def load(setup: Setup) -> Runner:
    """The contender of ``setup``, loaded.

    Raises:
        Missing: it cannot run here.
    """
    if setup.kind == "bundle":
        peer = Peer("", "bundle")
    elif setup.kind not in PEERS or setup.kind == TRTEXEC:
        raise Missing(f"no peer is called {setup.kind!r}; there are: {', '.join(PEERS)}")
    else:
        peer = PEERS[setup.kind]
    return getattr(importlib.import_module(f"benchmarks.peers.{peer.module}"), peer.function)(setup)
