"""Warps of an emulated block: those that are at the same instruction run in step, others wait or run in turn.

Warps part where they branch differently, and join where a barrier, or a product of their warpgroup, lets them go on
together. They run until they wait; which of those that can go on is next is drawn by chance. Where none can, a `Fault`
names the warps and what each waits for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ptx_memory import Fault

WARP = 32
Array = NDArray[Any]


Copy = tuple[Array, Array, Array]
"""A ``cp.async`` of some threads: their numbers, addresses in shared memory, and the bytes to be there."""


def _of(copies: list[Copy], threads: NDArray[np.bool_]) -> list[Copy]:
    """What ``threads`` have of ``copies``."""
    return [(number[own], to[own], data[own]) for number, to, data in copies if (own := threads[number]).any()]


@dataclass
class Matrices:
    """Products of warpgroups that have been issued and not been waited for: registers and shared memory in use."""

    registers: set[str] = field(default_factory=set)
    reads: list[Array] = field(default_factory=list)


@dataclass(eq=False)
class Warps:
    """Warps in step.

    Attributes:
        threads: which threads of the block they are.
        at: the instruction that comes next.
        waits_for: what must happen before it, in words, and whether it has happened.
        copies: ``cp.async`` since the last group; ``groups``: those that have not been waited for.
        issued: ``wgmma`` since the last group; ``products``: groups that have not been waited for.
        stored: bulk copies out of shared memory whose reads have not been waited for.
        changed: registers that were written since the last ``wgmma.fence``.
    """

    threads: NDArray[np.bool_]
    at: int = 0
    waits_for: tuple[str, Callable[[], bool]] | None = None
    copies: list[Copy] = field(default_factory=list)
    groups: list[list[Copy]] = field(default_factory=list)
    issued: Matrices = field(default_factory=Matrices)
    products: list[Matrices] = field(default_factory=list)
    stored: list[Array] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)

    @property
    def number(self) -> int:
        """How many warps."""
        return int(self.threads.sum()) // WARP

    @property
    def multiplying(self) -> bool:
        """Whether products or bulk copies that they began have not been waited for."""
        return bool(self.issued.registers or self.products or self.stored)

    @property
    def busy(self) -> bool:
        """Whether something that they began has not been waited for."""
        return bool(self.copies or any(self.groups) or self.multiplying)

    def split(self, taken: NDArray[np.bool_], at: int) -> Warps:
        """Give up the threads ``taken``, and the copies that they began, to those that are returned."""
        others = Warps(taken, at, changed=set(self.changed))
        self.threads = self.threads & ~taken
        others.copies, self.copies = _of(self.copies, taken), _of(self.copies, self.threads)
        others.groups = [_of(group, taken) for group in self.groups]
        self.groups = [_of(group, self.threads) for group in self.groups]
        return others

    def joins(self, other: Warps) -> bool:
        """Whether they are in step with ``other``, which then goes on as a part of these."""
        if other.at != self.at or other.multiplying or self.multiplying or len(other.groups) != len(self.groups):
            return False
        self.threads, self.changed = self.threads | other.threads, self.changed | other.changed
        self.copies += other.copies
        self.groups = [own + more for own, more in zip(self.groups, other.groups, strict=True)]
        return True

    def __str__(self) -> str:
        numbers = np.nonzero(self.threads[::WARP])[0]
        return f"warps {', '.join(map(str, numbers))}"


class Schedule:
    """The warps of one block that have not ended, and its named barriers."""

    def __init__(self, threads: int, order: random.Random) -> None:
        self.order = order
        self.running = [Warps(np.ones(threads, bool))]
        self._arrived: dict[int, int] = {}
        self._passed: dict[int, int] = {}

    def next(self) -> Warps:
        """Warps that can go on; Fault where all wait."""
        ready = [warps for warps in self.running if warps.waits_for is None or warps.waits_for[1]()]
        if not ready:
            waiting = "; ".join(f"{warps} wait for {warps.waits_for[0]}" for warps in self.running if warps.waits_for)
            raise Fault(f"deadlock: {waiting}")
        warps = self.order.choice(ready) if len(ready) > 1 else ready[0]
        warps.waits_for = None
        for other in ready:
            if other is not warps and warps.joins(other):
                self.running.remove(other)
        return warps

    def part(self, warps: Warps, taken: NDArray[np.bool_], at: int) -> None:
        """Threads ``taken`` of ``warps`` go on at ``at``, the others where they are."""
        by_warp = taken.reshape(-1, WARP)
        if (by_warp.any(1) != by_warp.all(1)).any():
            raise Fault("threads of a warp part")
        if (taken == warps.threads).all():
            warps.at = at
        elif taken.any():
            if warps.multiplying:
                raise Fault(f"{warps} part while products are under way")
            self.running.append(warps.split(taken, at))

    def gather(self, warps: Warps, size: int) -> bool:
        """Whether ``warps`` must wait for the rest of their groups of ``size`` threads to come to their instruction."""
        at = warps.at
        group = np.repeat(warps.threads.reshape(-1, size).any(1), size)

        def complete() -> bool:
            present = [other.threads for other in self.running if other.at == at]
            return bool(np.logical_or.reduce(present)[group].all())

        if (group == warps.threads).all():
            return False
        warps.waits_for = "the other warps of their warpgroup", complete
        return True

    def barrier(self, warps: Warps, number: int, threads: int, waits: bool = True) -> None:
        """``bar.sync`` (or ``bar.arrive``) of ``threads`` threads at barrier ``number``."""
        passed, arrived = self._passed.get(number, 0), self._arrived.get(number, 0) + WARP * warps.number
        if arrived > threads:
            raise Fault(f"{arrived} threads at barrier {number}, which is one of {threads}")
        self._arrived[number] = arrived % threads
        if arrived == threads:
            self._passed[number] = passed + 1
        if waits and arrived < threads:
            text = f"barrier {number}, at which {arrived} of {threads} threads are"
            warps.waits_for = text, lambda: self._passed.get(number, 0) > passed
