"""All stages on the host, around an engine that runs anywhere."""

from __future__ import annotations

from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import Engine
from isnet_trt.errors import SettingsError
from isnet_trt.pictures.preprocess import network_input
from isnet_trt.runtime.base import Runtime
from isnet_trt.runtime.call import Outputs, Request


class HostRuntime(Runtime):
    """Images are resized, cut into windows and merged on the host; `submit` returns complete outputs."""

    def __init__(self, engine: Engine, model: Model, threads: int | None = None, reason: str = "") -> None:
        """``reason`` says why the stages around a GPU engine run on the host."""
        super().__init__(engine, model, threads)
        self._reason = f" ({reason})" if reason else ""

    @property
    def description(self) -> str:
        """See `Runtime.description`."""
        return f"{self.engine.description}; all other stages on the host{self._reason}"

    def submit(self, request: Request) -> Outputs:
        """See `Runtime.submit`; takes host memory only, and no CUDA stream."""
        image, timer = request.image, request.timer
        self._check(request)
        outputs = Outputs.allocate(request, self.model.head.classes)
        with timer("resize"):
            planes = network_input(image.array(), image.order, self.model.preprocess)
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
        """See `Runtime.collect`: the outputs are complete already."""
