"""The GPU check's pipelines on host memory, around its own networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cuda_double import Gpu, open_device
from cuda_host import HostEngine, QueuedKernels

from benchmarks.gpu_check import rigs
from benchmarks.gpu_check.networks import Network
from benchmarks.gpu_check.rigs import Case
from isnet_trt.cuda.pipeline import Pipeline


class OnHost(HostEngine):
    """A network of the GPU check on host addresses; ``refused`` is why it cannot be captured."""

    def __init__(self, gpu: Gpu, network: Network, refused: str) -> None:
        self.gpu, self.engine = gpu, network
        self.classes, self.stride = network.classes, network.stride
        self.not_capturable, self.gain = refused, 1.0
        self.shapes, self.kept = [], []


class HostRig:
    """Makes pipelines; ``kernels`` gives those for a number of classes. ``gain`` -1 makes the network a wrong one."""

    def __init__(self, kernels: Callable[[int], Any], gain: float = 1.0, refused: str = "") -> None:
        self.kernels, self.gain, self.refused = kernels, gain, refused

    def pipeline(self, network: Network, case: Case) -> Pipeline:
        gpu = Gpu()
        engine = OnHost(gpu, network, self.refused)
        engine.gain = self.gain
        return Pipeline(open_device(gpu), QueuedKernels(gpu, self.kernels(case.labels.count)), engine, rigs.model(case))
