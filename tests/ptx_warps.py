"""Warps of an emulated block: those that are at the same instruction run in step, others wait or run in turn.

Warps part where they branch differently, and join where a barrier lets them go on together. They run until they wait;
which of those that can go on is next is drawn by chance. Where none can, a `Fault` names the warps and what each waits
for.
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
    copies: list[Any] = field(default_factory=list)
    groups: list[list[Any]] = field(default_factory=list)
    issued: Matrices = field(default_factory=Matrices)
    products: list[Matrices] = field(default_factory=list)
    stored: list[Array] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)

    @property
    def number(self) -> int:
        """How many warps."""
        return int(self.threads.sum()) // WARP

    @property
    def busy(self) -> bool:
        """Whether something that they began has not been waited for."""
        return bool(self.copies or any(self.groups) or self.issued.registers or self.products or self.stored)

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
            if other is not warps and other.at == warps.at and not (other.busy or warps.busy):
                warps.threads, warps.changed = warps.threads | other.threads, warps.changed | other.changed
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
            if warps.busy:
                raise Fault(f"{warps} part while copies or products are under way")
            warps.threads = warps.threads & ~taken
            self.running.append(Warps(taken, at, changed=set(warps.changed)))

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
