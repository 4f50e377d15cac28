"""What a compiled kernel executes, counted in the emulator of tests/ptx_machine.py on a sample of its blocks.

A warp instruction is one that a warp of 32 threads issues, whatever its guard says. PTX is not the machine's code: the
assembler drops moves between registers, which are not counted, and may merge or split others. Counts are those of one
version of Triton, to be compared with each other and, through measured factors, with time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ptx_bulk import tensor_and_corner, tile_bytes, tile_elements
from ptx_machine import Block, PtxKernels
from ptx_memory import Bytes, Memory
from ptx_program import Program, members

WARP, SECTOR, BANKS, WORD = 32, 32, 32, 4
FREE = ("mov", "cvta")
"""Opcodes that the assembler removes, or that stand outside of loops."""
BLOCKS = 4
"""Blocks of a launch that are emulated, spread evenly; the others are taken to be like them."""


class SampledMemory(Memory):
    """Global memory of launches of which blocks are left out: what nobody has written may be read."""

    def load(self, addresses: NDArray[np.uint64], size: int) -> Bytes:
        values = np.zeros((len(addresses), size), np.uint8)
        for buffer, which, at in self._parts(addresses, size):
            values[which] = buffer.data[at]
        return values

    def store(self, addresses: NDArray[np.uint64], values: Bytes) -> None:
        for buffer, which, at in self._parts(addresses, values.shape[1]):
            buffer.data[at] = values[which]

    def begin(self) -> None:
        """Who wrote what is not kept: it takes eight times the data."""

    def _writers(self, size: int) -> NDArray[np.int64]:
        return np.zeros(0, np.int64)


class _CountedBlock(Block):
    """A block that adds to ``counts`` what it executes."""

    def __init__(self, counts: Counter[str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.counts = counts

    def _executed(self, parts: list[str], operands: list[str], active: NDArray[np.bool_]) -> None:
        if parts[0] in FREE or parts[:2] == ["ld", "param"]:
            return
        warps = self.now.number
        self.counts["instructions"] += warps
        waits = (parts[0] in ("bar", "barrier") and parts[1] != "warp") or parts[:2] == ["mbarrier", "try_wait"]
        self.counts["barriers"] += warps * waits
        self.counts["matrix"] += warps * (parts[0] == "mma")
        if parts[0] in ("ldmatrix", "stmatrix"):  # 8 rows of 16 bytes for each matrix are one pass over the banks
            self.counts["shared"] += warps * len(members(operands[parts[0] == "stmatrix"]))
        elif parts[:2] == ["wgmma", "mma_async"]:
            self._multiplied(warps, 2 * len(members(operands[0])), operands[1].startswith("{"))
        elif parts[0] in ("ld", "st"):
            bits = int(parts[-1][1:]) * (int(parts[-2][1:]) if parts[-2] in ("v2", "v4", "v8") else 1)
            self._accessed(parts[1], self.address(operands[parts[0] == "ld"]), bits // 8, active)
        elif parts[:4] == ["cp", "async", "bulk", "tensor"]:
            self._copied(operands[0 if parts[5] == "global" else 1], active)
        elif parts[0] == "cp" and len(operands) > 2:
            if len(operands) > 3:
                active = active & (self.value(operands[3], "u32") > 0)
            self._accessed("global", self.address(operands[1]), int(operands[2], 0), active)
            self._accessed("shared", self.address(operands[0]), int(operands[2], 0), active)

    def _multiplied(self, warps: int, columns: int, left_in_registers: bool) -> None:
        """A product of each warpgroup: of four warps' ``mma`` for every 8 columns, operands read once for all four."""
        self.counts["matrix"] += warps * columns // 8
        rows = columns + (0 if left_in_registers else 64)
        self.counts["shared"] += warps // 4 * (rows * 32 // (BANKS * WORD))

    def _copied(self, tile: str, active: NDArray[np.bool_]) -> None:
        for thread in np.nonzero(active)[0]:
            tensor, corner = tensor_and_corner(self, tile, thread)
            inside, places, _ = tile_elements(tensor, corner)
            self.counts["global"] += len(np.unique(places[inside] // SECTOR))
            self.counts["shared"] += -(-tile_bytes(tensor) // (BANKS * WORD))

    def _accessed(self, space: str, addresses: NDArray[np.uint64], size: int, active: NDArray[np.bool_]) -> None:
        """Count sectors of global memory, or passes over the banks of shared memory, of every warp."""
        for first in range(0, self.count, WARP):
            lanes = addresses[first : first + WARP][active[first : first + WARP]].astype(np.int64)
            if not len(lanes):
                continue
            if space == "global":
                self.counts["global"] += len(_units(lanes, size, SECTOR))
            else:
                self.counts["shared"] += int(np.bincount(_units(lanes, size, WORD) % BANKS).max())


def _units(addresses: NDArray[np.int64], size: int, unit: int) -> NDArray[np.int64]:
    """The numbers of the different units of ``unit`` bytes that aligned accesses of ``size`` bytes touch."""
    return np.unique(addresses[:, None] // unit + np.arange(-(-size // unit)))


class CountedKernels(PtxKernels):
    """`PtxKernels` of sm_``arch`` that run a sample of blocks; ``counts`` are those of whole launches.

    Results are not those of the kernels, since most blocks are left out.
    """

    def __init__(self, folder: PathLike[str] | str, arch: int, memory: SampledMemory, counts: Counter[str]) -> None:
        super().__init__(folder, memory=memory, capability=f"{arch // 10}.{arch % 10}")
        self.counts = counts

    def _run(self, program: Program, given: Mapping[str, Any], places: list[tuple[int, ...]], shared: int) -> None:
        chosen = np.unique(np.linspace(0, len(places) - 1, BLOCKS).round().astype(int))
        counts: Counter[str] = Counter()
        for index in chosen:
            _CountedBlock(counts, program, self.memory, given, places[index], shared).run()
        self.counts["launches"] += 1
        self.counts.update({name: round(number * len(places) / len(chosen)) for name, number in counts.items()})
