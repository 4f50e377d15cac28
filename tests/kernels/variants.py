"""Every way to run a kernel by its name on tensors: Triton (interpreted or compiled just in time), cubin or PTX
compiled ahead of time, and PTX in the emulator of tests/ptx_machine.py.

A variant launches through `isnet_trt.cuda.protocols.Launcher`, with addresses, as the runtime does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from isnet_trt.cuda.architectures import PORTABLE
from isnet_trt.cuda.element_types import ELEMENT_TYPES
from isnet_trt.cuda.element_types import FLOATS as DTYPES
from isnet_trt.cuda.kernel_specs import REGISTER_CLASSES, WIDTH, bundle_kernels
from isnet_trt.errors import BuildError
from isnet_trt.kernels.launch import run

TORCH: dict[str, torch.dtype] = {name: getattr(torch, element.numpy) for name, element in ELEMENT_TYPES.items()}
_MERGING = ("resize", "yuv_resize", "gather", "finite", "accumulate", "finish", "upsample_argmax")
SETS = {
    "1": ("--classes", "1", "--padded", "--only", "accumulate", "gather_padded", "threshold"),
    "5": ("--classes", "5", "--only", "accumulate"),
    "19": ("--classes", "19", "--only", *_MERGING),
    "20": ("--classes", "20", "--only", *_MERGING),
    "150": ("--classes", "150", "--only", *_MERGING),
    "300": ("--classes", "300", "--only", *_MERGING),
    "w256": ("--only", "attention", "pool"),
    "w32": ("--width", "32", "--only", "attention"),
}
"""Set of kernels -> options of isnet_trt.kernels.compile: classes of Cityscapes, LIP and ADE, and labels of
two bytes, since `accumulate` is compiled for the number of few classes; the context operations of the published models,
and the demo's attention."""


def set_of(kernel: str, classes: int = 19, width: int = WIDTH) -> str:
    """The set of `SETS` that holds ``kernel``, by the beginning of its name, for so many classes."""
    if kernel in ("attention", "pool"):
        return "w256" if width == WIDTH else f"w{width}"
    if (kernel == "accumulate" and classes <= REGISTER_CLASSES) or classes == 1:
        return str(classes)
    if kernel == "gather_padded":
        return "1"
    return "19" if classes <= REGISTER_CLASSES else "150" if classes <= 256 else "300"


class TritonKernels:
    """`isnet_trt.cuda.kernels.Kernels` through Triton itself, with the tiles of sm_``arch``.

    On the "cpu" they run in Triton's interpreter. ``log`` has the name of every launch.
    """

    def __init__(
        self, dtypes: Iterable[str] = ("fp32",), classes: int = 19, width: int = WIDTH, arch: int = 86,
        device: str = "cpu", logits: str | None = None,
    ) -> None:  # fmt: skip
        self.device = device
        specs = bundle_kernels(arch, dtypes, classes, width, padded=True, logits=logits)
        self.specs = {spec.name: spec for spec in specs}
        self.log: list[str] = []

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def constants(self, name: str) -> dict[str, Any]:
        return dict(self.specs[name].constants)

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        """Triton launches on PyTorch's current stream."""
        spec = self.specs[name]
        self.log.append(name)
        values: dict[str, Any] = dict(arguments)
        for argument, kind in spec.arguments.items():
            if kind.startswith("*") and argument in values:
                address = int(values[argument])
                assert address, f"{name}: {argument} is a null pointer"
                assert argument in spec.unaligned or address % 16 == 0, f"{name}: {argument} is not aligned"
                values[argument] = self._at(address, kind[1:])
        run(spec, **values)

    def _at(self, address: int, kind: str) -> torch.Tensor:
        """A tensor of one element at ``address``: a pointer, for Triton."""
        dtype = TORCH[kind]
        if self.device == "cpu":
            return torch.frombuffer((ctypes.c_uint8 * dtype.itemsize).from_address(address), dtype=dtype)
        return device_view(address, (dtype.itemsize,), "|u1", self.device).view(dtype)


def device_view(address: int, shape: Sequence[int], kind: str, device: str) -> torch.Tensor:
    """A tensor on device memory of somebody else, without a copy; ``kind`` is numpy's name of its type."""
    interface = {"shape": tuple(shape), "typestr": kind, "data": (address, False), "version": 3, "strides": None}
    return torch.as_tensor(type("View", (), {"__cuda_array_interface__": interface})(), device=device)


class Output:
    """A tensor to be written by kernels, filled with poison, with guards before and behind it."""

    GUARD = 64
    """Elements on each side that no kernel may touch."""
    POISON: ClassVar = {"i32": -7, "u8": 255, "u16": 65535}
    """Filled with NaN where it holds floats."""

    def __init__(self, device: str, shape: Sequence[int], dtype: str) -> None:
        self.dtype = dtype
        self.buffer = torch.empty(int(np.prod(shape)) + 2 * self.GUARD, dtype=TORCH[dtype], device=device)
        self.tensor = self.buffer[self.GUARD : -self.GUARD].view(*shape)
        self.poison()

    def poison(self) -> None:
        # PyTorch fills few unsigned types on a GPU; -1 has the bits of 65535.
        flat, value = self.buffer, self.POISON.get(self.dtype, float("nan"))
        flat, value = (flat.view(torch.int16), -1) if self.dtype == "u16" else (flat, value)
        flat.fill_(value)
        self.written = np.zeros(self.tensor.numel() * self.tensor.element_size(), bool)
        """Bytes that a kernel has written, as the emulator knows."""

    def before(self, elements: int) -> Shifted:
        """The pointer so many elements before it, for kernels that count rows from further above."""
        return Shifted(self, -elements * self.tensor.element_size())

    def touched_guards(self) -> int:
        guards = torch.cat([self.buffer[: self.GUARD], self.buffer[-self.GUARD :]]).cpu()
        poison = self.POISON.get(self.dtype)
        return int((~guards.isnan()).sum() if poison is None else (guards.to(torch.int32) != poison).sum())


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A pointer ``bytes`` beside an output."""

    output: Output
    bytes: int


Tensors = Mapping[str, torch.Tensor | Output]


def _tensor(item: torch.Tensor | Output) -> torch.Tensor:
    return item.tensor if isinstance(item, Output) else item


class Variant:
    """Kernels on the memory of ``device``; ``open_set`` gives those of a set of `SETS`.

    ``multiprocessors`` is what work is divided for; on "cuda" the GPU's own number.
    """

    def __init__(self, name: str, device: str, open_set: Callable[[str], Any], multiprocessors: int = 1) -> None:
        self.name, self.device = name, device
        self.multiprocessors = multiprocessors
        if device == "cuda":
            self.multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
        self._open, self._opened = open_set, dict[str, Any]()

    @property
    def stream(self) -> int:
        """PyTorch's current one."""
        return int(torch.cuda.current_stream().cuda_stream) if self.device == "cuda" else 0

    def kernels(self, set_name: str) -> Any:
        if set_name not in self._opened:
            self._opened[set_name] = self._open(set_name)
        return self._opened[set_name]

    def unaligned(self, set_name: str, name: str) -> Collection[str]:
        """Pointers of a kernel that are to be placed beside a multiple of 16."""
        return ()

    def place(self, tensors: Tensors, unaligned: Collection[str] = ()) -> dict[str, int]:
        """The addresses of ``tensors`` for the next launches, until `collect`."""
        return {name: _tensor(item).data_ptr() for name, item in tensors.items()}

    def collect(self) -> None:
        """Make the outputs among the tensors hold what the launches wrote."""

    def run(self, set_name: str, name: str, **arguments: Any) -> None:
        """Queue one kernel; pointers are tensors or outputs."""
        shifts = {key: value.bytes for key, value in arguments.items() if isinstance(value, Shifted)}
        arguments = {key: value.output if key in shifts else value for key, value in arguments.items()}
        tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor | Output)}
        addresses = self.place(tensors, self.unaligned(set_name, name))
        addresses |= {key: addresses[key] + shift for key, shift in shifts.items()}
        self.kernels(set_name).launch(name, self.stream, **{**arguments, **addresses})
        self.collect()


def interpreted(multiprocessors: int = 1, arch: int = 86) -> Variant:
    """Triton's interpreter, for the whole process chosen by TRITON_INTERPRET=1."""
    return Variant("interpreter", "cpu", _triton(arch, "cpu"), multiprocessors)


def just_in_time(arch: int) -> Variant:
    """Triton's own launch on the GPU; it makes its launchers with a C compiler."""
    return Variant("Triton", "cuda", _triton(arch, "cuda"))


def _triton(arch: int, device: str) -> Callable[[str], TritonKernels]:
    def open_set(name: str) -> TritonKernels:
        width = int(name[1:]) if name.startswith("w") else WIDTH
        return TritonKernels(DTYPES, 19 if name.startswith("w") else int(name), width, arch, device)

    return open_set


def ahead_of_time(folder: Path, arch: int, capability: str) -> Variant:
    """cubin of the GPU's own architecture, or the PTX of another, as `compile_sets` leaves them in ``folder``.

    Opening a set raises BuildError where it did not compile.
    """
    from isnet_trt.cuda.kernels import Kernels

    def open_set(name: str) -> Any:
        failed = _failed(folder, name, arch)
        if not _compiled(folder, name, arch):
            raise BuildError(failed.read_text("utf-8"))
        return Kernels.open(set_folder(folder, name, arch), capability)

    kind = "cubin" if f"{arch // 10}.{arch % 10}" == capability else "PTX"
    return Variant(f"sm_{arch} {kind}", "cuda", open_set)


class Emulated(Variant):
    """The PTX of sm_``arch`` in the emulator; its buffers end where the tensors end, guards are not part of them.

    Pointers that need no alignment lie one element beside it.
    """

    def __init__(self, folder: Path, multiprocessors: int = 1, arch: int = PORTABLE) -> None:
        from ptx_machine import PtxKernels
        from ptx_memory import Memory

        self.memory = Memory()
        self._outputs: list[tuple[Output, int]] = []
        super().__init__(
            "emulated PTX",
            "cpu",
            lambda name: PtxKernels(set_folder(folder, name, arch), 0, self.memory, f"{arch // 10}.{arch % 10}"),
            multiprocessors,
        )

    def unaligned(self, set_name: str, name: str) -> Collection[str]:
        return self.kernels(set_name).files.kernels[name].unaligned

    def place(self, tensors: Tensors, unaligned: Collection[str] = ()) -> dict[str, int]:
        self.memory.clear()
        addresses, self._outputs = {}, []
        for name, item in tensors.items():
            tensor = _tensor(item)
            known = item.written if isinstance(item, Output) else True
            shift = tensor.element_size() if name in unaligned else 0
            addresses[name] = self.memory.hold(name, bytes(_bytes(tensor).numpy()), shift, known)
            if isinstance(item, Output):
                self._outputs.append((item, addresses[name]))
        return addresses

    def collect(self) -> None:
        for output, address in self._outputs:
            data, output.written = self.memory.look(address)
            _bytes(output.tensor)[output.written] = torch.from_numpy(data[output.written])


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def compile_sets(
    folder: Path,
    arches: Sequence[int],
    names: Iterable[str] = SETS,
    retry: bool = False,
    dtypes: Sequence[str] = DTYPES,
) -> list[str]:
    """Compile sets into `set_folder` where that has not been tried yet; the reasons of those that failed.

    ``retry``: compile again what failed before.
    """
    jobs = [(folder, name, arch) for arch in dict.fromkeys(arches) for name in names]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as pool:
        return [reason for reason in pool.map(lambda job: _compile(*job, retry, dtypes), jobs) if reason]


def set_folder(folder: Path, name: str, arch: int) -> Path:
    """The folder ``kernels/`` of a set for one architecture, so that no other is taken on any GPU."""
    return folder / str(arch) / name


def _compiled(folder: Path, name: str, arch: int) -> bool:
    return (set_folder(folder, name, arch) / f"sm_{arch}" / "launch.json").is_file()


def _failed(folder: Path, name: str, arch: int) -> Path:
    """Where the reason stands why a set, or some of its kernels, did not compile."""
    return folder / str(arch) / f"{name}.failed.txt"


def _compile(folder: Path, name: str, arch: int, retry: bool, dtypes: Sequence[str]) -> str:
    """In a process of its own, since Triton's interpreter and compiler cannot share one."""
    failed = _failed(folder, name, arch)
    if failed.is_file() and not retry:
        return failed.read_text("utf-8")
    if _compiled(folder, name, arch) and not failed.is_file():
        return ""
    command = [sys.executable, "-m", "isnet_trt.kernels.compile", "--arch", f"sm_{arch}"]
    command += ["--out", str(set_folder(folder, name, arch))]
    command += ["--keep-going", "--dtype", *dtypes, *SETS[name]]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    failed.unlink(missing_ok=True)
    if not ran.returncode:
        return ""
    reason = f"kernels of set {name} for sm_{arch}: {' '.join((ran.stderr or ran.stdout).split())[-800:]}"
    failed.parent.mkdir(parents=True, exist_ok=True)
    failed.write_text(reason, "utf-8")
    return reason
