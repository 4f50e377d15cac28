"""A local Ray cluster for the tests of one module; its workers import this checkout."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import psutil
from children import environment

MISSING = "" if importlib.util.find_spec("ray") else "Ray is not installed (make test-ray)"
VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_worker_niceness": "0",  # Ray's 15 would starve the workers beside other tests
}


@contextlib.contextmanager
def cluster(cpus: int = 2, gpus: int = 0) -> Iterator[None]:
    """A cluster of this machine with ``cpus``, and ``gpus`` that exist in its books only."""
    import ray

    before = dict(os.environ)
    os.environ |= environment(**VARIABLES)
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(num_cpus=cpus, num_gpus=gpus, object_store_memory=200 << 20, **options)
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ |= before


def processes(name: str) -> set[psutil.Process]:
    """The cluster's processes with ``name`` in the title that Ray gives them; those that end meanwhile are left out."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline() or [child.name()]):
                found.add(child)
    return found


def kill(processes: set[psutil.Process]) -> None:
    """SIGKILL to each that has not ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
