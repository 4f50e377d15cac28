"""The result of an evaluation as data, and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from isnet_trt._version import __version__
from isnet_trt.evaluation.models import Model
from isnet_trt.evaluation.run import Score, Tally
from isnet_trt.metrics import Metrics
from isnet_trt.settings import Labels

MEANS = {"miou": "mIoU", "mean_accuracy": "mean accuracy", "all_accuracy": "pixel accuracy", "mean_dice": "mean dice"}
"""The figures over all classes: attribute of `Metrics`, and its title."""


@dataclass(frozen=True)
class Report:
    """One evaluation: the set, its classes, the models that were run, and the counts of all processes.

    ``engines`` describes the engines of each model, of all processes. ``created_at`` is ISO 8601, UTC.
    ``digest`` is the SHA-256 of the names of the chosen pictures, a line each.
    """

    dataset: str
    split: str
    labels: Labels
    models: tuple[Model, ...]
    engines: tuple[str, ...]
    tally: Tally
    processes: int
    created_at: str
    digest: str = ""

    @property
    def metrics(self) -> list[Metrics]:
        """The figures of each model."""
        return [score.confusion.metrics() for score in self.tally.scores]

    @property
    def same_weights(self) -> bool:
        """Whether the models come from one checkpoint file."""
        return len({model.checkpoint.sha256 for model in self.models}) == 1

    @property
    def rate(self) -> float:
        """Pictures per second from the first to the last, reading and counting included."""
        return self.tally.pictures / self.tally.wall if self.tally.wall else math.nan

    def model_rate(self, score: Score) -> float:
        """Pictures per second of all processes together while the model ran; reading the files is not included."""
        return self.processes * self.tally.pictures / score.busy if score.busy else math.nan

    def to_json(self) -> dict[str, Any]:
        """The whole report for `json`: figures are fractions 0..1, NaN is None, rows of the confusion are the truth."""
        return {
            "dataset": {"name": self.dataset, "split": self.split, "classes": list(self.labels.names)},
            "pictures": self.tally.pictures,
            "pictures_sha256": self.digest,
            "skipped": [reason for _, reason in self.tally.skipped],
            "models": [self._model(number) for number in range(len(self.models))],
            "comparison": self._comparison(),
            "seconds": self.tally.wall,
            "images_per_second": _number(self.rate),
            "processes": self.processes,
            "created_at": self.created_at,
            "isnet_trt_version": __version__,
        }

    def _model(self, number: int) -> dict[str, Any]:
        model, score, figures = self.models[number], self.tally.scores[number], self.metrics[number]
        pictures = max(self.tally.pictures, 1)
        return {
            "path": model.path,
            "kind": model.kind,
            "recipe": model.recipe,
            "checkpoint": asdict(model.checkpoint),
            "manifest_sha256": model.digest,
            "engine": self.engines[number],
            "preset": model.preset,
            "inference": asdict(model.inference),
            **{key: _number(figure(figures, key)) for key in MEANS},
            "classes_in_truth": figures.occurring,
            "images_per_second": _number(self.model_rate(score)),
            "seconds_per_picture": {stage: seconds / pictures for stage, seconds in score.seconds.items()},
            "classes": self._classes(figures, score),
            "confusion": score.confusion.counts.tolist(),
        }

    def _classes(self, figures: Metrics, score: Score) -> list[dict[str, Any]]:
        counts = score.confusion.counts
        return [
            {
                "name": name,
                "iou": _number(figures.iou[number]),
                "accuracy": _number(figures.accuracy[number]),
                "dice": _number(figures.dice[number]),
                "pixels": int(counts[number].sum()),
                "predicted_pixels": int(counts[:, number].sum()),
            }
            for number, name in enumerate(self.labels.names)
        ]

    def _comparison(self) -> dict[str, Any] | None:
        """The second model beside the first; differences are second minus first."""
        agreement = self.tally.agreement
        if agreement is None:
            return None
        first, second = self.metrics
        share, name = agreement.least or (math.nan, "")
        return {
            "same_weights": self.same_weights,
            "equal_pixels": _number(agreement.all_pixels),
            "equal_labelled_pixels": _number(agreement.labelled_pixels),
            "least_equal_picture": {"name": name, "equal_pixels": _number(share)},
            **{f"{key}_difference": _number(figure(second, key) - figure(first, key)) for key in MEANS},
            "iou_differences": [_number(value) for value in second.iou - first.iou],
        }


def figure(metrics: Metrics, key: str) -> float:
    """One of `MEANS`; the mIoU is NaN where the truth has fewer than two classes."""
    return metrics.meaningful_miou if key == "miou" else float(getattr(metrics, key))


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)
