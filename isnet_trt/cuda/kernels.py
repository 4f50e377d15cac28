"""Reading, checking and launching the kernels of a bundle's folder ``kernels/``, without Triton.

``kernels/sm_XX/`` holds ``NAME.cubin``, ``NAME.ptx`` and ``launch.json`` (isnet_trt.kernels.compile; layout:
kernels/README.md). On exactly that architecture the cubin is taken, otherwise the PTX of the highest sm_8x that is not
above the GPU, which the driver compiles; PTX of sm_90 and later runs on its own architecture only.

Launches go through the driver API of cuda-bindings (`isnet_trt.cuda.driver.Function`), which takes the streams of any
library.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isnet_trt.cuda import driver
from isnet_trt.cuda.architectures import KERNEL_TARGETS
from isnet_trt.cuda.element_types import ELEMENT_TYPES, SCALARS
from isnet_trt.cuda.kernel_specs import ALIGNMENT, KernelInterface
from isnet_trt.cuda.tensor_maps import Encoder, TensorMap, TensorMapError
from isnet_trt.errors import BundleError, EngineError, EngineUnavailable, first_few
from isnet_trt.files import open_regular

_log = logging.getLogger(__name__)
SCHEMA = 1
DESCRIPTION = "launch.json"
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
"""Largest grid (CUDA programming guide, compute capabilities)."""

_ARCHITECTURE = re.compile(r"sm_(\d{1,4})", re.ASCII)
_REBUILD = "build the bundle again with python -m isnet_trt.build"
_TYPES: dict[str, Any] = {
    "entry": str, "target": str, "arguments": list, "trailing_null_pointers": int, "constants": dict,
    "unaligned": list, "grid": list, "threads": int, "shared_bytes": int, "ptx_sha256": str, "cubin_sha256": str,
}  # fmt: skip
_RANGES = {
    "threads": ("threads", 1, 1024),
    "shared_bytes": ("bytes of shared memory", 0, 2**18),
    "trailing_null_pointers": ("null pointers", 0, 64),
}
"""Field -> title, least and most; of a block on any architecture (CUDA programming guide, compute capabilities)."""


@dataclass(frozen=True)
class Kernel(KernelInterface):
    """One compiled kernel as launch.json describes it.

    Attributes:
        entry: the function's name in the code.
        trailing: null pointers that follow the arguments.
        threads: per block.
        shared: bytes of dynamic shared memory.
        fallback: the kernel with pointers in place of ``maps``, which takes the same arguments.
    """

    entry: str
    trailing: int
    threads: int
    shared: int
    fallback: str = ""

    def blocks(self, arguments: Mapping[str, int | float]) -> tuple[int, int, int]:
        """The number of blocks (x, y, z); EngineError if they are more than a launch may have."""
        grid = super().blocks(arguments)
        if any(count > most for count, most in zip(grid, MOST_BLOCKS, strict=True)):
            raise EngineError(f"kernel {self.name} would need {grid} blocks; a launch has at most {MOST_BLOCKS}")
        return grid

    def pack(self, arguments: Mapping[str, int | float], encoder: Encoder | None = None) -> Parameters:
        """``arguments`` as the driver takes them; ``encoder`` makes the tensor maps.

        Raises:
            TypeError: an argument is missing or unknown.
            TensorMapError: an argument cannot be passed as a tensor map.
            EngineError: a pointer is null or not aligned, or a number does not fit its type.
        """
        self.check(arguments)
        values = []
        for name, kind in self.arguments.items():
            value = self._value(name, kind, arguments[name])
            if (tensor := self.maps.get(name)) is None:
                values.append(value)
            elif encoder:
                values += encoder.parameters(tensor, kind[1:], value.value, arguments)
            else:
                raise TensorMapError(f"kernel {self.name}: {name} needs a tensor map")
        # The driver reads as many parameters as the entry has, Triton's scratch pointers among them.
        return Parameters([*values, *(ctypes.c_uint64(0) for _ in range(self.trailing))])

    def _value(self, name: str, kind: str, value: int | float) -> Any:
        if kind.startswith("*"):
            address = int(value)
            if not address:
                raise EngineError(f"kernel {self.name}: {name} is a null pointer")
            if address % ALIGNMENT and name not in self.unaligned:
                raise EngineError(f"kernel {self.name}: {name} is at {address:#x}, no multiple of {ALIGNMENT}")
            return ctypes.c_uint64(address)
        # fp32 may round; an integer that lost bits would be another size or offset.
        number = ELEMENT_TYPES[kind].ctype(value)  # ctypes cuts off what does not fit
        if kind != "fp32" and number.value != value:
            raise EngineError(f"kernel {self.name}: {name} is {value}, which does not fit {kind}")
        return number


class Parameters:
    """Kernel parameters in host memory, and the array of their addresses that cuLaunchKernel reads."""

    def __init__(self, values: list[Any]) -> None:
        # Kept alive here: the array has only their addresses.
        self.values = values
        self._pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))

    @property
    def address(self) -> int:
        """Of the array of addresses; valid while this object lives."""
        return ctypes.addressof(self._pointers)


@dataclass(frozen=True)
class KernelFiles:
    """The kernels of one folder ``sm_XX`` and their code, read and checked."""

    folder: Path
    code_format: Literal["cubin", "ptx"]
    classes: int
    kernels: Mapping[str, Kernel]
    code: Mapping[str, bytes]


@dataclass(frozen=True)
class CompiledFiles:
    """The files of a folder ``kernels/`` as they were read and checked, by name (``sm_80/resize.ptx``).

    ``folder`` is where they come from, for messages.
    """

    folder: Path
    contents: Mapping[str, bytes]


KernelSource = str | os.PathLike[str] | CompiledFiles
"""Files in memory, or a folder to read, such as that of a bundle being built."""


def choose(source: KernelSource, compute_capability: str) -> tuple[Path, Literal["cubin", "ptx"]]:
    """The architecture's folder in ``source`` and the code format that a GPU of ``compute_capability`` takes.

    ``compute_capability`` is written as "8.9".

    Raises:
        EngineUnavailable: the GPU can run none of them.
    """
    if isinstance(source, CompiledFiles):
        folder, names = source.folder, {name.partition("/")[0] for name in source.contents}
    else:
        folder = Path(source)
        names = {path.name for path in folder.glob("sm_*") if path.is_dir()}
    arches = sorted(int(match[1]) for match in map(_ARCHITECTURE.fullmatch, names) if match)
    major, _, minor = compute_capability.partition(".")
    own = 10 * int(major) + int(minor or 0)
    if own in arches:
        return folder / f"sm_{own}", "cubin"
    targets = ((arch, KERNEL_TARGETS.get(arch)) for arch in arches if arch <= own)
    portable = [arch for arch, target in targets if target and target.portable]
    if not portable:
        present = ", ".join(f"sm_{arch}" for arch in arches) or "nothing"
        raise EngineUnavailable(
            f"{folder} holds kernels for {present}; a GPU of compute capability {compute_capability} runs none of "
            f"them; {_REBUILD}, or make them with python -m isnet_trt.kernels.compile"
        )
    return folder / f"sm_{portable[-1]}", "ptx"


def read(source: KernelSource, compute_capability: str) -> KernelFiles:
    """The kernels in ``source`` for a GPU of ``compute_capability``.

    Raises:
        EngineUnavailable: there are none for this GPU.
        BundleError: a file is missing, damaged or changed; the message names it.
    """
    path, code_format = choose(source, compute_capability)
    read_file = _reader(source)
    data = _description(path / DESCRIPTION, read_file)
    kernels, code = {}, {}
    for name, entry in data["kernels"].items():
        if not re.fullmatch(r"\w+", name):  # it becomes part of a path
            raise BundleError(f"{path / DESCRIPTION}: {name!r} is no name of a kernel; {_REBUILD}")
        kernels[name] = _kernel(name, entry, path / DESCRIPTION)
        # Read and checked at opening, loaded at the first launch: damage shows early, GPU memory is taken late.
        file = path / f"{name}.{code_format}"
        code[name] = read_file(file)
        if hashlib.sha256(code[name]).hexdigest() != entry[f"{code_format}_sha256"]:
            raise BundleError(f"{file} was changed after it was compiled (SHA-256 differs); {_REBUILD}")
    for kernel in kernels.values():
        other = kernels.get(kernel.fallback)
        if other is not None and (other.maps or other.arguments != kernel.arguments):
            reason = f"{other.name} cannot be launched in place of {kernel.name}"
            raise BundleError(f"{path / DESCRIPTION} is damaged: {reason}; {_REBUILD}")
    return KernelFiles(path, code_format, data["classes"], kernels, code)


def _reader(source: KernelSource) -> Callable[[Path], bytes]:
    """What gives the content of a file in ``source``; BundleError if it is not there or cannot be read."""

    def read_file(path: Path) -> bytes:
        try:
            if isinstance(source, CompiledFiles):
                return source.contents[path.relative_to(source.folder).as_posix()]
            with open_regular(path) as stream:
                return stream.read()
        except (KeyError, FileNotFoundError):
            raise BundleError(f"{path} is missing: the kernels are incomplete; {_REBUILD}") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror or error}") from None

    return read_file


def _description(path: Path, read_file: Callable[[Path], bytes]) -> dict[str, Any]:
    try:
        data = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: it is no JSON ({error}); {_REBUILD}") from None
    if not isinstance(data, dict) or not isinstance(data.get("kernels"), dict):
        raise BundleError(f"{path} is damaged: it lists no kernels; {_REBUILD}")
    if data.get("schema") != SCHEMA:
        raise BundleError(f"{path} has schema {data.get('schema')!r}; this isnet_trt reads {SCHEMA}; {_REBUILD}")
    # A renamed folder would pass as code for another GPU.
    if data.get("arch") != path.parent.name:
        raise BundleError(f"{path} is for {data.get('arch')!r}, not for {path.parent.name}; {_REBUILD}")
    if not isinstance(data.get("classes"), int):
        raise BundleError(f"{path} is damaged: classes is {data.get('classes')!r}; {_REBUILD}")
    return data


def _kernel(name: str, entry: Any, path: Path) -> Kernel:
    for key, kind in _TYPES.items():
        # type() and not isinstance(): JSON's true is no number.
        if not isinstance(entry, dict) or type(entry.get(key)) is not kind:
            raise BundleError(f"{path} is damaged: {name} has no valid {key}; {_REBUILD}")
    try:
        arguments = {str(argument): str(kind) for argument, kind in entry["arguments"]}
        x, y, z = (tuple((str(term), int(size)) for term, size in axis) for axis in entry["grid"])
    except (TypeError, ValueError, OverflowError):  # the last for 1e999, which is infinite
        raise BundleError(f"{path} is damaged: arguments or grid of {name} cannot be read; {_REBUILD}") from None
    unknown = [kind for kind in arguments.values() if not kind.startswith("*") and kind not in SCALARS]
    # The grid is a quotient of an integer argument and a tile: a tile below 1 has none.
    invalid = [term for term, size in (*x, *y, *z) if arguments.get(term) not in ("i32", "i64") or not 0 < size < 2**31]
    invalid += [
        f"{entry[key]} {title}" for key, (title, least, most) in _RANGES.items() if not least <= entry[key] <= most
    ]
    if unknown or invalid:
        defects = first_few([*unknown, *invalid])
        raise BundleError(f"{path} is damaged: {name} cannot be launched with {defects}; {_REBUILD}")
    compiled = (entry["entry"], entry["trailing_null_pointers"], entry["threads"], entry["shared_bytes"])
    try:
        maps = {str(argument): _tensor_map(argument, arguments, value) for argument, value in entry["maps"].items()}
        fallback = str(entry["fallback"])
    except KeyError:  # of a kernel without maps
        maps, fallback = {}, ""
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise BundleError(f"{path} is damaged: maps of {name} cannot be read; {_REBUILD}") from None
    unaligned = tuple(entry["unaligned"])
    return Kernel(name, arguments, entry["constants"], (x, y, z), *compiled, fallback, unaligned=unaligned, maps=maps)


def _tensor_map(name: str, arguments: Mapping[str, str], value: Any) -> TensorMap:
    shape = tuple(size if isinstance(size, str) else int(size) for size in value["shape"])
    tensor = TensorMap(shape, tuple(map(int, value["box"])), int(value["swizzle"]))
    tensor.check(arguments, name)
    return tensor


class Kernels:
    """Kernels that can be launched, loaded at their first launch into the context that is then current.

    A launch needs a current context (`isnet_trt.cuda.device.Device`), always the same one. Launches may come from
    several threads.
    """

    def __init__(self, files: KernelFiles, api: Any) -> None:
        """``api`` is the module ``cuda.bindings.driver``."""
        self.files = files
        self._api = api
        self._encoder = Encoder(api)
        self._warned: set[str] = set()  # kernels whose tensor maps were refused
        self._functions: dict[str, driver.Function] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, source: KernelSource, compute_capability: str) -> Kernels:
        """The kernels in ``source`` (a bundle's ``kernels/``) for a GPU of ``compute_capability`` ("8.9").

        Raises:
            EngineUnavailable: none are for this GPU, or cuda-bindings is not installed.
            BundleError: a file is missing, damaged or changed.
        """
        return cls(read(source, compute_capability), driver.import_driver())

    @classmethod
    def find(cls, source: KernelSource | None, compute_capability: str, needed: str = "") -> tuple[Kernels | None, str]:
        """The kernels in ``source``, or None and why there are none.

        Raises:
            EngineUnavailable: there are none although ``needed``, which the message begins with, requires them.
            BundleError: a file is missing, damaged or changed.
        """
        try:
            if source is None:
                raise EngineUnavailable(f"the bundle holds no kernels; {_REBUILD}")
            return cls.open(source, compute_capability), ""
        except EngineUnavailable as error:
            if needed:
                raise EngineUnavailable(f"{needed}: {error}") from None
            return None, str(error)

    def __contains__(self, name: object) -> bool:
        return name in self.files.kernels

    def constants(self, name: str) -> dict[str, Any]:
        """The compile-time arguments of a kernel, such as its tile."""
        return dict(self._kernel(name).constants)

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        """Queue a kernel on ``stream``, the handle of any stream of the current context.

        Pointers are device addresses. With an empty grid nothing is done. Where the driver makes no tensor maps, the
        kernel with pointers is launched instead.

        Raises:
            EngineError: there is no such kernel, an argument cannot be passed, or the driver refuses.
        """
        kernel = self._kernel(name)
        try:
            parameters = kernel.pack(arguments, self._encoder)
        except TensorMapError as error:
            if name not in self._warned:
                _log.warning("kernel %s: %s; %s is launched instead", name, error, kernel.fallback)
            self._warned.add(name)
            self.launch(kernel.fallback, stream, **arguments)
            return
        grid = kernel.blocks(arguments)
        # The driver refuses a grid with a 0.
        if all(grid):
            self._function(kernel).launch(grid, kernel.threads, stream, parameters.address)

    def _kernel(self, name: str) -> Kernel:
        try:
            return self.files.kernels[name]
        except KeyError:
            names = ", ".join(self.files.kernels)
            raise EngineError(f"{self.files.folder} holds no kernel {name}, only {names}; {_REBUILD}") from None

    def _function(self, kernel: Kernel) -> driver.Function:
        with self._lock:  # loading takes time and memory: once, whichever thread comes first
            if kernel.name not in self._functions:
                self._functions[kernel.name] = self._load(kernel)
            return self._functions[kernel.name]

    def _load(self, kernel: Kernel) -> driver.Function:
        code, file = self.files.code[kernel.name], f"{self.files.folder / kernel.name}.{self.files.code_format}"
        if self.files.code_format == "ptx":
            code += b"\0"  # the driver takes PTX as a C string
        try:
            return driver.Function(self._api, code, kernel.entry, kernel.shared)
        except EngineError as error:
            # Of the same type: callers treat `OutOfMemory` differently from other errors.
            raise type(error)(f"{file} cannot be loaded: {error}") from None

    def close(self) -> None:
        """Unload what was loaded; closing twice is harmless, errors of a lost device are ignored."""
        with self._lock:
            while self._functions:
                self._functions.popitem()[1].unload()
