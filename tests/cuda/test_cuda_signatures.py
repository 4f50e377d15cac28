"""What the context operations refuse, and in what words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from isnet_trt.cuda.context_ops import Attention, Pool
from isnet_trt.cuda.signatures import CONTEXT_ATTENTION, REGION_POOL, Operation
from isnet_trt.errors import BuildError
from isnet_trt.export import functions


def test_names_are_those_of_the_graphs_functions() -> None:
    for operation, function in ((REGION_POOL, functions.region_pool()), (CONTEXT_ATTENTION, functions.attention())):
        assert operation.name == function.name
        assert list(operation.inputs) == list(function.input)
        assert list(operation.outputs) == list(function.output)
        assert list(operation.attributes) == list(function.attribute)


@pytest.mark.parametrize(
    ("operation", "kinds", "message"),
    [
        (
            REGION_POOL,
            ("fp32", "int32"),
            "node n: input features of RegionPool is int32, it must be fp32 or fp16 or bf16",
        ),
        (REGION_POOL, ("fp32",), "node n: RegionPool takes logits, features, not 1 inputs"),
        (CONTEXT_ATTENTION, ("fp16", "fp32", "fp16", "fp32"), "input k of ContextAttention is fp32, it must be fp16"),
        (
            CONTEXT_ATTENTION,
            ("fp16", "fp16", "fp16", "fp16"),
            "input bias of ContextAttention is fp16, it must be fp32",
        ),
        (CONTEXT_ATTENTION, ("int8", "int8", "int8", "fp32"), "input q of ContextAttention is int8"),
    ],
)
def test_wrong_types(operation: Operation, kinds: Sequence[str], message: str) -> None:
    with pytest.raises(BuildError) as caught:
        operation.types("n", kinds)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("operation", "shapes", "message"),
    [
        (REGION_POOL, [(1, 9, 5, 7), (1, 35, 8)], "node n: input logits of RegionPool has 4 axes, it must be (B, K, N"),
        (REGION_POOL, [(1, 9, 35), (1, 34, 8)], "node n: axis N of RegionPool is 35 in logits and 34 in features"),
        (CONTEXT_ATTENTION, [(1, 5, 32), (1, 7, 32), (1, 8, 32), (1, 7)], "axis M of ContextAttention is 7 in k and 8"),
        (
            CONTEXT_ATTENTION,
            [(1, 5, 48), (1, 7, 48), (1, 7, 48), (1, 7)],
            "has 48 channels in q; there are kernels for",
        ),
        (CONTEXT_ATTENTION, [(1, 5, 32), (1, 7, 32), (1, 7, 32), (2, 7)], "axis B of ContextAttention is 1 in q and 2"),
    ],
)
def test_wrong_shapes(operation: Operation, shapes: Sequence[Sequence[int]], message: str) -> None:
    with pytest.raises(BuildError) as caught:
        operation.sizes("n", shapes)
    assert message in str(caught.value)


def test_free_sizes_are_no_contradiction() -> None:
    sizes = CONTEXT_ATTENTION.sizes("n", [(None, None, 32), (1, None, 32), (None, 9, 32), (None, 9)])
    assert sizes == {"B": 1, "N": None, "D": 32, "M": 9}
    with pytest.raises(BuildError, match="the sizes N of ContextAttention are not known"):
        CONTEXT_ATTENTION.static_sizes("n", [(1, -1, 32), (1, 9, 32), (1, 9, 32), (1, 9)])


def test_what_is_computed() -> None:
    pool = REGION_POOL.size(
        REGION_POOL.static_sizes("n", [(2, 19, 35), (2, 35, 64)]), REGION_POOL.types("n", ("fp32", "fp16"))
    )
    assert pool == Pool(2, 19, 35, 64, "fp32", "fp16")
    kinds = CONTEXT_ATTENTION.types("n", ("bf16", "bf16", "bf16", "fp32"))
    shapes = [(1, 35, 32), (1, 19, 32), (1, 19, 32), (1, 19)]
    assert CONTEXT_ATTENTION.size(CONTEXT_ATTENTION.static_sizes("n", shapes), kinds) == Attention(
        1, 35, 19, 32, "bf16"
    )
