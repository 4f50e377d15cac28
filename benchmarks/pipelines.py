"""This library beside what is usually written around an ONNX Runtime session: loops, MONAI, transformers.

    python -m benchmarks.pipelines --out benchmarks/results/pipelines.json
    python -m benchmarks.pipelines --image-size 1024 2048 --resume --out benchmarks/results/pipelines.json   # add rows

One SegFormer of transformers (a quarter of B0's layers, seeded weights) with 9, 19 and 150 classes is built with
``isnet_trt.build``; every contender runs the graph of that bundle in the same session of ONNX Runtime, on the same
windows, and has to give the labels of the PyTorch loop. Rounds are interleaved. MONAI gets a predictor that enlarges
each window, because averaging before enlarging gives other labels; transformers takes whole pictures at one scale.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command, results
from benchmarks.peers import Setup
from benchmarks.rounds import Case, measure_all
from isnet_trt import cli
from isnet_trt.bundle import read_bundle
from isnet_trt.settings import Inference, Size

CLASSES = (9, 19, 150)
SIZES: tuple[Size, ...] = ((512, 1024), (1024, 2048))
_WINDOWS: tuple[Size, Size] = ((512, 512), (384, 384))
"""Windows and their distance: a quarter of each side overlaps, MONAI's default."""
SETTINGS = {
    "whole": Inference(),
    "whole, flip, probabilities": Inference(flip=True, softmax_before_resize=True),
    "windows": Inference("slide", *_WINDOWS),
    "windows, flip, probabilities": Inference("slide", *_WINDOWS, flip=True, softmax_before_resize=True),
}
PEERS = ("torch-loop", "numpy-loop", "monai", "transformers", "transformers-pipeline")
_WHOLE_ONLY = PEERS[3:]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.pipelines", __doc__ or "", command.EXIT_STATUS)
    parser.add_argument("--classes", nargs="+", type=int, choices=CLASSES, default=CLASSES, metavar="K")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=tuple(SETTINGS), metavar="NAME")
    command.add_image_size(parser, "only pictures of this size (default: 512 1024 and 1024 2048)")
    parser.add_argument("--resume", action="store_true", help="keep what --out holds, and measure only what it lacks")
    command.add_common(parser, rounds=5)
    arguments = parser.parse_args(argv)
    cli.check_needed(arguments, resume="out")
    sizes = [tuple(arguments.image_size)] if arguments.image_size else list(SIZES)
    records: list[results.Record] = []
    if arguments.resume and arguments.out.is_file():
        earlier = results.read_earlier(arguments.out)
        records = [{"date": earlier["date"], **record} for record in earlier["records"]]
    done = {record["case"] for record in records}
    with tempfile.TemporaryDirectory() as folder:
        for classes in arguments.classes:
            pairs = [(size, name) for size in sizes for name in arguments.settings]
            pairs = [(size, name) for size, name in pairs if _title(size, classes, name) not in done]
            if not pairs:
                continue
            bundle = built(classes, Path(folder))
            setups = [Setup("isnet_trt", "bundle", arguments.threads, bundle=bundle)]
            setups += [Setup(name, name, arguments.threads, bundle=bundle) for name in PEERS]
            # Small pictures first: what an earlier picture left in a process is less than a later one takes.
            cases = [_case(bundle, classes, size, name, arguments.rounds) for size, name in pairs]
            measured = measure_all(cases, setups, dict.fromkeys(PEERS, 1.0), _takes)
            records += [{**record, "kind": "pipeline", "date": results.now()} for record in measured]
            records.sort(key=lambda record: record["picture"])
            if arguments.out:  # a stopped run can be continued
                results.write(arguments.out, results.result(records, []))
    return command.finish(records, [], arguments.out)


def _takes(setup: Setup, case: Case) -> bool:
    """Whether a contender has the settings of a case at all: transformers has one pass over the whole picture."""
    return setup.kind not in _WHOLE_ONLY or case.inference == Inference()


def built(classes: int, folder: Path) -> Path:
    """A bundle of the SegFormer, from the command that users have."""
    from benchmarks.zoo import recipe_keys, write_recipe
    from isnet_trt.commands import build

    recipe = write_recipe(folder, recipe_keys({"classes": classes}, {"default": {}}))
    source = ["--module", f"benchmarks.zoo:hf_segformer_{classes}", "--recipe", str(recipe)]
    out = folder / str(classes)
    with contextlib.redirect_stdout(io.StringIO()):
        build.main([*source, "--engine", "onnxruntime", "--out", str(out)])
    return out


def _title(size: Size, classes: int, settings: str) -> str:
    return f"{size[0]}×{size[1]}, {classes} classes, {settings}"


def _case(bundle: Path, classes: int, size: Size, settings: str, rounds: int) -> Case:
    ((_, image),) = command.pictures(None, size, size, [])
    # Seconds a picture: three rounds, of which the checking one is the first.
    slow = size[0] * size[1] * classes > 2**25
    rounds = min(rounds, 3) if slow else rounds
    preprocess = read_bundle(bundle).manifest.preprocess
    title = _title(size, classes, settings)
    return Case(title, image, SETTINGS[settings], preprocess, rounds=rounds, count_first=slow)


if __name__ == "__main__":
    sys.exit(cli.run(main))
