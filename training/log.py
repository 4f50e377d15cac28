"""The record of a run: progress bar, two CSV files and TensorBoard, without a doubled row after a resumption."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

from isnet_trt.errors import TrainingError
from isnet_trt.metrics import Metrics
from isnet_trt.telemetry.logs import PRINTED
from isnet_trt.training.tables import Table

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)
EVERY = 10
_BAR_SECONDS, _LINE_SECONDS = 0.1, 30.0
"""Seconds between two updates of the bar on a terminal, and in a log file, where each update is a line."""
_ITERATIONS = ("iteration", "epoch", "lr", "loss", "stage2", "stage1", "auxiliary", "samples_per_s")
_SCORES = ("iteration", "epoch", "miou", "all_accuracy")
Losses = tuple[float, float, float, float]
"""Of an iteration: total, stage 2, stage 1, auxiliary."""


@dataclass(frozen=True)
class Span:
    """The iterations of a run: ``start`` done before, ``total`` in all, of ``batch`` samples each."""

    start: int
    total: int
    batch: int


class RunLog:
    """``iterations.csv`` (means over ten iterations), ``epochs.csv`` (fractions 0..1), ``tensorboard/`` and a bar.

    To be used in ``with``. A resumed run drops rows after its starting iteration, so that each iteration is there once.

    Args:
        folder: of the files; created if it is missing.
        names: the classes.
        span: the iterations.
        active: False in all processes of a run but the first: nothing is shown or written.
        rows: number of rows that each table must have up to ``span.start``, by its name.

    Raises:
        TrainingError: a table of the run that is resumed cannot be read or is not whole, or none can be written.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        span: Span,
        active: bool = True,
        rows: Mapping[str, int] | None = None,
    ) -> None:
        self._active, self._batch, self._since = active, span.batch, time.perf_counter()
        self._iterations = Table(folder / "iterations.csv", _ITERATIONS)
        self._epochs, self._names = Table(folder / "epochs.csv", (*_SCORES, *names)), names
        self._board: SummaryWriter | None = None
        self._open = contextlib.ExitStack()
        self._recent: list[tuple[float, ...]] = []
        self._head = (span.start, 0, 0.0)
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            self._begin(span.start, rows or {})
            self._board = _tensorboard(folder / "tensorboard", span.start)
        interval = _BAR_SECONDS if sys.stderr.isatty() else _LINE_SECONDS
        bar = {"unit": "it", "dynamic_ncols": True, "mininterval": interval, "disable": not active}
        self._bar = tqdm(total=span.total, initial=span.start, **bar)

    def _begin(self, start: int, rows: Mapping[str, int]) -> None:
        """Take over both tables up to iteration ``start``; neither is touched unless both can be used."""
        kept = [(table, table.read(start, rows.get(table.path.stem, 0))) for table in (self._iterations, self._epochs)]
        if not start and self._epochs.path.exists() and self._epochs.read(sys.maxsize):
            raise TrainingError(
                f"{self._epochs.path} holds the figures of a run whose checkpoints are gone: move it away, or name "
                "another folder by --out"
            )
        for table, lines in kept:
            table.begin(lines)

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of each table, which a checkpoint notes: a resumed run needs them."""
        return {table.path.stem: len(table.iterations) for table in (self._iterations, self._epochs)}

    def __enter__(self) -> RunLog:
        self._open.enter_context(_quiet_writer())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # of a log file on a full disk
            self._bar.close()
        # An error on the way, such as a full disk, is the one to report.
        with contextlib.suppress(*(() if error is None else (TrainingError,))):
            self.flush()
        if self._board:
            with contextlib.suppress(OSError):
                self._board.close()
        self._open.close()

    def iteration(self, number: int, epoch: int, lr: float, losses: Losses | None) -> None:
        """Record an iteration, counted from 1; ``losses`` is None for one that was left out."""
        now = time.perf_counter()
        rate, self._since = self._batch / (now - self._since), now
        if self._active and losses:
            self._recent.append((*losses, rate))
            self._head = (number, epoch, lr)
            means = self._means()
            figures = {"loss": f"{means[0]:.3f}", "lr": f"{lr:.3g}", "samples_s": f"{means[-1]:.1f}"}
            self._bar.set_postfix(figures, refresh=False)
            if number % EVERY == 0:
                self.flush()
        self._bar.update()

    def flush(self) -> None:
        """Write the iterations that have not been written yet."""
        if not self._recent:
            return
        number, epoch, lr = self._head
        means = self._means()
        self._recent.clear()  # before the row, which is not to be written twice if that fails
        self._iterations.append(number, [epoch, f"{lr:.6f}", *(f"{mean:.4f}" for mean in means)])
        self._add_scalars(number, {f"train/{n}": v for n, v in zip(_ITERATIONS[2:], (lr, *means), strict=True)})

    def epoch(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Record the held-out figures after an epoch."""
        if self._active:
            figures = [metrics.meaningful_miou, metrics.all_accuracy, *metrics.iou]
            self._epochs.append(iteration, [epoch, *(f"{figure:.4f}" for figure in figures)])
            by_class = {f"val_iou/{name}": iou for name, iou in zip(self._names, metrics.iou, strict=True)}
            overall = {"val/miou": metrics.meaningful_miou, "val/all_accuracy": metrics.all_accuracy}
            self._add_scalars(iteration, {**overall, **by_class})
        self.say(f"epoch {epoch}: held-out mIoU {metrics.describe_miou()}")

    def scored(self, iteration: int) -> bool:
        """Whether the held-out figures after this iteration are recorded."""
        return iteration in self._epochs.iterations

    def restart_clock(self) -> None:
        """Leave the time since the last iteration out of the rates."""
        self._since = time.perf_counter()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._active:
            self._bar.write(message)
            _log.info("%s", message, extra=PRINTED)

    def _means(self) -> list[float]:
        return [sum(column) / len(column) for column in zip(*self._recent, strict=True)]

    def _add_scalars(self, step: int, values: dict[str, float]) -> None:
        if not self._board:
            return
        try:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        except OSError as error:
            self.say(f"the TensorBoard record ends here ({error}); the CSV files hold the same")
            self._board = None


@contextlib.contextmanager
def _quiet_writer() -> Iterator[None]:
    """Leave out the traceback that TensorBoard's writing thread would print when a file cannot be written.

    The next call to the writer raises the same error.
    """
    default = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            default(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = default


def _tensorboard(folder: Path, start: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _log.warning("no TensorBoard record: pip install tensorboard (the CSV files hold the same)")
        return None
    try:
        # Hides what an earlier part of the run wrote after its last checkpoint.
        return SummaryWriter(str(folder), purge_step=start + 1 if start else None)
    except OSError as error:
        _log.warning("no TensorBoard record (%s); the CSV files hold the same", error)
        return None
