"""Commands that write results, in miniature: predict, build, calibration and training, each in a forked child.

The libraries are imported once, in the parent; a child starts in milliseconds, runs the command line with its own
arguments, and can be killed at any instant.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probe

sys.path.insert(1, str(probe.TESTS / "training"))

import numpy as np
import onnxruntime  # noqa: F401  # imported before the children
import tiny_model
from own_pictures import write_pngs
from tqdm import tqdm

from isnet_trt import cli, predict
from isnet_trt.bundle import read_bundle

PATIENCE = 600
"""Seconds after which a command counts as hanging."""
IMAGES = 6
_UNCHANGING = re.compile(r"events\.out\.tfevents")
_PAGES = ("precision.html", "precision.md")
"""Pages with the date and the command of a build, and in another folder another command."""
_OF_THE_RUN = {"created_at", "seconds", "command", "folder", *_PAGES}
"""Entries of a manifest that differ from run to run; the pages are among its files, which `read_bundle` compares."""


@dataclass(frozen=True)
class Job:
    """A command that writes into ``folder/out`` (or beside it).

    Attributes:
        main: the command's entry.
        arguments: those for a folder; ``again`` after a run that did not end.
        left: raises or returns what is wrong with what an unfinished run left.
    """

    name: str
    main: Callable[[Sequence[str] | None], int]
    arguments: Callable[[Path], list[str]]
    left: Callable[[Path, dict[str, Any]], str]


@dataclass(frozen=True)
class Ended:
    """How a child ended: its status (negative: the signal), its output, and its seconds."""

    status: int
    output: str
    seconds: float


class Reference:
    """A job, the results of an undisturbed run, its seconds and its bytes: all, and of the largest file."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        ended = run(job, folder)
        assert ended.status == 0, ended.output
        self.whole, self.seconds = contents(folder, temporary=True), ended.seconds
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        self.bytes, self.largest = sum(sizes), max(sizes)


def all_jobs(inputs: Path, names: Sequence[str]) -> dict[str, Job]:
    """Name -> job, of those called ``names``, their inputs in ``inputs``; all but predict need torch."""
    makers = {"predict": _predict, "build": _build, "calibration": _calibration, "training": _training}
    inputs.mkdir(parents=True, exist_ok=True)
    return {name: makers[name](inputs) for name in names}


NAMES = ("predict", "build", "calibration", "training")
_WEIGHTS = {"predict": 4, "training": 3, "build": 2, "calibration": 1}


def turns(names: Sequence[str]) -> list[str]:
    """The order in which the jobs take turns: each once, then quick ones more often."""
    return [name for number in range(max(_WEIGHTS.values())) for name in names if number < _WEIGHTS[name]]


def run_cases(
    description: str | None, cases: int, unit: str, try_case: Callable[[int, Reference, Path], tuple[str, str]]
) -> int:
    """The command line of a probe that tries the jobs in turn; the exit status.

    ``try_case`` has a case's number, the undisturbed run of its job and a folder of its own; it returns a finding, or
    "", and the word under which the case is counted.
    """
    parser = probe.parser(description, cases, unit)
    text = f"commands to try (default: {' '.join(NAMES)}); predict needs no torch"
    parser.add_argument("--jobs", nargs="+", choices=NAMES, default=NAMES, help=text)
    arguments = parser.parse_args()
    counts, findings = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as root:
        chosen = all_jobs(Path(root) / "inputs", arguments.jobs)
        references = {name: Reference(job, Path(root) / f"{name}-undisturbed") for name, job in chosen.items()}
        order = turns(arguments.jobs)
        for number in tqdm(range(arguments.first, arguments.first + arguments.cases), unit, disable=None):
            name, folder = order[number % len(order)], Path(root) / str(number)
            reason, outcome = try_case(number, references[name], folder)
            counts[f"{name}: {outcome}"] += 1
            if reason:
                findings.append(f"case {number} ({name}): {reason}")
                probe.show(findings[-1])
                shutil.copytree(folder, arguments.keep / f"{unit}-{number}", symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(os.fsencode(folder))
    return probe.finish(arguments, {"cases": arguments.cases, **dict(sorted(counts.items()))}, findings)


def _pictures(folder: Path) -> Path:
    random = np.random.default_rng(0)
    return write_pngs(folder, [random.integers(0, 256, (60 + 7 * i, 90, 3), np.uint8) for i in range(IMAGES)])


def _predict(inputs: Path) -> Job:
    pictures = _pictures(inputs / "pictures")
    bundle = tiny_model.write_bundle(inputs / "tiny", tiny_model.labels(5))

    def arguments(folder: Path) -> list[str]:
        return [str(bundle), str(pictures), "--out", str(folder / "out"), "--threads", "1"]

    return Job("predict", predict.main, arguments, _whole_files)


def _whole_files(folder: Path, whole: dict[str, Any]) -> str:
    """Every file but temporary ones is that of an undisturbed run."""
    return next((f"{name} is not whole" for name, value in contents(folder).items() if whole.get(name) != value), "")


def _checkpoint(inputs: Path) -> Path:
    """A checkpoint of the tiny network, which becomes a recipe here and in the children."""
    import tiny_training
    import torch

    from isnet_trt.recipes import RECIPES
    from isnet_trt.training.model import ISNet

    torch.set_num_threads(1)
    RECIPES.update(tiny_training.TINY_RECIPES)
    torch.manual_seed(3)
    path = inputs / "tiny.pth"
    torch.save({"model": ISNet(tiny_training.TINY.architecture).state_dict()}, path)
    return path


def _build(inputs: Path) -> Job:
    """A build whose graph is exported once: that takes most of its seconds, and writes nothing."""

    from isnet_trt import build
    from isnet_trt.export.onnx_edit import copied
    from isnet_trt.export.sources import checkpoint as sources_checkpoint
    from isnet_trt.training.checkpoint import load_checkpoint, load_model

    checkpoint = str(_checkpoint(inputs))
    graph = sources_checkpoint.export_graph(load_model(load_checkpoint(checkpoint, "tiny")), "tiny")
    sources_checkpoint.export_graph = lambda model, name: copied(graph)

    def arguments(folder: Path) -> list[str]:
        force = ["--force"] if (folder / "out").exists() else []
        return [
            "--ckpt",
            checkpoint,
            "--recipe",
            "tiny",
            "--engine",
            "onnxruntime",
            "--out",
            str(folder / "out"),
            *force,
        ]

    return Job("build", build.main, arguments, _whole_bundle)


def _whole_bundle(folder: Path, whole: dict[str, Any]) -> str:
    """There is no bundle, or it is the one of an undisturbed run."""
    if not (folder / "out").exists():
        return ""
    read_bundle(folder / "out")
    present = {name: value for name, value in contents(folder).items() if name.startswith("out/")}
    return "" if all(whole[name] == value for name, value in present.items()) else "the bundle is not whole"


def _calibration(inputs: Path) -> Job:
    """A build in eight bits: the calibration table is kept beside the bundle, for the next build."""
    from isnet_trt.export.quantise import calibration

    calibration.SAVE_EVERY = 1
    build, pictures = _build(inputs), _pictures(inputs / "calibration")

    def arguments(folder: Path) -> list[str]:
        return [*build.arguments(folder), "--precision", "int8", "--calib", str(pictures), "--calib-inputs", "8"]

    return Job("calibration", build.main, arguments, _whole_table)


def _whole_table(folder: Path, whole: dict[str, Any]) -> str:
    """The bundle is whole, and so is the table, as far as it went."""
    from isnet_trt.export.quantise.table import JSON, Table

    if (folder / "out.calibration" / JSON).exists():
        Table.load(folder / "out.calibration")
    return _whole_bundle(folder, whole)


def _training(inputs: Path) -> Job:
    import tiny_training

    from isnet_trt.training import train

    _checkpoint(inputs)
    tiny_training.data()
    train._data = lambda args, chosen: tiny_training.data()  # drawn once, before the children
    options = [
        "--recipe",
        "tiny",
        "--batch",
        "2",
        "--seed",
        "5",
        "--epochs",
        "3",
        "--save-every",
        "2",
        "--workers",
        "0",
    ]

    def arguments(folder: Path) -> list[str]:
        return [*options, "--threads", "1", "--device", "cpu", "--resume", "auto", "--out", str(folder / "out")]

    return Job("training", train.main, arguments, _whole_checkpoints)


def _whole_checkpoints(folder: Path, whole: dict[str, Any]) -> str:
    """Every checkpoint can be read, and the link leads to one."""
    from isnet_trt.training.checkpoint import read_state
    from isnet_trt.training.run_folder import LATEST

    for path in (folder / "out").glob("checkpoints-*.pth"):
        read_state(path)
    link = folder / "out" / LATEST
    return "the link leads nowhere" if link.is_symlink() and not link.exists() else ""


def run(
    job: Job,
    folder: Path,
    *,
    kill_after: float | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a job in a forked child; kill it after so many seconds, if it has not ended by then.

    ``prepare`` is called in the child before the command.
    """
    folder.mkdir(exist_ok=True)
    log = Path(f"{folder}.log")
    log.write_bytes(b"")  # here, since the child may be killed before it could
    sys.stdout.flush()
    start = time.monotonic()
    child = os.fork()
    if not child:
        _run_here(job, folder, log, prepare)
    status = _wait(child, start + (PATIENCE if kill_after is None else kill_after))
    return Ended(status, log.read_text("utf-8", "replace"), time.monotonic() - start)


def _run_here(job: Job, folder: Path, log: Path, prepare: Callable[[], None]) -> None:
    """Run the command line in this child, its output in ``log``, and end."""
    status = 99
    try:
        descriptor = os.open(log, os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        prepare()
        status = cli.run(job.main, job.arguments(folder))
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 98
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def _wait(child: int, deadline: float) -> int:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.001)


def contents(folder: Path, temporary: bool = False) -> dict[str, Any]:
    """The files below a folder by name: a digest, or what is the same in every run; without temporary ones."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return {
        str(name): _content(folder / name)
        for name in names
        if not _UNCHANGING.search(name.name) and (temporary or not any(part.startswith(".") for part in name.parts))
    }


def _content(path: Path) -> Any:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if path.name == "bundle.json":
        return _lasting(json.loads(path.read_bytes()))
    if path.name in _PAGES:
        return "a page"
    if path.name == "iterations.csv":  # the last column is the speed
        return [line.rpartition(",")[0] for line in path.read_text("utf-8").splitlines()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in _OF_THE_RUN}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """How the results of two runs differ; empty if they do not."""
    names = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    return f"other results: {', '.join(names)}" if names else ""
