"""The trials of a tuning: kept on disk after each candidate, and written as a table."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from isnet_trt.bundle.strict import FieldError, decode
from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.export.tune_candidates import Candidate
from isnet_trt.files import is_missing, regular_file_bytes, write_file
from isnet_trt.metrics import percent

STATE, TABLE_JSON, TABLE_CSV = "state.json", "tuning.json", "tuning.csv"
SCHEMA = 1
_LARGEST = 1 << 24
Status = Literal["within the bound", "over the bound", "failed", "out of budget"]


@dataclass(frozen=True)
class Trial:
    """One candidate and what came of it; None: not measured.

    Attributes:
        agreement: share of the network's labels that equal the checkpoint's.
        median, quartiles: seconds of a whole call.
        rounds: number of timed calls.
        relative: median over the rounds of its time over that of the best candidate so far, times that one's
            ``relative``; the first candidate that was timed has 1.
        build_seconds, trial_seconds: preparing and building; opening, comparing and timing.
    """

    candidate: Candidate
    status: Status
    reason: str = ""
    agreement: float | None = None
    median: float | None = None
    quartiles: tuple[float, float] | None = None
    rounds: int = 0
    relative: float | None = None
    build_seconds: float = 0.0
    trial_seconds: float = 0.0

    def __str__(self) -> str:
        if self.median is None or self.relative is None:
            return f"{self.candidate}: {self.status}: {self.reason}"
        time = f"{1e3 * self.median:.4g} ms, {self.relative:.3f} of the first"
        kept = "" if self.status == "within the bound" else f"; {self.status}: {self.reason}"
        return f"{self.candidate}: {time}, labels equal {percent(self.agreement, 3)} %{kept}"


def winner(trials: Collection[Trial]) -> Trial | None:
    """The fastest candidate within the bound."""
    good = [trial for trial in trials if trial.status == "within the bound" and trial.relative is not None]
    return min(good, key=lambda trial: trial.relative or 0.0, default=None)


@dataclass
class State:
    """What a tuning has done.

    Attributes:
        identity: what the measurements depend on; only a tuning of the same continues this one.
        trials: in the order in which they were made.
        spent: seconds of the budget, over all runs.
        current: the candidate that is being tried, and how often it was begun.
    """

    schema: int
    identity: dict[str, str]
    trials: tuple[Trial, ...] = ()
    spent: float = 0.0
    current: Candidate | None = None
    attempts: int = 0

    def __post_init__(self) -> None:
        for trial in self.trials:
            measured = [trial.agreement, trial.median, trial.relative]
            if trial.status == "within the bound" and any(figure is None for figure in measured):
                raise SettingsError(f"the trial of {trial.candidate} lacks figures")


@dataclass
class Store:
    """The folder of a tuning beside its bundle: the state, and a bundle of each candidate that is still needed."""

    folder: Path
    state: State
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, str]) -> Store:
        """Open the folder, and go on with its state if that is whole and of the same ``identity``.

        ``notes`` has the reason where a state is not used.

        Raises:
            BuildError: the folder cannot be created.
        """
        _create(folder)
        store = cls(folder, State(SCHEMA, dict(identity)))
        if is_missing(folder / STATE):
            store.keep(())  # whatever bundles there are belong to no state
            return store
        try:
            stored = _decoded(regular_file_bytes(folder / STATE, _LARGEST))
            differing = [name for name in identity if stored.identity.get(name) != identity[name]]
            differing += [name for name in stored.identity if name not in identity]
            if differing:
                raise SettingsError(f"it is of another {', '.join(differing)}")
            store.state = stored
        except SettingsError as error:
            store.notes.append(f"{folder / STATE} is not used and the tuning starts anew: {error}")
            store.keep(())
        return store

    def save(self) -> None:
        """Write the state; BuildError if that fails, and what was there before stays."""
        content = dataclasses.asdict(self.state)
        write_file(
            self.folder / STATE, json.dumps({"sha256": _digest(content), **content}, indent=1).encode(), BuildError
        )

    def bundle(self, candidate: Candidate) -> Path:
        """The place of a candidate's bundle."""
        return self.folder / hashlib.sha256(repr(candidate).encode()).hexdigest()[:16]

    def keep(self, candidates: Collection[Candidate]) -> None:
        """Remove all bundles but those of ``candidates``."""
        places = {self.bundle(candidate) for candidate in candidates}
        for place in self.folder.iterdir():
            if place.is_dir() and not place.is_symlink() and place not in places:
                shutil.rmtree(place, ignore_errors=True)

    def remove(self) -> None:
        """Remove what the tuning has written, and the folder if nothing else is in it."""
        self.keep(())
        with contextlib.suppress(OSError):
            (self.folder / STATE).unlink()
            self.folder.rmdir()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _decoded(data: bytes) -> State:
    """A stored state; SettingsError if it is not whole."""
    try:
        content = json.loads(data)
        digest = content.pop("sha256")
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise SettingsError(f"it is damaged ({error})") from None
    try:
        state: State = decode(State, content)
        if digest != _digest(dataclasses.asdict(state)):
            raise SettingsError("it is damaged (its checksum differs)")
    except FieldError as error:
        raise SettingsError(f"it is damaged ({error})") from None
    if state.schema != SCHEMA:
        raise SettingsError(f"its schema is {state.schema}, this version writes {SCHEMA}")
    return state


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"{folder} cannot be created: {error.strerror or error}") from None


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create ``folder`` and keep other processes from tuning into it; BuildError if one does, or it cannot be created.

    Held before `Store.open`, which removes what belongs to another tuning.
    """
    _create(folder)
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BuildError(f"another process is tuning into {folder}; wait for it, or choose another --out") from None
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class TuningTable:
    """All that was tried, with the chosen candidate and what was timed; for the bundle and its page."""

    about: Mapping[str, Any]
    trials: tuple[Trial, ...]
    chosen: Trial

    def write(self, folder: Path) -> None:
        """Write ``tuning.json`` and ``tuning.csv``."""
        rows = [dataclasses.asdict(trial) | {"chosen": trial is self.chosen} for trial in self.trials]
        (folder / TABLE_JSON).write_text(json.dumps({**self.about, "candidates": rows}, indent=1) + "\n", "utf-8")
        text = io.StringIO()
        flat = [{**row.pop("candidate"), **row} for row in rows]
        writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"quartiles": " ".join(map(str, row["quartiles"] or ()))} for row in flat)
        (folder / TABLE_CSV).write_text(text.getvalue(), "utf-8")

    def markdown(self) -> Iterator[str]:
        """A section of the page."""
        yield from ("", "## Tuning", "", "; ".join(f"{name}: {value}" for name, value in self.about.items()) + ".", "")
        yield "| settings | whole call, median (quartiles) | of the first | equal labels | built in | |"
        yield "|---|---:|---:|---:|---:|---|"
        for trial in self.trials:
            yield f"| {' | '.join(_cells(trial))} | {'**chosen**' if trial is self.chosen else _remark(trial)} |"


def _cells(trial: Trial) -> Iterator[str]:
    yield str(trial.candidate)
    if trial.median is None or trial.quartiles is None or trial.relative is None:
        yield from ("–", "–")
    else:
        low, high = (f"{1e3 * value:.4g}" for value in trial.quartiles)
        yield f"{1e3 * trial.median:.4g} ms ({low} … {high})"
        yield f"{trial.relative:.3f}"
    yield "–" if trial.agreement is None else f"{percent(trial.agreement, 3)} %"
    yield f"{trial.build_seconds:.1f} s"


def _remark(trial: Trial) -> str:
    text = f"{trial.status}: {trial.reason}" if trial.reason else ""
    return " ".join(text.split()).replace("|", "\\|")
