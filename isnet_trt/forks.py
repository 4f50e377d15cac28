"""What must not be used in a process other than the one that made it.

A forked child has the memory of its parent, but neither its threads nor its GPU context: an engine used there hangs
or fails deep inside a library (https://docs.nvidia.com/cuda/cuda-c-programming-guide: no CUDA context survives a
fork), and so does one that is merely destroyed there.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from isnet_trt.errors import EngineError


class Home:
    """The process in which something was opened."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process, not a child forked from it."""
        return os.getpid() == self._process

    def check(self, what: str) -> None:
        """Refuse work in a forked child.

        Raises:
            EngineError: this is another process.
        """
        if not self.is_here:
            raise EngineError(
                f"{what} was opened in process {self._process} and cannot be used in process {os.getpid()}, forked "
                "from it: the engine's threads and its device stay with the parent. Open a new one in the child, or "
                "start children with multiprocessing's 'spawn' or 'forkserver'"
            )


def abandon(resource: Any) -> None:
    """Let ``resource`` never be destroyed in this process; its destructor would wait for threads left behind."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(resource))
