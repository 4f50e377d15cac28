"""Sizes of the context operations' workspaces. What they compute: tests/kernels/cases.py, cases without `parts`."""

from __future__ import annotations

from typing import Any

import pytest

from isnet_trt.cuda.context_ops import PARTIAL_BYTES, Attention, Pool, attention_kernels

TILES: dict[str, Any] = {"BLOCK_Q": 64, "BLOCK_K": 32, "BLOCK_C": 64, "BLOCK_N": 64}
SIZES = [(1, 5504), (1, 5), (8, 8192), (3, 1234), (1, 14161)]


class Recorder:
    """Kernels that note what they were given."""

    def __init__(self) -> None:
        self.launches: list[tuple[str, int, dict[str, int | float]]] = []

    def launch(self, name: str, stream: int, **arguments: int | float) -> None:
        self.launches.append((name, stream, arguments))

    def constants(self, name: str) -> dict[str, Any]:
        return TILES

    def __contains__(self, name: object) -> bool:
        return True


def end(arguments: dict[str, int | float], sizes: dict[str, int]) -> int:
    """The first address behind the workspace's last block."""
    return max(int(arguments[name]) + size for name, size in sizes.items())


@pytest.mark.parametrize("multiprocessors", [1, 46, 132, 188])
@pytest.mark.parametrize(("batch", "positions"), SIZES)
def test_attention_stays_in_its_workspace(batch: int, positions: int, multiprocessors: int) -> None:
    size, kernels = Attention(batch, positions, positions, 256, "fp16"), Recorder()
    addresses = {"q": 1, "k": 2, "v": 3, "bias": 4, "out": 5}
    size.launch(kernels, 77, multiprocessors, 0.5, **addresses, workspace=4096)
    name, stream, arguments = kernels.launches[0]
    parts = size.parts(kernels, multiprocessors)
    rows = parts * batch * positions
    assert stream == 77
    assert arguments["splits"] == parts
    assert arguments["scale"] == pytest.approx(0.5 * 1.4426950408889634)
    assert name == attention_kernels("fp16", 256)[0 if parts == 1 else 1].name
    assert (
        end(arguments, {"norms": 4 * rows} | ({"out": 4 * 256 * rows} if parts > 1 else {})) <= 4096 + size.workspace()
    )
    assert [launch[0] for launch in kernels.launches[1:]] == ([] if parts == 1 else ["attention_combine_fp16"])
    assert kernels.launches[-1][2]["out"] == 5


@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize(("batch", "positions"), SIZES)
def test_pool_stays_in_its_workspace(batch: int, positions: int, multiprocessors: int) -> None:
    size, kernels = Pool(batch, 150, positions, 512, "fp32", "fp16"), Recorder()
    addresses = {"logits": 1, "features": 2, "centres": 3, "log_counts": 4}
    size.launch(kernels, 5, multiprocessors, **addresses, workspace=4096)
    assign, pool, combine = kernels.launches
    assert [one[0] for one in kernels.launches] == ["assign_fp32", "pool_fp16", "pool_combine_fp16"]
    rows = int(pool[2]["splits"]) * batch * 150
    ends = {"labels": 4 * batch * positions, "scores": 4 * batch * positions, "sums": 2048 * rows}
    assert end(pool[2], ends | dict.fromkeys(("tops", "masses", "counts"), 4 * rows)) <= 4096 + size.workspace()
    blocks = sorted(int(pool[2][name]) for name in (*ends, "tops", "masses", "counts"))
    assert len(set(blocks)) == 6
    assert all(block % 256 == 0 for block in blocks)
    assert combine[2]["centres"] == 3
    assert assign[2]["labels"] == pool[2]["labels"]


@pytest.mark.parametrize("width", [32, 256])
def test_a_workspace_serves_every_smaller_size(width: int) -> None:
    """An engine asks once, for the largest shapes of its profile."""
    most = Attention(4, 3001, 3001, width, "fp16").workspace()
    for batch, queries in ((1, 1), (1, 500), (2, 3001), (4, 100), (3, 2999)):
        size = Attention(batch, queries, 3001, width, "fp16")
        assert size.workspace() <= most
        rows = batch * queries * size.parts(Recorder(), 512)
        assert 4 * rows * (width + 1) <= most
    pool = Pool(4, 19, 3001, 96, "fp32", "fp32").workspace()
    assert all(Pool(b, 19, n, 96, "fp32", "fp32").workspace() <= pool for b, n in ((1, 1), (4, 7), (2, 3001)))


def test_partial_results_are_bounded() -> None:
    assert Attention(1, 14161, 14161, 256, "fp16").workspace() <= PARTIAL_BYTES + 512
    whole = 8 * 8192 * 257 * 4
    assert Attention(8, 8192, 8192, 256, "fp16").workspace() == whole  # one part is always held
