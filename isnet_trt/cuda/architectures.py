"""The table of GPU architectures and of what is compiled for each.

To add sm_XX, add a row to `GPU_ARCHITECTURES`; with `KernelTarget` filled in, bundles carry kernels for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class AttentionTile(NamedTuple):
    """Queries and keys per step of the attention kernel, its warps, and the stages of its software pipeline.

    ``rate`` serves to choose between the tiles of one architecture: TFLOP/s with every multiprocessor busy.
    ``specialised``: of `isnet_trt.kernels.attention_specialised`, where ``warps`` are those of a warpgroup.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    rate: int = 1
    specialised: bool = False


@dataclass(frozen=True)
class KernelTarget:
    """How kernels are compiled for an architecture.

    Attributes:
        ptx_version: 80 is PTX 8.0. The oldest driver that knows the version can read the PTX (8.0: 525, 8.6: 565,
            8.7: 570; PTX ISA, release history).
        shared_kib: KiB of shared memory that a block may use (CUDA programming guide, compute capabilities).
        tile: of attention in float16 and bfloat16, the largest that neither spills registers nor exceeds
            ``shared_kib``: the more queries in a tile, the fewer times all keys are read.
        map_tiles: of the attention that reads through tensor maps, the largest first; (): there is none, and ``tile``
            is all. For float32, and where a driver makes no tensor maps, ``tile`` is used as well.
        trial_tiles: as ``map_tiles``, for kernels that no bundle has: tests and benchmarks ask for them.
        portable: whether every later GPU runs the PTX; that of sm_90 and later uses instructions of its architecture
            alone (sm_90a, ...).
    """

    ptx_version: int
    shared_kib: int
    tile: AttentionTile
    map_tiles: tuple[AttentionTile, ...] = ()
    trial_tiles: tuple[AttentionTile, ...] = ()
    portable: bool = False


@dataclass(frozen=True)
class GpuArchitecture:
    """Ampere or a later architecture.

    Attributes:
        capability: compute capability, such as "8.9".
        kernels: how kernels are compiled for it; None: it runs the PTX of a portable architecture.
        tensorrt_rtx: whether TensorRT-RTX 1.7 builds float32 engines for it (``ComputeCapability`` of its Python API).
    """

    capability: str
    kernels: KernelTarget | None = None
    tensorrt_rtx: bool = False

    @property
    def number(self) -> int:
        """XX of sm_XX."""
        return int(self.capability.replace(".", ""))


_TILE = AttentionTile(64, 32, 8, 2)
# Rates: of a prototype on an H100, 8 images of 8,192 queries and keys in float16.
_HOPPER_TILES = (AttentionTile(128, 64, 8, 2, rate=483), AttentionTile(64, 64, 4, 3, rate=452))
_HOPPER_TRIALS = (AttentionTile(128, 64, 4, 2, specialised=True),)
GPU_ARCHITECTURES = (
    # sm_80 has 163 KiB of shared memory, but its PTX must also run on GPUs that have 99 (8.6, 8.9, 12.x).
    GpuArchitecture("8.0", KernelTarget(80, 99, _TILE, portable=True), tensorrt_rtx=True),
    GpuArchitecture("8.6", KernelTarget(80, 99, _TILE, portable=True), tensorrt_rtx=True),
    GpuArchitecture("8.7"),
    GpuArchitecture("8.9", KernelTarget(80, 99, _TILE, portable=True), tensorrt_rtx=True),
    GpuArchitecture("9.0", KernelTarget(86, 227, AttentionTile(128, 32, 8, 3), _HOPPER_TILES, _HOPPER_TRIALS)),
    # Maps compile for 10.0 and 12.0 as well, but neither a GPU nor the tests' emulator has run them (10.0), or Triton
    # 3.6 spills and nothing says that they would pay (12.0).
    GpuArchitecture("10.0", KernelTarget(86, 227, AttentionTile(128, 32, 8, 2))),
    GpuArchitecture("10.3"),
    GpuArchitecture("11.0"),
    GpuArchitecture("12.0", KernelTarget(87, 99, _TILE), tensorrt_rtx=True),
    GpuArchitecture("12.1", tensorrt_rtx=True),
)

KERNEL_TARGETS = {arch.number: arch.kernels for arch in GPU_ARCHITECTURES if arch.kernels}
"""XX of sm_XX -> how kernels are compiled for it."""
PORTABLE = min(KERNEL_TARGETS)
"""The architecture whose PTX every GPU of the table runs: each bundle has its kernels."""
