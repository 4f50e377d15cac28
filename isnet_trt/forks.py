"""Refuse to use a resource in a forked child of the process that opened it, and never destroy it there.

A forked child has the memory of its parent, but neither its threads nor its GPU context. An engine that is used there,
or merely destroyed, hangs or fails inside a library: ONNX Runtime's session waits for ever for threads that do not
exist in the child, and no CUDA function may be called (CUDA driver API, cuInit, "Initialization after fork":
https://docs.nvidia.com/cuda/cuda-driver-api/).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any

from isnet_trt.errors import EngineError

_bound: weakref.WeakSet[Any] = weakref.WeakSet()


class OwnerProcess:
    """The process in which ``resource`` was opened; in a child forked from it the resource is never destroyed."""

    def __init__(self, resource: Any) -> None:
        self._process = os.getpid()
        _bound.add(resource)

    @property
    def is_here(self) -> bool:
        """Whether this is that process, not a child forked from it."""
        return os.getpid() == self._process

    def check(self, resource: str) -> None:
        """Raise EngineError in a forked child; ``resource`` is the resource's name in the message."""
        if not self.is_here:
            raise EngineError(
                f"{resource} was opened in process {self._process} and cannot be used in process {os.getpid()}, forked "
                "from it: the engine's threads and its device stay with the parent. Open a new one in the child, or "
                "start children with multiprocessing's 'spawn' or 'forkserver'"
            )


def _abandon() -> None:
    """In a forked child: add a reference to every resource of the parent, so that no destructor ever runs."""
    for resource in list(_bound):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)
