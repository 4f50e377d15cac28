"""Ways to launch a kernel on tensors: through Triton itself, and through what was compiled ahead of time."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu_check.check import CannotRun, Setup

CLASSES = (150, 19, 300)
"""ADE; Cityscapes and LIP (both padded to 32); labels of two bytes. A folder of kernels is made for each."""
DTYPES = ("fp16", "fp32", "bf16")
PORTABLE = 80
"""The architecture whose PTX runs on every later GPU."""


class Form(Protocol):
    """One way to launch.

    Attributes:
        name: for people.
        device: of the tensors, as PyTorch names it.
        arch: the architecture whose tiles are launched.
        interpreted: bfloat16 is multiplied in float32 there.
    """

    name: str
    device: str
    arch: int
    interpreted: bool

    def run(self, launch: Any, classes: int, /, **arguments: Any) -> None:
        """Queue ``launch`` (`isnet_trt.kernels.launch.Launch`) on the current stream; tensors stand for addresses."""
        ...


@dataclass
class Jit:
    """Through Triton: compiled when first launched, or with TRITON_INTERPRET=1 interpreted on the CPU."""

    device: str
    arch: int
    name: str = "Triton"

    @property
    def interpreted(self) -> bool:
        return os.environ.get("TRITON_INTERPRET") == "1"

    def run(self, launch: Any, classes: int, /, **arguments: Any) -> None:
        """See `Form.run`."""
        launch.run(**arguments)


@dataclass
class Ahead:
    """Through `isnet_trt.cuda.kernels`: cubin of this GPU's architecture, or the portable PTX."""

    name: str
    arch: int
    folder: Path
    capability: str
    device: str = "cuda"
    interpreted: bool = False
    _opened: dict[int, Any] = field(default_factory=dict)

    def run(self, launch: Any, classes: int, /, **arguments: Any) -> None:
        """See `Form.run`."""
        import torch

        numbers = {n: v.data_ptr() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
        self.kernels(classes).launch(launch.name, torch.cuda.current_stream().cuda_stream, **numbers)

    def kernels(self, classes: int) -> Any:
        """The loaded kernels of a model of ``classes`` classes."""
        if classes not in self._opened:
            from isnet_trt.cuda.kernels import Kernels

            self._opened[classes] = Kernels.open(self.folder / str(classes), self.capability)
        return self._opened[classes]


def here() -> tuple[str, int]:
    """This GPU's compute capability such as "8.9", and the architecture that kernels are compiled for it."""
    from isnet_trt.engines.device import look_for_gpu
    from isnet_trt.kernels.compile import PTX_VERSIONS

    gpu, reason = look_for_gpu()
    if gpu is None:
        raise CannotRun(reason)
    own = int(gpu.compute_capability.replace(".", ""))
    return gpu.compute_capability, own if own in PTX_VERSIONS else PORTABLE


def forms(setup: Setup) -> list[Form]:
    """Every way to launch on this GPU: ahead of time for its own architecture, the portable PTX, Triton."""
    capability, arch = here()
    found: list[Form] = [Jit("cuda", arch)]
    for one in dict.fromkeys((PORTABLE, arch)):
        name = f"sm_{one} {'cubin' if one == int(capability.replace('.', '')) else 'PTX'}"
        found.insert(0, Ahead(name, one, compiled(setup, one), capability))
    return found


def compiled(setup: Setup, arch: int) -> Path:
    """The folder with kernels for ``arch`` of every number of `CLASSES`, compiled now unless it was before."""
    folder = setup.folder / f"kernels-sm_{arch}"
    for classes in CLASSES:
        if not (folder / str(classes) / f"sm_{arch}" / "launch.json").is_file():
            _compile(folder / str(classes), arch, classes)
    return folder


def _compile(folder: Path, arch: int, classes: int) -> None:
    """In a process of its own, since Triton's interpreter and compiler cannot share one."""
    import subprocess

    only = () if classes == CLASSES[0] else ("--only", "accumulate", "finish", "upsample_argmax")
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--arch", f"sm_{arch}", "--classes", str(classes)]
    command += ["--out", str(folder), "--dtype", *DTYPES, "--jobs", str(min(8, os.cpu_count() or 1)), *only]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:
        raise RuntimeError(f"kernels for sm_{arch} do not compile: {(ran.stderr or ran.stdout).strip()[-500:]}")
