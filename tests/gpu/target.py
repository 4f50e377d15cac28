"""The GPU that tests run on: where tensors lie, its kernels, and pipelines on it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isnet_trt.cuda.architectures import KERNEL_TARGETS, PORTABLE
from isnet_trt.cuda.gpu import probe_gpu
from tests.gpu.record import CannotRun

if TYPE_CHECKING:  # PyTorch is for the processes of the tests
    from tests.kernels.variants import Variant


@dataclass
class Target:
    """This machine's GPU.

    Attributes:
        folder: where tests leave what later ones use: compiled kernels and bundles.
        quick: fewer cases and sizes.
        seed: of all random inputs.
        bundles: folders of bundles to check besides those that are built here.
        device: PyTorch's name of where tensors lie.
        case: a `tests.gpu.comparison.Case` in the place of those of published models.
    """

    folder: Path
    quick: bool = False
    seed: int = 0
    bundles: Sequence[Path] = ()
    device: str = field(default="cuda", init=False)
    case: Any = None

    def seed_of(self, *words: str) -> int:
        """A seed of its own for what ``words`` name."""
        return (self.seed + zlib.crc32(" ".join(words).encode())) % 2**31

    def architecture(self) -> tuple[str, int]:
        """Compute capability such as "8.9", and the architecture that kernels are compiled for: its own or `PORTABLE`.

        Raises:
            CannotRun: there is no GPU.
        """
        gpu, reason = probe_gpu()
        if gpu is None:
            raise CannotRun(reason)
        own = int(gpu.compute_capability.replace(".", ""))
        return gpu.compute_capability, own if own in KERNEL_TARGETS else PORTABLE

    def compile(self, retry: bool = False) -> list[str]:
        """Compile all sets for this GPU and the portable PTX, once; the reasons of those that failed."""
        from tests.kernels.variants import SETS, compile_sets

        return compile_sets(self.folder, (self.architecture()[1], PORTABLE), SETS, retry)

    def variants(self) -> list[Variant]:
        """Kernels of this GPU's own architecture as bundles have them, the portable PTX, and Triton's own launch."""
        from tests.kernels.variants import ahead_of_time, just_in_time

        capability, arch = self.architecture()
        self.compile()
        ahead = [ahead_of_time(self.folder, one, capability) for one in dict.fromkeys((arch, PORTABLE))]
        return [*ahead, just_in_time(arch)]

    def kernels(self, classes: int) -> Any:
        """The kernels around a network of so many classes, as a bundle has them."""
        from tests.kernels.variants import set_of

        return self.variants()[0].kernels(set_of("accumulate", classes))

    def pipeline(self, network: Any, case: Any) -> Any:
        """The CUDA runtime around a network of tests/gpu/networks.py."""
        from isnet_trt.cuda.device import Device
        from isnet_trt.cuda.pipeline import Pipeline

        return Pipeline(Device.open(), self.kernels(case.labels.count), network.on_device(), case.model)
