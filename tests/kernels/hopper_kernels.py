"""Kernels that make Triton write each of Hopper's instructions, for tests of the emulator.

    python -m tests.kernels.hopper_kernels FOLDER ARCH

compiles them to ``FOLDER/NAME.ptx``, and to ``NAME.json`` the bytes of shared memory, the tiles and swizzles.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@triton.jit
def product(
    a: tl.tensor, b: tl.tensor, out: tl.tensor, rows: tl.tensor, columns: tl.tensor, depth: tl.tensor,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, A_BY_COLUMNS: tl.constexpr, B_BY_COLUMNS: tl.constexpr,
    NEGATED: tl.constexpr,
) -> None:  # fmt: skip
    """out = a b (``NEGATED``: −a b, whose factor a comes in registers), each stored by rows or by columns."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, depth, BK):
        k = start + tl.arange(0, BK)
        left_at = k[None, :] * rows + row[:, None] if A_BY_COLUMNS else row[:, None] * depth + k[None, :]
        right_at = column[None, :] * depth + k[:, None] if B_BY_COLUMNS else k[:, None] * columns + column[None, :]
        left = tl.load(a + left_at, (row[:, None] < rows) & (k[None, :] < depth), 0.0)
        right = tl.load(b + right_at, (column[None, :] < columns) & (k[:, None] < depth), 0.0)
        if NEGATED:
            left = -left
        total = tl.dot(left, right, total)
    at = row[:, None] * columns + column[None, :]
    tl.store(out + at, total, (row[:, None] < rows) & (column[None, :] < columns))


@triton.jit
def shifted(source: tl.tensor, target: tl.tensor, by: tl.tensor, BM: tl.constexpr, BN: tl.constexpr) -> None:
    """Copy (images, rows, columns) from ``by`` further down and to the left, zero beyond the edges.

    A quarter of a tile's columns is negated: an error that exchanges columns on the way in and on the way out shows.
    """
    image, row, column = tl.program_id(2), tl.program_id(1) * BM, tl.program_id(0) * BN
    tile = source.load([image, row + by, column - by])
    negated = (tl.arange(0, BN) // 8 == 1)[None, None, :]
    target.store([image, row, column], tl.where(negated, -tile, tile))


@gluon.jit
def _loads(
    a: tl.tensor,
    b: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    empty: tl.tensor,
    full: tl.tensor,
    depth: tl.tensor,
    BK: gl.constexpr,
) -> None:
    for k in range(0, depth, BK):
        step = k // BK
        at = step % 2
        mbarrier.wait(empty.index(at), (step // 2 & 1) ^ 1)
        mbarrier.expect(full.index(at), a.block_type.nbytes + b.block_type.nbytes)
        tma.async_copy_global_to_shared(a, [gl.program_id(0) * a.block_shape[0], k], full.index(at), left.index(at))
        tma.async_copy_global_to_shared(b, [k, 0], full.index(at), right.index(at))


@gluon.jit
def _products(
    out: tl.tensor, left: tl.tensor, right: tl.tensor, empty: tl.tensor, full: tl.tensor,
    rows: tl.tensor, depth: tl.tensor, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
) -> None:  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16])
    total = gl.zeros((BM, BN), gl.float32, layout)
    for k in range(0, depth, BK):
        step = k // BK
        at = step % 2
        mbarrier.wait(full.index(at), step // 2 & 1)
        total = warpgroup_mma(left.index(at), right.index(at), total, is_async=True)
        total = warpgroup_mma_wait(0, [total])
        mbarrier.arrive(empty.index(at), count=1)
    row = gl.program_id(0) * BM + gl.arange(0, BM, gl.SliceLayout(1, layout))
    column = gl.arange(0, BN, gl.SliceLayout(0, layout))
    gl.store(out + row[:, None] * BN + column[None, :], total, (row < rows)[:, None])


@gluon.jit
def specialised(
    a: tl.tensor,
    b: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
    BM: gl.constexpr,
    BN: gl.constexpr,
    BK: gl.constexpr,
) -> None:
    """out = a b: one warp loads tiles by TMA, four multiply, and mbarriers pass two buffers to and fro."""
    left = gl.allocate_shared_memory(a.dtype, [2] + a.block_type.shape, a.layout)  # noqa: RUF005
    right = gl.allocate_shared_memory(b.dtype, [2] + b.block_type.shape, b.layout)  # noqa: RUF005
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for at in gl.static_range(2):
        mbarrier.init(empty.index(at), count=1)
        mbarrier.init(full.index(at), count=1)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_products, (out, left, right, empty, full, rows, depth, BM, BN, BK)),
            (_loads, (a, b, left, right, empty, full, depth, BK)),
        ],
        [1],
        [24],
    )


FLAGS = ("A_BY_COLUMNS", "B_BY_COLUMNS", "NEGATED")
PRODUCTS = {
    # name: type, tile, and which of `FLAGS` are set
    "by_rows": ("fp16", (64, 32, 64), ()),
    "by_columns": ("bf16", (64, 64, 32), FLAGS[:2]),
    "two_groups": ("fp16", (128, 128, 16), FLAGS[1:2]),
    "registers": ("bf16", (64, 16, 64), FLAGS[2:]),
    "narrow": ("fp16", (64, 16, 16), FLAGS[:1]),
    "tf32": ("fp32", (64, 32, 32), FLAGS[1:2]),
    "tf32_registers": ("fp32", (64, 32, 32), FLAGS[1:]),
}
"""Kernels of `product`: between them all swizzles, both orders of both factors, and a in registers."""


def _compiled(source: Any, arch: int, warps: int) -> Any:
    from triton.backends.compiler import GPUTarget

    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})


def _source(kind: Any, function: Any, signature: dict[str, str], constants: dict[str, Any]) -> Any:
    names = function.arg_names
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name, of in signature.items() if of[0] == "*"}
    values = {(names.index(name),): value for name, value in constants.items()}
    return kind(function, {**signature, **dict.fromkeys(constants, "constexpr")}, values, aligned)


def sources(arch: int) -> dict[str, tuple[Any, int]]:
    """Name -> what to compile, and the warps."""
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    made = {}
    for name, (dtype, tile, flags) in PRODUCTS.items():
        signature = {"a": f"*{dtype}", "b": f"*{dtype}", "out": "*fp32"}
        signature |= dict.fromkeys(("rows", "columns", "depth"), "i32")
        constants = dict(zip(("BM", "BN", "BK"), tile, strict=True)) | {flag: flag in flags for flag in FLAGS}
        made[name] = _source(ASTSource, product, signature, constants), tile[0] // 16
    tiles = dict.fromkeys(("source", "target"), "tensordesc<fp16[1, 16, 32]>")
    made["shifted"] = _source(ASTSource, shifted, {**tiles, "by": "i32"}, {"BM": 16, "BN": 32}), 4
    if arch == 90:
        layout = gl.NVMMASharedLayout.get_default_for([64, 64], gl.float16)
        tiles = dict.fromkeys("ab", f"tensordesc<fp16[64, 64],{layout!r}>")
        signature = {**tiles, "out": "*fp32", "rows": "i32", "depth": "i32"}
        made["specialised"] = _source(GluonASTSource, specialised, signature, dict.fromkeys(("BM", "BN", "BK"), 64)), 4
    return made


def main() -> None:
    folder, arch = Path(sys.argv[1]), int(sys.argv[2])
    for name, (source, warps) in sources(arch).items():
        binary = _compiled(source, arch, warps)
        (folder / f"{name}.ptx").write_text(binary.asm["ptx"], "utf-8")
        tiles = [(one["block_size"], one["swizzle"]) for one in binary.metadata.tensordesc_meta or ()]
        (folder / f"{name}.json").write_text(json.dumps({"shared": binary.metadata.shared, "tiles": tiles}), "utf-8")


if __name__ == "__main__":
    main()
