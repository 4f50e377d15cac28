"""Errors of one graph or engine beside another, tensor by tensor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from isnet_trt.bundle import Bundle
from isnet_trt.errors import SettingsError
from isnet_trt.export.comparison_backends import ComparisonBackend, Shape
from isnet_trt.export.graph import OUTPUT, block_outputs, recipe_name
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.onnx_edit import CODES, element_types
from isnet_trt.recipes import RECIPES, recipe
from isnet_trt.settings import Preprocess, Size

GROUP = 24
"""Tensors compared in one run: those of a ResNet-50 at 512 x 512 then take less than a gigabyte."""


@dataclass(frozen=True)
class Bound:
    """The largest relative rms error of a tensor that a precision explains, and why."""

    rms: float
    reason: str


# Measured: the worst block of the demo model on six inputs from held-out drawn scenes.
BOUNDS = {
    "fp32": Bound(5e-4, "other orders of float32 sums give about 1e-6, a wrong epsilon 1e-2"),
    "fp16": Bound(0.05, "the demo model's worst block has 0.001, near ties of models with synthetic weights give 0.05"),
    "bf16": Bound(0.1, "the demo model's worst block has 0.013; bfloat16 has 8 significant bits, float16 11"),
    "int8": Bound(0.25, "the demo model's worst block has 0.10"),
    "fp8": Bound(0.35, "the demo model's worst block has 0.18"),
}


@dataclass
class TensorErrors:
    """OTHER's errors in one tensor over all pictures, relative to the standard deviation of ONE's values.

    ``strange`` counts values that are infinite or NaN on one side only.
    """

    tensor: str
    operator: str
    shape: tuple[int, ...]
    count: int = 0
    largest: float = 0.0
    squares: float = 0.0
    total: float = 0.0
    total_squares: float = 0.0
    strange: int = 0

    def add(self, one: NDArray[Any], other: NDArray[Any]) -> None:
        """Add one picture's values, two float arrays of one shape; the sums are float64.

        Raises:
            SettingsError: the shapes differ.
        """
        if one.shape != other.shape:
            raise SettingsError(f"tensor {self.tensor} is {one.shape} on one side and {other.shape} on the other")
        # float32 sums over millions of values would lose the small differences that are looked for.
        first, second = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(first) & np.isfinite(second)
        # Equal infinities are no error: log_counts is -inf on both sides for a class without positions.
        same = (first == second) | finite | (np.isnan(first) & np.isnan(second))
        self.strange += int(same.size - same.sum())
        first = first[finite]
        difference = second[finite] - first
        self.count += first.size
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.squares += float((difference**2).sum())
        self.total += float(first.sum())
        self.total_squares += float((first**2).sum())

    @property
    def deviation(self) -> float:
        """Standard deviation of ONE's values."""
        # For a constant tensor the difference of the two means may be slightly below 0, by rounding.
        mean = self.total / max(self.count, 1)
        return math.sqrt(max(self.total_squares / max(self.count, 1) - mean * mean, 0.0))

    @property
    def rms(self) -> float:
        """Relative root-mean-square error; infinite if `strange` is not 0."""
        return self._relative(math.sqrt(self.squares / max(self.count, 1)))

    @property
    def max(self) -> float:
        """Largest relative error; infinite if `strange` is not 0."""
        return self._relative(self.largest)

    def _relative(self, error: float) -> float:
        if self.strange:
            return math.inf
        # A constant tensor has deviation 0: a difference in it shows as huge instead of dividing by zero.
        return 0.0 if error == 0 else error / max(self.deviation, 1e-12)

    def to_json(self) -> dict[str, Any]:
        """Every figure; infinite ones, which JSON lacks, as None."""
        relative = {"rms": self.rms, "max": self.max}
        return asdict(self) | {name: value if math.isfinite(value) else None for name, value in relative.items()}


@dataclass(frozen=True)
class Comparison:
    """Errors in the order of computation, and the share of equal labels (None: logits not compared)."""

    rows: tuple[TensorErrors, ...]
    agreement: float | None
    pictures: int

    def first_beyond(self, bound: float) -> TensorErrors | None:
        """The first tensor whose relative rms error is beyond ``bound``."""
        # `not <=` instead of `>`: NaN is beyond every bound.
        return next((row for row in self.rows if not row.rms <= bound), None)


def compare(
    one: ComparisonBackend,
    other: ComparisonBackend,
    inputs: Sequence[NetworkInput],
    names: Sequence[str],
    progress: bool = False,
) -> Comparison:
    """Run both on the inputs and compare the tensors ``names``, `GROUP` at a time.

    Raises:
        SettingsError: there are no tensors or inputs, or a tensor has another shape on the other side.
        EngineUnavailable, EngineError, BuildError: a backend cannot run here.
    """
    if not names or not inputs:
        raise SettingsError(f"{one.label} and {other.label} have no tensor of one name that was asked for")
    operators = {name: node.op_type for node in one.proto.graph.node for name in node.output} if one.proto else {}
    rows = {name: TensorErrors(name, operators.get(name, ""), ()) for name in names}
    equal = total = 0
    groups = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    for group in tqdm(groups, "groups of tensors", leave=False, disable=None if progress else True):
        for shape, batch in _by_shape(inputs):
            with one.open(group, shape) as run_one, other.open(group, shape) as run_other:
                for item in batch:
                    first, second = run_one(item.pixels), run_other(item.pixels)
                    for name in group:
                        rows[name].shape = first[name].shape
                        rows[name].add(first[name], second[name])
                    if OUTPUT in group:
                        same = first[OUTPUT].argmax(1) == second[OUTPUT].argmax(1)
                        equal, total = equal + int(same.sum()), total + same.size
    return Comparison(tuple(rows.values()), equal / total if total else None, len(inputs))


def _by_shape(inputs: Iterable[NetworkInput]) -> Iterable[tuple[Shape, list[NetworkInput]]]:
    """Inputs of one size together: an engine is built for one size."""
    groups: dict[Any, list[NetworkInput]] = {}
    for item in inputs:
        groups.setdefault(item.pixels.shape, []).append(item)
    return groups.items()


def select_tensors(one: ComparisonBackend, other: ComparisonBackend, every: bool, pattern: str | None) -> list[str]:
    """The tensors to compare, of those that both have.

    By default the outputs of the blocks and the logits; with ``every`` all; with ``pattern``, a regular expression,
    those whose name contains it.

    Raises:
        SettingsError: ``pattern`` is no regular expression.
    """
    available = set(other.tensors)
    common = [name for name in one.tensors if name in available]
    if pattern:
        try:
            return [name for name in common if re.search(pattern, name)]
        except re.error as error:
            raise SettingsError(f"--layers {pattern!r} is no regular expression: {error}") from None
    if every or one.proto is None:
        return common
    selected = {*block_outputs(one.proto).values(), OUTPUT}
    return [name for name in common if name in selected]


def default_bound(backends: Sequence[ComparisonBackend], bundles: Sequence[Bundle | None]) -> tuple[str, Bound]:
    """The coarser precision of two sides, and its bound.

    A bundle's precision is that of its manifest; that of a graph is found from its types and quantisation nodes.
    """
    precisions = [
        bundle.manifest.precision if bundle else _precision(backend.proto)
        for backend, bundle in zip(backends, bundles, strict=True)
    ]
    precision = max(precisions, key=lambda name: BOUNDS[name].rms)
    return precision, BOUNDS[precision]


def _precision(proto: onnx.ModelProto | None) -> str:
    if proto is None:
        return "fp32"
    types = set(element_types(proto).values())
    if any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        return "fp8" if onnx.TensorProto.FLOAT8E4M3FN in types else "int8"
    return next((name for name in ("bf16", "fp16") if CODES[name] in types), "fp32")


def preprocess_of(bundles: Sequence[Bundle | None], backends: Sequence[ComparisonBackend]) -> Preprocess:
    """The preprocessing of the first bundle, else of the recipe that a graph was exported from, else of the demo."""
    for bundle in bundles:
        if bundle is not None:
            return bundle.manifest.preprocess
    names = [recipe_name(backend.proto) for backend in backends if backend.proto]
    return recipe(next((name for name in names if name in RECIPES), "isnet_demo")).preprocess


def static_size(backend: ComparisonBackend) -> Size | None:
    """The (height, width) of a graph that takes one input size only."""
    if backend.proto is None:
        return None
    sizes = [dimension.dim_value for dimension in backend.proto.graph.input[0].type.tensor_type.shape.dim]
    return (sizes[2], sizes[3]) if len(sizes) == 4 and min(sizes[2:]) > 0 else None
