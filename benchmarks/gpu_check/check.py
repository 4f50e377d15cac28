"""What a check is, and what it answers."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isnet_trt.errors import EngineUnavailable

PASSED, FAILED, MISSING = "passed", "failed", "could not run"
"""What a check's record may have as ``status``."""

Row = dict[str, Any]
Sink = Callable[[str, Any], None]


class CannotRun(Exception):
    """This check, or a part of it, needs something that is not here; the message says what."""


@dataclass(frozen=True)
class Setup:
    """What every check is given.

    Attributes:
        folder: where checks leave what later ones use (compiled kernels, bundles); it outlives a check's process.
        bundles: folders of bundles to check besides those that are built here.
        quick: fewer sizes and rounds.
        seed: of all random inputs; drawn anew for every run, and written down with it.
        known: check name -> figures of those that have run, such as the rates of this GPU.
    """

    folder: Path = Path(tempfile.gettempdir()) / "isnet_trt_gpu_check"
    bundles: Sequence[Path] = ()
    quick: bool = False
    seed: int = 0
    known: Mapping[str, Row] = field(default_factory=dict)

    def figure(self, check: str, name: str) -> Any:
        """A figure of an earlier check; None where it has not run or has no such figure."""
        return self.known.get(check, {}).get(name)


class Answer:
    """What a check finds; every part is handed on at once, so that a process that dies later takes nothing along."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def figure(self, name: str, value: Any) -> None:
        """One fact or number, JSON-ready."""
        self._sink("figure", (name, plain(value)))

    def row(self, **cells: Any) -> None:
        """One line of the check's table; lines may have different columns."""
        self._sink("row", plain(cells))

    def wrong(self, text: str) -> None:
        """A result that is not what it must be; the check goes on, and has failed."""
        self._sink("wrong", " ".join(text.split()))

    def missing(self, what: str, why: str) -> None:
        """A part of the check that could not be run."""
        self._sink("missing", {"what": what, "why": " ".join(why.split())})

    def require(self, good: bool, text: str) -> bool:
        """`wrong` (``text``) unless ``good``; returns ``good``."""
        if not good:
            self.wrong(text)
        return bool(good)


@contextlib.contextmanager
def part(answer: Answer, what: str, *lacking: type[Exception]) -> Iterator[None]:
    """A part of a check, after which the check goes on whatever happens in it.

    What this machine lacks (`CannotRun`, EngineUnavailable, and ``lacking``) is `Answer.missing`, any other exception
    `Answer.wrong`. It goes through only where the GPU is of no more use to this process, so that another one follows.
    """
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        if device_lost():
            raise
        if isinstance(error, (CannotRun, EngineUnavailable)):
            answer.missing(what, str(error))
        elif isinstance(error, lacking):
            answer.missing(what, described(error))
        else:
            answer.wrong(f"{what}: {described(error)}")


def device_lost() -> bool:
    """Whether every further call of this process to the GPU will fail, as after an illegal access to its memory."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except Exception:  # whatever PyTorch makes of it
        return True
    return False


def described(error: BaseException) -> str:
    """Type and words in one line, and the last line of our own code that the error passed."""
    root = str(Path(__file__).parents[2])
    ours = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(root)]
    where = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def plain(value: Any) -> Any:
    """``value`` as JSON has it: numbers of numpy and torch as Python's, non-finite ones and paths as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


Run = Callable[[Answer, Setup], None]


@dataclass(frozen=True)
class Check:
    """One question to the machine.

    Attributes:
        name: unique, ``group.what``.
        title: what it shows, in a line.
        run: asks it; raises `CannotRun`, or anything else if it failed.
        needs: names of `needs.NEEDS`; where one is missing the check is not started.
        limit: seconds after which its process is killed.
        alone: in a process of its own: it may abort, or leave a device that later checks could not use.
        quick: also with ``--quick``.
        rank: order of all checks, smaller first: what is worth most when the time runs out early.
    """

    name: str
    title: str
    run: Run
    needs: tuple[str, ...] = ()
    limit: float = 60
    alone: bool = False
    quick: bool = True
    rank: int = 50


def record(check: Check) -> Row:
    """The record of a check that has not run: the layout of `benchmarks.results`, kind ``gpu_check``."""
    return {
        "kind": "gpu_check",
        "case": check.name,
        "title": check.title,
        "status": MISSING,
        "why": "it was not started",
        "seconds": 0.0,
        "figures": {},
        "rows": [],
        "missing": [],
    }
