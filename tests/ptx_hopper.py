"""Instructions that Hopper adds: products of warpgroups, barriers in shared memory, proxies (PTX ISA 8.x).

Products (``wgmma``) are computed when they are issued, and their results and shared memory are locked until they are
waited for: what reads or changes them before, lacks a ``wgmma.fence``, or lacks a ``fence.proxy.async`` after writes to
shared memory, is a `Fault`. The layouts of operands in shared memory are those of the matrix descriptor ("Asynchronous
Warpgroup Level Matrix Shared Memory Layout"; CUTLASS, ``cute/arch/mma_sm90_desc.hpp``, writes them as formulas).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ptx_arithmetic as ptx
from numpy.typing import NDArray
from ptx_memory import Bytes, Fault, swizzled
from ptx_program import members
from ptx_warps import Matrices

if TYPE_CHECKING:
    from ptx_machine import Block

Array = NDArray[Any]
GROUP = 128
"""Threads of a warpgroup."""
_CHUNK = 16
"""Bytes that no swizzle takes apart."""
_CHUNKS = {0: 1, 1: 8, 2: 4, 3: 2}
"""Swizzle mode of a matrix descriptor -> chunks of a row of the pattern: none, 128, 64 and 32 bytes."""
_KINDS = {"f16": 2, "bf16": 2, "tf32": 4}
"""Types of factors -> bytes of an element."""


def operand_addresses(descriptor: int, extent: int, transposed: bool) -> NDArray[np.int64]:
    """Addresses of the 16-byte chunks of an operand of ``extent`` rows (of A) or columns (of B), and 32 bytes of k.

    The result is (extent, 2) where k is contiguous, and (16, extent / 8) for a ``transposed`` operand.
    """
    start, leading, stride = (((descriptor >> bit) & 0x3FFF) * 16 for bit in (0, 16, 32))
    if (descriptor >> 49) & 7:
        raise Fault("a matrix descriptor with a base offset is not emulated")
    width = _CHUNKS[descriptor >> 62]
    if transposed:
        k, chunk = np.arange(16)[:, None], np.arange(extent // 8)[None]
        if width == 1:
            offsets = chunk * stride + k % 8 * _CHUNK + k // 8 * leading
        else:
            offsets = chunk % width * _CHUNK + chunk // width * leading + k % 8 * width * _CHUNK + k // 8 * stride
    else:
        row, chunk = np.arange(extent)[:, None], np.arange(2)[None]
        offsets = row % 8 * width * _CHUNK + row // 8 * stride + chunk * (_CHUNK if width > 1 else leading)
    return swizzled(start + offsets, width * _CHUNK)


def _numbers(raw: Bytes, kind: str) -> Array:
    """Bytes (…, 16) as the values of a type (…, 16 / size); tf32 is float32 without its 13 lowest bits."""
    if kind == "tf32":
        return (np.ascontiguousarray(raw).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return ptx.float16_values(np.ascontiguousarray(raw).view(np.uint16), kind)


def _from_shared(block: Block, descriptor: int, extent: int, kind: str, transposed: bool, reads: list[Array]) -> Array:
    """An operand as (extent, k); its addresses are added to ``reads``."""
    addresses = operand_addresses(descriptor, extent, transposed)
    raw = block.shared.load_async(addresses.reshape(-1), _CHUNK)
    reads.append(addresses.reshape(-1))
    values = _numbers(raw, kind).reshape(len(addresses), -1)
    return values.T if transposed else values


def _from_registers(registers: Sequence[Array], kind: str) -> Array:
    """A fragment of A as (warps, 16, k)."""
    if kind != "tf32":
        return ptx.left_factor(registers, kind)
    left = np.zeros((len(registers[0]) // ptx.WARP, 16, 8))
    for register, (down, across) in zip(registers, ((0, 0), (8, 0), (0, 4), (8, 4)), strict=True):
        values = _numbers(register.astype(np.uint32).view(np.uint8).reshape(-1, 4), kind)
        left[:, ptx.GROUP + down, ptx.PAIR // 2 + across] = values.reshape(-1, ptx.WARP)
    return left


def _warpgroups(block: Block, parts: list[str], operands: list[str], active: Array) -> None:
    now = block.now
    if (active != now.threads).any() or (active.reshape(-1, GROUP).any(1) != active.reshape(-1, GROUP).all(1)).any():
        raise Fault("not all threads of a warpgroup")
    if parts[1] == "fence":
        now.changed.clear()
    elif parts[1] == "commit_group":
        now.products.append(now.issued)
        now.issued = Matrices()
    elif parts[1] == "wait_group":
        while len(now.products) > int(operands[0], 0):
            for addresses in now.products.pop(0).reads:
                block.shared.release(addresses, _CHUNK)
    else:
        _multiply(block, parts, operands, active)


def _multiply(block: Block, parts: list[str], operands: list[str], active: Array) -> None:
    """``wgmma.mma_async``: of every active warpgroup, (64, k) times (k, n)."""
    kind, names = parts[-1], members(operands[0])
    n = 2 * len(names)
    if parts[-3] != "f32" or parts[-2] != kind or kind not in _KINDS or not parts[4].startswith(f"m64n{n}k"):
        raise Fault("unknown matrices")
    in_registers = operands[1].startswith("{")
    _check_fence(block, names + (members(operands[1]) if in_registers else []))
    signs = [int(one) for one in operands[4:6]]
    flags = [int(one) for one in operands[6:]]
    left_flag, right_flag = (False, *map(bool, flags))[-2:] if kind != "tf32" else (False, False)
    groups, reads = np.nonzero(active[::GROUP])[0], block.now.issued.reads
    seen = len(reads)
    right = [_from_shared(block, one, n, kind, right_flag, reads) for one in _descriptors(block, operands[2], groups)]
    if in_registers:
        fragments = _from_registers([block.value(one, "b32") for one in members(operands[1])], kind)
        left = fragments.reshape(-1, 64, fragments.shape[2])[groups]
    else:
        descriptors = _descriptors(block, operands[1], groups)
        left = np.stack([_from_shared(block, one, 64, kind, left_flag, reads) for one in descriptors])
    for addresses in reads[seen:]:
        block.shared.hold(addresses, _CHUNK)
    product = signs[0] * signs[1] * (left.astype(np.float64) @ np.stack(right).astype(np.float64).transpose(0, 2, 1))
    _accumulate(block, names, product, groups, block.value(operands[3], "pred"))
    # Triton writes the next fragment of A while a product may still read the last, and leaves it to the assembler.
    block.now.issued.registers.update(names)


def _accumulate(block: Block, names: list[str], product: Array, groups: Array, adds: Array) -> None:
    """Add (groups, 64, n) to the registers ``names`` where ``adds``, else set them."""
    number = np.arange(len(names))[:, None]
    rows = ptx.GROUP[None] + number // 2 % 2 * 8
    columns = ptx.PAIR[None] + number % 2 + number // 4 * 8
    fragments = product.reshape(-1, 16, product.shape[2])[:, rows, columns]  # (warps, registers, lanes)
    fragments = fragments.transpose(1, 0, 2).reshape(len(names), len(groups), GROUP)
    empty = np.zeros(block.count, np.uint32)
    for name, values in zip(names, fragments, strict=True):
        bits = block.registers.get(name, empty).copy()
        view = bits.view(np.float32).reshape(-1, GROUP)
        view[groups] = np.where(adds.reshape(-1, GROUP)[groups], view[groups] + values, values)
        block.registers[name] = bits


def _check_fence(block: Block, registers: Sequence[str]) -> None:
    if changed := block.now.changed.intersection(registers):
        raise Fault(f"{min(changed)} was written after the last wgmma.fence")


def _descriptors(block: Block, operand: str, groups: Array) -> list[int]:
    """One for each of ``groups``."""
    values = block.value(operand, "b64").reshape(-1, GROUP)[groups]
    if (values != values[:, :1]).any():
        raise Fault("threads of a warpgroup have different matrix descriptors")
    return [int(one) for one in values[:, 0]]


def _fence(block: Block, parts: list[str], operands: list[str], active: Array) -> None:
    """``fence.proxy.async``: what was written to shared memory may be read by copies of tensors and products."""
    if parts[1:3] == ["proxy", "async"] and active.any():
        block.shared.generic[:] = False


def _elect(block: Block, parts: list[str], operands: list[str], active: Array) -> None:
    """The first lane of every warp is elected."""
    lane, _, flag = operands[0].partition("|")
    block.put(flag, np.arange(block.count) % ptx.WARP == 0, active)
    block.put(lane, np.zeros(block.count, np.uint32), active)


@dataclass
class Barrier:
    """An mbarrier: ``pending`` arrivals and ``bytes`` of copies end a phase; ``copies`` have not been carried out."""

    count: int
    pending: int
    bytes: int = 0
    phase: int = 0
    copies: list[Callable[[], int]] = field(default_factory=list)

    def arrive(self, count: int) -> None:
        if count > self.pending:
            raise Fault(f"{count} arrivals where {self.pending} are expected")
        self.pending -= count
        self.advance()

    def advance(self) -> None:
        """Begin the next phase if nothing is expected any more."""
        if not self.pending and not self.bytes:
            self.phase, self.pending = self.phase ^ 1, self.count

    def passed(self, parity: int) -> bool:
        """Whether the phase of ``parity`` has ended, after the copies, which are as late as they may be."""
        if self.phase == parity:
            for copy in self.copies:
                self.bytes -= copy()
            self.copies.clear()
            self.advance()
        return self.phase != parity


def _barrier(block: Block, parts: list[str], operands: list[str], active: Array) -> None:
    """``mbarrier``: every active thread arrives, one after the other."""
    name = parts[1]
    addresses = block.address(operands[0 if name in ("init", "inval", "expect_tx") else 1])[active]
    if name not in _BARRIER or (name == "try_wait" and "parity" not in parts):
        raise Fault("unknown instruction")
    if not len(addresses):
        return
    if (addresses != addresses[0]).any():
        raise Fault("threads use different barriers at once")
    _BARRIER[name](block, int(addresses[0]), operands, active, "expect_tx" in parts)


def _init(block: Block, address: int, operands: list[str], active: Array, expects: bool) -> None:
    if active.sum() > 1:
        raise Fault("several threads make the same barrier")
    count = _first(block, operands[1], active)
    block.barriers[address] = Barrier(count, count)


def _invalidate(block: Block, address: int, operands: list[str], active: Array, expects: bool) -> None:
    if barrier_at(block, address).copies:
        raise Fault("a barrier ends before its copies")
    del block.barriers[address]


def _arrive(block: Block, address: int, operands: list[str], active: Array, expects: bool) -> None:
    """``arrive``, ``arrive.expect_tx`` and ``expect_tx``."""
    barrier, number = barrier_at(block, address), int(active.sum())
    if expects:
        barrier.bytes += number * _first(block, operands[-1], active)
    if len(operands) == 3 or not expects:
        barrier.arrive(number * (_first(block, operands[2], active) if len(operands) == 3 and not expects else 1))


def _try_wait(block: Block, address: int, operands: list[str], active: Array, expects: bool) -> None:
    """Wait until it succeeds: what it may also do, to fail after a while, programs answer by another try."""
    barrier, parity = barrier_at(block, address), _first(block, operands[2], active) & 1
    block.put(operands[0], np.ones(block.count, bool), active)
    if not barrier.passed(parity):
        lacking = f"{barrier.pending} arrivals and {barrier.bytes} bytes"
        block.now.waits_for = f"the mbarrier at {address:#x} (lacking {lacking})", lambda: barrier.passed(parity)


def _first(block: Block, operand: str, active: Array) -> int:
    return int(block.value(operand, "u32")[active][0])


_BARRIER: Mapping[str, Callable[[Block, int, list[str], Array, bool], None]] = {
    "init": _init, "inval": _invalidate, "arrive": _arrive, "expect_tx": _arrive, "try_wait": _try_wait,
}  # fmt: skip


def barrier_at(block: Block, address: int) -> Barrier:
    """The mbarrier at an address of shared memory; Fault if none was made there."""
    if address not in block.barriers:
        raise Fault(f"no mbarrier was made at {address:#x}")
    return block.barriers[address]


ACTIONS: Mapping[str, Callable[[Block, list[str], list[str], Array], None]] = {
    "wgmma": _warpgroups, "fence": _fence, "elect": _elect, "mbarrier": _barrier,
}  # fmt: skip
