"""``python -m isnet_trt.bundle show|verify|export-triton DIR``: look at a bundle, check it, write it for a server."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterator, Sequence

from isnet_trt import cli
from isnet_trt.bundle import KERNELS, MANIFEST, REPORT, Manifest, content_digest, read_bundle, sha256
from isnet_trt.bundle.triton_repository import Serving, export_triton
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.select import check_engine
from isnet_trt.errors import EngineUnavailable, escaped, first_few
from isnet_trt.metrics import bytes_text, rounded
from isnet_trt.settings import NetworkFacts, Preprocess

_EPILOG = """examples:
  python -m isnet_trt.bundle show bundles/ade          what it was built from, how it runs, how exact it is
  python -m isnet_trt.bundle show bundles/ade --json   the manifest, for programs
  python -m isnet_trt.bundle verify bundles/ade        every file against its SHA-256; names files that are not of the
                                                       bundle; says whether its engine runs here
  python -m isnet_trt.bundle export-triton bundles/ade models --name ade
                                                       models/ade, for a Triton Inference Server (docs/serving.md)

exit status: 0 whole, 1 whole but its engine cannot run on this machine (verify), 2 damaged or no bundle"""


Facts = Iterator[tuple[str, str]]
"""Title and text of each line."""


def argument_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    text = "Look at a bundle, check that it is whole and can run here, or write it for an inference server."
    parser = cli.parser("isnet_trt.bundle", text, _EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="show|verify|export-triton")
    show = commands.add_parser("show", help="print what the bundle is")
    show.add_argument("--json", action="store_true", help="print the manifest as JSON")
    verify = commands.add_parser("verify", help="check every file and the engine")
    export = commands.add_parser("export-triton", help="write it as a model of a Triton Inference Server's repository")
    for command in (show, verify, export):
        command.add_argument("bundle", metavar="DIR", help="the bundle's folder")
    _add_serving(export.add_argument)
    return parser


def _add_serving(add: Callable[..., object]) -> None:
    add("repository", metavar="REPOSITORY", help="the model repository's folder; the model is a new folder in it")
    add("--name", help="name of the model (default: its recipe's)")
    add(
        "--instances",
        type=cli.threads,
        default=1,
        metavar="N",
        help="segmenters on each GPU, or on the CPU (default: 1)",
    )
    text = "GPUs of the server (default: all of them, or the CPU for ONNX Runtime)"
    add("--gpus", nargs="+", type=cli.natural, default=(), metavar="N", help=text)
    text = "images of one size that the server may hand over at once (default: 8)"
    add("--batch", type=cli.positive, default=8, metavar="N", help=text)
    add("--engine", choices=("onnxruntime",), help="run the ONNX graph instead of the bundle's own engine")
    add("--force", action="store_true", help="replace a model that was exported before")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = argument_parser().parse_args(argv)
    run = {"show": _show, "verify": _verify, "export-triton": _export_triton}
    return run[arguments.command](arguments)


def _show(arguments: argparse.Namespace) -> int:
    bundle = read_bundle(arguments.bundle, verify=False)
    if arguments.json:
        print(json.dumps(bundle.manifest.to_json(), indent=1))
    else:
        size = sum(info.bytes for info in bundle.manifest.files.values())
        _print(f"{bundle.folder}: {bundle.manifest.recipe}, {bundle.manifest.precision}, {bytes_text(size)}")
        contents = content_digest({name: info.sha256 for name, info in bundle.manifest.files.items()})
        _print(f"  {'digest':11} SHA-256 {sha256(bundle.folder / MANIFEST)} of {MANIFEST}, which lists every file's")
        _print(f"  {'contents':11} SHA-256 {contents} of all files but the report's, which states it")
        for title, text in _facts(bundle.manifest):
            _print(f"  {title:11} {text}")
    return 0


def _print(line: str) -> None:
    print(escaped(line))  # a bundle may hold escape sequences in any of its texts


def _facts(manifest: Manifest) -> Facts:
    yield "built", f"{manifest.created_at} by isnet_trt {manifest.isnet_trt_version}"
    averaged = ", averaged weights (ema)" if manifest.checkpoint.weights == "ema" else ""
    yield "checkpoint", f"{manifest.checkpoint.name}, SHA-256 {manifest.checkpoint.sha256}{averaged}"
    yield from _engine(manifest.engine)
    yield "input", _preprocess(manifest.preprocess)
    if manifest.network.size_multiple > 1:
        yield "padding", _padding(manifest.network)
    yield "output", _output(manifest)
    names = manifest.labels.names
    for number, part in enumerate(textwrap.wrap(", ".join(f"{i} {name}" for i, name in enumerate(names)), 98)):
        yield "" if number else "classes", part
    if pairs := manifest.labels.flip_pairs:
        yield "flip pairs", ", ".join(f"{names[a]} / {names[b]}" for a, b in pairs)
    for name, preset in manifest.presets.items():
        yield "preset", f"{name}: {preset.describe()}"
    if tuning := manifest.tuning:
        chosen = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in dataclasses.asdict(tuning).items() if value
        )
        yield "tuned", chosen
    yield from _files(manifest)
    yield from _parity(manifest)


def _files(manifest: Manifest) -> Facts:
    """Every file, but those of the kernels as one line, and those of the report's figures as another."""
    kernels = {name: info for name, info in manifest.files.items() if name.startswith(f"{KERNELS}/")}
    if kernels:
        places = ", ".join(sorted({name.split("/")[1] for name in kernels}))
        size = sum(info.bytes for info in kernels.values())
        yield "kernels", f"for {places}: {len(kernels)} files, {bytes_text(size)}"
    figures = [name for name in manifest.files if name.startswith(f"{REPORT}/")]
    if figures:
        yield "report", f"{REPORT}.html, and {REPORT}.md with {len(figures)} files of {REPORT}/"
    for name, info in manifest.files.items():
        if name not in kernels and name not in figures:
            yield "file", f"{name}, {bytes_text(info.bytes)}, SHA-256 {info.sha256[:16]}…"


def _engine(engine: EngineInfo) -> Facts:
    built = f", built on {engine.gpu} ({engine.driver})" if engine.gpu else ""
    yield "engine", f"{engine.kind} {engine.library_version}, {engine.file}{built}"
    if engine.compute_capabilities:
        yield "runs on", f"NVIDIA GPUs of compute capability {', '.join(engine.compute_capabilities)}"
    if engine.context:
        plugin = engine.context == "plugin"
        yield "context", "the bundle's kernels, as plugins" if plugin else "the engine's own layers"
    if engine.output != "fp32":
        yield "logits", f"{engine.output}, read as they are by the bundle's kernels"
    if engine.version_compatible:
        yield "versions", f"{engine.kind} {engine.library_version} and later ones of the same major version"
    shapes = " … ".join("x".join(map(str, shape)) for shape in dict.fromkeys(engine.shapes))
    yield "shapes", shapes or "any batch, height and width"


def _preprocess(preprocess: Preprocess) -> str:
    limits = "long side at most {}, short at most {}" if preprocess.keep_ratio else "exactly {}x{}"
    size = limits.format(*preprocess.size) if preprocess.size else "not resized"
    mean, std = _numbers(preprocess.mean), _numbers(preprocess.std)
    return f"{preprocess.channel_order.upper()}, {size}; minus {mean}, over {std}"


def _padding(network: NetworkFacts) -> str:
    side = network.padding_side.replace("_", " ")
    value = "the mean" if network.padding_value is None else _numbers(network.padding_value)
    return f"to a multiple of {network.size_multiple}, at the {side}, with {value}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _output(manifest: Manifest) -> str:
    network, channels = manifest.network, manifest.network.channels(manifest.labels)
    kind = "logits" if network.activation == "none" else f"probabilities ({network.activation})"
    parts = [f"{kind} of {channels} class{'es' * (channels > 1)} at stride {manifest.output_stride}"]
    if network.threshold is not None:
        parts.append(f"label 1 above a probability of {network.threshold:g}")
    if network.upsampling != "none":
        parts.append(f"enlarged to the input's size ({network.upsampling.replace('_', ' ')})")
    return ", ".join(parts)


def _parity(manifest: Manifest) -> Facts:
    """The report of the gate; fields that this version does not know are shown as they are."""
    for name, value in manifest.parity.items():
        for row in value if isinstance(value, list) and value else [value]:
            text = ", ".join(f"{key} {_short(item)}" for key, item in row.items()) if isinstance(row, dict) else row
            yield "parity", f"{name}: {text}"


def _short(value: object) -> object:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return len(value)
    if not isinstance(value, float):
        return value
    text = f"{value:.3g}"
    return rounded(value, 6) if text == "1" and value != 1 else text


def _verify(arguments: argparse.Namespace) -> int:
    bundle = read_bundle(arguments.bundle)
    _print(f"{bundle.folder}: {len(bundle.manifest.files)} files, all as they were built")
    if others := bundle.unlisted():
        _print(f"not of the bundle, left unread: {first_few(others, 20)}")
    try:
        check_engine(bundle.manifest.engine)
    except EngineUnavailable as error:
        _print(f"its engine cannot run here: {error}")
        return cli.FAILED
    _print(f"its engine ({bundle.manifest.engine.kind}) can run here")
    return 0


def _export_triton(arguments: argparse.Namespace) -> int:
    serving = Serving(arguments.instances, arguments.gpus, arguments.batch, arguments.engine)
    folder = export_triton(arguments.bundle, arguments.repository, arguments.name, serving, arguments.force)
    _print(f"{folder}: start the server with --model-repository={folder.parent}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
