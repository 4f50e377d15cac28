"""How fast bundles are on this machine, end to end and by stage, beside what would otherwise be used."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks import options, results, stats
from benchmarks.peers import PEERS, Missing, Setup, trtexec
from benchmarks.rounds import LEAST, LEAST_LOW, Case, measure
from benchmarks.weights import filled_checkpoint
from isnet_trt import cli
from isnet_trt.bundle import Bundle
from isnet_trt.commands import predict
from isnet_trt.commands.predict import choose_inference
from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.pictures.preprocess import test_size
from isnet_trt.settings import Inference

DEFAULT_SIZE = (512, 683)
FILLED = "filled"
_DESCRIPTION = """Time bundles and their peers on pictures, side by side.

Every contender runs in a process of its own. First each one segments the picture once and its labels are compared with
the plain reference form's (or, without a checkpoint, with the first bundle's); one that answers otherwise is reported
and not timed. Then come the rounds, in each of which every contender runs once, every second round in reverse order.
Ratios are taken within a round and stated as their median with the interval of that median."""
_EPILOG = (
    "peers (--against):\n"
    + "\n".join(f"  {name:18}{what}" for name, what in PEERS.items())
    + """

examples:
  python -m benchmarks.latency bundles/ade
  python -m benchmarks.latency bundles/ade bundles/ade-uint8 --ckpt ade.pth --against reference onnxruntime
  python -m benchmarks.latency bundles/ade --ckpt ade.pth --preset ms-flip --rounds 3 --count-first --out r.json
  python -m benchmarks.latency bundles/city --ckpt filled --mode slide --image-size 1024 2048

Exit status: 0 all was measured, 1 something could not be (the rest was, and the gap is named), 2 nothing could be."""
)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmarks.latency", _DESCRIPTION, _EPILOG)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="folders made by isnet_trt.build")
    parser.add_argument("--against", nargs="*", metavar="PEER", help="peers (default: reference, if --ckpt is given)")
    parser.add_argument(
        "--ckpt", metavar="FILE", help="the bundles' checkpoint, for peers; 'filled': the made-up weights of the recipe"
    )
    parser.add_argument("--reference", type=Path, metavar="PATH", help="a checkout of the public reference, as a peer")
    parser.add_argument("--rounds", type=cli.positive, default=7, help="timed rounds (default: 7)")
    parser.add_argument(
        "--count-first", action="store_true", help="the checking run is the first round (pictures of many seconds)"
    )
    parser.add_argument("--batch", type=cli.positive, help="windows per call of a bundle's engine")
    parser.add_argument("--case", help="name of the case in the result (default: recipe, preset and size)")
    options.add_images(parser, DEFAULT_SIZE)
    options.add_common(parser)
    predict.add_inference(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    gaps: list[results.Record] = []
    found = options.bundles(arguments.bundles, gaps)
    with tempfile.TemporaryDirectory() as folder:
        ckpt = checkpoint(arguments.ckpt, found[0].manifest.recipe, Path(folder))
        records = _records(arguments, found, ckpt, gaps)
    for record in records:
        print(text(record), end="\n\n")
        gaps += [results.gap(f"{record['case']}: {g['what']}", g["why"]) for g in record["gaps"]]
    for one in gaps:
        print(f"not measured: {one['what']}: {one['why']}", file=sys.stderr)
    if arguments.out:
        results.write(arguments.out, results.result(records, gaps))
    timed = any(c["status"] == "timed" for r in records for c in r["contenders"])
    refused = any(c["status"] != "timed" for r in records for c in r["contenders"])
    return cli.ERROR if not timed else cli.FAILED if gaps or refused else 0


def _records(
    arguments: argparse.Namespace, found: Sequence[Bundle], ckpt: Path | None, gaps: list[results.Record]
) -> list[results.Record]:
    size = tuple(arguments.image_size) if arguments.image_size else None
    pictures = options.pictures(arguments.images, size, arguments.default_size, gaps)
    manifest = found[0].manifest
    inference = choose_inference(manifest.presets, arguments)
    all_setups = setups(found, arguments.against, ckpt, arguments.threads, arguments.reference, arguments.batch)
    records = []
    for name, image in tqdm(pictures, desc="pictures", unit="picture", disable=None, leave=False):
        case = Case(
            arguments.case or _case_name(manifest.recipe, arguments.preset, inference, name, image.shape[:2]),
            image,
            inference,
            manifest.preprocess,
            arguments.rounds,
            arguments.count_first,
            manifest.recipe,
            arguments.preset,
        )
        try:
            records.append(measure(case, all_setups, bounds(found)))
        except ImageError as error:
            gaps.append(results.gap(f"picture {name}", str(error)))
            continue
        if arguments.against and "trtexec" in arguments.against:
            _add_trtexec(records[-1], all_setups, case)
    return records


def _case_name(recipe: str, preset: str, inference: Inference, picture: str, size: tuple[int, ...]) -> str:
    return f"{recipe} {preset} {inference.mode} {size[0]}x{size[1]} {picture}"


def checkpoint(given: str | None, recipe: str, folder: Path) -> Path | None:
    """The checkpoint file, made in ``folder`` where ``given`` is ``filled``.

    Raises:
        SettingsError: there is no such file, or there are no made-up weights for the recipe.
    """
    if given is None:
        return None
    if given == FILLED:
        return filled_checkpoint(recipe, folder / "filled.pth")
    if not Path(given).is_file():
        raise SettingsError(f"--ckpt {given}: there is no such file")
    return Path(given)


def setups(
    found: Sequence[Bundle],
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
    ours = [
        Setup(name, "bundle", threads, ckpt, Path(bundle.folder), batch)
        for name, bundle in zip(options.bundle_names(found), found, strict=True)
    ]
    peers = [Setup(name, name, threads, ckpt, checkout=reference) for name in dict.fromkeys(names) if name != "trtexec"]
    return [*ours, *peers]


def bounds(found: Sequence[Bundle]) -> dict[str, float]:
    """Least agreement on clear pixels: for lower precisions what the bundle's own gate asked for."""
    least = dict.fromkeys(("onnxruntime-cuda", "torch-tensorrt"), LEAST_LOW)
    for name, bundle in zip(options.bundle_names(found), found, strict=True):
        if bundle.manifest.precision != "fp32":
            stated = bundle.manifest.parity.get("tolerance") or {}
            least[name] = min(LEAST, float(stated.get("agreement", LEAST_LOW)))
    return least


def _add_trtexec(record: results.Record, all_setups: Sequence[Setup], case: Case) -> None:
    """trtexec's seconds for one window, in ``engine_only``: a figure without an answer to check."""
    size = case.inference.window or test_size((case.image.shape[0], case.image.shape[1]), case.preprocess)
    try:
        samples = trtexec.seconds(all_setups[0], size)
    except Missing as error:
        record["gaps"].append(results.gap("trtexec", str(error)))
        return
    record["engine_only"] = {"trtexec": {"window": list(size), **stats.spread(samples).to_json()}}


def text(record: results.Record) -> str:
    """A record for people."""
    height, width = record["picture"]
    lines = [
        record["case"],
        f"{height}x{width}, {record['inference']}, {record['windows']} window{'s' * (record['windows'] > 1)}; "
        f"labels compared with those of {record['labels_of'] or 'nobody'}",
    ]
    lines += [_contender_line(one) for one in record["contenders"]]
    lines += [_ratio_line(ratio) for ratio in record["ratios"]]
    return "\n".join([*lines, *(f"  warning: {warning}" for warning in record["warnings"])])


def _ratio_line(ratio: results.Record) -> str:
    interval = f"{ratio['low']:.2f} to {ratio['high']:.2f}, {100 * ratio['coverage']:.0f} % interval"
    times = f"{ratio['p50']:.2f} times as fast as {ratio['over']}"
    return f"  {ratio['of']} is {times} ({interval} of {ratio['n']} rounds)"


def _contender_line(one: results.Record) -> str:
    if one["status"] != "timed":
        return f"  {one['name']}: not timed, {one['why']}"
    s, beyond = one["summary"], one["memory"]["beyond"]
    memory = f"{beyond / 2**20:.0f} MiB beyond weights" if beyond is not None else "memory not available"
    if (held := one["memory"]["device"]) is not None:
        memory += f", {held / 2**20:.0f} MiB on the GPU"
    stages = ", ".join(f"{name} {seconds:.3g}" for name, seconds in one["stages"].items())
    energy = ", ".join(f"{name} {joules:.1f} J" for name, joules in one["energy_j"].items()) or "energy not available"
    return (
        f"  {one['name']} [{one['description']}]\n"
        f"    p50 {s['p50']:.3f} s, p90 {s['p90']:.3f}, p99 {s['p99']:.3f}; {one['images_per_s']:.3g} images/s, "
        f"{one['windows_per_s']:.3g} windows/s; {memory}; {energy}\n"
        f"    stages, s: {stages}; labels equal {100 * one['agreement']['all']:.3f} %"
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
