"""What a run shows and writes down while it goes on; in the first of several processes only."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

from isnet_trt.metrics import Metrics
from isnet_trt.training.log import RunLog, Step

_SECONDS_WITHOUT_TERMINAL = 30.0


class Record:
    """The progress bar (loss, learning rate, samples a second, time left) and the `RunLog`, to be used in ``with``.

    Args:
        folder: of the logs; made where it is missing.
        names: the classes.
        start: iterations done before.
        total: iterations of the run.
        batch: samples in an iteration.
        active: False: do nothing at all.
    """

    def __init__(self, folder: Path, names: Sequence[str], start: int, total: int, batch: int, active: bool) -> None:
        self._batch, self._since = batch, time.perf_counter()
        self._log: RunLog | None = None
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            self._log = RunLog(folder, names, start)
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="it",
            dynamic_ncols=True,
            disable=not active,
            # A log file gets a line now and then instead of ten a second.
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_WITHOUT_TERMINAL,
        )

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
        if self._log:
            self._log.close()

    def iteration(self, number: int, epoch: int, lr: float, step: Step | None) -> None:
        """Note an iteration (counted from 1); ``step`` is None for one that was left out."""
        now = time.perf_counter()
        rate, self._since = self._batch / (now - self._since), now
        if self._log and step:
            self._log.iteration(number, epoch, lr, step, rate)
            self._bar.set_postfix(
                loss=f"{self._log.mean_loss:.3f}",
                lr=f"{lr:.3g}",
                samples_s=f"{self._log.mean_rate:.1f}",
                refresh=False,
            )
        self._bar.update()

    def epoch(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Note held-out figures."""
        if self._log:
            self._log.epoch(epoch, iteration, metrics)
        self.say(f"epoch {epoch}: held-out mIoU {100 * metrics.miou:.2f} %")

    def scored(self, iteration: int) -> bool:
        """Whether the held-out figures after this iteration are noted."""
        return self._log is not None and self._log.scored(iteration)

    def resting(self) -> None:
        """Leave the time until now out of the rates."""
        self._since = time.perf_counter()

    def flush(self) -> None:
        """Write what has not been written yet."""
        if self._log:
            self._log.flush()

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._log:
            self._bar.write(text)
