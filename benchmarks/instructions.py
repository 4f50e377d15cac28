"""Instructions of the host stages under valgrind: figures that repeat on any machine, whatever else runs on it."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks import results
from benchmarks.peers import Missing
from isnet_trt import cli
from isnet_trt.merging import windows
from isnet_trt.merging.geometry import coarse_size
from isnet_trt.merging.merge import Head, Merger, label_type, largest
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.settings import Inference, Preprocess

SIZE, CLASSES, STRIDE = (173, 259), 19, 8
_RULE = Preprocess((400, 200))
_MULTI = Inference(scales=(0.75, 1.0, 1.25), flip=True, softmax_before_resize=True)
_SLIDE = Inference("slide", (97, 129), (64, 86), (1.0,), flip=False, softmax_before_resize=True)
_DESCRIPTION = """Count the instructions of the host stages with valgrind's callgrind, one thread, one small picture.

Each stage is run once and three times in a process of its own; half the difference is what one run costs, without the
interpreter's start. Counts of the same code on the same libraries repeat to about a per cent."""


def resize_stage() -> None:
    """Resize and normalise a picture."""
    normalise(resize(np.full((*SIZE, 3), 77, np.uint8), _RULE), _RULE)


def gather_stage() -> None:
    """Resample and cut the windows of all passes."""
    planes = np.ones((3, *SIZE), np.float32)
    for _ in windows.gather(planes, windows.plan(SIZE, _MULTI).windows):
        pass


def merge_stage(inference: Inference) -> None:
    """From made-up logits to labels."""
    plan = windows.plan(SIZE, inference)
    labels = np.empty(SIZE, label_type(CLASSES))

    def take(rows: slice, columns: slice, tile: np.ndarray) -> None:
        labels[rows, columns] = largest(tile)

    merger = Merger(plan, Head(CLASSES, STRIDE), SIZE, take, 1)
    for window in plan.windows:
        rows, columns = coarse_size(window.size, STRIDE)
        ramp = np.arange(CLASSES * rows * columns, dtype=np.float32).reshape(CLASSES, rows, columns)
        merger.add(window, ramp % np.float32(7.3))
        merger.work()


STAGES: dict[str, Callable[[], None]] = {
    "resize": resize_stage,
    "gather, 6 passes": gather_stage,
    "merge, single pass": lambda: merge_stage(Inference()),
    "merge, 6 passes": lambda: merge_stage(_MULTI),
    "merge, windows": lambda: merge_stage(_SLIDE),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = cli.parser("benchmarks.instructions", _DESCRIPTION)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="only these (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.times is not None:
        for _ in range(arguments.times):
            STAGES[arguments.stages[0]]()
        return 0
    records, gaps = [], []
    try:
        records.append(measure(arguments.stages))
        for name, count in records[0]["stages"].items():
            print(f"{name:24}{count:16,}")
    except Missing as error:
        gaps.append(results.gap("instructions of the host stages", str(error)))
        print(f"not measured: {error}", file=sys.stderr)
    if arguments.out:
        results.write(arguments.out, results.result(records, gaps))
    return cli.FAILED if gaps else 0


def measure(stages: Sequence[str] = tuple(STAGES)) -> results.Record:
    """The instructions record.

    Raises:
        Missing: valgrind is not installed, or cannot run Python here.
    """
    bar = tqdm(stages, desc="valgrind", unit="stage", disable=None, leave=False)
    counts = {name: (count(name, 3) - count(name, 1)) // 2 for name in bar}
    return {"kind": "instructions", "case": "host stages", "tool": _version(), "stages": counts}


def _valgrind() -> str:
    program = shutil.which("valgrind")
    if program is None:
        raise Missing("valgrind is not installed; apt install valgrind")
    return program


def _version() -> str:
    return subprocess.run([_valgrind(), "--version"], capture_output=True, text=True, check=False).stdout.strip()


def count(stage: str, times: int) -> int:
    """Instructions of a process that runs ``stage`` so many times.

    Raises:
        Missing: valgrind is not installed, or its run failed; the message ends with its last words.
    """
    inner = [sys.executable, "-m", "benchmarks.instructions", "--times", str(times), "--stages", stage]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1")
    with tempfile.TemporaryDirectory() as folder:
        tool = [_valgrind(), "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        environment = {**os.environ, **one_thread, "PYTHONHASHSEED": "0"}
        done = subprocess.run([*tool, *inner], capture_output=True, text=True, check=False, env=environment)
    found = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
    if done.returncode or found is None:
        raise Missing(f"valgrind failed with status {done.returncode}: {done.stderr[-300:]}")
    return int(found.group(1))


if __name__ == "__main__":
    sys.exit(cli.run(main))
