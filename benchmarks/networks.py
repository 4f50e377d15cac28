"""Any segmentation network: those of other libraries built by the product's own command and compared with themselves.

    python -m benchmarks.networks --out benchmarks/results/networks.json

Each network (`benchmarks.zoo`) is built three times: for the CPU in fp32 and in eight bits (uint8 activations), and for
TensorRT-RTX in half precision, which needs no GPU to build and is not run here. The labels of the fp32 bundle are
compared with those of the network's own run (PyTorch for a module, the file under ONNX Runtime without optimisation)
merged in float64 (`benchmarks.float64_merge`), on a picture whose sides are no multiples: as a whole, at three scales
with flip, and in windows with flip and probabilities. A build that is refused is shown with its message.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import command, float64_merge, results
from benchmarks.command import PICTURE
from isnet_trt import Segmenter, cli
from isnet_trt.errors import IsnetError
from isnet_trt.pictures.files import read_image, write_png

SIZE = (211, 283)
"""Both primes: no multiple of anything."""
_SLIDE = {"window": [128, 160], "stride": [96, 112], "flip": True, "average": "probabilities"}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "ms-flip": {"scales": [0.75, 1, 1.25], "flip": True},
    "windows": _SLIDE,
}
"""The settings of inference that every recipe gets."""


class Build(NamedTuple):
    """A build by its title and the options that it has beside those of the network."""

    title: str
    options: tuple[str, ...]


BUILDS = (
    Build("CPU fp32", ("--engine", "onnxruntime")),
    Build("CPU uint8", ("--engine", "onnxruntime", "--precision", "int8", "--calib", "crops")),
    Build("RTX fp16", ("--engine", "tensorrt-rtx", "--precision", "fp16", "--targets", "8.9", "--calib", "crops")),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from benchmarks.zoo import NETWORKS

    names = [network.name for network in NETWORKS]
    parser = cli.parser("benchmarks.networks", __doc__ or "", command.EXIT_STATUS)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"only these: {'; '.join(names)}")
    titles = [build.title for build in BUILDS]
    parser.add_argument("--builds", nargs="+", choices=titles, default=titles, metavar="BUILD", help="only these")
    parser.add_argument("--resume", action="store_true", help="measure only what --out does not hold yet")
    command.add_common(parser)
    arguments = parser.parse_args(argv)
    cli.check_needed(arguments, resume="out")
    out = arguments.out
    records = results.read(out)["records"] if arguments.resume and out and out.is_file() else []
    done = {record["case"] for record in records}
    chosen = [network for network in NETWORKS if not arguments.only or network.name in arguments.only]
    missing = [network for network in chosen if network.missing]
    gaps = [results.gap(network.name, f"not installed: {', '.join(network.missing)}") for network in missing]
    names = [network.name for network in chosen if not network.missing and network.name not in done]
    # Exporting is the work of one core: as many networks at once as there are.
    with ThreadPoolExecutor(arguments.threads) as pool:
        measured = [pool.submit(measure, name, arguments.builds) for name in names]
        for future in tqdm(as_completed(measured), total=len(names), unit="network", disable=None):
            records.append(future.result())
            if out:  # a stopped run can be continued
                results.write(out, results.result(records, gaps))
    order = [network.name for network in NETWORKS]
    return command.finish(sorted(records, key=lambda record: order.index(record["case"])), gaps, out)


def measure(name: str, builds: Sequence[str]) -> results.Record:
    """The record of one network, measured in a process of its own, on one thread where the thread is ours to choose."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, name, builds).result()
        except BrokenProcessPool:
            failure = {"status": "FAILED", "error": "process", "why": "it died"}
        except Exception as error:  # a defect: the others go on, and the table shows it
            failure = {"status": "FAILED", "error": type(error).__name__, "why": " ".join(str(error).split())[:500]}
    return {"kind": "network", "case": name, "builds": {BUILDS[0].title: failure}, "labels": {}}


def _measure(name: str, builds: Sequence[str]) -> results.Record:
    from benchmarks.zoo import NETWORKS, write_recipe

    network = next(network for network in NETWORKS if network.name == name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(folder)
        os.chdir(place)  # names in messages and in the result are those that a user would write
        image = _crops(place / "crops")
        source = network.source(place)
        keys = network.recipe(PRESETS)
        write_recipe(place, keys)
        record: results.Record = {"kind": "network", "case": name, "versions": network.versions()}
        record |= {"source": " ".join(source), "recipe": keys}
        record["builds"] = {
            build.title: _build([*source, "--recipe", "recipe.yaml", *build.options], build.title)
            for build in BUILDS
            if build.title in builds
        }
        record["labels"] = {}
        if (bundle := place / BUILDS[0].title).exists():
            own = network.own_run(place)
            with Segmenter.open(bundle, threads=1) as segmenter:
                for preset, settings in keys["presets"].items():
                    labels = segmenter(image, inference=preset).labels
                    record["labels"][preset] = _compared(labels, own, image, keys, settings)
            _eight_bits(record, place / BUILDS[1].title, image, labels)
    return record


def _crops(folder: Path) -> NDArray[np.uint8]:
    """Write a crop of `SIZE` of each photograph of the build; the one that is labelled is returned."""
    folder.mkdir()
    for path in PICTURE.parent.glob("*.jpg"):
        write_png(folder / f"{path.stem}.png", read_image(path)[: SIZE[0], : SIZE[1], ::-1])
    return read_image(folder / f"{PICTURE.stem}.png")


def _build(arguments: list[str], out: str) -> results.Record:
    """Outcome of ``isnet_trt.build``: seconds, size and figures of the gate; or the message of its refusal."""
    from isnet_trt.bundle import read_bundle
    from isnet_trt.commands import build

    start = time.perf_counter()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            build.main([*arguments, "--images", f"crops/{PICTURE.stem}.png", "--out", out])
    except IsnetError as error:
        return {"status": "refused", "error": type(error).__name__, "why": " ".join(str(error).split())}
    except Exception as error:  # a defect: the others go on, and the table shows it
        return {"status": "FAILED", "error": type(error).__name__, "why": " ".join(str(error).split())[:500]}
    seconds, manifest = time.perf_counter() - start, read_bundle(out).manifest
    gate = [{key: row[key] for key in ("rms", "agreement")} for row in manifest.parity.get("pictures", [])]
    size = sum(info.bytes for info in manifest.files.values())
    about = {"stride": manifest.output_stride, "facts": vars(manifest.network)}
    return {"status": "built", "seconds": seconds, "bytes": size, "gate": gate, **about}


def _compared(
    labels: NDArray[Any],
    own: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    image: NDArray[np.uint8],
    recipe: dict[str, Any],
    settings: dict[str, Any],
) -> results.Record:
    """How many labels equal those of the network's own run, and how many of the others are no ties."""
    expected = float64_merge.labelled(float64_merge.merged(own, image, recipe, settings), recipe, settings)
    other = labels != expected.labels
    return {
        "equal": float(1 - other.mean()),
        "ties": float(expected.ties.mean()),
        "wrong": int((other & ~expected.ties).sum()),
        "classes": len(np.unique(expected.labels)),
    }


def _eight_bits(record: results.Record, bundle: Path, image: NDArray[np.uint8], labels: NDArray[Any]) -> None:
    """Add to the record of the eight-bit build how many labels equal those of fp32, in windows."""
    if bundle.exists():
        with Segmenter.open(bundle, threads=1) as segmenter:
            equal = segmenter(image, inference="windows").labels == labels
        record["builds"][bundle.name]["labels_equal"] = float(equal.mean())


if __name__ == "__main__":
    sys.exit(cli.run(main))
