"""All stages on the host, around an engine that runs anywhere."""

from __future__ import annotations

from isnet_trt.cuda.plan import Model
from isnet_trt.engines.base import Engine
from isnet_trt.errors import SettingsError
from isnet_trt.pictures.interop import RawImage, RawLabels
from isnet_trt.pictures.preprocess import network_input
from isnet_trt.runtime.base import Job, Request, Runtime


class HostRuntime(Runtime):
    """Images are resized, cut into windows and merged on the host; `submit` returns complete outputs."""

    def __init__(self, engine: Engine, model: Model, threads: int, reason: str = "") -> None:
        """``reason`` says why the stages around a GPU engine run on the host."""
        super().__init__(engine, model, threads)
        self._reason = f" ({reason})" if reason else ""

    @property
    def description(self) -> str:
        """See `Runtime.description`."""
        return f"{self.engine.description}; all other stages on the host{self._reason}"

    def check_memory(self, memory: RawImage | RawLabels, name: str) -> None:
        """See `Runtime.check_memory`: host memory only."""
        if not memory.on_host:
            raise SettingsError(
                f"{name} is in the memory of {memory.device}, but {self.engine.description} takes its pictures "
                "from the host: copy it there first, or open a bundle whose engine works in GPU memory"
            )

    def check_stream(self, stream: int) -> None:
        """See `Runtime.check_stream`: nothing here would wait for one."""
        raise SettingsError(
            f"stream ({stream:#x}) is for segmenters that work in GPU memory; {self.description}: leave stream out"
        )

    def submit(self, request: Request) -> Job:
        """See `Runtime.submit`."""
        outputs = request.allocate(self.model.head.classes)
        with request.timer("resize"):
            planes = network_input(request.image, self.model.preprocess)
        self.score(planes, request.inference, request.image.size, outputs.add_tile, request.timer)
        return Job(request, outputs)

    def collect(self, job: Job) -> None:
        """See `Runtime.collect`: the outputs are complete already."""
