"""One set of pictures shared by the processes that `torchrun` started."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import SettingsError
from isnet_trt.training.group import Group, process_group

_TIMEOUT = 24 * 3600.0
"""Seconds that a process waits for the others, whose pictures may be much larger. One that dies ends all at once."""


@contextmanager
def shared() -> Iterator[Group]:
    """The processes that `torchrun` started, from the environment that it sets; without it this process alone.

    Counts are sent by gloo. A process sees one GPU, chosen by its number on the machine. CUDA must not be in use yet.

    Raises:
        SettingsError: there are several processes and torch is missing.
        TrainingError: the other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _choose_gpu()
        if importlib.util.find_spec("torch") is None:
            raise SettingsError(
                "several processes need torch.distributed; pip install 'isnet_trt[train]', or start one process"
            )
    with process_group("cpu", timeout=_TIMEOUT) as group:
        yield group


def _choose_gpu() -> None:
    """Make one GPU visible, chosen by this process's number on the machine; processes share GPUs if there are fewer."""
    local, visible = int(os.environ.get("LOCAL_RANK", 0)), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    elif visible.strip():
        gpus = visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[local % len(gpus)]


def threads_each() -> int | None:
    """CPU threads for each process of a run of several on this machine; None (the engine's default) for one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, usable_cores() // processes) if processes > 1 else None
