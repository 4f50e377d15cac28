"""The host side of the two context operations: which kernels are launched, on what, and how much workspace they take.

    region_pool: logits (B, K, N), features (B, N, C) -> centres (B, K, C), log counts (B, K) float32
    attention: q (B, N, D), k and v (B, M, D), bias (B, M) float32 -> out (B, N, D)

Formulas and kernels: `isnet_trt.kernels.region_pool` and `isnet_trt.kernels.attention`. Here are addresses and sizes
only; whoever has `Launcher` and memory can call it: the TensorRT plugins, checks on a GPU, and tests, which run the
kernels in Triton's interpreter on host memory. Results and workspace must be multiples of 16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from isnet_trt.cuda.work import MOST_SPLITS, splits

TYPES = ("fp32", "fp16", "bf16")
WIDTH = 256
"""Width of the attention's head in the published models."""
WIDTHS = (32, WIDTH)
"""Widths that there are kernels for: the demo's and the published models'."""
LOG2_E = math.log2(math.e)
PARTIAL_BYTES = 32 << 20
"""Most memory for partial results, beyond what one part takes. More parts than fit would not fill a GPU better: 32 MiB
are two waves of blocks of 64 queries on 256 multiprocessors."""
_ALIGNMENT = 256
_POOL_BLOCKS = 2
"""Blocks of ``pool`` that fit on a multiprocessor at once; of ``attention`` it is one. Estimates, not yet measured."""


class Launcher(Protocol):
    """What can launch kernels by name, such as `isnet_trt.cuda.kernels.Kernels`."""

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        """Queue kernel ``name`` on ``stream``; pointers are addresses."""
        ...

    def constants(self, name: str) -> dict[str, Any]:
        """What was compiled into kernel ``name``, such as its tile."""
        ...

    def __contains__(self, name: object) -> bool: ...


def attention_kernels(dtype: str, width: int = WIDTH) -> tuple[str, str, str]:
    """Names of the whole attention, of a part of it, and of what joins the parts."""
    tail = dtype if width == WIDTH else f"{dtype}_w{width}"
    return f"attention_{tail}", f"attention_part_{tail}", f"attention_combine_{tail}"


def pool_kernels(logits: str, features: str) -> tuple[str, str, str]:
    """Names of the kernels that find each position's class, that sum over parts, and that join these."""
    return f"assign_{logits}", f"pool_{features}", f"pool_combine_{features}"


@dataclass(frozen=True)
class Pool:
    """``region_pool`` of one size: B images, K classes, N positions, C channels, and types of `TYPES`."""

    batch: int
    classes: int
    positions: int
    channels: int
    logits: str
    features: str

    def workspace(self) -> int:
        """Bytes of workspace that this size and every smaller one takes, on any GPU."""
        parts = _held(self.batch * self.classes, self.channels + 3)
        return sum(map(_aligned, (*self._positions(), *self._partial(parts))))

    def _positions(self) -> tuple[int, int]:
        """Bytes of labels and scores."""
        return (4 * self.batch * self.positions,) * 2

    def _partial(self, rows: int) -> tuple[int, int, int, int]:
        """Bytes of sums, tops, masses and counts of ``rows`` partial rows."""
        return 4 * rows * self.channels, 4 * rows, 4 * rows, 4 * rows

    def parts(self, kernels: Launcher, multiprocessors: int) -> int:
        """Into how many parts the positions are cut."""
        tile = kernels.constants(pool_kernels(self.logits, self.features)[1])
        tiles = self.batch * _ceil(self.classes, tile["BLOCK_K"]) * _ceil(self.channels, tile["BLOCK_C"])
        wanted = splits(tiles, _ceil(self.positions, tile["BLOCK_N"]), _POOL_BLOCKS * multiprocessors)
        return _fitting(wanted, self.batch * self.classes, self.channels + 3)

    def launch(
        self,
        kernels: Launcher,
        stream: int,
        multiprocessors: int,
        *,
        logits: int,
        features: int,
        centres: int,
        log_counts: int,
        workspace: int,
    ) -> None:
        """Queue it on ``stream``; all others are addresses, ``workspace`` of `workspace` bytes."""
        assign, pool, combine = pool_kernels(self.logits, self.features)
        parts = self.parts(kernels, multiprocessors)
        rows = parts * self.batch * self.classes
        place = _places(workspace, *self._positions(), *self._partial(rows))
        found = {"labels": next(place), "scores": next(place)}
        partial = {name: next(place) for name in ("sums", "tops", "masses", "counts")}
        sizes = {"batch": self.batch, "classes": self.classes}
        kernels.launch(assign, stream, logits=logits, **found, **sizes, positions=self.positions)
        kernels.launch(
            pool, stream, features=features, **found, **partial, **sizes,
            positions=self.positions, channels=self.channels, splits=parts,
        )  # fmt: skip
        kernels.launch(
            combine, stream, **partial, centres=centres, log_counts=log_counts, **sizes,
            channels=self.channels, splits=parts,
        )  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """``attention`` of one size: B images, N queries, M keys, D channels of a type of `TYPES`."""

    batch: int
    queries: int
    keys: int
    width: int
    dtype: str

    def workspace(self) -> int:
        """Bytes of workspace that this size and every smaller one takes, on any GPU."""
        return sum(map(_aligned, self._partial(_held(self.batch * self.queries, self.width + 1))))

    def _partial(self, rows: int) -> tuple[int, int]:
        """Bytes of results and norms of ``rows`` partial rows."""
        return 4 * rows * self.width, 4 * rows

    def parts(self, kernels: Launcher, multiprocessors: int) -> int:
        """Into how many parts the keys are cut."""
        tile = kernels.constants(attention_kernels(self.dtype, self.width)[0])
        tiles = self.batch * _ceil(self.queries, tile["BLOCK_Q"])
        wanted = splits(tiles, _ceil(self.keys, tile["BLOCK_K"]), multiprocessors)
        return _fitting(wanted, self.batch * self.queries, self.width + 1)

    def launch(
        self,
        kernels: Launcher,
        stream: int,
        multiprocessors: int,
        scale: float,
        *,
        q: int,
        k: int,
        v: int,
        bias: int,
        out: int,
        workspace: int,
    ) -> None:
        """Queue it on ``stream``; all others but ``scale`` are addresses, ``workspace`` of `workspace` bytes."""
        whole, part, combine = attention_kernels(self.dtype, self.width)
        parts = self.parts(kernels, multiprocessors)
        rows = self.batch * self.queries
        partial, norms = _places(workspace, *self._partial(parts * rows))
        arguments = {"q": q, "k": k, "v": v, "bias": bias, "norms": norms, "batch": self.batch}
        arguments |= {"queries": self.queries, "keys": self.keys, "splits": parts}
        if parts == 1:
            kernels.launch(whole, stream, **arguments, out=out, scale=scale * LOG2_E)
            return
        kernels.launch(part, stream, **arguments, out=partial, scale=scale * LOG2_E)
        kernels.launch(combine, stream, parts=partial, norms=norms, out=out, rows=rows, splits=parts)


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _aligned(size: int) -> int:
    return _ceil(size, _ALIGNMENT) * _ALIGNMENT


def _places(address: int, *sizes: int) -> Iterator[int]:
    """Addresses of blocks of ``sizes`` bytes, one after the other from ``address`` on."""
    for size in sizes:
        yield address
        address += _aligned(size)


def _most_rows(width: int) -> int:
    return PARTIAL_BYTES // (4 * width)


def _fitting(parts: int, rows: int, width: int) -> int:
    """As many of ``parts`` as fit, each with ``rows`` rows of ``width`` floats; at least one."""
    return max(1, min(parts, _most_rows(width) // max(rows, 1)))


def _held(rows: int, width: int) -> int:
    """The most partial rows that `_fitting` leaves for ``rows`` rows or fewer."""
    return max(rows, min(MOST_SPLITS * rows, _most_rows(width)))
