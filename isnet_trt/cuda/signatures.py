"""The inputs and outputs of the two context operations, and the errors of a graph that deviates from them.

Axes are letters (B images, K classes, N positions or queries, M keys, C channels, D the attention's width); a letter
is one size wherever it stands. Types are those of `isnet_trt.cuda.element_types.FLOATS`; L and T stand for any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from isnet_trt.cuda.context_ops import Attention, Pool
from isnet_trt.cuda.element_types import FLOATS
from isnet_trt.cuda.kernel_specs import WIDTHS
from isnet_trt.errors import BuildError

NAMESPACE = "isnet_trt"
"""Of the plugins, and the domain of the graph's nodes."""
VERSION = "1"
_NATIVE = "; build with --context native, or change the graph"


class Tensor(NamedTuple):
    """A tensor's axes, one letter each, and its type or the letter that stands for it."""

    axes: str
    type: str


Size = Pool | Attention


@dataclass(frozen=True)
class Operation:
    """One context operation.

    Attributes:
        name: of the graph's node and of the plugin.
        inputs: tensors in order.
        outputs: tensors in order.
        attributes: names of float attributes.
        size: makes the `Pool` or `Attention` from sizes by letter and types by letter.
    """

    name: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    attributes: tuple[str, ...]
    size: Callable[[Mapping[str, int], Mapping[str, str]], Size]

    def types(self, node: str, kinds: Sequence[str]) -> dict[str, str]:
        """The types by letter, from those of the inputs.

        Raises:
            BuildError: an input has a type that it cannot have; the message names it.
        """
        if len(kinds) != len(self.inputs):
            raise BuildError(f"node {node}: {self.name} takes {', '.join(self.inputs)}, not {len(kinds)} inputs")
        types: dict[str, str] = {}
        for (name, tensor), kind in zip(self.inputs.items(), kinds, strict=True):
            declared = types.get(tensor.type, tensor.type)  # a letter until the first input with it is seen
            allowed = (declared,) if declared in FLOATS else FLOATS
            if kind not in allowed:
                types_text = " or ".join(allowed)
                raise BuildError(
                    f"node {node}: input {name} of {self.name} is {kind}, it must be {types_text}{_NATIVE}"
                )
            types[tensor.type] = kind
        return types

    def sizes(self, node: str, shapes: Sequence[Sequence[int | None]]) -> dict[str, int | None]:
        """The sizes by letter; None is one that is not known yet.

        Raises:
            BuildError: an input has another rank, two inputs disagree, or there are no kernels for a size; the message
                names node, input and axis.
        """
        sizes: dict[str, int | None] = {}
        first: dict[str, str] = {}
        for (name, tensor), shape in zip(self.inputs.items(), shapes, strict=True):
            if len(shape) != len(tensor.axes):
                axes = ", ".join(tensor.axes)
                raise BuildError(
                    f"node {node}: input {name} of {self.name} has {len(shape)} axes, it must be ({axes}){_NATIVE}"
                )
            for letter, size in zip(tensor.axes, shape, strict=True):
                before = sizes.get(letter)
                if before is None:
                    sizes[letter], first[letter] = size, name
                elif size not in (None, before):
                    raise BuildError(
                        f"node {node}: axis {letter} of {self.name} is {before} in {first[letter]} and {size} in {name}"
                    )
        width = sizes.get("D")
        if width is not None and width not in WIDTHS:
            raise BuildError(
                f"node {node}: {self.name} has {width} channels in {first['D']}; there are kernels for "
                f"{', '.join(map(str, WIDTHS))}{_NATIVE}"
            )
        return sizes

    def static_sizes(self, node: str, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """`sizes` where all are known; BuildError if one is still open."""
        sizes = {letter: size for letter, size in self.sizes(node, shapes).items() if size is not None and size >= 0}
        if missing := {letter for tensor in self.inputs.values() for letter in tensor.axes} - set(sizes):
            raise BuildError(f"node {node}: the sizes {', '.join(sorted(missing))} of {self.name} are not known")
        return sizes


REGION_POOL = Operation(
    "RegionPool",
    {"logits": Tensor("BKN", "L"), "features": Tensor("BNC", "T")},
    {"centres": Tensor("BKC", "T"), "log_counts": Tensor("BK", "fp32")},
    (),
    lambda n, types: Pool(n["B"], n["K"], n["N"], n["C"], types["L"], types["T"]),
)
CONTEXT_ATTENTION = Operation(
    "ContextAttention",
    {"q": Tensor("BND", "T"), "k": Tensor("BMD", "T"), "v": Tensor("BMD", "T"), "bias": Tensor("BM", "fp32")},
    {"out": Tensor("BND", "T")},
    ("scale",),
    lambda n, types: Attention(n["B"], n["N"], n["M"], n["D"], types["T"]),
)
OPERATIONS = (REGION_POOL, CONTEXT_ATTENTION)
