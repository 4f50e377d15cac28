"""The two context operations: their inputs and outputs, and which kernels are launched with how much workspace.

Formulas and kernels: `isnet_trt.kernels.region_pool` and `isnet_trt.kernels.attention`. Here are addresses and sizes
only. Axes are letters (B images, K classes, N positions or queries, M keys, C channels, D the attention's width); a
letter is one size wherever it stands. Types are those of `isnet_trt.cuda.element_types.FLOATS`; L and T stand for any
of them.

An operation needs a `Launcher` and memory only: the TensorRT plugins launch it, checks on a GPU, and tests, which run
the kernels in Triton's interpreter on host memory. Addresses of results and workspace must be multiples of 16.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.element_types import FLOATS
from isnet_trt.cuda.kernel_specs import LOG2_E, WIDTHS, KernelSpec
from isnet_trt.cuda.launch_grid import MOST_SPLITS, aligned, cdiv, splits, time_in_parts
from isnet_trt.cuda.protocols import Launcher
from isnet_trt.errors import BuildError

NAMESPACE = "isnet_trt"
"""Of the plugins, and the domain of the graph's nodes."""
VERSION = "1"
PARTIAL_BYTES = 32 << 20
"""Most memory for partial results, beyond what one part takes. More parts than fit would not fill a GPU better: 32 MiB
are two waves of blocks of 64 queries on 256 multiprocessors."""
_NATIVE = "; build with --context native, or change the graph"
_ALIGNMENT = 256
"""Of each block of the workspace, in bytes."""
_POSITIONS = ("labels", "scores", "weights")
"""What ``pool`` writes for each position."""
_POOL_BLOCKS = 2
"""Blocks of ``pool`` that fit on a multiprocessor at once, by their registers."""


def attention_kernels(dtype: str, width: int) -> tuple[KernelSpec, ...]:
    """All kernels of the attention, of which an architecture may have a part. Tiles are not those of any GPU."""
    pairs = attention_pairs(dtype, width)
    return *itertools.chain.from_iterable(pairs), kernel_specs.attention_combine(dtype, width)


@functools.cache
def attention_pairs(dtype: str, width: int, trials: bool = False) -> tuple[tuple[KernelSpec, KernelSpec], ...]:
    """The attention over all keys and over a part of them: with pointers, and for each tile with tensor maps.

    With ``trials`` those that no bundle has are among them.
    """
    pointers = kernel_specs.attention(dtype, width, False), kernel_specs.attention(dtype, width, True)
    maps = kernel_specs.attention_by_maps
    tiles = (*kernel_specs.MAP_TILES, *(kernel_specs.TRIAL_TILES if trials else ())) if dtype != "fp32" else ()
    return pointers, *((maps(dtype, width, False, tile), maps(dtype, width, True, tile)) for tile in tiles)


def pool_kernels(logits: str, features: str) -> tuple[KernelSpec, KernelSpec]:
    """The kernel that sums over parts of the positions, and the one that joins the parts."""
    return kernel_specs.pool(logits, features), kernel_specs.pool_join(features)


def _launch(kernels: Launcher, spec: KernelSpec, stream: int, **arguments: Any) -> None:
    spec.check(arguments)
    kernels.launch(spec.name, stream, **arguments)


class Tensor(NamedTuple):
    """A tensor's axes, one letter each, and its type or the letter that stands for it."""

    axes: str
    type: str


class Operation:
    """A context operation: the class has its signature, an instance its sizes and types.

    Attributes:
        name: of the graph's node and of the plugin.
        inputs: tensors in order.
        outputs: tensors in order.
        attributes: names of float attributes.
    """

    name: ClassVar[str]
    inputs: ClassVar[Mapping[str, Tensor]]
    outputs: ClassVar[Mapping[str, Tensor]]
    attributes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def types(cls, node: str, kinds: Sequence[str]) -> dict[str, str]:
        """The types by letter, from those of the inputs.

        Raises:
            BuildError: an input has a type that it cannot have; the message names it.
        """
        if len(kinds) != len(cls.inputs):
            raise BuildError(f"node {node}: {cls.name} takes {', '.join(cls.inputs)}, not {len(kinds)} inputs")
        types: dict[str, str] = {}
        for (name, tensor), kind in zip(cls.inputs.items(), kinds, strict=True):
            declared = types.get(tensor.type, tensor.type)  # a letter until the first input with it is seen
            allowed = (declared,) if declared in FLOATS else FLOATS
            if kind not in allowed:
                types_text = " or ".join(allowed)
                raise BuildError(f"node {node}: input {name} of {cls.name} is {kind}, it must be {types_text}{_NATIVE}")
            types[tensor.type] = kind
        return types

    @classmethod
    def sizes(cls, node: str, shapes: Sequence[Sequence[int | None]]) -> dict[str, int | None]:
        """The sizes by letter; None is one that is not known yet.

        Raises:
            BuildError: an input has another rank, two inputs disagree, or there are no kernels for a size; the message
                names node, input and axis.
        """
        sizes: dict[str, int | None] = {}
        first: dict[str, str] = {}
        for (name, tensor), shape in zip(cls.inputs.items(), shapes, strict=True):
            if len(shape) != len(tensor.axes):
                axes = ", ".join(tensor.axes)
                raise BuildError(
                    f"node {node}: input {name} of {cls.name} has {len(shape)} axes, it must be ({axes}){_NATIVE}"
                )
            for letter, size in zip(tensor.axes, shape, strict=True):
                before = sizes.get(letter)
                if before is None:
                    sizes[letter], first[letter] = size, name
                elif size not in (None, before):
                    raise BuildError(
                        f"node {node}: axis {letter} of {cls.name} is {before} in {first[letter]} and {size} in {name}"
                    )
        width = sizes.get("D")
        if width is not None and width not in WIDTHS:
            raise BuildError(
                f"node {node}: {cls.name} has {width} channels in {first['D']}; there are kernels for "
                f"{', '.join(map(str, WIDTHS))}{_NATIVE}"
            )
        return sizes

    @classmethod
    def static_sizes(cls, node: str, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """`sizes` where all are known; BuildError if one is still open."""
        sizes = {letter: size for letter, size in cls.sizes(node, shapes).items() if size is not None and size >= 0}
        if missing := {letter for tensor in cls.inputs.values() for letter in tensor.axes} - set(sizes):
            raise BuildError(f"node {node}: the sizes {', '.join(sorted(missing))} of {cls.name} are not known")
        return sizes

    def workspace(self) -> int:
        """Bytes of workspace that this size and every smaller one takes, on any GPU.

        An engine asks for it once, for the largest shapes of its profile, and then runs smaller ones, of which more
        parts may fit.
        """
        rows, width = self._partial()
        # The GPU may not be there when an engine is built, so the most parts of any GPU are assumed.
        rows = max(rows, min(MOST_SPLITS * rows, _most_rows(width)))
        return sum(aligned(size, _ALIGNMENT) for size in self._buffers(rows).values())

    def _limited(self, parts: int) -> int:
        """As many of ``parts`` as fit into `PARTIAL_BYTES`; at least one."""
        rows, width = self._partial()
        return max(1, min(parts, _most_rows(width) // max(rows, 1)))

    def _partial(self) -> tuple[int, int]:
        """Rows of the result of one part, and 4-byte values in each."""
        raise NotImplementedError

    def _buffers(self, rows: int) -> dict[str, int]:
        """Bytes of each intermediate array, with ``rows`` partial rows in all parts together."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pool(Operation):
    """``region_pool`` of one size: B images, K classes, N positions, C channels, and types of `FLOATS`."""

    name = "RegionPool"
    inputs: ClassVar[Mapping[str, Tensor]] = {"logits": Tensor("BKN", "L"), "features": Tensor("BNC", "T")}
    outputs: ClassVar[Mapping[str, Tensor]] = {"centres": Tensor("BKC", "T"), "log_counts": Tensor("BK", "fp32")}

    batch: int
    classes: int
    positions: int
    channels: int
    logits: str
    features: str

    @classmethod
    def of(cls, sizes: Mapping[str, int], types: Mapping[str, str]) -> Pool:
        """The operation of ``sizes`` and ``types`` by letter."""
        return cls(sizes["B"], sizes["K"], sizes["N"], sizes["C"], types["L"], types["T"])

    def _partial(self) -> tuple[int, int]:
        # Beside the sums of the channels: top, mass and count.
        return self.batch * min(self.classes, self._tile()), self.channels + 3

    def _tile(self) -> int:
        """Positions of a tile, and the most rows of a part."""
        return int(kernel_specs.pool(self.logits, self.features).constants["BLOCK_N"])

    def _buffers(self, rows: int) -> dict[str, int]:
        # Rows of sums are those of the classes, or fewer; all else is there for each class.
        values = cdiv(rows * self.classes, min(self.classes, self._tile()))
        partial = {"sums": 4 * rows * self.channels} | dict.fromkeys(("rows", "tops", "masses", "counts"), 4 * values)
        return dict.fromkeys(_POSITIONS, 4 * self.batch * self.positions) | partial

    def workspace(self) -> int:
        """Bytes of workspace that this size and every smaller one takes, on any GPU."""
        rows, width = self._partial()
        most = rows * cdiv(self.positions, self._tile())
        if self.classes <= self._tile():
            most = min(most, max(rows, _most_rows(width)))
        return sum(aligned(size, _ALIGNMENT) for size in self._buffers(most).values())

    def parts(self, multiprocessors: int) -> int:
        """The number of parts into which the positions of an image are cut."""
        tiles = cdiv(self.positions, self._tile())
        if self.classes > self._tile():
            return tiles
        most = self._limited(_POOL_BLOCKS * multiprocessors // self.batch)
        return cdiv(tiles, cdiv(tiles, most))

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
        pool, join = pool_kernels(self.logits, self.features)
        if pool.name not in kernels and f"pool_{self.features}" in kernels:
            outputs = {"centres": centres, "log_counts": log_counts}
            self._launch_earlier(kernels, stream, multiprocessors, logits, features, outputs, workspace)
            return
        parts, (rows, _) = self.parts(multiprocessors), self._partial()
        partial = _addresses(workspace, self._buffers(parts * rows))
        positions = {name: partial.pop(name) for name in _POSITIONS} | {"positions": self.positions}
        # All parts write their own rows, so that no atomics are needed and the result is the same in every run.
        partial |= {"batch": self.batch, "classes": self.classes, "channels": self.channels, "parts": parts}
        _launch(kernels, pool, stream, logits=logits, features=features, **positions, **partial)
        _launch(kernels, join, stream, **partial, centres=centres, log_counts=log_counts)

    def _launch_earlier(
        self,
        kernels: Launcher,
        stream: int,
        multiprocessors: int,
        logits: int,
        features: int,
        outputs: Mapping[str, int],
        workspace: int,
    ) -> None:
        """`launch` for bundles with the three kernels of earlier versions, whose engines have a workspace for those."""
        tile = kernels.constants(f"pool_{self.features}")
        tiles = self.batch * cdiv(self.classes, tile["BLOCK_K"]) * cdiv(self.channels, tile["BLOCK_C"])
        parts = splits(tiles, cdiv(self.positions, tile["BLOCK_N"]), _POOL_BLOCKS * multiprocessors)
        parts = max(1, min(parts, _most_rows(self.channels + 3) // (self.batch * self.classes)))
        rows, positions = 4 * parts * self.batch * self.classes, 4 * self.batch * self.positions
        sizes = {"sums": rows * self.channels} | dict.fromkeys(("tops", "masses", "counts"), rows)
        partial = _addresses(workspace, dict.fromkeys(("labels", "scores"), positions) | sizes)
        assigned = {name: partial.pop(name) for name in ("labels", "scores")} | {"positions": self.positions}
        size = {"batch": self.batch, "classes": self.classes}
        partial |= {"channels": self.channels, "splits": parts}
        kernels.launch(f"assign_{self.logits}", stream, logits=logits, **assigned, **size)
        kernels.launch(f"pool_{self.features}", stream, features=features, **assigned, **partial, **size)
        kernels.launch(f"pool_combine_{self.features}", stream, **partial, **outputs, **size)


@dataclass(frozen=True)
class Attention(Operation):
    """``attention`` of one size: B images, N queries, M keys, D channels of a type of `FLOATS`."""

    name = "ContextAttention"
    inputs: ClassVar[Mapping[str, Tensor]] = {
        "q": Tensor("BND", "T"), "k": Tensor("BMD", "T"), "v": Tensor("BMD", "T"), "bias": Tensor("BM", "fp32"),
    }  # fmt: skip
    outputs: ClassVar[Mapping[str, Tensor]] = {"out": Tensor("BND", "T")}
    attributes = ("scale",)

    batch: int
    queries: int
    keys: int
    width: int
    dtype: str

    @classmethod
    def of(cls, sizes: Mapping[str, int], types: Mapping[str, str]) -> Attention:
        """The operation of ``sizes`` and ``types`` by letter."""
        return cls(sizes["B"], sizes["N"], sizes["M"], sizes["D"], types["T"])

    def _partial(self) -> tuple[int, int]:
        # Beside the output of the part: its norm.
        return self.batch * self.queries, self.width + 1

    def _buffers(self, rows: int) -> dict[str, int]:
        return {"parts": 4 * rows * self.width, "norms": 4 * rows}

    def parts(self, kernels: Launcher, multiprocessors: int) -> int:
        """The number of parts into which the keys are cut."""
        return self.choose(kernels, multiprocessors)[1]

    def choose(self, kernels: Launcher, multiprocessors: int) -> tuple[KernelSpec, int]:
        """The fastest kernel by the estimate of `time_in_parts`, and the number of parts into which it cuts the keys.

        Kernels with tensor maps are preferred to those with pointers.
        """
        pointers, *maps = attention_pairs(self.dtype, self.width)
        choices = []
        for all_keys, part in [pair for pair in maps if pair[0].name in kernels] or [pointers]:
            tile = kernels.constants(all_keys.name)
            tiles, steps = self.batch * cdiv(self.queries, tile["BLOCK_Q"]), cdiv(self.keys, tile["BLOCK_K"])
            parts = self._limited(splits(tiles, steps, multiprocessors))
            step = tile["BLOCK_Q"] * tile["BLOCK_K"] / all_keys.rate
            time = step * time_in_parts(tiles, steps, multiprocessors, parts)
            choices.append((time, part if parts > 1 else all_keys, parts))
        _, kernel, parts = min(choices, key=lambda choice: choice[0])
        return kernel, parts

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
        kernel, parts = self.choose(kernels, multiprocessors)
        rows = self.batch * self.queries
        partial = _addresses(workspace, self._buffers(parts * rows))
        # The kernels take powers of 2: exp(x) = 2**(x * log2(e)), with the factor folded into the scale.
        arguments = {"q": q, "k": k, "v": v, "bias": bias, "norms": partial["norms"], "scale": scale * LOG2_E}
        arguments |= {"batch": self.batch, "queries": self.queries, "keys": self.keys, "splits": parts}
        if parts == 1:  # written at once; the norms' memory is passed but not used
            _launch(kernels, kernel, stream, **arguments, out=out)
            return
        _launch(kernels, kernel, stream, **arguments, out=partial["parts"])
        combine = kernel_specs.attention_combine(self.dtype, self.width)
        _launch(kernels, combine, stream, **partial, out=out, rows=rows, splits=parts)


OPERATIONS = (Pool, Attention)


def _addresses(start: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Addresses of arrays of ``sizes`` bytes, one after the other from ``start`` on."""
    ends = itertools.accumulate((aligned(size, _ALIGNMENT) for size in sizes.values()), initial=start)
    return dict(zip(sizes, ends, strict=False))  # the last end is where the workspace ends


def _most_rows(width: int) -> int:
    """The rows of ``width`` floats that fit into `PARTIAL_BYTES`."""
    return PARTIAL_BYTES // (4 * width)
