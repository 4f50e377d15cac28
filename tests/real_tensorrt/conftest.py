"""Tests on the real TensorRT without a GPU, marked ``tensorrt``, each in child processes that have it on their path.

The folder comes from ``TENSORRT_SITE`` (`make test-tensorrt` installs one and sets it), several separated by colons;
else a TensorRT that this Python can import is used. No folder on pytest's path may be called ``tensorrt``: it would be
taken for the library. With ``TENSORRT_REQUIRED=1`` a missing one is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from children import environment, explained, run_python

HERE = Path(__file__).parent
SITES = [Path(name).resolve() for name in os.environ.get("TENSORRT_SITE", "").split(os.pathsep) if name]
Run = Callable[..., subprocess.CompletedProcess[str]]


def lacking(site: Path | None) -> str:
    """Why the tests cannot run with the TensorRT in ``site`` (None: this Python's own); empty if they can."""
    if site is not None:
        missing = "" if (site / "tensorrt").is_dir() else f"there is no TensorRT in {site}"
    else:
        missing = "" if importlib.util.find_spec("tensorrt") else "no TensorRT can be imported"
    return missing and f"{missing}; `make test-tensorrt` installs one for these tests alone"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.tensorrt)


@pytest.fixture(params=SITES or [None], ids=lambda site: site.name if site else "installed")
def site(request: pytest.FixtureRequest) -> Path | None:
    """The folder of a TensorRT; the test is skipped, or fails where it is required, without one."""
    if reason := lacking(request.param):
        (pytest.fail if os.environ.get("TENSORRT_REQUIRED") else pytest.skip)(reason)
    return request.param


def variables(site: Path | None, **more: str) -> dict[str, str]:
    """The environment of a child process that can import the TensorRT in ``site``."""
    own = environment(**more)
    return {**own, "PYTHONPATH": f"{own['PYTHONPATH']}{os.pathsep}{site}"} if site else own


@pytest.fixture
def run(site: Path | None) -> Run:
    """``python ARGUMENTS`` in a process that can import TensorRT, which must not end by a signal."""

    def run_with(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        ran = run_python(*arguments, env=variables(site, **options.pop("variables", {})), **options)
        assert ran.returncode >= 0, explained(ran)
        return ran

    return run_with
