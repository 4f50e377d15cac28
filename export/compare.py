"""``python -m isnet_trt.export.compare``: two graphs or engines, tensor by tensor, on pictures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from isnet_trt import cli
from isnet_trt.bundle import Bundle
from isnet_trt.errors import SettingsError
from isnet_trt.export.comparison_backends import ComparisonBackend, GraphBackend, TensorRTBackend, open_backend
from isnet_trt.export.graph import OUTPUT, block_outputs
from isnet_trt.export.parity import NetworkInput, load_inputs
from isnet_trt.recipes import RECIPES, recipe
from isnet_trt.settings import Preprocess, Size

GROUP = 24
"""Tensors that are looked at in one run: what a run keeps of a ResNet-50 at 512 x 512 stays below a gigabyte."""
BOUND = 0.05

_EPILOG = """examples:
  python -m isnet_trt.export.compare bundles/ade bundles/half             two graphs under ONNX Runtime, block by block
  python -m isnet_trt.export.compare bundles/ade bundles/half --all       every tensor that both have
  python -m isnet_trt.export.compare a.onnx b.onnx --images street/ --layers 'attention|region' --json out.json
  python -m isnet_trt.export.compare bundles/ade bundles/half:engine      a built engine: its logits (needs its GPU)
  python -m isnet_trt.export.compare bundles/half tensorrt-rtx --all      one graph under ONNX Runtime and under
                                                                          TensorRT-RTX, every tensor kept (needs a GPU)
  python -m isnet_trt.export.compare strange.onnx tensorrt-rtx --reduce small.onnx
                                                                          the smallest part that the library refuses
                                                                          to build (no GPU), by polygraphy debug reduce

ONE is what is taken as right. Errors are those of OTHER, over the standard deviation of ONE's tensor: rms 0.001 is what
fp16 costs, 0.1 is a tenth of the signal. The first tensor beyond --bound is named: where something goes wrong, it began
there. Tensors are matched by name; precision and Winograd rewriting keep the names.

exit status: 0 all within the bound, 1 something is not, 2 it could not be done"""


@dataclass
class Row:
    """One tensor over all pictures: OTHER's errors over the standard deviation of ONE's values.

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
        """Take in one picture's values, float arrays of one shape; the sums are float64.

        Raises:
            SettingsError: the shapes differ.
        """
        if one.shape != other.shape:
            raise SettingsError(f"tensor {self.tensor} is {one.shape} on one side and {other.shape} on the other")
        first, second = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(first) & np.isfinite(second)
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
        mean = self.total / max(self.count, 1)
        return math.sqrt(max(self.total_squares / max(self.count, 1) - mean * mean, 0.0))

    @property
    def rms(self) -> float:
        """Root mean square error, relative; infinite where a value is strange."""
        return self._relative(math.sqrt(self.squares / max(self.count, 1)))

    @property
    def max(self) -> float:
        """Largest error, relative; infinite where a value is strange."""
        return self._relative(self.largest)

    def _relative(self, error: float) -> float:
        if self.strange:
            return math.inf
        return 0.0 if error == 0 else error / max(self.deviation, 1e-12)


@dataclass(frozen=True)
class Comparison:
    """What was found: rows in the order of computation, and the share of equal labels (None: logits not compared)."""

    rows: tuple[Row, ...]
    agreement: float | None
    pictures: int

    def first_beyond(self, bound: float) -> Row | None:
        """The first tensor whose relative rms error is beyond ``bound``."""
        return next((row for row in self.rows if not row.rms <= bound), None)


def compare(
    one: ComparisonBackend,
    other: ComparisonBackend,
    pictures: Sequence[NetworkInput],
    names: Sequence[str],
    progress: bool = False,
) -> Comparison:
    """Run both on the pictures and compare the tensors ``names``, `GROUP` at a time.

    Raises:
        SettingsError: there are no tensors or pictures, or a tensor has another shape on the other side.
        EngineUnavailable, EngineError, BuildError: a side cannot run here.
    """
    if not names or not pictures:
        raise SettingsError(f"{one.label} and {other.label} have no tensor of one name that was asked for")
    makers = _operators(one)
    rows = {name: Row(name, makers.get(name, ""), ()) for name in names}
    labels = [0, 0]
    groups = [names[start : start + GROUP] for start in range(0, len(names), GROUP)]
    for group in tqdm(groups, "groups of tensors", leave=False, disable=None if progress else True):
        for shape, batch in _by_shape(pictures):
            with one.opened(group, shape) as first, other.opened(group, shape) as second:
                for picture in batch:
                    _add(rows, labels, first(picture.pixels), second(picture.pixels), group)
    return Comparison(tuple(rows.values()), labels[0] / labels[1] if labels[1] else None, len(pictures))


def _add(
    rows: dict[str, Row], labels: list[int], one: dict[str, Any], other: dict[str, Any], group: Sequence[str]
) -> None:
    for name in group:
        rows[name].shape = one[name].shape
        rows[name].add(one[name], other[name])
        if name == OUTPUT:
            same = one[name].argmax(1) == other[name].argmax(1)
            labels[0] += int(same.sum())
            labels[1] += same.size


def _by_shape(pictures: Iterable[NetworkInput]) -> Iterator[tuple[tuple[int, int, int, int], list[NetworkInput]]]:
    """Pictures of one size together: an engine is built for one size."""
    found: dict[Any, list[NetworkInput]] = {}
    for picture in pictures:
        found.setdefault(picture.pixels.shape, []).append(picture)
    yield from found.items()


def _operators(side: ComparisonBackend) -> dict[str, str]:
    """Tensor name -> operator that makes it, where a side has a graph."""
    if not isinstance(side, (GraphBackend, TensorRTBackend)):
        return {}
    return {name: node.op_type for node in side.proto.graph.node for name in node.output}


def chosen(one: ComparisonBackend, other: ComparisonBackend, every: bool, pattern: str | None) -> list[str]:
    """The tensors to compare, of those that both have.

    The blocks' outputs and the logits; with ``every`` all; with ``pattern``, a regular expression, those
    in whose name it is found.

    Raises:
        SettingsError: ``pattern`` is no regular expression.
    """
    import re

    there = set(other.tensors)
    common = [name for name in one.tensors if name in there]
    if pattern:
        try:
            return [name for name in common if re.search(pattern, name)]
        except re.error as error:
            raise SettingsError(f"--layers {pattern!r} is no regular expression: {error}") from None
    if every or not isinstance(one, GraphBackend):
        return common
    wanted = {*block_outputs(one.proto).values(), OUTPUT}
    return [name for name in common if name in wanted]


def _preprocess(bundles: Sequence[Bundle | None], sides: Sequence[ComparisonBackend]) -> Preprocess:
    """How the pictures become inputs: as a bundle says, or the recipe that a graph was exported from."""
    for bundle in bundles:
        if bundle is not None:
            return bundle.manifest.preprocess
    for side in sides:
        notes = {p.key: p.value for p in side.proto.metadata_props} if isinstance(side, GraphBackend) else {}
        if notes.get("isnet_trt.recipe") in RECIPES:
            return recipe(notes["isnet_trt.recipe"]).preprocess
    return recipe("isnet_demo").preprocess


def _static(side: ComparisonBackend) -> Size | None:
    """The one input size (height, width) of a graph that has one."""
    if not isinstance(side, (GraphBackend, TensorRTBackend)):
        return None
    sizes = [dimension.dim_value for dimension in side.proto.graph.input[0].type.tensor_type.shape.dim]
    return (sizes[2], sizes[3]) if len(sizes) == 4 and min(sizes[2:]) > 0 else None


def page(found: Comparison, names: dict[str, str], bound: float, worst: int) -> Iterator[str]:
    """The comparison for people; ``names`` are the blocks' names by tensor."""
    rows = list(found.rows)
    if worst and len(rows) > worst:
        keep = {id(row) for row in sorted(rows, key=lambda row: -row.rms)[:worst]}
        yield f"the worst {worst} of {len(rows)} tensors, in the order of computation"
        rows = [row for row in rows if id(row) in keep]
    yield f"{'tensor':36} {'operator':18} {'shape':>20} {'rms':>9} {'max':>9}"
    for row in rows:
        title = f"{names[row.tensor]} ({row.tensor})" if row.tensor in names else row.tensor
        shape = "x".join(map(str, row.shape))
        mark = " <- beyond the bound" if not row.rms <= bound else ""
        yield f"{title:36} {row.operator:18} {shape:>20} {row.rms:9.1e} {row.max:9.1e}{mark}"
    if found.agreement is not None:
        yield f"labels equal {100 * found.agreement:.3f} % on {found.pictures} pictures"
    first = found.first_beyond(bound)
    yield f"first beyond {bound:g}: {first.tensor}, made by {first.operator}" if first else f"all within {bound:g}"


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("isnet_trt.export.compare", "Compare two graphs or engines, tensor by tensor.", _EPILOG)
    parser.add_argument("one", metavar="ONE", help="a bundle, bundle:engine, or a .onnx file")
    parser.add_argument("other", metavar="OTHER", help="the same, or tensorrt or tensorrt-rtx: ONE's graph there")
    parser.add_argument("--images", metavar="PATH", help="picture or folder to compare on (default: built in)")
    parser.add_argument("--all", action="store_true", help="every tensor of one name (default: the blocks' outputs)")
    parser.add_argument("--layers", metavar="REGEX", help="only tensors whose name has REGEX in it")
    parser.add_argument(
        "--bound", type=float, default=BOUND, metavar="X", help=f"relative rms error (default: {BOUND})"
    )
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="show the N worst tensors (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--reduce", type=Path, metavar="FILE", help="write the smallest part of ONE that the library OTHER cannot build"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.reduce:
        from isnet_trt.export.reduce import reduce_graph

        return reduce_graph(arguments.one, arguments.other, arguments.reduce, lambda text: print(text, flush=True))
    (one, first), (other, second) = open_backend(arguments.one), open_backend(arguments.other, arguments.one)
    preprocess = _preprocess((first, second), (one, other))
    images = Path(arguments.images) if arguments.images else None
    pictures = load_inputs(preprocess, images, _static(one) or _static(other))
    names = chosen(one, other, arguments.all, arguments.layers)
    found = compare(one, other, pictures, names, progress=True)
    blocks = (
        {tensor: block for block, tensor in block_outputs(one.proto).items()} if isinstance(one, GraphBackend) else {}
    )
    print("\n".join(page(found, blocks, arguments.bound, arguments.worst)))
    if arguments.json:
        _write(arguments.json, one, other, found)
    return cli.FAILED if found.first_beyond(arguments.bound) else 0


def _write(path: Path, one: ComparisonBackend, other: ComparisonBackend, found: Comparison) -> None:
    rows = [{**asdict(row), "rms": _number(row.rms), "max": _number(row.max)} for row in found.rows]
    data = {"one": one.label, "other": other.label, "pictures": found.pictures, "agreement": found.agreement}
    try:
        path.write_text(json.dumps({**data, "tensors": rows}, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise SettingsError(f"--json {path} cannot be written: {error.strerror or error}") from None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(cli.run(main))
