"""Nothing behind the user's back: importing, opening and segmenting write no file anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny_model
from children import environment, run_python

_PLACES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR")
_VARIABLE = "ORT_DISABLE_TELEMETRY"
_SEGMENTS = """
import sys
import numpy as np
from isnet_trt import Segmenter
with Segmenter.open(sys.argv[1], threads=1) as segmenter:
    for preset in ("default", "ms-flip"):
        segmenter(np.zeros((40, 60, 3), np.uint8), inference=preset, probabilities=True)
"""


def _tree(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_model.write_bundle(tmp_path / "bundle", tiny_model.labels(5))


def _quiet_environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    """An environment without the variable, in which every place that a program may write to is empty and ours."""
    places = {name: str(tmp_path / "places" / name) for name in _PLACES}
    for place in (*places.values(), tmp_path / "places" / "cwd"):
        Path(place).mkdir(parents=True)
    variables = {**places, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return {name: value for name, value in environment(**variables).items() if name != _VARIABLE}


@pytest.mark.parametrize("code", ["import isnet_trt", _SEGMENTS])
def test_nothing_is_written(tmp_path: Path, bundle: Path, code: str) -> None:
    quiet = _quiet_environment(tmp_path)
    before = _tree(tmp_path)
    run_python("-c", code, bundle, env=quiet, cwd=tmp_path / "places" / "cwd", check=True)
    assert _tree(tmp_path) == before


_ASKS = """
import multiprocessing, os, subprocess, sys
def value():
    return os.environ.get("ORT_DISABLE_TELEMETRY")
if __name__ == "__main__":
    import {module}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        child = subprocess.run([sys.executable, "-c", "import os; print(os.environ['ORT_DISABLE_TELEMETRY'])"],
                               capture_output=True, text=True)
        print(value(), pool.apply(value), child.stdout.strip())
"""


@pytest.mark.parametrize("module", ["isnet_trt", "isnet_trt.embed", "isnet_trt.cli", "benchmarks.worker"])
def test_it_is_off_in_our_processes_and_their_children(tmp_path: Path, module: str) -> None:
    script = tmp_path / "ask.py"
    script.write_text(_ASKS.format(module=module))
    quiet = {name: value for name, value in environment().items() if name != _VARIABLE}
    assert run_python(script, env=quiet, check=True).stdout.split() == ["1", "1", "1"]


@pytest.mark.parametrize("value", ["0", "yes"])
def test_what_the_user_says_stays(value: str) -> None:
    code = f"import isnet_trt, os; print(os.environ[{_VARIABLE!r}])"
    assert run_python("-c", code, env=environment(**{_VARIABLE: value}), check=True).stdout.strip() == value


def test_tests_run_without_it_as_well() -> None:
    assert os.environ[_VARIABLE] == "1"
