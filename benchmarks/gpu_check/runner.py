"""Runs checks one after the other, whatever becomes of each, and keeps the result file whole after every one."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.gpu_check import needs
from benchmarks.gpu_check.check import FAILED, MISSING, PASSED, Check, Row, Setup, record
from benchmarks.gpu_check.worker import Died, Worker
from isnet_trt.errors import SettingsError

INCOMPLETE = 3
"""Exit status where nothing failed, but something could not run."""
EVERY = 5.0
"""Seconds after which what a check has found so far is written as well."""
Say = Callable[[Row], None]


class Clock:
    """The time that all checks have together; ``minutes`` None: any."""

    def __init__(self, minutes: float | None) -> None:
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds."""
        return float("inf") if self._end is None else self._end - time.monotonic()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run: ``modules`` hold the checks, ``checks`` are those chosen.

    ``done`` are records of them that stay as they are, ``others`` those of checks that were not chosen: their figures
    are known to the ones that run.
    """

    modules: Sequence[str]
    checks: Sequence[Check]
    done: Sequence[Row] = ()
    others: Sequence[Row] = ()


def run(plan: Plan, setup: Setup, clock: Clock, keep: Callable[[list[Row]], None], say: Say) -> list[Row]:
    """The records of ``plan.checks`` in order; ``keep`` is given all so far after each, ``say`` each one."""
    found = {row["case"]: row for row in plan.done}
    order = [check.name for check in plan.checks]
    with tempfile.TemporaryDirectory(prefix="gpu_check") as folder, _Workers(plan.modules, Path(folder)) as workers:
        for check in plan.checks:
            if check.name in found:
                continue
            known = {row["case"]: row["figures"] for row in (*plan.others, *found.values())}

            def so_far(row: Row) -> None:
                rows = {**found, row["case"]: row}
                keep([rows[name] for name in order if name in rows])

            found[check.name] = _one(check, dataclasses.replace(setup, known=known), clock, workers, so_far)
            say(found[check.name])
            keep([found[name] for name in order if name in found])
    return [found[name] for name in order]


def _one(check: Check, setup: Setup, clock: Clock, workers: _Workers, so_far: Say) -> Row:
    """The record of one check; ``so_far`` is given what it has found, every now and then while it runs."""
    made, start = record(check), time.monotonic()
    wrong: list[str] = []
    written = start

    def take(word: str, content: Any) -> None:
        nonlocal written
        if word == "figure":
            made["figures"][content[0]] = content[1]
        elif word == "wrong":
            wrong.append(str(content))
        else:
            made[{"row": "rows", "missing": "missing"}[word]].append(content)
        if time.monotonic() - written >= EVERY:
            written = time.monotonic()
            seconds = round(written - start, 2)
            why = "; ".join([*wrong, "it had not ended"])
            so_far({**made, "status": FAILED if wrong else MISSING, "why": why, "seconds": seconds})

    made["status"], made["why"] = _ask(check, setup, clock, workers, take)
    if wrong:
        more = [made["why"]] if made["status"] == FAILED else []
        made["status"], made["why"] = FAILED, "; ".join([*wrong, *more])
    made["seconds"] = round(time.monotonic() - start, 2)
    return made


def _ask(check: Check, setup: Setup, clock: Clock, workers: _Workers, take: Callable) -> tuple[str, str]:
    with contextlib.suppress(KeyError):
        first = needs.missing(n for n in check.needs if n in ("gpu", "no gpu"))
        if reason := first or needs.absent(check.needs):
            return MISSING, reason  # no process is needed to know that, which would load PyTorch first
    left = clock.left()
    used_up = f"the {clock.minutes:g} minutes given are used up; --resume goes on" if clock.minutes else ""
    if left < 1:
        return MISSING, used_up
    try:
        with workers.one(check.alone) as worker:
            word, text = worker.ask(check.name, setup, min(check.limit, left), take)
    except Died as death:
        return (MISSING, f"{used_up} ({death})") if left < check.limit and clock.left() < 1 else (FAILED, str(death))
    return {"done": PASSED, "missing": MISSING, "failed": FAILED}[word], text


class _Workers:
    """The process that checks share; after one that failed or died, and for one that wants it alone, a new one."""

    def __init__(self, modules: Sequence[str], folder: Path) -> None:
        self._modules, self._log = modules, folder / "said.txt"
        self._shared: Worker | None = None

    @contextlib.contextmanager
    def one(self, alone: bool) -> Iterator[Worker]:
        """A worker for one check."""
        if alone:
            self.close()  # a waiting process would hold memory of the device
        worker = self._shared or Worker(self._modules, self._log)
        self._shared = None
        try:
            yield worker
        except BaseException:
            worker.close(kill=True)
            raise
        if alone or worker.spoiled:
            worker.close()
        else:
            self._shared = worker

    def close(self) -> None:
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def chosen(checks: Iterable[Check], only: Sequence[str], quick: bool) -> list[Check]:
    """Checks in the order of their rank whose names hold one of the words of ``only``.

    Raises:
        SettingsError: a word occurs in no name.
    """
    ordered = sorted(checks, key=lambda check: check.rank)
    lost = [word for word in only if not any(word in check.name for check in ordered)]
    if lost:
        names = ", ".join(check.name for check in ordered)
        raise SettingsError(f"--only {' '.join(lost)}: no check's name holds it; there are {names}")
    if only:
        return [check for check in ordered if any(word in check.name for word in only)]
    return [check for check in ordered if check.quick or not quick]


def settled(path: Path) -> list[Row]:
    """The records of an earlier run that need not be made again: those of checks that passed or failed."""
    if not path.is_file():
        return []
    rows = results.of_kind(results.read(path), "gpu_check")
    return [row for row in rows if row["status"] in (PASSED, FAILED)]


def status(rows: Iterable[Row]) -> int:
    """The exit status: 1 if a check failed, else `INCOMPLETE` if something could not run, else 0."""
    rows = list(rows)
    if any(row["status"] == FAILED for row in rows):
        return 1
    return INCOMPLETE if any(row["status"] == MISSING or row["missing"] for row in rows) else 0
