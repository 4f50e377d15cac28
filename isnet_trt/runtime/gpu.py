"""All stages on a GPU: a pipeline around an engine that works in device memory."""

from __future__ import annotations

from dataclasses import replace

from isnet_trt.cuda.kernel_specs import YUV_KERNEL
from isnet_trt.cuda.pipeline import Pipeline
from isnet_trt.engines.base import Engine
from isnet_trt.errors import EngineUnavailable, SettingsError
from isnet_trt.merging.resample import Array
from isnet_trt.pictures.memory import of_array
from isnet_trt.pictures.raw import Raw, RawImage, RawYuv
from isnet_trt.runtime.call import Outputs, Request
from isnet_trt.runtime.host import Runtime


class GpuRuntime(Runtime):
    """`submit` queues an image, `collect` waits for its label map; probabilities and scores are merged on the host."""

    # One image more keeps the GPU at work while the host handles a result; each further one holds a slot's memory.
    prefetch = 1

    def __init__(self, engine: Engine, pipeline: Pipeline, threads: int | None = None) -> None:
        """``pipeline`` is built around ``engine``; both belong to the runtime."""
        super().__init__(engine, pipeline.model, threads)
        self.pipeline = pipeline

    @property
    def description(self) -> str:
        backend = self.pipeline.device.backend
        return f"{self.engine.description}; all stages on the GPU (memory from {backend}), {self.pipeline.description}"

    @property
    def memory(self) -> dict[str, int]:
        return {"gpu_arena": self.pipeline.arena_bytes}

    def submit(self, request: Request) -> Outputs:
        for plane in request.image.planes:
            self._check_memory(plane, "the image")
        if request.out_memory is not None:
            self._check_memory(request.out_memory, "out")
        if isinstance(request.image, RawYuv) and not self.pipeline.takes_yuv:
            request = _with_rgb(request, request.image)
        if request.probabilities or request.points is not None:
            return self._merge_on_host(request)
        with request.timer("queue"):
            ticket = self.pipeline.submit(request.image, request.inference, request.out_memory, request.stream)
        return Outputs(request.out, request.inference, request.timer, ticket=ticket)

    def _check_memory(self, memory: Raw, name: str) -> None:
        """Raise SettingsError for memory of another GPU."""
        if memory.on_host:
            return
        device = self.pipeline.device
        with device:
            index = device.gpu_of(memory.address)
        if index is None:
            index = memory.device_index
        # The driver's answer comes first: the CUDA array interface and "cuda" do not say which GPU is meant.
        if index != device.index:
            raise SettingsError(
                f"{name} is in the memory of cuda:{index}, but this segmenter works on cuda:{device.index}; open one "
                f"with device='cuda:{index}', or copy it to cuda:{device.index}"
            )

    def _merge_on_host(self, request: Request) -> Outputs:
        """Merge downloaded logits: on the GPU, neither probabilities nor scores are ever written to memory."""
        image, inference, timer = request.image, request.inference, request.timer
        if request.out_memory is not None and not request.out_memory.on_host:
            raise SettingsError(
                "probabilities and points are merged on the host: pass out in host memory, or leave them out"
            )
        outputs = Outputs.allocate(request, self.model.head)
        with timer("gpu"):
            logits = self.pipeline.window_logits(image, inference, request.stream)
        # The queue depends on size and settings, not on the channel order.
        plan = self.pipeline.plan(image.size, inference).queue
        # One window at a time: rows are merged, and their logits freed, while later windows still wait.
        self.merge(plan, ([pair] for pair in logits), image.size, outputs.add_tile, timer)
        return outputs

    def collect(self, outputs: Outputs) -> None:
        if outputs.ticket is not None:
            with outputs.timer("gpu"):
                labels = self.pipeline.collect(outputs.ticket)
            if labels is not None:  # else they were written to the caller's device memory, outputs.labels
                outputs.labels = labels

    def infer(self, batch: Array) -> Array:
        self.pipeline.wait()  # the engine shares its memory with the pipeline, which has to be idle
        return super().infer(batch)

    def close(self) -> None:
        # The pipeline first, whose queued work uses the engine; the engine also where closing the pipeline fails.
        try:
            self.pipeline.close()
        finally:
            super().close()


def _with_rgb(request: Request, image: RawYuv) -> Request:
    """The request with its YUV image converted on the host, for a bundle whose kernels cannot."""
    if not image.on_host:
        raise EngineUnavailable(
            f"the bundle's kernels lack {YUV_KERNEL}, which NV12 and I420 in GPU memory need; build it again with "
            "python -m isnet_trt.build, or pass RGB"
        )
    with request.timer("convert"):
        rgb = image.rgb()
    return replace(request, image=RawImage(of_array(rgb).address, *image.size, owner=rgb))
