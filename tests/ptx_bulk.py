"""Copies of tiles between global and shared memory that read tensor maps (``cp.async.bulk.tensor``).

Where axes are numbered, the first is the fastest, as in PTX. The content of a map is that of tests/tensor_maps.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensor_maps
from numpy.typing import NDArray
from ptx_hopper import barrier_at
from ptx_memory import Fault, swizzled
from ptx_program import PARAMETER_STEP, members
from tensor_maps import EncodedMap

if TYPE_CHECKING:
    from ptx_machine import Block

Array = NDArray[Any]


def tile_bytes(tensor: EncodedMap) -> int:
    """Of a tile, whatever part of it lies outside the tensor."""
    return int(np.prod(tensor.box)) * tensor.strides[0]


def tile_elements(tensor: EncodedMap, corner: list[int]) -> tuple[Array, Array, Array]:
    """Of the tile at ``corner``: whether each element is inside, its address, and its offset in shared memory."""
    grids = np.meshgrid(*(np.arange(extent) for extent in reversed(tensor.box)), indexing="ij")
    at = [grid.reshape(-1) + first for grid, first in zip(reversed(grids), corner, strict=True)]
    inside = np.logical_and.reduce([(x >= 0) & (x < size) for x, size in zip(at, tensor.sizes, strict=True)])
    places = sum(x * stride for x, stride in zip(at, tensor.strides, strict=True))
    return inside, tensor.address + places, np.arange(len(inside)) * tensor.strides[0]


def copy(block: Block, parts: list[str], operands: list[str], active: Array) -> None:
    """The bulk forms of ``cp.async``, of two-dimensional and other tiles."""
    if "commit_group" in parts:
        return
    if "wait_group" in parts:  # all of them, however many may be left
        for addresses in block.now.stored:
            block.shared.release(addresses, 1)
        block.now.stored.clear()
        return
    if "tensor" not in parts or {"multicast::cluster", "im2col", "gather4"} & set(parts):
        raise Fault("unknown instruction")
    for thread in np.nonzero(active)[0]:
        if "mbarrier::complete_tx::bytes" in parts:
            _load(block, operands, thread)
        else:
            _store(block, operands, thread)


def tensor_and_corner(block: Block, operand: str, thread: int) -> tuple[EncodedMap, list[int]]:
    """The tensor map and the corner in ``[map, {x, y}]``."""
    name, corner = (part.strip() for part in operand.strip("[] ").split(",", 1))
    address = int(block.value(name, "u64")[thread])
    names = {place: name for name, place in block.program.symbols.items()}
    if address % PARAMETER_STEP or not isinstance(raw := block.given.get(names.get(address, "")), bytes):
        raise Fault(f"no tensor map is at {address:#x}")
    return tensor_maps.decode(raw), [int(block.value(one, "s32")[thread]) for one in members(corner)]


def _in_shared(block: Block, tensor: EncodedMap, operand: str, thread: int) -> int:
    start = int(block.address(operand)[thread])
    if start % 128:
        raise Fault(f"a tile at {start:#x} of shared memory, which is no multiple of 128")
    return start


def _load(block: Block, operands: list[str], thread: int) -> None:
    """To shared memory: unknown there until the barrier is waited for; zero outside the tensor."""
    tensor, corner = tensor_and_corner(block, operands[1], thread)
    start, barrier = (
        _in_shared(block, tensor, operands[0], thread),
        barrier_at(block, int(block.address(operands[2])[thread])),
    )
    inside, sources, offsets = tile_elements(tensor, corner)
    targets = swizzled(start + offsets, tensor.swizzle).astype(np.uint64)
    block.shared.forget(targets, tensor.strides[0])

    def carried_out() -> int:
        values = np.zeros((len(inside), tensor.strides[0]), np.uint8)
        values[inside] = block.memory.load(sources[inside].astype(np.uint64), tensor.strides[0])
        block.shared.store(targets, values, generic=False)
        return tile_bytes(tensor)

    barrier.copies.append(carried_out)


def _store(block: Block, operands: list[str], thread: int) -> None:
    """To global memory, but for what lies outside the tensor."""
    tensor, corner = tensor_and_corner(block, operands[0], thread)
    start = _in_shared(block, tensor, operands[1], thread)
    inside, targets, offsets = tile_elements(tensor, corner)
    sources = swizzled(start + offsets, tensor.swizzle)
    values = block.shared.load_async(sources, tensor.strides[0])
    block.memory.store(targets[inside].astype(np.uint64), values[inside])
    bytes_read = (sources[:, None] + np.arange(tensor.strides[0])).reshape(-1)
    block.shared.hold(bytes_read, 1)
    block.now.stored.append(bytes_read)
