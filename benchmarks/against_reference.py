"""The runtime beside the plain reference form in PyTorch eager: same weights, same picture, same labels, one run.

    python -m benchmarks.against_reference                     # ISNet-R50 ADE, filled weights
    python -m benchmarks.against_reference --ckpt FILE --out benchmarks/results/NAME.json

Two comparisons, rounds interleaved (A B A B): the network on one 512x512 input, and an ADE ms+flip picture end to
end. Labels are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks import machine
from benchmarks.peers import reference
from isnet_trt import Segmenter, cli
from isnet_trt.errors import ParityError
from isnet_trt.export import build
from isnet_trt.preprocess import normalise, read_image
from isnet_trt.training.checkpoint import load_checkpoint, load_model
from isnet_trt.training.model import ISNet

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "golden"
PICTURE = ROOT / "export" / "pictures" / "coffee.jpg"
RECIPE = "isnet_resnet50os8_ade20k"
_EQUAL = 0.999
"""Least share of equal labels: nearly equal scores may fall either way by a rounding error."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        ckpt = arguments.ckpt or filled_checkpoint(RECIPE, Path(folder) / "filled.pth")
        build(ckpt, Path(folder) / "bundle", engine="onnxruntime")
        model = load_model(load_checkpoint(ckpt))
        with Segmenter.open(Path(folder) / "bundle", threads=arguments.threads) as segmenter:
            comparisons = list(_comparisons(segmenter, model, arguments))
    print("\n".join(map(_line, comparisons)))
    if arguments.out:
        today = datetime.date.today().isoformat()
        about = {"date": today, "machine": machine.describe(), "threads": arguments.threads}
        Path(arguments.out).write_text(json.dumps({**about, "comparisons": comparisons}, indent=1) + "\n", "utf-8")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.parser("benchmarks.against_reference", __doc__ or "")
    parser.add_argument("--ckpt", metavar="FILE", help="a checkpoint (default: deterministic made-up weights, R50 ADE)")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides (default: 2)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the network comparison (default: 7)")
    parser.add_argument(
        "--rounds-end-to-end", type=int, default=3, help="rounds of the ms+flip picture (default: 3; 0 leaves it out)"
    )
    parser.add_argument("--out", metavar="FILE", help="write the result as JSON")
    return parser.parse_args(argv)


def filled_checkpoint(recipe: str, path: Path) -> Path:
    """A checkpoint with the deterministic weights of the test fixtures."""
    spec = json.loads((FIXTURES / f"state_dict_{recipe}.json").read_text("utf-8"))
    weights = {name: torch.from_numpy(np.array(value)) for name, value in _fill().fill(spec).items()}
    torch.save({"model": weights}, path)
    return path


def _fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", FIXTURES / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _comparisons(segmenter: Segmenter, model: ISNet, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    image = cv2.resize(read_image(PICTURE), (640, 480), interpolation=cv2.INTER_AREA)
    square = np.asarray(cv2.resize(image, (512, 512), interpolation=cv2.INTER_AREA), np.uint8)
    x = np.ascontiguousarray(normalise(square, segmenter.preprocess).transpose(2, 0, 1)[None])

    def plain_network() -> NDArray:
        with torch.inference_mode():
            return reference.network(model, torch.from_numpy(x)).numpy()

    def plain_picture() -> NDArray:
        inference, pairs = segmenter.presets["ms-flip"], segmenter.labels.flip_pairs
        return reference.label_map(model, np.asarray(image, np.uint8), segmenter.preprocess, inference, pairs)

    def picture() -> NDArray:
        return segmenter(np.asarray(image, np.uint8), inference=segmenter.presets["ms-flip"]).labels

    equal = _agreement(segmenter.logits(x).argmax(1), plain_network().argmax(1))
    yield _interleaved("network 512x512", lambda: segmenter.logits(x), plain_network, arguments.rounds, equal)
    if not arguments.rounds_end_to_end:
        return
    equal = _agreement(picture(), plain_picture())
    yield _interleaved("ms+flip 480x640", picture, plain_picture, arguments.rounds_end_to_end, equal)


def _agreement(ours: NDArray, theirs: NDArray) -> float:
    share = float((ours == theirs).mean())
    if share < _EQUAL:
        raise ParityError(f"only {100 * share:.2f} % of the labels are equal: not timed")
    return share


def _interleaved(
    name: str, ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, agreement: float
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"isnet_trt": [], "reference": []}
    for _ in tqdm(range(rounds), desc=name, disable=None):
        for side, work in (("isnet_trt", ours), ("reference", theirs)):
            start = time.perf_counter()
            work()
            seconds[side].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(seconds["isnet_trt"], seconds["reference"], strict=True)]
    return {"name": name, "labels_equal": agreement, "seconds": seconds, "ratios": ratios}


def _line(one: dict[str, Any]) -> str:
    ours, theirs = (statistics.median(one["seconds"][side]) for side in ("isnet_trt", "reference"))
    low, middle, high = min(one["ratios"]), statistics.median(one["ratios"]), max(one["ratios"])
    return (
        f"{one['name']}: isnet_trt {ours:.2f} s, reference {theirs:.2f} s, {middle:.2f} times faster "
        f"({low:.2f} to {high:.2f} over {len(one['ratios'])} rounds), labels equal {100 * one['labels_equal']:.3f} %"
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
