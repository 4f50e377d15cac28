"""``python -m isnet_trt.export.compare``: compare two graphs or engines on pictures, tensor by tensor."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isnet_trt import cli
from isnet_trt.engines.trial import TIMEOUT
from isnet_trt.errors import needs
from isnet_trt.files import write_output
from isnet_trt.metrics import percent

if TYPE_CHECKING:  # these modules import torch and onnx, which --help does without
    from isnet_trt.export.comparison import Comparison
    from isnet_trt.export.comparison_backends import ComparisonBackend

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

ONE is the reference. Errors are those of OTHER, over the standard deviation of ONE's tensor: rms 0.001 is what fp16
costs, 0.1 is a tenth of the signal. Without --bound the coarser precision of the two sides decides. The first tensor
beyond the bound is named: an error begins there. Tensors are matched by name; precision and Winograd rewriting keep the
names.

exit status: 0 all within the bound, 1 a tensor is not (or, with --reduce, the library refuses the graph), 2 the
comparison could not be made"""


def page(comparison: Comparison, blocks: dict[str, str], bound: float, reason: str, worst: int) -> Iterator[str]:
    """The lines that the command prints; ``blocks`` are block names by output tensor, ``reason`` is the bound's."""
    yield f"bound {bound:g}: {reason}"
    rows = list(comparison.rows)
    if worst and len(rows) > worst:
        keep = {id(row) for row in sorted(rows, key=lambda row: -row.rms)[:worst]}
        yield f"the worst {worst} of {len(rows)} tensors, in the order of computation"
        rows = [row for row in rows if id(row) in keep]
    yield f"{'tensor':36} {'operator':18} {'shape':>20} {'rms':>9} {'max':>9}"
    for row in rows:
        title = f"{blocks[row.tensor]} ({row.tensor})" if row.tensor in blocks else row.tensor
        shape = "x".join(map(str, row.shape))
        mark = " <- beyond the bound" if not row.rms <= bound else ""
        yield f"{title:36} {row.operator:18} {shape:>20} {row.rms:9.1e} {row.max:9.1e}{mark}"
    if comparison.agreement is not None:
        yield f"labels equal {percent(comparison.agreement, 3)} % on {comparison.pictures} pictures"
    first = comparison.first_beyond(bound)
    yield f"first beyond {bound:g}: {first.tensor}, made by {first.operator}" if first else f"all within {bound:g}"


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = cli.parser("isnet_trt.export.compare", "Compare two graphs or engines, tensor by tensor.", _EPILOG)
    parser.add_argument("one", metavar="ONE", help="a bundle, bundle:engine, or a .onnx file")
    parser.add_argument("other", metavar="OTHER", help="the same, or tensorrt or tensorrt-rtx: ONE's graph there")
    parser.add_argument("--images", metavar="PATH", help="picture or folder to compare on (default: built in)")
    parser.add_argument("--all", action="store_true", help="every tensor of one name (default: the blocks' outputs)")
    parser.add_argument("--layers", metavar="REGEX", help="only tensors whose name contains REGEX")
    bound = "largest relative rms error (default: what the coarser precision explains, 5e-4 for fp32 to 0.35 for fp8)"
    parser.add_argument("--bound", type=cli.number(0, 1e6), metavar="X", help=bound)
    parser.add_argument(
        "--worst", type=cli.natural, default=0, metavar="N", help="show the N worst tensors (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument(
        "--reduce", type=Path, metavar="FILE", help="write the smallest part of ONE that the library OTHER cannot build"
    )
    parser.add_argument(
        "--timeout", type=cli.positive, default=TIMEOUT, metavar="SECONDS",
        help=f"with --reduce: most for one trial of the library (default: {TIMEOUT})",
    )  # fmt: skip
    device = "the GPU that engines are built and run on, cuda:N (default: the first)"
    parser.add_argument("--device", type=cli.device, default="auto", metavar="DEVICE", help=device)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = argument_parser().parse_args(argv)
    with needs("comparing", "build"):
        from isnet_trt.export.comparison import compare, default_bound, preprocess_of, select_tensors, static_size
        from isnet_trt.export.comparison_backends import open_backend
        from isnet_trt.export.graph import block_outputs
        from isnet_trt.export.network_inputs import load_inputs
        from isnet_trt.export.reduce import reduce_graph
    if arguments.reduce:
        output = arguments.reduce, lambda text: print(text, flush=True)
        return reduce_graph(arguments.one, arguments.other, *output, arguments.timeout, arguments.device)
    one, first = open_backend(arguments.one, device=arguments.device)
    other, second = open_backend(arguments.other, arguments.one, arguments.device)
    images = Path(arguments.images) if arguments.images else None
    inputs = load_inputs(preprocess_of((first, second), (one, other)), images, static_size(one) or static_size(other))
    names = select_tensors(one, other, arguments.all, arguments.layers)
    comparison = compare(one, other, inputs, names, progress=True)
    blocks = {tensor: block for block, tensor in block_outputs(one.proto).items()} if one.proto else {}
    bound, reason = arguments.bound, "given by --bound"
    if bound is None:
        precision, expected = default_bound((one, other), (first, second))
        bound, reason = expected.rms, f"expected of {precision}; {expected.reason}"
    print("\n".join(page(comparison, blocks, bound, reason, arguments.worst)))
    if arguments.json:
        _write(arguments.json, one, other, comparison, bound)
    return cli.FAILED if comparison.first_beyond(bound) else 0


def _write(path: Path, one: ComparisonBackend, other: ComparisonBackend, comparison: Comparison, bound: float) -> None:
    data = {
        "one": one.label,
        "other": other.label,
        "pictures": comparison.pictures,
        "agreement": comparison.agreement,
        "bound": bound,
        "tensors": [row.to_json() for row in comparison.rows],
    }
    write_output(path, f"{json.dumps(data, indent=1)}\n".encode(), "--json")


if __name__ == "__main__":
    sys.exit(cli.run(main))
