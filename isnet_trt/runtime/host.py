"""What computes for `isnet_trt.Segmenter`: the interface of all runtimes, and the one whose stages run on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import Engine
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import SettingsError
from isnet_trt.merging import windows
from isnet_trt.merging.geometry import Window
from isnet_trt.merging.merge import Merger, TileSink, not_finite
from isnet_trt.merging.resample import Array
from isnet_trt.pictures.preprocess import network_input
from isnet_trt.runtime.call import Outputs, Request, StageTimer
from isnet_trt.settings import Inference, Size
from isnet_trt.telemetry import ranges

WindowLogits = list[tuple[Window, Array]]
"""Low-resolution logits (K, h, w) of windows."""


class Runtime(ABC):
    """The network and all stages around it. Owns the engine; not safe for two threads at once."""

    prefetch = 0
    """How many further images may be submitted before the outputs of the first are collected."""

    def __init__(self, engine: Engine, model: Model, threads: int | None = None) -> None:
        """``threads`` is how many the merge on the host uses, by default all cores that the process may use."""
        self.engine = engine
        self.model = model
        self.batch = model.batch
        self.threads = threads or usable_cores()

    @property
    @abstractmethod
    def description(self) -> str:
        """Engine, library, device, and where the stages around the network run, in one line."""

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of GPU memory by purpose; empty on the host."""
        return {}

    @abstractmethod
    def submit(self, request: Request) -> Outputs:
        """Compute the outputs of a request, or queue the work and return at once; raises what a call raises."""

    @abstractmethod
    def collect(self, outputs: Outputs) -> None:
        """Wait until the outputs are complete; EngineError if the device failed or the logits are not finite."""

    def close(self) -> None:
        """Close the engine and give all memory back; closing twice is harmless."""
        self.engine.close()

    def infer(self, batch: Array) -> Array:
        """Return the network's logits (B, K, ceil(H/s), ceil(W/s)) for ``batch`` (B, 3, H, W), both in host memory.

        ``batch`` is padded already.

        Raises:
            EngineError: the engine failed, or its output is not finite or not of the expected shape.
        """
        logits = self.engine.run(batch)
        self.model.head.check_output(batch.shape, logits.shape)
        # NaN and infinity show in the extremes: no array of booleans as large as the logits is made.
        if not (np.isfinite(logits.min()) and np.isfinite(logits.max())):
            raise not_finite(batch.shape)
        return logits

    def score(self, planes: Array, inference: Inference, size: Size, sink: TileSink, timer: StageTimer) -> None:
        """Hand merged scores (K, *size) of a normalised image ``planes`` (3, H, W) to ``sink``, tile by tile."""
        plan = windows.plan((planes.shape[1], planes.shape[2]), inference)
        self.merge(plan, self._logits(planes, plan, timer), size, sink, timer)

    def _logits(self, planes: Array, plan: windows.Plan, timer: StageTimer) -> Iterator[WindowLogits]:
        """Run the network batch by batch."""
        # Of the large arrays (pixels, logits) one generation is alive at a time: the merge is handed a list that it
        # empties, and the names here are deleted before the next batch is gathered.
        queue = windows.gather(planes, plan.windows, self.batch, self.model.padding)
        sizes = deque(group[0].size for group in windows.batches(plan.windows, self.batch))
        while True:
            with ranges.annotate("batch"):  # until the caller has merged it
                with timer("gather"):
                    group, pixels = next(queue, (None, None))
                if group is None or pixels is None:
                    return
                with timer("engine"):
                    if self.model.full_batches and len(pixels) < self.batch:  # add windows of zeros
                        pixels = np.pad(pixels, [(0, self.batch - len(pixels)), (0, 0), (0, 0), (0, 0)])
                    self.engine.keep_memory = [sizes.popleft()] == list(islice(sizes, 1))
                    try:
                        logits = self.infer(pixels)[: len(group)]
                    finally:
                        self.engine.keep_memory = False
                del pixels
                pairs = list(zip(group, logits, strict=True))
                del logits
                yield pairs
                del pairs

    def merge(
        self, plan: windows.Plan, logits: Iterable[WindowLogits], size: Size, sink: TileSink, timer: StageTimer
    ) -> None:
        """Merge windows on the host as they come; rows are finished as soon as all their windows are there."""
        merger = Merger(plan, self.model.head, size, sink, self.threads)
        for pairs in logits:
            with timer("merge"):
                while pairs:
                    merger.add(*pairs.pop(0))
                merger.work()


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of arrays up to 31 MiB instead of returning it to the system after each image.

    Memory that is new to the process costs a page fault for every 4 KiB. glibc raises its mmap threshold to the size of
    the largest mapped block (up to 32 MiB) that was freed: see "M_MMAP_THRESHOLD" in mallopt(3). The pages of this
    block are never touched, and other C libraries are not affected.
    """
    np.empty(31 << 20, np.uint8)  # freed at once


class HostRuntime(Runtime):
    """Images are resized, cut into windows and merged on the host; `submit` returns complete outputs.

    Requests have to name host memory only, and no CUDA stream.
    """

    def __init__(self, engine: Engine, model: Model, threads: int | None = None, reason: str = "") -> None:
        """``reason`` says why the stages around a GPU engine run on the host."""
        super().__init__(engine, model, threads)
        _keep_freed_memory()
        self._reason = f" ({reason})" if reason else ""

    @property
    def description(self) -> str:
        return f"{self.engine.description}; all other stages on the host{self._reason}"

    def submit(self, request: Request) -> Outputs:
        image, timer = request.image, request.timer
        self._check(request)
        outputs = Outputs.allocate(request, self.model.head)
        with timer("resize"):
            planes = network_input(image.rgb(), "rgb", self.model.preprocess)
        self.score(planes, request.inference, image.size, outputs.add_tile, timer)
        return outputs

    def _check(self, request: Request) -> None:
        if request.stream is not None:
            raise SettingsError(
                f"stream ({request.stream:#x}) is for segmenters that work in GPU memory; {self.description}: "
                "leave stream out"
            )
        for memory, name in ((request.image, "the image"), (request.out_memory, "out")):
            if memory is not None and not memory.on_host:
                raise SettingsError(
                    f"{name} is in the memory of {memory.device}, but {self.engine.description} takes its pictures "
                    "from the host: copy it there first, or open a bundle whose engine works in GPU memory"
                )

    def collect(self, outputs: Outputs) -> None:
        """Do nothing: the outputs are complete already."""
