"""The record of a run: two CSV files and TensorBoard, without a doubled row after a resumption."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isnet_trt.metrics import Metrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVERY = 10
_ITERATIONS = ("iteration", "epoch", "lr", "loss", "stage2", "stage1", "auxiliary", "samples_per_s")
_SCORES = ("iteration", "epoch", "miou", "all_accuracy")
Step = tuple[float, float, float, float]
"""Losses of an iteration: total, stage 2, stage 1, auxiliary."""


class RunLog:
    """``iterations.csv`` (means over ten iterations), ``epochs.csv`` (fractions 0..1) and ``tensorboard/``.

    A resumed run drops rows after its starting iteration, so that each iteration stands there once.

    Args:
        folder: where.
        names: the classes.
        start: iterations done before.
    """

    def __init__(self, folder: Path, names: Sequence[str], start: int) -> None:
        self._iterations, self._epochs, self._names = folder / "iterations.csv", folder / "epochs.csv", names
        _begin(self._iterations, _ITERATIONS, start)
        self._scored = _begin(self._epochs, (*_SCORES, *names), start)
        self._board = _tensorboard(folder / "tensorboard", start)
        self._recent: list[tuple[float, ...]] = []
        self._head: tuple[int, int, float] = (start, 0, 0.0)
        self.mean_loss = self.mean_rate = float("nan")

    def iteration(self, number: int, epoch: int, lr: float, step: Step, rate: float) -> None:
        """Note one iteration; ``number`` counts from 1, ``rate`` is in samples a second."""
        self._recent.append((*step, rate))
        self._head = (number, epoch, lr)
        means = self._means()
        self.mean_loss, self.mean_rate = means[0], means[-1]
        if number % EVERY == 0:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        if not self._recent:
            return
        number, epoch, lr = self._head
        means = self._means()
        _append(self._iterations, [number, epoch, f"{lr:.6f}", *(f"{m:.4f}" for m in means)])
        if self._board:
            for name, value in zip(_ITERATIONS[2:], (lr, *means), strict=True):
                self._board.add_scalar(f"train/{name}", value, number)
            self._board.flush()
        self._recent.clear()

    def epoch(self, epoch: int, iteration: int, metrics: Metrics) -> None:
        """Note the held-out figures after an epoch."""
        figures = [metrics.miou, metrics.all_accuracy, *metrics.iou]
        _append(self._epochs, [iteration, epoch, *(f"{x:.4f}" for x in figures)])
        self._scored.add(iteration)
        if self._board:
            self._board.add_scalar("val/miou", metrics.miou, iteration)
            self._board.add_scalar("val/all_accuracy", metrics.all_accuracy, iteration)
            for name, iou in zip(self._names, metrics.iou, strict=True):
                self._board.add_scalar(f"val_iou/{name}", iou, iteration)
            self._board.flush()

    def scored(self, iteration: int) -> bool:
        """Whether the held-out figures after this iteration stand there."""
        return iteration in self._scored

    def close(self) -> None:
        """Write the rest and let the files go."""
        self.flush()
        if self._board:
            self._board.close()

    def _means(self) -> list[float]:
        return [sum(column) / len(column) for column in zip(*self._recent, strict=True)]


def _tensorboard(folder: Path, start: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("no TensorBoard record: pip install tensorboard (the CSV files hold the same)")
        return None
    # What an earlier part of the run wrote after its last checkpoint is hidden.
    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)


def _begin(path: Path, header: Sequence[str], start: int) -> set[int]:
    """Write ``header`` and the rows up to iteration ``start`` that are there; returns these rows' iterations."""
    kept: list[list[str]] = []
    if start and path.exists():
        with path.open(newline="") as file:
            # A row that a killed run wrote in part has too few cells.
            rows = [row for row in list(csv.reader(file))[1:] if len(row) == len(header)]
        kept = [row for row in rows if int(row[0]) <= start]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(header), *kept])
    temporary.replace(path)
    return {int(row[0]) for row in kept}


def _append(path: Path, row: Sequence[object]) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row)
