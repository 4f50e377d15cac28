"""The evaluation loop: every picture of a process's part through one model or two, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from isnet_trt.errors import DataError, EngineError, ImageError
from isnet_trt.evaluation.examples import Example, worst
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.evaluation.models import Model
from isnet_trt.metrics import Agreement, Confusion
from isnet_trt.runtime.prefetch import prefetch
from isnet_trt.runtime.segmentation import Segmentation
from isnet_trt.training.group import Group

_READERS = 2
EXAMPLES = 3
"""Pictures that are shown on the page."""
Keep = Callable[[str, NDArray[np.unsignedinteger]], None]
"""Takes a picture's name and the first model's labels."""
Watch = Callable[["Tally"], None]
Timed = tuple[Segmentation, float]
"""A model's result for a picture, and the seconds that its call took."""


@dataclass
class Score:
    """One model's counts; ``seconds`` by stage of the segmenter, ``busy`` in its calls altogether."""

    confusion: Confusion
    seconds: dict[str, float] = field(default_factory=dict)
    busy: float = 0.0

    def add(self, result: Segmentation, truth: NDArray[np.integer], seconds: float) -> None:
        """Count one picture."""
        self.confusion.add(result.labels, truth)
        self.busy += seconds
        for stage, taken in result.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


@dataclass
class Tally:
    """All counts: a score per model, the agreement of two, and the pictures that were skipped.

    ``pictures`` is the number that were scored, ``wall`` the seconds from the first to the last. ``skipped`` has the
    index and the reason of each picture that could not be used. ``examples`` are the pictures on which the model and
    the truth, or two models, agree least, worst first.
    """

    scores: list[Score]
    agreement: Agreement | None
    pictures: int = 0
    wall: float = 0.0
    skipped: list[tuple[int, str]] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    def add(
        self, results: Sequence[Timed], truth: NDArray[np.integer], name: str, image: NDArray[np.uint8] | None = None
    ) -> None:
        """Count the results of all models for the picture called ``name``, ``image`` uint8 (H, W, 3) BGR."""
        for score, (result, seconds) in zip(self.scores, results, strict=True):
            score.add(result, truth, seconds)
        if self.agreement:
            self.agreement.add(results[0][0].labels, results[1][0].labels, truth, name)
        self.pictures += 1
        if image is not None:
            first, last = results[0][0].labels, results[-1][0].labels
            expected, classes = (truth, len(self.scores[0].confusion.counts)) if len(results) == 1 else (first, None)
            example = Example.of(name, image[..., ::-1], expected, last, classes)
            self.examples = worst(EXAMPLES, self.examples, example)


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

    def load(index: int) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        return pictures[index]

    start = time.perf_counter()
    with ThreadPoolExecutor(_READERS) as pool:
        jobs = prefetch(indices, lambda index: (index, pool.submit(load, index)), lambda job: job, _READERS)
        for index, loaded in jobs:
            name = pictures.names[index]
            try:
                image, truth = loaded.result()
                results = [_segment(model, image, name) for model in models]
            except (DataError, ImageError) as error:
                if not skip:
                    raise
                tally.skipped.append((index, str(error)))
                continue
            tally.add(results, truth, name, image)
            if keep:
                keep(name, results[0][0].labels)
            tally.wall = time.perf_counter() - start
            watch(tally)
    return tally


def _segment(model: Model, image: NDArray[np.uint8], name: str) -> Timed:
    start = time.perf_counter()
    try:
        result = model.segmenter(image, order="bgr", inference=model.inference)
    except (ImageError, EngineError) as error:
        raise type(error)(f"{name}: {error}") from error
    return result, time.perf_counter() - start


def together(tally: Tally, group: Group) -> Tally:
    """The tallies of all processes as one: counts summed, ``wall`` of the slowest."""
    for score in tally.scores:
        score.confusion.counts = group.sum_array(score.confusion.counts)
        score.seconds = _added(group.gather(score.seconds))
        score.busy = sum(group.gather(score.busy))
    if tally.agreement:
        tally.agreement.counts = group.sum_array(tally.agreement.counts)
        tally.agreement.least = min((least for least in group.gather(tally.agreement.least) if least), default=None)
    tally.skipped = sorted(item for part in group.gather(tally.skipped) for item in part)
    tally.examples = worst(EXAMPLES, (example for part in group.gather(tally.examples) for example in part))
    tally.pictures = sum(group.gather(tally.pictures))
    tally.wall = max(group.gather(tally.wall))
    return tally


def _added(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    stages = dict.fromkeys(stage for part in parts for stage in part)
    return {stage: sum(part.get(stage, 0.0) for part in parts) for stage in stages}
