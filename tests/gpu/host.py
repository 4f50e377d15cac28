"""A GPU that is host memory, for the tests of the GPU tests: kernels interpreted or their references, streams at once.

`use_cpu` gives `torch.cuda` events, streams and graphs that run at once on the CPU. It shows that the tests' own code
runs and judges as it should, not any speed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_model
import torch
from cuda_double import Gpu, open_device
from cuda_host import HostEngine, QueuedKernels, ReferenceKernels

from benchmarks import gpu_timing
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.settings import Inference, Preprocess
from tests.gpu.comparison import Case
from tests.gpu.networks import Network
from tests.gpu.target import Target
from tests.kernels.variants import Variant, interpreted

LABELS = tiny_model.labels(5, ((1, 2),))
SMALL = Case("small", LABELS, Preprocess((23, 17)), Inference(), (17, 23))


class OnHost(HostEngine):
    """A network on host addresses; ``refused`` is why it cannot be captured, ``gain`` -1 makes it a wrong one."""

    output_type = "fp32"

    def __init__(self, gpu: Gpu, network: Network, refused: str, gain: float) -> None:
        self.gpu, self.engine = gpu, network
        self.classes, self.stride = network.classes, network.stride
        self.not_capturable, self.gain = refused, gain
        self.shapes, self.kept = [], []


class HostTarget(Target):
    """`Target` on host memory; ``kernels_of`` gives the kernels for a number of classes."""

    def __init__(
        self, folder: Path, kernels_of: Callable[[int], Any], case: Case = SMALL, gain: float = 1.0, refused: str = ""
    ) -> None:
        super().__init__(folder, quick=True, seed=5)
        self.device, self.case = "cpu", case
        self._kernels_of, self._gain, self._refused = kernels_of, gain, refused

    def variants(self) -> list[Variant]:
        return [interpreted(3)]

    def pipeline(self, network: Any, case: Any) -> Pipeline:
        gpu = Gpu()
        engine = OnHost(gpu, network, self._refused, self._gain)
        return Pipeline(open_device(gpu), QueuedKernels(gpu, self._kernels_of(case.labels.count)), engine, case.model)


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, other: Event) -> float:
        return max(1e3 * (other.at - self.at), 1e-4)


class Stream:
    def __init__(self, handle: int = 0) -> None:
        self.cuda_stream = handle


@contextlib.contextmanager
def capturing(graph: Any) -> Iterator[None]:
    yield


def use_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends; what a graph captures has run already, and its replay does nothing."""
    properties = SimpleNamespace(multi_processor_count=3, total_memory=1 << 30, L2_cache_size=1 << 16)
    doubles = {
        "Event": Event, "Stream": Stream, "ExternalStream": Stream, "graph": capturing, "current_stream": Stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None), "default_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(), "_sleep": lambda cycles: None, "synchronize": lambda: None,
        "get_device_properties": lambda index: properties, "mem_get_info": lambda: (1 << 29, 1 << 30),
        "is_available": lambda: True,
    }  # fmt: skip
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    for name, value in {"WARM_SECONDS": 0.0, "LEAST_SECONDS": 0.0, "ROUNDS": 2, "WARM": 1}.items():
        monkeypatch.setattr(gpu_timing, name, value)


def target_of(folder: Path, case: Case = SMALL, **planted: Any) -> HostTarget:
    """A target whose kernels are the references on the host."""
    return HostTarget(folder, ReferenceKernels, case, **planted)
