"""Every kernel that a bundle may hold: its name, arguments, constants and launch grid, declared once, without Triton.

The planner and the context operations check their launches against these declarations, `isnet_trt.kernels.compile`
compiles them, `isnet_trt.kernels.launch.run` runs them through Triton, and launch.json states them.

Types of arguments are names of `isnet_trt.cuda.element_types`; ``*fp16`` is a device pointer to float16. ``dtype`` is
one of its `FLOATS`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from isnet_trt.cuda.architectures import KERNEL_TARGETS, PORTABLE, AttentionTile
from isnet_trt.cuda.element_types import ELEMENT_TYPES, FLOATS
from isnet_trt.cuda.launch_grid import Grid, blocks, cdiv
from isnet_trt.cuda.tensor_maps import TensorMap
from isnet_trt.merging.merge import label_type

WIDTH = 256
"""Channels of the attention's head in the published models."""
WIDTHS = (32, WIDTH)
"""Widths that there are kernels for: the demo's and the published models'."""
LOG2_E = math.log2(math.e)
ALIGNMENT = 16
"""Kernels are compiled for pointers that are multiples of this, but for those named in ``unaligned``."""
MOST_CLASSES = 4096
"""The most classes that kernels are tried for; none of them has a limit of its own below that of uint16 labels."""


@dataclass(frozen=True)
class KernelInterface:
    """How a kernel is called.

    Attributes:
        name: unique among all, such as ``attention_fp16``.
        arguments: name -> type in the function's order, such as ``*fp16`` (device pointer), ``i32``, ``fp32``.
        constants: compile-time arguments such as the tile, which follow the others.
        grid: axes x, y and z in terms of integer arguments; see `isnet_trt.cuda.launch_grid.Axis`.
        unaligned: pointers that may have any address; all others must be multiples of `ALIGNMENT`.
        maps: pointers that are passed as tensor maps.
    """

    name: str
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    grid: Grid
    unaligned: tuple[str, ...] = field(default=(), kw_only=True)
    maps: Mapping[str, TensorMap] = field(default_factory=dict, kw_only=True)

    @property
    def pointers(self) -> frozenset[str]:
        """Names of the arguments that are pointers."""
        return frozenset(name for name, kind in self.arguments.items() if kind.startswith("*"))

    def check(self, passed: Iterable[str]) -> None:
        """Raise TypeError if ``passed`` are not the names of all arguments, in whatever order."""
        if wrong := sorted(set(self.arguments) ^ set(passed)):
            names = ", ".join(self.arguments)
            raise TypeError(f"kernel {self.name} takes {names}; missing or unknown: {', '.join(wrong)}")

    def blocks(self, arguments: Mapping[str, Any]) -> tuple[int, int, int]:
        """The number of blocks (x, y, z) for integer ``arguments``."""
        return blocks(self.grid, arguments)


@dataclass(frozen=True)
class KernelSpec(KernelInterface):
    """One variant of a kernel, to be compiled.

    Attributes:
        function: module and name of the Triton function below `isnet_trt.kernels`.
        num_warps: warps per block; a block has 32 * num_warps threads.
        num_stages: depth of the software pipeline.
        earlier: name of the kernel of earlier bundles that does the same work, launched where a bundle lacks this one;
            for a kernel with ``maps`` that with pointers, launched where the driver makes no maps.
        later: arguments that ``earlier`` does not take.
        rate: speed relative to other kernels for the same work.
    """

    function: str
    num_warps: int = 4
    num_stages: int = 2
    earlier: str = field(default="", kw_only=True)
    later: tuple[str, ...] = field(default=(), kw_only=True)
    rate: int = field(default=1, kw_only=True)

    def available(self, kernels: Container[object]) -> str:
        """The name under which ``kernels`` hold this one or that of earlier bundles; "" if they have neither."""
        return next((name for name in (self.name, self.earlier) if name and name in kernels), "")


def _i32(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def label_element(classes: int) -> str:
    """The element type of labels: u8, or u16 above 256 classes."""
    name = np.dtype(label_type(classes)).name
    return next(element.name for element in ELEMENT_TYPES.values() if element.numpy == name)


# Around the network

_ROW = 128
"""Pixels of a block."""


def resize() -> KernelSpec:
    """The source picture to the test size."""
    arguments = {"source": "*u8", "picture": "*u8", "pitch": "i64"}
    arguments |= _i32("pixel", "bgr", "source_height", "source_width", "height", "width")
    grid = ((("width", _ROW),), (("height", 1),), ())
    return KernelSpec("resize", arguments, {"BLOCK": _ROW}, grid, "gather_windows.resize", unaligned=("source",))


def yuv_resize() -> KernelSpec:
    """The planes of a YUV source picture to RGB of the test size, in place of `resize`."""
    arguments = {"source": "*u8", "picture": "*u8", "pitch": "i64", "u": "i64", "v": "i64", "chroma_pitch": "i64"}
    arguments |= _i32("chroma_step", "offset", "yy", "rv", "gu", "gv", "bu")
    arguments |= _i32("source_height", "source_width", "height", "width")
    grid = ((("width", _ROW),), (("height", 1),), ())
    return KernelSpec("yuv_resize", arguments, {"BLOCK": _ROW}, grid, "yuv_resize.yuv_resize", unaligned=("source",))


def gather(dtype: str) -> KernelSpec:
    """Windows of the picture as a batch of ``dtype``."""
    arguments = {"picture": "*u8", "table": "*fp32", "windows": "*i32", "steps": "*fp32", "out": f"*{dtype}"}
    arguments |= {"pitch": "i64"} | _i32("pixel", "bgr", "picture_height", "picture_width", "batch", "height", "width")
    grid = ((("width", _ROW),), (("height", 1),), (("batch", 1),))
    constants, function = {"BLOCK": _ROW}, "gather_windows.gather"
    return KernelSpec(f"gather_{dtype}", arguments, constants, grid, function, unaligned=("picture",))


def gather_padded(dtype: str) -> KernelSpec:
    """`gather` for networks whose inputs are padded."""
    spec = gather(dtype)
    arguments = {**spec.arguments, **_i32("window_height", "window_width")}
    return replace(spec, name=f"gather_padded_{dtype}", arguments=arguments, function="gather_windows.gather_padded")


def finite(dtype: str) -> KernelSpec:
    """The search for NaN and infinity among values of ``dtype``."""
    arguments = {"values": f"*{dtype}", "flag": "*i32", "at": "i32", "count": "i64"}
    block = 4096
    return KernelSpec(f"finite_{dtype}", arguments, {"BLOCK": block}, ((("count", block),), (), ()), "finite.finite", 8)


_PIXELS = 64
"""Pixels of a block, one a thread, in the kernels that keep a pixel's scores in the registers of its thread."""
REGISTER_CLASSES, ACCUMULATE_TILE = 32, 4
"""The most classes of which `accumulate` keeps all scores of a pixel in registers; more come in tiles of so many."""
_TWO_ROWS = 20
"""The most classes of which it keeps those of two rows."""
_BUSY_BLOCKS = 1024
"""Blocks of `_PIXELS` threads that keep a large GPU busy: 4 warps for each scheduler of 128 multiprocessors."""
ROWS = (8, 4, 1)
"""Output rows of a thread in `upsample_argmax` and `finish`: see `rows_per_thread`."""
_FINISH_TILE = {8: 4, 4: 16, 1: 24}
"""Rows of a thread of `finish` -> the most classes that it sums at a time."""


def accumulate(dtype: str, classes: int) -> KernelSpec:
    """The sum of windows of logits of ``dtype``, for ``classes`` classes."""
    arguments = {"logits": f"*{dtype}", "windows": "*i32", "swap": "*i32", "volume": "*fp32"}
    arguments |= _i32("classes", "coarse_height", "coarse_width", "window_height", "window_width")
    arguments |= {"step_y": "fp32", "step_x": "fp32"}
    arguments |= _i32("plain", "count", "first_row", "rows", "width", "softmax")
    # Earlier bundles have it for the next of 32, 64, 128, ... classes.
    earlier = f"accumulate_{dtype}_{max(32, 1 << (classes - 1).bit_length())}"
    name, function, parts = f"accumulate_tiles_{dtype}", "accumulate.accumulate_tiles", _i32("parts")
    constants, lines = {"TILE": ACCUMULATE_TILE}, 2
    if classes <= REGISTER_CLASSES:
        name, function, parts = f"accumulate_{dtype}_k{classes}", "accumulate.accumulate", {}
        constants, lines = {"CLASSES": classes}, 2 if classes <= _TWO_ROWS else 1
    constants |= {"ROWS": lines, "BLOCK": _PIXELS}
    grid: Grid = ((("width", _PIXELS),), (("rows", lines),), tuple((part, 1) for part in parts))
    return KernelSpec(
        name, arguments | parts, constants, grid, function, _PIXELS // 32, earlier=earlier, later=tuple(parts)
    )


def rows_per_thread(step: float) -> int:
    """The most output rows that a thread takes where they are ``step`` input rows apart.

    All of them must lie between three input rows. The margin is above the rounding of positions in float32.
    """
    return next(rows for rows in ROWS if (rows - 1) * step < 0.999)


def class_parts(spec: KernelSpec, rows: int, width: int, classes: int) -> int:
    """Into how many parts `accumulate_tiles` cuts the classes, so that small volumes keep a GPU busy too."""
    pixels = math.prod(spec.blocks({"rows": rows, "width": width, "parts": 1}))
    return min(cdiv(_BUSY_BLOCKS, pixels), cdiv(classes, ACCUMULATE_TILE))


def finish(dtype: str, classes: int, rows: int = 1) -> KernelSpec:
    """Labels of up to ``classes`` classes from volumes of ``dtype``, ``rows`` of them a thread."""
    labels = label_element(classes)
    arguments = {"volumes": f"*{dtype}", "offsets": "*i64", "sizes": "*i32", "steps": "*fp32", "labels": f"*{labels}"}
    arguments |= {"pitch": "i64", "passes": "fp32"} | _i32("count", "classes", "first_row", "rows", "width")
    # Tiles of one size: scores of classes beyond the last are computed for nothing.
    tile = cdiv(classes, cdiv(classes, _FINISH_TILE[rows]))
    return _labels(f"finish_{dtype}_{labels}", arguments, "finish.finish", tile, rows, ("rows", rows))


def threshold(dtype: str, rows: int = 1) -> KernelSpec:
    """Labels 0 and 1 from volumes of one class of ``dtype``, ``rows`` of them a thread."""
    arguments = {"volumes": f"*{dtype}", "offsets": "*i64", "sizes": "*i32", "steps": "*fp32", "labels": "*u8"}
    arguments |= {"pitch": "i64", "passes": "fp32", "limit": "fp32"} | _i32("count", "first_row", "rows", "width")
    constants, grid = {"ROWS": rows, "BLOCK": _PIXELS}, ((("width", _PIXELS),), (("rows", rows),), ())
    name, earlier = (f"threshold_{dtype}_rows{count}" for count in (rows, 1))
    return KernelSpec(
        name, arguments, constants, grid, "finish.threshold", _PIXELS // 32, unaligned=("labels",), earlier=earlier
    )


def upsample_argmax(dtype: str, classes: int, rows: int = 1) -> KernelSpec:
    """Labels of up to ``classes`` classes from the logits of one whole pass, ``rows`` of them a thread."""
    labels = label_element(classes)
    arguments = {"logits": f"*{dtype}", "labels": f"*{labels}", "pitch": "i64"}
    arguments |= _i32("classes", "coarse_height", "coarse_width") | {"step_y": "fp32", "step_x": "fp32"}
    arguments |= _i32("height", "width")
    name, function = f"upsample_argmax_{dtype}_{labels}", "finish.upsample_argmax"
    return _labels(name, arguments, function, 4, rows, ("height", rows), "logits")


def _labels(
    name: str, arguments: dict[str, str], function: str, tile: int, rows: int, axis: tuple[str, int], *unaligned: str
) -> KernelSpec:
    """A kernel that writes labels; the variant of one row has the name and the arguments of earlier bundles' kernel."""
    constants, grid = {"TILE": tile, "ROWS": rows, "BLOCK": _PIXELS}, ((("width", _PIXELS),), (axis,), ())
    return KernelSpec(
        name if rows == 1 else f"{name}_rows{rows}", arguments, constants, grid, function, _PIXELS // 32,
        unaligned=("labels", *unaligned), earlier=name,
    )  # fmt: skip


# The context operations

_PARTS = {"sums": "*fp32", "rows": "*i32", "tops": "*fp32", "masses": "*fp32", "counts": "*i32"}
"""What `pool` writes for each part, and `pool_join` reads."""


def pool(logits: str, features: str) -> KernelSpec:
    """Sums of features per class over parts of the positions, whose classes come from ``logits``."""
    arguments = {"logits": f"*{logits}", "features": f"*{features}", "labels": "*i32"}
    arguments |= (
        {"scores": "*fp32", "weights": "*fp32"} | _PARTS | _i32("batch", "classes", "positions", "channels", "parts")
    )
    tile, channels, stages = _pool_tile(features)
    constants = {"BLOCK_K": 32, "BLOCK_C": channels, "BLOCK_N": tile, "UPCAST": False}
    grid = ((("parts", 1),), (("batch", 1),), ())
    return KernelSpec(f"pool_{logits}_{features}", arguments, constants, grid, "region_pool.pool", 4, stages)


def _pool_tile(dtype: str) -> tuple[int, int, int]:
    """Positions and channels that `pool` takes at once, and the stages of its software pipeline."""
    # float32 products are exact and without matrix units: a smaller tile keeps them in registers.
    return (16, 32, 2) if dtype == "fp32" else (32, 256, 3)


def pool_join(dtype: str) -> KernelSpec:
    """The parts of `pool` joined into centres of ``dtype``."""
    arguments = _PARTS | {"centres": f"*{dtype}", "log_counts": "*fp32"}
    arguments |= _i32("batch", "classes", "channels", "parts")
    constants = {"BLOCK_C": 128, "TILES": 2, "BLOCK_P": 32, "BLOCK_N": _pool_tile(dtype)[0]}
    grid = ((("batch", 1), ("classes", 1)), (("channels", 256),), ())
    return KernelSpec(f"pool_join_{dtype}", arguments, constants, grid, "region_pool.join")


def attention(dtype: str, width: int = WIDTH, partial: bool = False, arch: int = PORTABLE) -> KernelSpec:
    """Attention over all keys, or with ``partial`` over parts of them; the tile is that of sm_``arch``.

    ``scale`` is passed times `LOG2_E`: the kernel's exponentials have base 2.
    """
    return _attention(dtype, width, partial, attention_tile(dtype, arch))


def attention_by_maps(dtype: str, width: int, partial: bool, tile: AttentionTile) -> KernelSpec:
    """`attention` that reads queries, keys and values through tensor maps."""
    plain = _attention(dtype, width, partial, tile)
    rows = {"q": ("queries", tile.queries), "k": ("keys", tile.keys), "v": ("keys", tile.keys)}
    maps = {name: TensorMap(("batch", size, width), (1, block, width)) for name, (size, block) in rows.items()}
    form, function, constants = "map", plain.function, {**plain.constants, "MAPS": True}
    if tile.specialised:
        form, function = "specialised", "attention_specialised.attention"
        constants = {name: plain.constants[name] for name in ("BLOCK_Q", "BLOCK_K", "WIDTH", "PARTIAL")}
        constants |= {"STAGES": tile.stages}
    name = plain.name.replace(dtype, f"{form}{tile.queries}_{dtype}")
    return replace(
        plain, name=name, constants=constants, function=function, maps=maps, earlier=plain.name, rate=tile.rate
    )


MAP_TILES = tuple(dict.fromkeys(tile for target in KERNEL_TARGETS.values() for tile in target.map_tiles))
TRIAL_TILES = tuple(dict.fromkeys(tile for target in KERNEL_TARGETS.values() for tile in target.trial_tiles))
"""Those of any architecture."""


def _attention(dtype: str, width: int, partial: bool, tile: AttentionTile) -> KernelSpec:
    arguments = dict.fromkeys(("q", "k", "v"), f"*{dtype}") | {"bias": "*fp32"}
    arguments |= {"out": "*fp32" if partial else f"*{dtype}", "norms": "*fp32", "scale": "fp32"}
    arguments |= _i32("batch", "queries", "keys", "splits")
    constants = {"BLOCK_Q": tile.queries, "BLOCK_K": tile.keys, "WIDTH": width, "PARTIAL": partial, "UPCAST": False}
    constants |= {"MAPS": False}
    grid = ((("queries", tile.queries),), (("batch", 1),), (("splits", 1),))
    name = f"attention_{'part_' if partial else ''}{_sized(dtype, width)}"
    return KernelSpec(name, arguments, constants, grid, "attention.attention", tile.warps, tile.stages)


def attention_tile(dtype: str, arch: int) -> AttentionTile:
    """The tile for ``dtype`` on sm_``arch``. float32 is for comparison with the reference, not for speed."""
    return AttentionTile(16, 16, 4, 1) if dtype == "fp32" else KERNEL_TARGETS[arch].tile


def attention_combine(dtype: str, width: int = WIDTH) -> KernelSpec:
    """The parts of `attention` joined into a result of ``dtype``."""
    arguments = {"parts": "*fp32", "norms": "*fp32", "out": f"*{dtype}", "rows": "i32", "splits": "i32"}
    name, constants = f"attention_combine_{_sized(dtype, width)}", {"BLOCK": 4, "WIDTH": width}
    return KernelSpec(name, arguments, constants, ((("rows", 4),), (), ()), "attention.combine")


def _sized(dtype: str, width: int) -> str:
    return dtype if width == WIDTH else f"{dtype}_w{width}"


# All of them


def bundle_kernels(
    arch: int,
    dtypes: Iterable[str],
    classes: int,
    width: int = WIDTH,
    context: Collection[str] | None = None,
    padded: bool = False,
    trials: bool = False,
    logits: str | None = None,
) -> Iterator[KernelSpec]:
    """The kernels for sm_``arch``, engines of ``dtypes``, ``classes`` classes and an attention of ``width`` channels.

    ``context`` names the kernels of the context operations to include, of any type; None: those of ``dtypes``, and of
    float32 logits beside them. ``logits`` is the type of the logits that the engine gives; None: that of ``dtypes``.
    With ``padded`` there are those of networks whose inputs are padded, with ``trials`` those that no bundle has.
    """
    dtypes = tuple(dict.fromkeys(dtypes))
    yield from (resize(), yuv_resize())
    for dtype in dtypes:
        yield from (gather(dtype), gather_padded(dtype)) if padded else (gather(dtype),)
    outputs = dtypes if logits is None else (logits,)
    for dtype in outputs:
        yield from (accumulate(dtype, classes), finite(dtype))
        if classes > 1:
            yield from (upsample_argmax(dtype, classes, rows) for rows in ROWS)
    # `accumulate` writes float32 volumes whatever the engine's type, so `finish` is always needed for float32.
    for dtype in dict.fromkeys(("fp32", *outputs)):
        yield from (finish(dtype, classes, rows) if classes > 1 else threshold(dtype, rows) for rows in ROWS)
    for dtype in dtypes if context is None else FLOATS:
        first = (dtype, "fp32") if context is None else FLOATS
        specs = _context_kernels(arch, dtype, width, first, trials)
        yield from (spec for spec in specs if context is None or spec.name in context)


YUV_KERNEL = yuv_resize().name
"""Launched for YUV images only; bundles from before there was one lack it."""


def needed_kernels(classes: int, padded: bool = False, logits: str = "fp32") -> tuple[KernelSpec, ...]:
    """The kernels that plans for ``classes`` classes and type ``logits`` may launch, but for that of YUV images."""
    specs = bundle_kernels(PORTABLE, ["fp32"], classes, context=(), padded=padded, logits=logits)
    return tuple(spec for spec in specs if spec.name != YUV_KERNEL)


def _context_kernels(arch: int, dtype: str, width: int, logits: Iterable[str], trials: bool) -> Iterator[KernelSpec]:
    """Those of the context operations, for inputs of one type, with logits of other types."""
    yield from (pool(kind, dtype) for kind in dict.fromkeys(logits))
    yield pool_join(dtype)
    target = KERNEL_TARGETS[arch]
    tiles = (*target.map_tiles, *(target.trial_tiles if trials else ())) if dtype != "fp32" else ()
    for partial in (False, True):
        yield attention(dtype, width, partial, arch)
        yield from (attention_by_maps(dtype, width, partial, tile) for tile in tiles)
    yield attention_combine(dtype, width)
