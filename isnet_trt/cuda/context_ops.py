"""The host side of the two context operations: which kernels are launched, and how much workspace they take.

    region_pool: logits (B, K, N), features (B, N, C) -> centres (B, K, C), log counts (B, K) float32
    attention: q (B, N, D), k and v (B, M, D), bias (B, M) float32 -> out (B, N, D)

Formulas and kernels: `isnet_trt.kernels.region_pool` and `isnet_trt.kernels.attention`. Here are addresses and sizes
only; types are those of `isnet_trt.cuda.element_types.FLOATS`. Whoever has a `Launcher` and memory can call it: the
TensorRT plugins, checks on a GPU, and tests, which run the kernels in Triton's interpreter on host memory. Results and
workspace must be multiples of 16.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.kernel_specs import LOG2_E, KernelSpec
from isnet_trt.cuda.launch_grid import MOST_SPLITS, aligned, cdiv, splits
from isnet_trt.cuda.protocols import Launcher

PARTIAL_BYTES = 32 << 20
"""Most memory for partial results, beyond what one part takes. More parts than fit would not fill a GPU better: 32 MiB
are two waves of blocks of 64 queries on 256 multiprocessors."""
_ALIGNMENT = 256
"""Of each block of the workspace, in bytes."""
_POOL_BLOCKS = 2
"""Blocks of ``pool`` that fit on a multiprocessor at once; of ``attention`` it is one. Estimates, not yet measured."""


def attention_kernels(dtype: str, width: int) -> tuple[KernelSpec, KernelSpec, KernelSpec]:
    """The attention over all keys, over a part of them, and what joins the parts. Tiles are not those of any GPU."""
    all_keys, part = (kernel_specs.attention(dtype, width, partial) for partial in (False, True))
    return all_keys, part, kernel_specs.attention_combine(dtype, width)


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
        return sum(aligned(size, _ALIGNMENT) for size in self._buffers(rows).values())

    def _buffers(self, rows: int) -> dict[str, int]:
        """Bytes of each intermediate array, with ``rows`` partial rows; all elements have 4 bytes."""
        partial = {"sums": 4 * rows * self.channels} | dict.fromkeys(("tops", "masses", "counts"), 4 * rows)
        return dict.fromkeys(("labels", "scores"), 4 * self.batch * self.positions) | partial

    def parts(self, kernels: Launcher, multiprocessors: int) -> int:
        """The number of parts into which the positions are cut."""
        tile = kernels.constants(kernel_specs.pool(self.features).name)
        tiles = self.batch * cdiv(self.classes, tile["BLOCK_K"]) * cdiv(self.channels, tile["BLOCK_C"])
        parts = splits(tiles, cdiv(self.positions, tile["BLOCK_N"]), _POOL_BLOCKS * multiprocessors)
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
        partial = _addresses(workspace, self._buffers(parts * self.batch * self.classes))
        assigned = {name: partial.pop(name) for name in ("labels", "scores")} | {"positions": self.positions}
        sizes = {"batch": self.batch, "classes": self.classes}
        # The positions are cut into parts so that few classes still keep all multiprocessors busy.
        partial |= {"channels": self.channels, "splits": parts}
        _launch(kernels, assign, stream, logits=logits, **assigned, **sizes)
        _launch(kernels, pool, stream, features=features, **assigned, **partial, **sizes)
        _launch(kernels, combine, stream, **partial, centres=centres, log_counts=log_counts, **sizes)


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
        rows = _most_partial_rows(self.batch * self.queries, self.width + 1)
        return sum(aligned(size, _ALIGNMENT) for size in self._buffers(rows).values())

    def _buffers(self, rows: int) -> dict[str, int]:
        """Bytes of the float32 results and norms of ``rows`` partial rows."""
        return {"parts": 4 * rows * self.width, "norms": 4 * rows}

    def parts(self, kernels: Launcher, multiprocessors: int) -> int:
        """The number of parts into which the keys are cut."""
        tile = kernels.constants(kernel_specs.attention(self.dtype, self.width).name)
        tiles = self.batch * cdiv(self.queries, tile["BLOCK_Q"])
        parts = splits(tiles, cdiv(self.keys, tile["BLOCK_K"]), multiprocessors)
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
        all_keys, part, combine = attention_kernels(self.dtype, self.width)
        parts = self.parts(kernels, multiprocessors)
        rows = self.batch * self.queries
        partial = _addresses(workspace, self._buffers(parts * rows))
        arguments = {"q": q, "k": k, "v": v, "bias": bias, "norms": partial["norms"], "scale": scale * LOG2_E}
        arguments |= {"batch": self.batch, "queries": self.queries, "keys": self.keys, "splits": parts}
        if parts == 1:  # written at once; the norms' memory is passed but not used
            _launch(kernels, all_keys, stream, **arguments, out=out)
            return
        _launch(kernels, part, stream, **arguments, out=partial["parts"])
        _launch(kernels, combine, stream, **partial, out=out, rows=rows, splits=parts)


def _addresses(start: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Addresses of arrays of ``sizes`` bytes, one after the other from ``start`` on."""
    ends = itertools.accumulate((aligned(size, _ALIGNMENT) for size in sizes.values()), initial=start)
    return dict(zip(sizes, ends, strict=False))  # the last end is where the workspace ends


def _most_rows(width: int) -> int:
    """The rows of ``width`` floats that fit into `PARTIAL_BYTES`."""
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
