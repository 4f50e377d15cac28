"""Segment the images of several requests, each with its own error, and read inference settings from plain values."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from isnet_trt.errors import SettingsError
from isnet_trt.runtime.segmentation import Segmentation
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.settings import Inference, adjust_preset

Job = TypeVar("Job")


@dataclass
class Call:
    """A request: its images, the options of the segmenter's call, the requested outputs; results, or an error."""

    images: Sequence[Any] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()
    results: list[Segmentation] = field(default_factory=list)
    error: Exception | None = None


def segment(segmenter: Segmenter, calls: Sequence[Call]) -> None:
    """Segment the images of all calls in order, and note each call's results or its error.

    On a GPU the images of calls with the same options overlap, as in `Segmenter.map`. After an error the call's further
    images are left out; other calls go on.
    """
    jobs = [(call, image) for call in calls for image in call.images]
    for options, group in groupby(jobs, lambda job: job[0].options):
        pending = (job for job in group if job[0].error is None)
        for (call, _), result in segment_each(segmenter, pending, lambda job: job[1], **options):
            if isinstance(result, Exception):
                call.error = call.error or result
            elif call.error is None:
                call.results.append(result)


def segment_each(
    segmenter: Segmenter, jobs: Iterable[Job], read: Callable[[Job], Any], **options: Any
) -> Iterator[tuple[Job, Segmentation | Exception]]:
    """Segment the image ``read(job)`` of each job with `Segmenter.map`; an image that fails does not end the others.

    Yields each job in order, with its result or with the exception that reading or segmenting it raised.
    """
    source = iter(jobs)
    pending: deque[Job] = deque()

    def images() -> Iterator[Any]:
        yield from map(read, tuple(pending))  # those that `map` had submitted behind an image that failed
        for job in source:
            pending.append(job)
            yield read(job)

    while True:
        try:
            for result in segmenter.map(images(), **options):
                yield pending.popleft(), result
            return
        except Exception as error:
            if not pending:  # an error of ``jobs`` itself
                raise
            yield pending.popleft(), error


def inference_of(parameters: Mapping[str, Any], segmenter: Segmenter) -> Inference:
    """The inference settings that a request's parameters name.

    Raises:
        SettingsError: a parameter is unknown, or its value cannot be used.
    """
    fields = dict(parameters)
    preset = fields.pop("preset", None)
    if unknown := sorted(fields.keys() - _PARAMETERS.keys()):
        known = ", ".join(("preset", "order", *_PARAMETERS))
        raise SettingsError(f"parameter {', '.join(unknown)} is unknown; a request may have: {known}")
    fields = {name: _PARAMETERS[name](name, value) for name, value in fields.items()}
    presets = segmenter.presets if preset is not None else {"": segmenter.inference, **segmenter.presets}
    return adjust_preset(presets, "" if preset is None else str(preset), fields)


def _size(name: str, value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})[x, ]([0-9]{1,6})", str(value))
    if match is None:
        raise SettingsError(f"parameter {name} is {value!r}; give height and width in pixels, such as '512x1024'")
    return int(match[1]), int(match[2])


def _scales(name: str, value: Any) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in re.split(r"[, ]+", str(value)))
    except ValueError:
        raise SettingsError(f"parameter {name} is {value!r}; give factors, such as '0.5 1 1.5'") from None


def _flag(name: str, value: Any) -> bool:
    flags = {"true": True, "false": False}
    if str(value).lower() not in flags:
        raise SettingsError(f"parameter {name} is {value!r}; give true or false")
    return flags[str(value).lower()]


_PARAMETERS: Mapping[str, Callable[[str, Any], Any]] = {
    "mode": lambda name, value: value,
    "window": _size,
    "stride": _size,
    "scales": _scales,
    "flip": _flag,
    "softmax_before_resize": _flag,
}
"""Parameters of a request that change a preset, and how their values are read: they are fields of `Inference`."""
