"""Memory of an emulated GPU: buffers at made-up addresses, in which every access is checked.

A `Fault` is an access outside every buffer, one that is not aligned to its size, one that reads what another block of
the launch writes or what nobody wrote, and different values written to one place by two threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
_APART = 36
"""Buffers lie 2^36 bytes apart, so that offsets that wrap or run over end nowhere."""
NOBODY = -1


class Fault(AssertionError):
    """What a GPU would do wrongly, or what an emulated program may not do."""


@dataclass
class _Buffer:
    name: str
    base: int
    data: Bytes
    known: NDArray[np.bool_]
    writer: NDArray[np.int64]


class Memory:
    """Global memory. ``block`` is the number of the block that runs."""

    def __init__(self) -> None:
        self.block = NOBODY
        self._buffers: dict[int, _Buffer] = {}

    def hold(self, name: str, data: bytes, shift: int = 0, known: bool | NDArray[np.bool_] = True) -> int:
        """The address of a copy of ``data``, ``shift`` bytes beside a multiple of 2^36; ``known`` bytes may be read."""
        return self._add(name, np.frombuffer(data, np.uint8).copy(), known, shift)

    def clear(self) -> None:
        """Give all buffers back."""
        self._buffers.clear()

    def reserve(self, name: str, size: int, shift: int = 0) -> int:
        """The address of ``size`` bytes that nobody has written yet."""
        return self._add(name, np.full(size, 0xA5, np.uint8), False, shift)

    def read(self, address: int) -> Bytes:
        """What a buffer holds; Fault if some of it was never written."""
        data, known = self.look(address)
        if not known.all():
            raise Fault(f"{np.sum(~known)} bytes of {self._buffers[address >> _APART].name} were never written")
        return data

    def look(self, address: int) -> tuple[Bytes, NDArray[np.bool_]]:
        """What a buffer holds, and which of its bytes have been written."""
        buffer = self._buffers[address >> _APART]
        return buffer.data, buffer.known

    def begin(self) -> None:
        """A launch begins: what was written before belongs to all."""
        for buffer in self._buffers.values():
            buffer.writer[:] = NOBODY

    def load(self, addresses: NDArray[np.uint64], size: int) -> Bytes:
        """(n, size) bytes at ``addresses``."""
        found = np.zeros((len(addresses), size), np.uint8)
        for buffer, which, at in self._parts(addresses, size):
            foreign = (buffer.writer[at] != NOBODY) & (buffer.writer[at] != self.block)
            if foreign.any() or not buffer.known[at].all():
                raise Fault(f"reads of {buffer.name} what {'another block' if foreign.any() else 'nobody'} wrote")
            found[which] = buffer.data[at]
        return found

    def store(self, addresses: NDArray[np.uint64], values: Bytes) -> None:
        """Write (n, size) bytes to ``addresses``."""
        for buffer, which, at in self._parts(addresses, values.shape[1]):
            foreign = (buffer.writer[at] != NOBODY) & (buffer.writer[at] != self.block)
            if (foreign & (buffer.data[at] != values[which])).any():
                raise Fault(f"two blocks write different values to {buffer.name}")
            buffer.data[at] = values[which]
            if (buffer.data[at] != values[which]).any():
                raise Fault(f"two threads write different values to {buffer.name}")
            buffer.writer[at], buffer.known[at] = self.block, True

    def _add(self, name: str, data: Bytes, known: bool | NDArray[np.bool_], shift: int) -> int:
        number = len(self._buffers) + 1
        base = (number << _APART) + shift
        self._buffers[number] = _Buffer(name, base, data, np.full(len(data), known), self._writers(len(data)))
        return base

    def _writers(self, size: int) -> NDArray[np.int64]:
        return np.full(size, NOBODY, np.int64)

    def _parts(
        self, addresses: NDArray[np.uint64], size: int
    ) -> Iterator[tuple[_Buffer, NDArray[np.intp], NDArray[np.int64]]]:
        """The buffers that are meant, which of ``addresses`` mean them, and the places of their bytes."""
        check_aligned(addresses, size)
        numbers = addresses >> np.uint64(_APART)
        for number in np.unique(numbers):
            which = np.nonzero(numbers == number)[0]
            buffer = self._buffers.get(int(number))
            if buffer is None:
                raise Fault(f"no buffer is at {int(addresses[which[0]]):#x}")
            offsets = (addresses[which] - np.uint64(buffer.base)).astype(np.int64)
            yield buffer, which, places(offsets, size, len(buffer.data), buffer.name)


class Shared:
    """Shared memory of one block; what is being copied to it is unknown until it is waited for.

    Attributes:
        generic: bytes that threads wrote and that copies of tensors and products of warpgroups may not read yet.
    """

    def __init__(self, size: int) -> None:
        self.data = np.zeros(size, np.uint8)
        self.known = np.zeros(size, bool)
        self.generic = np.zeros(size, bool)
        self._held = np.zeros(size, np.int16)

    def load(self, addresses: NDArray[np.uint64], size: int) -> Bytes:
        """(n, size) bytes at ``addresses``."""
        at = self._places(addresses, size)
        if not self.known[at].all():
            raise Fault("reads of shared memory what nobody wrote, or what is still being copied")
        return np.asarray(self.data[at])

    def load_async(self, addresses: NDArray[np.int64], size: int) -> Bytes:
        """`load` as the asynchronous proxy does."""
        values = self.load(addresses.astype(np.uint64), size)
        if self.generic[self._places(addresses.astype(np.uint64), size)].any():
            raise Fault("reads of shared memory what threads wrote without a fence.proxy.async")
        return values

    def store(self, addresses: NDArray[np.uint64], values: Bytes, generic: bool = True) -> None:
        """Write (n, size) bytes to ``addresses``; ``generic``: as threads do, else as the asynchronous proxy does."""
        at = self._places(addresses, values.shape[1])
        self._check_free(at)
        self.data[at], self.known[at], self.generic[at] = values, True, generic

    def forget(self, addresses: NDArray[np.uint64], size: int) -> None:
        """A copy to ``addresses`` has begun."""
        at = self._places(addresses, size)
        self._check_free(at)
        self.known[at] = False

    def hold(self, addresses: NDArray[np.int64], size: int) -> None:
        """Somebody reads there until `release`."""
        self._held[places(addresses, size, len(self.data), "shared memory")] += 1

    def release(self, addresses: NDArray[np.int64], size: int) -> None:
        self._held[places(addresses, size, len(self.data), "shared memory")] -= 1

    def _check_free(self, at: NDArray[np.int64]) -> None:
        if self._held[at].any():
            raise Fault("writes to shared memory that a product or a copy still reads")

    def _places(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
        check_aligned(addresses, size)
        return places(addresses.astype(np.int64), size, len(self.data), "shared memory")


def check_aligned(addresses: NDArray[np.uint64], size: int) -> None:
    """Fault if one of ``addresses`` is no multiple of ``size``."""
    wrong = addresses[addresses % np.uint64(size) != 0]
    if len(wrong):
        raise Fault(f"{size} bytes at {int(wrong[0]):#x}, which is no multiple of {size}")


def places(offsets: NDArray[np.int64], size: int, held: int, name: str) -> NDArray[np.int64]:
    """(n, size) offsets of single bytes."""
    if len(offsets) and (offsets.min() < 0 or offsets.max() + size > held):
        raise Fault(f"{size} bytes at {offsets.min()} … {offsets.max()} of {name}, which has {held}")
    return offsets[:, None] + np.arange(size)


def swizzled(addresses: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Addresses in shared memory after the swizzle of ``width`` bytes (0 or 16: none).

    The 16-byte chunks of each row of 128 bytes are exchanged: their number, of which ``width`` tells the bits, is
    combined by exclusive or with that of the row.
    """
    return addresses ^ ((addresses >> 7 & max(width // 16 - 1, 0)) << 4)
