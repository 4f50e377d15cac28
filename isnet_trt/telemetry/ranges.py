"""Ranges for NVIDIA's profilers (NVTX): a call, a batch of windows, a stage. Nothing happens without the package nvtx.

`look_for_nvtx` is called when a segmenter is created. Ranges are of the host: a GPU's work is queued in them.
https://nvidia.github.io/NVTX/python/
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

DOMAIN = "isnet_trt"
_domain: Any = None
_attributes: dict[str, Any] = {}
_looked = False


def look_for_nvtx() -> None:
    """Use nvtx from now on, if it is installed; the first call decides."""
    global _domain, _looked
    if not _looked:
        _looked = True
        with contextlib.suppress(ImportError):
            import nvtx

            _domain = nvtx.get_domain(DOMAIN)  # one whose methods do nothing, where no profiler is attached


def push(name: str) -> bool:
    """Begin a range of this thread; `pop` takes the result."""
    if _domain is None:
        return False
    attributes = _attributes.get(name)
    if attributes is None:
        attributes = _attributes[name] = _domain.get_event_attributes(message=name)
    _domain.push_range(attributes)
    return True


def pop(pushed: bool) -> None:
    """End the range that was begun last, if ``pushed``."""
    if pushed:
        _domain.pop_range()


@contextlib.contextmanager
def annotate(name: str) -> Iterator[None]:
    """A range around a block."""
    pushed = push(name)
    try:
        yield
    finally:
        pop(pushed)
