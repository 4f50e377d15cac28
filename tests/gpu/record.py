"""What a GPU test finds: figures, rows, what is wrong and what is missing, written to a file as it comes.

A test runs in a process of its own, which may crash, hang or lose its device: what it wrote before remains. The parent
makes the record of the benchmarks' layout from it: kind ``gpu_check`` (the committed results' name), case, title,
status, why, seconds, figures, rows, missing.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from isnet_trt.errors import EngineUnavailable

PASSED, FAILED, MISSING = "passed", "failed", "could not run"
ROOT = Path(__file__).parents[2]


class CannotRun(Exception):
    """A part of a test needs something that is not there; the message says what."""


class Record:
    """The writing side; `load` reads. ``known``: case -> figures of the tests that have run before."""

    def __init__(self, path: Path, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._path, self._known = path, known or {}
        self.figures: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.missing: list[dict[str, str]] = []
        path.write_text("", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """What a test has written, also where its process ended in the middle of a line."""
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        record = cls(path)
        for line in lines:
            with contextlib.suppress(ValueError):
                kind, content = json.loads(line)
                record._keep(kind, content)
        return record

    def _keep(self, kind: str, content: Any) -> None:
        if kind == "figure":
            self.figures[content[0]] = content[1]
        else:
            {"row": self.rows, "wrong": self.wrong, "missing": self.missing}[kind].append(content)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([kind, content]) + "\n")

    def known(self, case: str, figure: str) -> Any:
        """A figure of an earlier test; None where there is none."""
        return self._known.get(case, {}).get(figure)

    def figure(self, name: str, value: Any) -> None:
        """Add one fact or number."""
        self._keep("figure", [name, plain(value)])

    def row(self, **cells: Any) -> None:
        """Add one line of the test's table; lines may have different columns."""
        self._keep("row", plain(cells))

    def fail(self, message: str) -> None:
        """Add a result that is not what it must be; the test goes on, and has failed."""
        self._keep("wrong", " ".join(message.split()))

    def require(self, good: bool, message: str) -> bool:
        """`fail` unless ``good``; returns ``good``."""
        if not good:
            self.fail(message)
        return bool(good)

    def skip(self, what: str, why: str) -> None:
        """Add a part of the test that cannot run."""
        self._keep("missing", {"what": what, "why": " ".join(why.split())})

    @contextlib.contextmanager
    def part(self, what: str, *lacking: type[Exception]) -> Iterator[None]:
        """A part of a test, after which it goes on whatever is raised.

        What this machine lacks (`CannotRun`, EngineUnavailable and ``lacking``) is a `skip`, any other exception a
        `fail`. It goes through only where every further call to the GPU would fail.
        """
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            if device_lost():
                raise
            if isinstance(error, (CannotRun, EngineUnavailable)):
                self.skip(what, str(error))
            elif isinstance(error, lacking):
                self.skip(what, described(error))
            else:
                self.fail(f"{what}: {described(error)}")


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
    """Type and message in one line, and the last line of our own code that the error passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
    frames = [f for f in frames if "site-packages" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
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
