"""What the context operations refuse, and in what words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from isnet_trt.cuda.context_ops import Attention, Operation, Pool
from isnet_trt.errors import BuildError
from isnet_trt.export import functions


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
