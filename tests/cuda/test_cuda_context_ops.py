"""Workspaces of the context operations, and the graphs that they refuse, with the messages.

What they compute: tests/kernels/cases.py, cases without `parts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from isnet_trt.cuda import kernel_specs
from isnet_trt.cuda.context_ops import PARTIAL_BYTES, Attention, Operation, Pool
from isnet_trt.cuda.element_types import FLOATS
from isnet_trt.cuda.kernel_specs import bundle_kernels
from isnet_trt.cuda.launch_grid import aligned, cdiv
from isnet_trt.errors import BuildError
from isnet_trt.export import functions

TILES: dict[str, Any] = {"BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_C": 64, "BLOCK_N": 64}
SIZES = [(1, 5504), (1, 5), (8, 8192), (3, 1234), (1, 14161)]


class Recorder:
    """Kernels of sm_80, or those of the names ``only``, that note what they were given."""

    def __init__(self, *only: str) -> None:
        self.only = only
        self.launches: list[tuple[str, int, dict[str, int | float]]] = []

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        self.launches.append((name, stream, arguments))

    def constants(self, name: str) -> dict[str, Any]:
        return TILES

    def __contains__(self, name: object) -> bool:
        return name in self.only if self.only else "_map" not in str(name)


class Hopper(Recorder):
    """Those of sm_90."""

    specs: ClassVar = {spec.name: spec for spec in bundle_kernels(90, FLOATS, 19)}

    def constants(self, name: str) -> dict[str, Any]:
        return dict(self.specs[name].constants)

    def __contains__(self, name: object) -> bool:
        return name in self.specs


@pytest.mark.parametrize(
    ("sizes", "multiprocessors", "expected"),
    [
        ((8, 8192, 8192), 132, ("attention_map128_fp16", 1)),
        ((1, 5504, 5504), 132, ("attention_part_map128_fp16", 3)),
        ((1, 5504, 150), 132, ("attention_map64_fp16", 1)),
        ((1, 512, 8192), 132, ("attention_part_map64_fp16", 16)),
        ((8, 8192, 19), 132, ("attention_map128_fp16", 1)),
    ],
)
def test_the_tile_follows_from_the_sizes(
    sizes: tuple[int, int, int], multiprocessors: int, expected: tuple[str, int]
) -> None:
    kernel, parts = Attention(*sizes, 256, "fp16").choose(Hopper(), multiprocessors)
    assert (kernel.name, parts) == expected
    kernel, parts = Attention(*sizes, 256, "fp32").choose(Hopper(), multiprocessors)
    assert "map" not in kernel.name  # float32 has none


def end(arguments: dict[str, int | float], sizes: dict[str, int]) -> int:
    """The first address behind the workspace's last block."""
    return max(int(arguments[name]) + size for name, size in sizes.items())


@pytest.mark.parametrize("recorder", [Recorder, Hopper])
@pytest.mark.parametrize("multiprocessors", [1, 46, 132, 188])
@pytest.mark.parametrize(("batch", "positions"), SIZES)
def test_attention_stays_in_its_workspace(
    batch: int, positions: int, multiprocessors: int, recorder: type[Recorder]
) -> None:
    size, kernels = Attention(batch, positions, positions, 256, "fp16"), recorder()
    addresses = {"q": 1, "k": 2, "v": 3, "bias": 4, "out": 5}
    size.launch(kernels, 77, multiprocessors, 0.5, **addresses, workspace=4096)
    name, stream, arguments = kernels.launches[0]
    kernel, parts = size.choose(kernels, multiprocessors)
    rows = parts * batch * positions
    assert stream == 77
    assert arguments["splits"] == parts
    assert arguments["scale"] == pytest.approx(0.5 * 1.4426950408889634)
    assert name == kernel.name
    assert ("part" in name, "map" in name) == (parts > 1, recorder is Hopper)
    assert (
        end(arguments, {"norms": 4 * rows} | ({"out": 4 * 256 * rows} if parts > 1 else {})) <= 4096 + size.workspace()
    )
    assert [launch[0] for launch in kernels.launches[1:]] == ([] if parts == 1 else ["attention_combine_fp16"])
    assert kernels.launches[-1][2]["out"] == 5


POOLED = {"logits": 1, "features": 2, "centres": 3, "log_counts": 4}


@pytest.mark.parametrize("classes", [1, 19, 150])
@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize(("batch", "positions"), SIZES)
def test_pool_stays_in_its_workspace(batch: int, positions: int, multiprocessors: int, classes: int) -> None:
    size, kernels = Pool(batch, classes, positions, 512, "fp32", "fp16"), Recorder()
    size.launch(kernels, 5, multiprocessors, **POOLED, workspace=4096)
    (name, _, pool), (joined, _, join) = kernels.launches
    assert (name, joined) == ("pool_fp32_fp16", "pool_join_fp16")
    tile = kernel_specs.pool("fp32", "fp16").constants["BLOCK_N"]
    parts = int(pool["parts"])
    # Each part has positions, and one of more classes than rows is a single tile.
    steps = cdiv(cdiv(positions, tile), parts)
    assert (parts - 1) * steps * tile < positions
    assert classes <= tile or steps == 1
    each = dict.fromkeys(("rows", "tops", "masses", "counts"), 4 * batch * parts * classes)
    ends = dict.fromkeys(("labels", "scores", "weights"), 4 * batch * positions)
    ends |= each | {"sums": 2048 * batch * parts * min(classes, tile)}
    assert end(pool, ends) <= 4096 + size.workspace()
    blocks = sorted((int(pool[name]), size) for name, size in ends.items())
    assert all(first + size <= second for (first, size), (second, _) in itertools.pairwise(blocks))
    assert all(block % 256 == 0 for block, _ in blocks)
    assert join["centres"] == 3
    assert all(join[name] == pool[name] for name in (*each, "sums", "parts"))


@pytest.mark.parametrize(("batch", "positions"), SIZES)
def test_pool_with_the_kernels_of_an_earlier_bundle(batch: int, positions: int) -> None:
    """The workspace is what such an engine asked for: 16 parts, or as many as 32 MiB hold."""
    kernels = Recorder("assign_fp32", "pool_fp16", "pool_combine_fp16")
    Pool(batch, 150, positions, 512, "fp32", "fp16").launch(kernels, 5, 132, **POOLED, workspace=4096)
    assign, pool, combine = kernels.launches
    assert [launch[0] for launch in kernels.launches] == ["assign_fp32", "pool_fp16", "pool_combine_fp16"]
    rows = int(pool[2]["splits"]) * batch * 150
    assert rows <= max(batch * 150, min(16 * batch * 150, PARTIAL_BYTES // (4 * 515)))
    ends = {"labels": 4 * batch * positions, "scores": 4 * batch * positions, "sums": 2048 * rows}
    ends |= dict.fromkeys(("tops", "masses", "counts"), 4 * rows)
    most = 4096 + sum(aligned(size, 256) for size in ends.values())
    assert end(pool[2], ends) <= most
    assert len({int(pool[2][name]) for name in ends}) == 6
    assert (combine[2]["centres"], combine[2]["splits"]) == (3, pool[2]["splits"])
    assert assign[2]["labels"] == pool[2]["labels"]
    arguments = {
        "assign": "logits labels scores batch classes positions",
        "pool": "labels scores features sums tops masses counts batch classes positions channels splits",
        "combine": "sums tops masses counts centres log_counts batch classes channels splits",
    }
    for (_, _, passed), names in zip(kernels.launches, arguments.values(), strict=True):
        assert set(passed) == set(names.split())


@pytest.mark.parametrize("width", [32, 256])
def test_a_workspace_serves_every_smaller_size(width: int) -> None:
    """An engine asks once, for the largest shapes of its profile."""
    most = Attention(4, 3001, 3001, width, "fp16").workspace()
    for batch, queries in ((1, 1), (1, 500), (2, 3001), (4, 100), (3, 2999)):
        size = Attention(batch, queries, 3001, width, "fp16")
        assert size.workspace() <= most
        rows = batch * queries * size.parts(Recorder(), 512)
        assert 4 * rows * (width + 1) <= most
    for classes in (7, 19):
        pool = Pool(4, classes, 3001, 96, "fp32", "fp32").workspace()
        smaller = ((1, 1), (4, 7), (2, 3001), (3, 2999))
        assert all(Pool(b, classes, n, 96, "fp32", "fp32").workspace() <= pool for b, n in smaller)


def test_partial_results_are_bounded() -> None:
    assert Attention(1, 14161, 14161, 256, "fp16").workspace() <= PARTIAL_BYTES + 512
    whole = 8 * 8192 * 257 * 4
    assert Attention(8, 8192, 8192, 256, "fp16").workspace() == whole  # one part is always held


def test_names_are_those_of_the_graphs_functions() -> None:
    for operation, function in ((Pool, functions.region_pool()), (Attention, functions.attention())):
        assert operation.name == function.name
        assert list(operation.inputs) == list(function.input)
        assert list(operation.outputs) == list(function.output)
        assert list(operation.attributes) == list(function.attribute)


@pytest.mark.parametrize(
    ("operation", "kinds", "message"),
    [
        (
            Pool,
            ("fp32", "int32"),
            "node n: input features of RegionPool is int32, it must be fp32 or fp16 or bf16",
        ),
        (Pool, ("fp32",), "node n: RegionPool takes logits, features, not 1 inputs"),
        (Attention, ("fp16", "fp32", "fp16", "fp32"), "input k of ContextAttention is fp32, it must be fp16"),
        (
            Attention,
            ("fp16", "fp16", "fp16", "fp16"),
            "input bias of ContextAttention is fp16, it must be fp32",
        ),
        (Attention, ("int8", "int8", "int8", "fp32"), "input q of ContextAttention is int8"),
    ],
)
def test_wrong_types(operation: type[Operation], kinds: Sequence[str], message: str) -> None:
    with pytest.raises(BuildError) as caught:
        operation.types("n", kinds)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "shapes", "message"),
    [
        (Pool, [(1, 9, 5, 7), (1, 35, 8)], "node n: input logits of RegionPool has 4 axes, it must be (B, K, N"),
        (Pool, [(1, 9, 35), (1, 34, 8)], "node n: axis N of RegionPool is 35 in logits and 34 in features"),
        (Attention, [(1, 5, 32), (1, 7, 32), (1, 8, 32), (1, 7)], "axis M of ContextAttention is 7 in k and 8"),
        (
            Attention,
            [(1, 5, 48), (1, 7, 48), (1, 7, 48), (1, 7)],
            "has 48 channels in q; there are kernels for",
        ),
        (Attention, [(1, 5, 32), (1, 7, 32), (1, 7, 32), (2, 7)], "axis B of ContextAttention is 1 in q and 2"),
    ],
)
def test_wrong_shapes(operation: type[Operation], shapes: Sequence[Sequence[int]], message: str) -> None:
    with pytest.raises(BuildError) as caught:
        operation.sizes("n", shapes)
    assert message in str(caught.value)


def test_free_sizes_are_no_contradiction() -> None:
    sizes = Attention.sizes("n", [(None, None, 32), (1, None, 32), (None, 9, 32), (None, 9)])
    assert sizes == {"B": 1, "N": None, "D": 32, "M": 9}
    with pytest.raises(BuildError, match="the sizes N of ContextAttention are not known"):
        Attention.static_sizes("n", [(1, -1, 32), (1, 9, 32), (1, 9, 32), (1, 9)])


def test_what_is_computed() -> None:
    pool = Pool.of(Pool.static_sizes("n", [(2, 19, 35), (2, 35, 64)]), Pool.types("n", ("fp32", "fp16")))
    assert pool == Pool(2, 19, 35, 64, "fp32", "fp16")
    kinds = Attention.types("n", ("bf16", "bf16", "bf16", "fp32"))
    shapes = [(1, 35, 32), (1, 19, 32), (1, 19, 32), (1, 19)]
    assert Attention.of(Attention.static_sizes("n", shapes), kinds) == Attention(1, 35, 19, 32, "bf16")
