"""Hopper's instructions in the emulator: results against float64 at odd sizes, faults that are planted, counts."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ptx_bulk
import ptx_hopper
import ptx_memory
import pytest
import tensor_maps
from numpy.typing import NDArray
from ptx_arithmetic import from_bfloat16, to_bfloat16
from ptx_counts import _CountedBlock
from ptx_machine import Block
from ptx_memory import Fault, Memory
from ptx_program import Program

from isnet_trt.cuda.tensor_maps import SWIZZLES, Encoder, TensorMap
from tests.interpreter import NEEDED, ROOT

Array = NDArray[Any]
ERROR = 2e-6
"""Largest error over the largest result: sums are float32 of exact products, in another order."""
ROWS, COLUMNS, DEPTH = 101, 72, 200
PRODUCTS = {
    "by_rows": "fp16", "by_columns": "bf16", "two_groups": "fp16", "registers": "bf16", "narrow": "fp16",
    "tf32": "fp32", "tf32_registers": "fp32",
}  # fmt: skip
"""Kernel of hopper_kernels.py -> type of its factors."""


@dataclass
class Compiled:
    """A kernel, to be launched on tensors and tensor maps."""

    text: str
    shared: int
    tiles: list[Any]

    def tensor_map(self, number: int, address: int, shape: tuple[int, ...]) -> list[Any]:
        """The parameters of a tensor of 16-bit values as the runtime passes them."""
        box, swizzle = self.tiles[number]
        tensor = TensorMap(shape, tuple(box), {code: size for size, code in SWIZZLES.items()}[swizzle])
        first, *others = Encoder(tensor_maps.API).parameters(tensor, "fp16", address, {})
        return [bytes(first), *(np.frombuffer(bytes(one), f"u{len(bytes(one))}")[0] for one in others)]

    def launch(
        self,
        memory: Memory,
        grid: tuple[int, ...],
        values: list[Any],
        seed: int = 0,
        counts: Counter[str] | None = None,
    ) -> None:
        program = Program(self.text)
        values = [*values, *[np.uint64(0)] * (len(program.parameters) - len(values))]
        given = {name: value for (_, name, _), value in zip(program.parameters, values, strict=True)}
        kind: Any = Block if counts is None else lambda *arguments: _CountedBlock(counts, *arguments)
        with np.errstate(all="ignore"):
            for memory.block, place in enumerate(np.ndindex(*grid)):
                kind(program, memory, given, place, self.shared, random.Random(seed)).run()


class Kernels:
    def __init__(self, folder: Path, arch: int) -> None:
        command = [sys.executable, "-m", "tests.kernels.hopper_kernels", str(folder), str(arch)]
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
        self.folder = folder

    def __getitem__(self, name: str) -> Compiled:
        facts = json.loads((self.folder / f"{name}.json").read_text("utf-8"))
        return Compiled((self.folder / f"{name}.ptx").read_text("utf-8"), facts["shared"], facts["tiles"])


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("hopper"), 90)


@pytest.fixture(scope="module")
def blackwell(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("blackwell"), 120)


def factors(dtype: str, *shape: int) -> tuple[Array, bytes]:
    """Random numbers as a type stores them, in float64, and their bytes; float32 are those that tf32 has."""
    values = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    if dtype == "fp16":
        return values.astype(np.float16).astype(float), values.astype(np.float16).tobytes()
    if dtype == "bf16":
        return from_bfloat16(to_bfloat16(values)).astype(float), to_bfloat16(values).tobytes()
    cut = (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    return cut.astype(float), (cut.view(np.uint32) | np.uint32(0x1ABC)).tobytes()


def product_error(kernel: Compiled, name: str, counts: Counter[str] | None = None) -> float:
    """The error of out = a b, over the largest value."""
    from tests.kernels.hopper_kernels import PRODUCTS as FORMS

    (dtype, tile, flags), memory = FORMS[name], Memory()
    a_shape, b_shape = (ROWS, DEPTH), (DEPTH, COLUMNS)
    a, a_bytes = factors(dtype, *(a_shape[::-1] if "A_BY_COLUMNS" in flags else a_shape))
    b, b_bytes = factors(dtype, *(b_shape[::-1] if "B_BY_COLUMNS" in flags else b_shape))
    addresses = [memory.hold("a", a_bytes), memory.hold("b", b_bytes), memory.reserve("out", 4 * ROWS * COLUMNS)]
    sizes = [np.int32(size) for size in (ROWS, COLUMNS, DEPTH)]
    grid = (-(-ROWS // tile[0]), -(-COLUMNS // tile[1]), 1)
    kernel.launch(memory, grid, [*map(np.uint64, addresses), *sizes], counts=counts)
    expected = (a.T if "A_BY_COLUMNS" in flags else a) @ (b.T if "B_BY_COLUMNS" in flags else b)
    expected *= -1 if "NEGATED" in flags else 1
    found = memory.read(addresses[2]).view(np.float32).reshape(ROWS, COLUMNS)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.slow
@NEEDED
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_warpgroups(hopper: Kernels, name: str) -> None:
    kernel, counts = hopper[name], Counter[str]()
    assert "wgmma.mma_async" in kernel.text
    assert product_error(kernel, name, counts) < ERROR
    from tests.kernels.hopper_kernels import PRODUCTS as FORMS

    dtype, (bm, bn, bk), _ = FORMS[name]
    blocks = -(-ROWS // bm) * -(-COLUMNS // bn)
    steps = -(-DEPTH // bk) * bk * (4 if dtype == "fp32" else 2) // 32
    assert counts["matrix"] == blocks * steps * (bm // 16) * (bn // 8)


@pytest.mark.slow
@NEEDED
def test_all_swizzles_and_forms_are_among_the_products(hopper: Kernels) -> None:
    """Matrix descriptors of every swizzle, both orders of both factors, registers, and types."""
    seen, plain = set(), ptx_hopper.operand_addresses

    def noted(descriptor: int, extent: int, transposed: bool) -> Array:
        seen.add((descriptor >> 62, transposed))
        return plain(descriptor, extent, transposed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptx_hopper, "operand_addresses", noted)
        for name in PRODUCTS:
            product_error(hopper[name], name)
    assert {swizzle for swizzle, _ in seen} == {1, 2, 3}
    assert {transposed for _, transposed in seen} == {False, True}
    text = "".join(hopper[name].text for name in PRODUCTS)
    for kind in ("f16", "bf16", "tf32"):
        assert f"f32.{kind}.{kind} " in text


@pytest.mark.slow
@NEEDED
@pytest.mark.parametrize(("old", "new", "message"), [
    (r"fence\.proxy\.async[^;]*;", "", "without a fence.proxy.async"),
    (r"wgmma\.fence\.sync\.aligned;", "", "written after the last wgmma.fence"),
    (r"wgmma\.wait_group\.sync\.aligned 0;", "", "not waited for|still reads"),
])  # fmt: skip
def test_what_a_product_needs(hopper: Kernels, old: str, new: str, message: str) -> None:
    kernel = hopper["two_groups"]
    with pytest.raises(Fault, match=message):
        product_error(Compiled(re.sub(old, new, kernel.text), kernel.shared, []), "two_groups")


@pytest.mark.slow
@NEEDED
def test_a_wrong_layout_is_seen(hopper: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fragment whose rows are exchanged, and a swizzle that is another's."""
    with monkeypatch.context() as patch:
        patch.setattr(ptx_hopper.ptx, "GROUP", ptx_hopper.ptx.GROUP[::-1])
        assert product_error(hopper["registers"], "registers") > 0.1
    with monkeypatch.context() as patch:
        patch.setitem(ptx_hopper._CHUNKS, 1, 4)
        try:
            error = product_error(hopper["by_rows"], "by_rows")
        except Fault:
            error = 1.0
        assert error > 0.1


def specialised_error(kernel: Compiled, seed: int, counts: Counter[str] | None = None) -> float:
    (a, a_bytes), (b, b_bytes), memory = factors("fp16", ROWS, DEPTH), factors("fp16", DEPTH, 64), Memory()
    out = memory.reserve("out", 4 * ROWS * 64)
    maps = kernel.tensor_map(0, memory.hold("a", a_bytes), a.shape)
    maps += kernel.tensor_map(1, memory.hold("b", b_bytes), b.shape)
    values = [*maps, np.uint64(out), np.int32(ROWS), np.int32(DEPTH)]
    kernel.launch(memory, (-(-ROWS // 64), 1, 1), values, seed, counts)
    expected = a @ b
    return float(np.abs(memory.read(out).view(np.float32).reshape(ROWS, 64) - expected).max() / np.abs(expected).max())


@pytest.mark.slow
@NEEDED
def test_warps_that_run_different_code(hopper: Kernels) -> None:
    kernel = hopper["specialised"]
    assert {"brx.idx", "setmaxnreg.dec.sync.aligned.u32"} <= set(kernel.text.split())
    found = []
    for seed in range(3):
        counts = Counter[str]()
        assert specialised_error(kernel, seed, counts) < ERROR
        found.append(counts)
    assert found[0] == found[1] == found[2]  # in whatever order the warps run
    assert found[0]["matrix"] == 2 * 4 * 4 * 4 * 8  # blocks, tiles, products of each, warps, 8 columns each
    assert found[0]["global"] > 2 * (ROWS * DEPTH + DEPTH * 64) // 32


@pytest.mark.slow
@NEEDED
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"@%p\d+ mbarrier\.arrive\.shared[^;]*;", "", r"warps 6 wait for the mbarrier at 0x\w+ .lacking 1 arrivals"),
        (r"(expect_tx[^;]*), 16384", r"\1, 16416", r"warps 0, 1, 2, 3 wait for the mbarrier .*and 32 bytes"),
        (r"barrier\.sync \t1;\s*(ld\.shared)", r"\1", "reads of shared memory what nobody wrote"),
        (r"wgmma\.wait_group\.sync\.aligned 0;", "", "still reads"),
        (
            r"mbarrier\.try_wait\S* complete, \[%r\d+\], %r\d+;",
            "setp.eq.b32 complete, 0, 0;",
            "copied|expected",
        ),
    ],
)
def test_what_specialised_warps_need(hopper: Kernels, old: str, new: str, message: str) -> None:
    kernel = hopper["specialised"]
    text = re.sub(old, new, kernel.text)
    assert text != kernel.text
    with pytest.raises(Fault, match=message):
        specialised_error(Compiled(text, kernel.shared, kernel.tiles), 0)


@pytest.mark.slow
@NEEDED
@pytest.mark.parametrize("kernels", ["hopper", "blackwell"])
def test_copies_of_tiles(kernels: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three dimensions; a corner before the first column; rows and columns beyond the last, which are zero."""
    kernel = request.getfixturevalue(kernels)["shifted"]
    shape, by = (2, 37, 72), 5
    source, raw = factors("fp16", *shape)

    def copied() -> Array:
        memory = Memory()
        addresses = memory.hold("source", raw), memory.reserve("target", len(raw))
        maps = [kernel.tensor_map(number, address, shape) for number, address in enumerate(addresses)]
        kernel.launch(memory, (-(-shape[2] // 32), -(-shape[1] // 16), shape[0]), [*maps[0], *maps[1], np.int32(by)])
        return memory.read(addresses[1]).view(np.float16).reshape(shape)

    expected = np.zeros(shape)
    expected[:, : shape[1] - by, by:] = source[:, by:, : shape[2] - by]
    expected[:, :, np.arange(shape[2]) % 32 // 8 == 1] *= -1
    assert (copied() == expected).all()
    monkeypatch.setattr(ptx_bulk, "swizzled", lambda addresses, width: ptx_memory.swizzled(addresses, width // 2))
    assert not (copied() == expected).all()


WAITING = """
.visible .entry waiting(
	.param .u32 waiting_param_0
)
.reqntid 64
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<3>;
	mov.u32 	%r1, %tid.x;
	setp.eq.b32 	%p1, %r1, 0;
	@%p1 mbarrier.init.shared::cta.b64 [global_smem], 2;
	bar.sync 	0;
	setp.lt.u32 	%p2, %r1, 32;
	@%p2 bra 	$L_second;
	@!%p1 mbarrier.arrive.shared::cta.b64 _, [global_smem], 0;
	bar.sync 	3, 64;
	ret;
$L_second:
{
	.reg .pred complete;
	waitLoop:
	mbarrier.try_wait.parity.shared::cta.b64 complete, [global_smem], 0;
	@!complete bra.uni waitLoop;
}
	ret;
}
"""


def test_a_deadlock_names_the_warps_and_what_they_wait_for() -> None:
    with pytest.raises(Fault, match="deadlock") as raised:
        Compiled(WAITING, 64, []).launch(Memory(), (1,) * 3, [np.int32(0)])
    assert "warps 1 wait for barrier 3, at which 32 of 64 threads are" in str(raised.value)
    assert "warps 0 wait for the mbarrier at 0x0 (lacking 2 arrivals and 0 bytes)" in str(raised.value)
    passing = WAITING.replace("global_smem], 2;", "global_smem], 32;").replace(
        "_, [global_smem], 0", "_, [global_smem]"
    )
    Compiled(passing.replace("bar.sync \t3, 64;", ""), 64, []).launch(Memory(), (1,) * 3, [np.int32(0)])


def test_chunks_of_an_operand_in_shared_memory() -> None:
    """Every chunk once, and those of 8 rows of a column in 8 different groups of banks."""
    descriptor = (0x2000 >> 4) | (1024 >> 4) << 32 | 1 << 62
    rows = ptx_hopper.operand_addresses(descriptor, 64, False)
    assert len(np.unique(rows)) == rows.size == 128
    assert {*(rows[:8, 0] % 128 // 16)} == {*range(8)}
    assert (rows[1, 0], rows[8, 1]) == (0x2000 + 128 + 16, 0x2000 + 1024 + 16)
    wide = ptx_hopper.operand_addresses(descriptor | (2048 >> 4) << 16, 128, True)
    assert (wide[0, 7], wide[0, 8], wide[9, 0]) == (0x2000 + 112, 0x2000 + 2048, 0x2000 + 1024 + 128 + 16)
