"""Ways to launch a kernel on tensors: through Triton itself, and through what was compiled ahead of time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.gpu_check.check import CannotRun, Setup
from benchmarks.gpu_check.place import device
from isnet_trt.cuda.architectures import KERNEL_TARGETS, PORTABLE
from isnet_trt.errors import BuildError

_MERGING = ("accumulate", "finish", "upsample_argmax", "resize", "gather", "finite")
_CORES = os.cpu_count() or 1
FULL = "150"
MODELS = {
    FULL: ("--classes", "150"),
    "19": ("--classes", "19", "--only", *_MERGING),
    "300": ("--classes", "300", "--only", *_MERGING),
    "w32": ("--width", "32", "--only", "attention"),
}
"""A folder of kernels -> what is compiled for it: ADE; Cityscapes and LIP, both padded to 32 classes; labels of two
bytes; the demo's attention."""
DTYPES = ("fp16", "fp32", "bf16")


def model_of(classes: int) -> str:
    """The folder of `MODELS` whose kernels take so many classes."""
    return "19" if classes <= 32 else "150" if classes <= 256 else "300"


class Form(Protocol):
    """One way to launch.

    Attributes:
        name: for people.
        device: of the tensors, as PyTorch names it.
        arch: the architecture whose tiles are launched.
    """

    name: str
    device: str
    arch: int

    def run(self, launch: Any, model: str, /, **arguments: Any) -> None:
        """Queue a `isnet_trt.cuda.kernel_specs.KernelSpec` on the current stream; tensors stand for addresses.

        ``model`` is the folder of `MODELS` that has it.
        """
        ...


@dataclass
class Jit:
    """Through Triton: compiled when first launched, or with TRITON_INTERPRET=1 interpreted on the CPU."""

    device: str
    arch: int
    name: str = "Triton"

    def run(self, launch: Any, model: str, /, **arguments: Any) -> None:
        """See `Form.run`."""
        from isnet_trt.kernels.launch import run

        run(launch, **arguments)


@dataclass
class Ahead:
    """Through `isnet_trt.cuda.kernels`: cubin of this GPU's architecture, or the portable PTX."""

    name: str
    arch: int
    folder: Path
    capability: str
    device: str = field(default_factory=device)
    _opened: dict[str, Any] = field(default_factory=dict)

    def run(self, launch: Any, model: str, /, **arguments: Any) -> None:
        """See `Form.run`."""
        import torch

        numbers = {n: v.data_ptr() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
        self.kernels(model).launch(launch.name, torch.cuda.current_stream().cuda_stream, **numbers)

    def kernels(self, model: str) -> Any:
        """The loaded kernels of a folder of `MODELS`.

        Raises:
            BuildError: they did not compile.
        """
        if model not in self._opened:
            from isnet_trt.cuda.kernels import Kernels

            if not _described(self.folder / model, self.arch).is_file():
                raise BuildError(_why(self.folder / model).read_text("utf-8"))

            self._opened[model] = Kernels.open(self.folder / model, self.capability)
        return self._opened[model]


def here() -> tuple[str, int]:
    """This GPU's compute capability such as "8.9", and the architecture that kernels are compiled for it."""
    from isnet_trt.cuda.gpu import probe_gpu

    gpu, reason = probe_gpu()
    if gpu is None:
        raise CannotRun(reason)
    own = int(gpu.compute_capability.replace(".", ""))
    return gpu.compute_capability, own if own in KERNEL_TARGETS else PORTABLE


def forms(setup: Setup) -> list[Form]:
    """Every way to launch on this GPU: ahead of time for its own architecture, the portable PTX, Triton."""
    capability, arch = here()
    compile_for(setup, (arch, PORTABLE))
    found: list[Form] = [Jit(device(), arch)]
    for one in dict.fromkeys((PORTABLE, arch)):
        name = f"sm_{one} {'cubin' if one == int(capability.replace('.', '')) else 'PTX'}"
        found.insert(0, Ahead(name, one, compiled(setup, one), capability))
    return found


def compiled(setup: Setup, arch: int) -> Path:
    """The folder of the kernels of `MODELS` that `compile_for` compiles for ``arch``."""
    return setup.folder / f"kernels-sm_{arch}"


def compile_for(setup: Setup, arches: Sequence[int], again: bool = False) -> list[str]:
    """Compile what has not been tried yet, several folders at a time; what went wrong with any, in words.

    A folder that did not compile, or not all of it, is tried once more with ``again`` only.
    """
    wanted = [(compiled(setup, arch) / model, arch, model) for arch in dict.fromkeys(arches) for model in MODELS]
    if again:
        for folder, _, _ in (one for one in wanted if _why(one[0]).is_file()):
            _why(folder).unlink()
            shutil.rmtree(folder, ignore_errors=True)
    untried = [one for one in wanted if not _described(*one[:2]).is_file() and not _why(one[0]).is_file()]
    with ThreadPoolExecutor(max(1, _CORES // 2)) as pool:
        list(pool.map(lambda one: _compile(*one), untried))
    return [_why(folder).read_text("utf-8") for folder, _, _ in wanted if _why(folder).is_file()]


def _described(folder: Path, arch: int) -> Path:
    return folder / f"sm_{arch}" / "launch.json"


def _why(folder: Path) -> Path:
    """Where it is said what of a folder's kernels does not compile, or spills."""
    return folder.with_name(f"{folder.name}.failed.txt")


def _compile(folder: Path, arch: int, model: str) -> None:
    """In a process of its own, since Triton's interpreter and compiler cannot share one."""
    jobs = min(4, _CORES) if model == FULL else 1
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--arch", f"sm_{arch}", "--out", str(folder)]
    command += ["--keep-going", "--dtype", *DTYPES, "--jobs", str(jobs), *MODELS[model]]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:
        folder.parent.mkdir(parents=True, exist_ok=True)
        said = " ".join((ran.stderr or ran.stdout).split())[-800:]
        _why(folder).write_text(f"kernels of folder {model} for sm_{arch}: {said}", "utf-8")
