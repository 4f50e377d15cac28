"""How fast bundles are on this machine, end to end and by stage, beside what would otherwise be used."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks import command, results
from benchmarks.peers import PEERS, Setup
from benchmarks.rounds import LEAST, LEAST_LOW, Case, measure
from isnet_trt import cli
from isnet_trt.bundle import Bundle
from isnet_trt.commands.inference_options import add_inference, choose_inference
from isnet_trt.errors import ImageError

_DESCRIPTION = """Time bundles and their peers on pictures, side by side.

Every contender runs in a process of its own. First each one segments the picture once and its labels are compared with
the plain reference form's (or, without a checkpoint, with the first bundle's); one with other labels is reported and
not timed. Then come the rounds, in each of which every contender runs once, every second round in reverse order.
Ratios are taken within a round and stated as their median with the interval of that median."""
_EPILOG = (
    "peers (--against):\n"
    + "\n".join(f"  {name:23}{peer.description}" for name, peer in PEERS.items())
    + """

examples:
  python -m benchmarks.latency bundles/ade
  python -m benchmarks.latency bundles/ade bundles/ade-uint8 --ckpt ade.pth --against reference onnxruntime
  python -m benchmarks.latency bundles/ade --ckpt ade.pth --preset ms-flip --rounds 3 --count-first --out r.json
  python -m benchmarks.latency bundles/city --ckpt filled --mode slide --image-size 1024 2048"""
    + command.EXIT_STATUS
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.latency", _DESCRIPTION, _EPILOG)
    command.add_bundles(parser)
    parser.add_argument("--against", nargs="*", metavar="PEER", help="peers (default: reference, if --ckpt is given)")
    ckpt_help = "the bundles' checkpoint, for peers; 'filled': synthetic weights of the recipe"
    parser.add_argument("--ckpt", metavar="FILE", help=ckpt_help)
    parser.add_argument("--reference", type=Path, metavar="PATH", help="a checkout of the public reference, as a peer")
    count_first = "the checking run is the first round (pictures of many seconds)"
    parser.add_argument("--count-first", action="store_true", help=count_first)
    parser.add_argument("--batch", type=cli.whole(1, 4096), help="windows per call of a bundle's engine")
    parser.add_argument("--case", help="name of the case in the result (default: recipe, preset and size)")
    command.add_images(parser, (512, 683))
    command.add_common(parser, rounds=7)
    add_inference(parser)
    arguments = parser.parse_args(argv)
    gaps: command.Gaps = []
    bundles = command.read_bundles(arguments.bundles, gaps)
    with command.checkpoint(arguments.ckpt, bundles[0].manifest.recipe) as ckpt:
        contenders = setups(bundles, arguments.against, ckpt, arguments.threads, arguments.reference, arguments.batch)
        records = [r | command.weights(arguments.ckpt) for r in _records(arguments, bundles, contenders, gaps)]
    for record in records:
        gaps += [results.gap(f"{record['case']}: {gap['what']}", gap["why"]) for gap in record["gaps"]]
    timed = any(contender["status"] == "timed" for record in records for contender in record["contenders"])
    return command.finish(records, gaps, arguments.out, timed)


def _records(
    arguments: argparse.Namespace, bundles: Sequence[Bundle], contenders: Sequence[Setup], gaps: command.Gaps
) -> list[results.Record]:
    """The latency record of each picture."""
    pictures = command.pictures(arguments.images, arguments.image_size, arguments.default_size, gaps)
    manifest = bundles[0].manifest
    inference = choose_inference(manifest.presets, arguments)
    options = {"rounds": arguments.rounds, "count_first": arguments.count_first}
    options |= {"recipe": manifest.recipe, "preset": arguments.preset}
    records = []
    for name, image in tqdm(pictures, desc="pictures", unit="picture", disable=None, leave=False):
        about = f"{manifest.recipe} {arguments.preset} {inference.mode} {image.shape[0]}x{image.shape[1]} {name}"
        case = Case(arguments.case or about, image, inference, manifest.preprocess, **options)
        try:
            records.append(measure(case, contenders, bounds(bundles)))
        except ImageError as error:
            gaps.append(results.gap(f"picture {name}", str(error)))
    return records


def setups(
    bundles: Sequence[Bundle],
    against: Sequence[str] | None,
    ckpt: Path | None,
    threads: int,
    reference: Path | None = None,
    batch: int | None = None,
) -> list[Setup]:
    """The contenders: bundles first, then the peers (by default the reference form, where there is a checkpoint).

    Whoever names a checkout with ``reference`` wants it measured: it is a peer then, named in ``against`` or not.
    """
    names = ["reference"] if against is None and ckpt else list(against or ())
    names += ["checkout"] if reference else []
    ours = [Setup(n, "bundle", threads, ckpt, Path(b.folder), batch) for n, b in command.named(bundles).items()]
    graph = Path(bundles[0].folder)
    peers = [Setup(name, name, threads, ckpt, graph, checkout=reference) for name in dict.fromkeys(names)]
    return [*ours, *peers]


def bounds(bundles: Sequence[Bundle]) -> dict[str, float]:
    """Least agreement on clear pixels: for lower precisions the bound of the bundle's own parity gate."""
    least = dict.fromkeys(("onnxruntime-cuda", "torch-tensorrt"), LEAST_LOW)
    for name, bundle in command.named(bundles).items():
        if bundle.manifest.precision != "fp32":
            stated = bundle.manifest.parity.get("tolerance") or {}
            least[name] = min(LEAST, float(stated.get("agreement", LEAST_LOW)))
    return least


if __name__ == "__main__":
    sys.exit(cli.run(main))
