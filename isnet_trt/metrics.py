"""Agreement of labels with the truth, or with each other: pixel counts and the usual figures. numpy only.

The definitions are those of the reference's evaluation: counts are summed over the whole set before any division, and a
class that occurs nowhere, neither predicted nor in the truth, is left out of means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import SettingsError

ENOUGH, FEW = 59, 5
"""Images of which the worst bounds 95 % of all with 95 % confidence; fewest for which a bound is stated."""


@dataclass(frozen=True)
class Metrics:
    """Figures as fractions 0..1, NaN for a class that occurs nowhere.

    I, P, L are the pixels of a class in the intersection, the prediction and the truth.

    Attributes:
        iou: float64 (K,), I / (P + L − I).
        miou: mean of ``iou`` without its NaN; a class that is predicted but never present counts 0.
        accuracy: float64 (K,), I / L (recall), NaN where L is 0.
        all_accuracy: correct pixels over all pixels.
        dice: float64 (K,), 2 I / (P + L), which is the F score with equal weights.
    """

    iou: NDArray[np.float64]
    miou: float
    accuracy: NDArray[np.float64]
    all_accuracy: float
    dice: NDArray[np.float64]

    @property
    def occurring(self) -> int:
        """Number of classes that the truth has."""
        return int((~np.isnan(self.accuracy)).sum())

    @property
    def meaningful_miou(self) -> float:
        """``miou``, or NaN where the truth has fewer than two classes: a constant prediction would score 1."""
        return self.miou if self.occurring > 1 else float("nan")

    def describe_miou(self) -> str:
        """`meaningful_miou` in per cent, with the number of classes behind it unless all occur in the truth."""
        classes, figure = len(self.accuracy), self.meaningful_miou
        if np.isnan(figure):
            return f"– (only {self.occurring} of {classes} classes occur in the labels)"
        part = f" ({self.occurring} of {classes} classes occur in the labels)" if self.occurring < classes else ""
        return f"{percent(figure)} %{part}"

    @property
    def mean_accuracy(self) -> float:
        """Mean of ``accuracy`` over the classes that are present; NaN if none is."""
        return _mean(self.accuracy)

    @property
    def mean_dice(self) -> float:
        """Mean of ``dice`` without its NaN."""
        return _mean(self.dice)


def _mean(values: NDArray[np.float64]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def rounded(value: float, digits: int, most: float = 1.0) -> str:
    """``value`` with so many decimals, as ``most`` (a perfect share or cosine) only where it is exactly that."""
    text = f"{value:.{digits}f}"
    return f"{most - 10**-digits:.{digits}f}" if value < most <= float(text) else text


def coverage(count: int, confidence: float = 0.95) -> float:
    """Share of a population that is at or above the smallest of ``count`` random samples, with this confidence.

    A one-sided tolerance limit that assumes nothing of the distribution (Wilks 1941): 1 − p^n = confidence.
    """
    return float((1 - confidence) ** (1 / count))


def tolerance_statement(count: int, worst: float, quantity: str) -> str:
    """The bound for unseen images from ``count`` images, of which the worst has a share ``worst`` of ``quantity``."""
    more = f" ({ENOUGH} images would bound 95 %)" if count < ENOUGH else ""
    return (
        f"If the {count} images are a random sample of those that the engine will see, then with 95 % confidence "
        f"at least {percent(coverage(count), 1)} % of all such images have {percent(worst, 3)} % or more "
        f"{quantity}{more}. This is the one-sided tolerance limit of Wilks, 0.05^(1/{count}), which takes "
        "whole images as the sample, since the pixels of one image are not independent."
    )


def percent(share: float | None, digits: int = 2) -> str:
    """A share 0..1 in per cent, as 100 only where it is exactly 1; – for None and NaN."""
    return "–" if share is None or np.isnan(share) else rounded(100 * share, digits, 100.0)


def bytes_text(size: int) -> str:
    """A number of bytes for people, in units of 1000: "812 bytes", "49 kB", "44.6 MB", "1.25 GB"."""
    if size < 1000:
        return f"{size} bytes"
    for unit, bytes_per_unit, digits in (("kB", 1e3, 0), ("MB", 1e6, 1)):
        if float(f"{size / bytes_per_unit:.{digits}f}") < 1000:
            return f"{size / bytes_per_unit:.{digits}f} {unit}"
    return f"{size / 1e9:.2f} GB"


class Mistake(NamedTuple):
    """``pixels`` of class ``truth`` were predicted as ``predicted``: a ``share`` (0..1) of the class's pixels."""

    truth: int
    predicted: int
    pixels: int
    share: float


class Confusion:
    """Pixel counts over a set of pictures; ``counts[t, p]`` int64 (K, K): truth t, prediction p."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)

    def add(self, predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> None:
        """Count one picture; pixels whose truth is outside 0..K−1 (such as −1, −100 or 255) are left out.

        Raises:
            SettingsError: the shapes differ, or a counted prediction is outside 0..K−1.
        """
        if predicted.shape != truth.shape:
            raise SettingsError(f"predicted labels are {predicted.shape}, the truth is {truth.shape}: sizes must agree")
        k = len(self.counts)
        valid = labelled(truth, k)
        p, t = predicted[valid].astype(np.int64), truth[valid].astype(np.int64)
        if p.size and (p.min() < 0 or p.max() >= k):
            raise SettingsError(f"predicted labels {p.min()}..{p.max()} do not fit {k} classes")
        self.counts += np.bincount(t * k + p, minlength=k * k).reshape(k, k)

    def metrics(self) -> Metrics:
        """The figures of everything counted so far; NaN where nothing was."""
        hit = np.diag(self.counts).astype(np.float64)
        label, prediction = self.counts.sum(1), self.counts.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = hit / (prediction + label - hit)
            dice = 2 * hit / (prediction + label)
            accuracy = hit / label
            overall = hit.sum() / self.counts.sum()
        return Metrics(iou, _mean(iou), accuracy, float(overall), dice)

    def mistakes(self, most: int) -> list[Mistake]:
        """The ``most`` frequent pairs of different classes, by pixels; pairs that never occur are left out."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [divmod(int(index), len(wrong)) for index in order]
        present = self.counts.sum(1)
        return [Mistake(t, p, int(wrong[t, p]), float(wrong[t, p] / present[t])) for t, p in pairs if wrong[t, p]]


def labelled(truth: NDArray[np.integer], classes: int) -> NDArray[np.bool_]:
    """Which pixels count: those whose truth is one of the classes."""
    return (truth >= 0) & (truth < classes)


class Agreement:
    """Counts of pixels that two models label alike; ``counts`` int64 (2, 2).

    Row 0 is for all pixels, row 1 for those with a truth; column 0 counts equal labels, column 1 all. ``least`` is
    the picture on which the two agree least: share of equal pixels and name.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self.counts = np.zeros((2, 2), np.int64)
        self.least: tuple[float, str] | None = None

    def add(
        self, first: NDArray[np.integer], second: NDArray[np.integer], truth: NDArray[np.integer], name: str = ""
    ) -> None:
        """Count one picture; the three label maps have one shape."""
        equal, valid = first == second, labelled(truth, self._classes)
        right = int(equal.sum())
        self.counts += [[right, equal.size], [int(equal[valid].sum()), int(valid.sum())]]
        share = (right / equal.size, name)
        self.least = min(share, self.least or share)

    @property
    def all_pixels(self) -> float:
        """Share (0..1) of all pixels that have the same label; NaN if nothing was counted."""
        return _ratio(self.counts[0])

    @property
    def labelled_pixels(self) -> float:
        """The same share of the pixels that have a truth."""
        return _ratio(self.counts[1])


def _ratio(pair: NDArray[np.int64]) -> float:
    return float(pair[0] / pair[1]) if pair[1] else float("nan")
