"""The record of a run as two CSV files: every few iterations the losses, every epoch the held-out figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from isnet_trt.metrics import Metrics
from isnet_trt.training.losses import Losses

EVERY = 10
_ITERATIONS = ("iteration", "epoch", "lr", "loss", "stage2", "stage1", "auxiliary", "samples_per_s")


class CsvLog:
    """``iterations.csv`` (means over ten iterations) and ``epochs.csv`` (fractions 0..1) in ``folder``.

    A resumed run drops rows after its starting iteration, so that each iteration stands there once.
    """

    def __init__(self, folder: Path, names: Sequence[str], start: int) -> None:
        self._iterations, self._epochs = folder / "iterations.csv", folder / "epochs.csv"
        _begin(self._iterations, _ITERATIONS, start)
        _begin(self._epochs, ("iteration", "epoch", "miou", "all_accuracy", *names), start)
        self._recent: list[tuple[float, ...]] = []
        self._head: tuple[int, int, float] = (start, 0, 0.0)
        self.mean_loss = self.mean_rate = float("nan")

    def iteration(self, number: int, epoch: int, lr: float, step: Losses, rate: float) -> None:
        """Note one iteration; ``number`` counts from 1."""
        self._recent.append((*(value.item() for value in (step.total, step.stage2, step.stage1, step.auxiliary)), rate))
        self._head = (number, epoch, lr)
        means = self._means()
        self.mean_loss, self.mean_rate = means[0], means[-1]
        if number % EVERY == 0:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        if self._recent:
            number, epoch, lr = self._head
            _append(self._iterations, [number, epoch, f"{lr:.6f}", *(f"{m:.4f}" for m in self._means())])
            self._recent.clear()

    def epoch(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Note the held-out figures after an epoch."""
        figures = [metrics.miou, metrics.all_accuracy, *metrics.iou]
        _append(self._epochs, [iteration, epoch, *(f"{x:.4f}" for x in figures)])

    def _means(self) -> list[float]:
        return [sum(column) / len(column) for column in zip(*self._recent, strict=True)]


def _begin(path: Path, header: Sequence[str], start: int) -> None:
    kept: list[list[str]] = []
    if start and path.exists():
        with path.open(newline="") as file:
            kept = [row for row in list(csv.reader(file))[1:] if int(row[0]) <= start]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(header), *kept])


def _append(path: Path, row: Sequence[object]) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row)
