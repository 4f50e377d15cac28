"""The loop: every picture of a share through one model or two, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.datasets.prefetch import prefetch
from isnet_trt.errors import DataError, EngineError, ImageError
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.evaluation.models import Model
from isnet_trt.evaluation.share import Share
from isnet_trt.metrics import Agreement, Confusion
from isnet_trt.runtime.segmentation import Segmentation

_READERS = 2
Keep = Callable[[str, NDArray[np.unsignedinteger]], None]
"""Takes a picture's name and the first model's labels."""
Watch = Callable[["Tally"], None]


@dataclass
class Score:
    """One model's counts; ``seconds`` by stage of the segmenter, ``busy`` in its calls altogether."""

    confusion: Confusion
    seconds: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0

    def add(self, answer: Segmentation, truth: NDArray[np.integer], seconds: float) -> None:
        """Count one picture."""
        self.confusion.add(answer.labels, truth)
        self.busy += seconds
        for stage, taken in answer.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


@dataclass
class Tally:
    """What was counted: a score per model, their agreement if there are two, and what had to be skipped.

    ``pictures`` is how many were scored, ``wall`` the seconds from the first to the last. ``skipped`` has the index
    and the reason of each picture that could not be read.
    """

    scores: list[Score]
    agreement: Agreement | None
    pictures: int = 0
    wall: float = 0.0
    skipped: list[tuple[int, str]] = field(default_factory=list)


def run(
    models: Sequence[Model],
    pictures: Labelled,
    indices: Sequence[int],
    *,
    skip: bool = False,
    keep: Keep | None = None,
    watch: Watch = lambda tally: None,
) -> Tally:
    """Segment ``indices`` of ``pictures`` with each model in turn and count.

    A picture that cannot be read or segmented counts for none of the models.

    Args:
        models: one, or two to compare; all have the classes of ``pictures``.
        pictures: the labelled set.
        indices: this process's part of it.
        skip: go on after a picture that cannot be used.
        keep: receives the first model's labels.
        watch: called after each picture.

    Raises:
        DataError, ImageError: without ``skip``, a picture or its labels cannot be used; the message has the file.
        EngineError: an engine failed.
    """
    classes = pictures.labels.count
    tally = Tally([Score(Confusion(classes)) for _ in models], Agreement(classes) if len(models) == 2 else None)
    start = time.perf_counter()
    for index, loaded in prefetch(pictures.__getitem__, indices, _READERS):
        name = pictures.names[index]
        try:
            image, truth = loaded.result()
            answers = [_segment(model, image, name) for model in models]
        except (DataError, ImageError) as error:
            if not skip:
                raise
            tally.skipped.append((index, str(error)))
            continue
        _count(tally, answers, truth, name)
        if keep:
            keep(name, answers[0][0].labels)
        tally.wall = time.perf_counter() - start
        watch(tally)
    return tally


def _segment(model: Model, image: NDArray[np.uint8], name: str) -> tuple[Segmentation, float]:
    start = time.perf_counter()
    try:
        answer = model.segmenter(image, order="bgr", inference=model.inference)
    except (ImageError, EngineError) as error:
        raise type(error)(f"{name}: {error}") from error
    return answer, time.perf_counter() - start


def _count(tally: Tally, answers: list[tuple[Segmentation, float]], truth: NDArray[np.integer], name: str) -> None:
    for score, (answer, seconds) in zip(tally.scores, answers, strict=True):
        score.add(answer, truth, seconds)
    if tally.agreement:
        tally.agreement.add(answers[0][0].labels, answers[1][0].labels, truth, name)
    tally.pictures += 1


def together(tally: Tally, here: Share) -> Tally:
    """The tallies of all processes as one: pixels and pictures summed, ``wall`` of the slowest."""
    for score in tally.scores:
        score.confusion.counts = here.sum_array(score.confusion.counts)
        score.seconds = _added(here.gather(score.seconds))
        score.busy = sum(here.gather(score.busy))
    if tally.agreement:
        tally.agreement.counts = here.sum_array(tally.agreement.counts)
        leasts = [least for least in here.gather(tally.agreement.least) if least]
        tally.agreement.least = min(leasts, default=None)
    tally.skipped = sorted(item for part in here.gather(tally.skipped) for item in part)
    tally.pictures = sum(here.gather(tally.pictures))
    tally.wall = max(here.gather(tally.wall))
    return tally


def _added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    stages = dict.fromkeys(stage for part in parts for stage in part)
    return {stage: sum(part.get(stage, 0.0) for part in parts) for stage in stages}
