"""The host side of the two context operations: which kernels are launched, and how much workspace they take.

    region_pool: logits (B, K, N), features (B, N, C) -> centres (B, K, C), log counts (B, K) float32
    attention: q (B, N, D), k and v (B, M, D), bias (B, M) float32 -> out (B, N, D)

Formulas and kernels: `isnet_trt.kernels.region_pool` and `isnet_trt.kernels.attention`. Here are addresses and sizes
only; types are those of `isnet_trt.cuda.element_types.FLOATS`. Whoever has a `Launcher` and memory can call it: the
TensorRT plugins, checks on a GPU, and tests, which run the kernels in Triton's interpreter on host memory. Results and
workspace must be multiples of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.kernel_specs import LOG2_E, KernelSpec
from isnet_trt.cuda.launch_grid import MOST_SPLITS, splits
from isnet_trt.cuda.protocols import Launcher

PARTIAL_BYTES = 32 << 20
"""Most memory for partial results, beyond what one part takes. More parts than fit would not fill a GPU better: 32 MiB
are two waves of blocks of 64 queries on 256 multiprocessors."""
_ALIGNMENT = 256
_POOL_BLOCKS = 2
"""Blocks of ``pool`` that fit on a multiprocessor at once; of ``attention`` it is one. Estimates, not yet measured."""


def attention_kernels(dtype: str, width: int) -> tuple[KernelSpec, KernelSpec, KernelSpec]:
    """The attention over all keys, over a part of them, and what joins the parts. Tiles are not those of any GPU."""
    whole, part = (kernel_specs.attention(dtype, width, partial) for partial in (False, True))
    return whole, part, kernel_specs.attention_combine(dtype, width)


def pool_kernels(logits: str, features: str) -> tuple[KernelSpec, KernelSpec, KernelSpec]:
    """The kernels that find each position's class, that sum over parts of the positions, and that join the parts."""
    return kernel_specs.assign(logits), kernel_specs.pool(features), kernel_specs.pool_combine(features)


def _launch(kernels: Launcher, spec: KernelSpec, stream: int, **arguments: Any) -> None:
    spec.check(arguments)
    kernels.launch(spec.name, stream, **arguments)


@dataclass(frozen=True)
class Pool:
    """``region_pool`` of one size: B images, K classes, N positions, C channels, and types of `FLOATS`."""

    batch: int
    classes: int
    positions: int
    channels: int
    logits: str
    features: str

    def workspace(self) -> int:
        """Bytes of workspace that this size and every smaller one takes, on any GPU."""
        rows = _most_partial_rows(self.batch * self.classes, self.channels + 3)
        return sum(map(_aligned, (*self._positions(), *self._partial(rows))))

    def _positions(self) -> tuple[int, int]:
        """Bytes of labels and scores."""
        return (4 * self.batch * self.positions,) * 2

    def _partial(self, rows: int) -> tuple[int, int, int, int]:
        """Bytes of sums, tops, masses and counts of ``rows`` partial rows."""
        return 4 * rows * self.channels, 4 * rows, 4 * rows, 4 * rows

    def parts(self, kernels: Launcher, multiprocessors: int) -> int:
        """The number of parts into which the positions are cut."""
        tile = kernels.constants(kernel_specs.pool(self.features).name)
        tiles = self.batch * _ceil(self.classes, tile["BLOCK_K"]) * _ceil(self.channels, tile["BLOCK_C"])
        parts = splits(tiles, _ceil(self.positions, tile["BLOCK_N"]), _POOL_BLOCKS * multiprocessors)
        return _limited(parts, self.batch * self.classes, self.channels + 3)

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
        addresses = _addresses(workspace, *self._positions(), *self._partial(rows))
        assigned = {"labels": next(addresses), "scores": next(addresses)}
        partial = {name: next(addresses) for name in ("sums", "tops", "masses", "counts")}
        sizes = {"batch": self.batch, "classes": self.classes}
        _launch(kernels, assign, stream, logits=logits, **assigned, **sizes, positions=self.positions)
        _launch(
            kernels, pool, stream, features=features, **assigned, **partial, **sizes,
            positions=self.positions, channels=self.channels, splits=parts,
        )  # fmt: skip
        _launch(
            kernels, combine, stream, **partial, centres=centres, log_counts=log_counts, **sizes,
            channels=self.channels, splits=parts,
        )  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """``attention`` of one size: B images, N queries, M keys, D channels of a type of `FLOATS`."""

    batch: int
    queries: int
    keys: int
    width: int
    dtype: str

    def workspace(self) -> int:
        """Bytes of workspace that this size and every smaller one takes, on any GPU."""
        return sum(map(_aligned, self._partial(_most_partial_rows(self.batch * self.queries, self.width + 1))))

    def _partial(self, rows: int) -> tuple[int, int]:
        """Bytes of results and norms of ``rows`` partial rows."""
        return 4 * rows * self.width, 4 * rows

    def parts(self, kernels: Launcher, multiprocessors: int) -> int:
        """The number of parts into which the keys are cut."""
        tile = kernels.constants(kernel_specs.attention(self.dtype, self.width).name)
        tiles = self.batch * _ceil(self.queries, tile["BLOCK_Q"])
        parts = splits(tiles, _ceil(self.keys, tile["BLOCK_K"]), multiprocessors)
        return _limited(parts, self.batch * self.queries, self.width + 1)

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
        partial, norms = _addresses(workspace, *self._partial(parts * rows))
        arguments = {"q": q, "k": k, "v": v, "bias": bias, "norms": norms, "batch": self.batch}
        arguments |= {"queries": self.queries, "keys": self.keys, "splits": parts}
        if parts == 1:  # written at once; the norms' memory is passed but not used
            _launch(kernels, whole, stream, **arguments, out=out, scale=scale * LOG2_E)
            return
        _launch(kernels, part, stream, **arguments, out=partial, scale=scale * LOG2_E)
        _launch(kernels, combine, stream, parts=partial, norms=norms, out=out, rows=rows, splits=parts)


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _aligned(size: int) -> int:
    return _ceil(size, _ALIGNMENT) * _ALIGNMENT


def _addresses(start: int, *sizes: int) -> Iterator[int]:
    """Addresses of blocks of ``sizes`` bytes, one after the other from ``start`` on."""
    for size in sizes:
        yield start
        start += _aligned(size)


def _most_rows(width: int) -> int:
    return PARTIAL_BYTES // (4 * width)


def _limited(parts: int, rows: int, width: int) -> int:
    """As many of ``parts`` as fit into `PARTIAL_BYTES`, each with ``rows`` rows of ``width`` floats; at least one."""
    return max(1, min(parts, _most_rows(width) // max(rows, 1)))


def _most_partial_rows(rows: int, width: int) -> int:
    """The most partial rows, in all parts together, that `_limited` leaves for ``rows`` rows or fewer.

    An engine asks for the workspace once, for the largest shapes of its profile, and then runs smaller ones, of which
    more parts may fit.
    """
    return max(rows, min(MOST_SPLITS * rows, _most_rows(width)))
