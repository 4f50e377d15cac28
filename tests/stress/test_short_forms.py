"""The short form of every probe: no finding, and the same cases each time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from children import CHECKOUT, explained, run_python
from forked import needs_fork

pytestmark = [
    pytest.mark.slow,
    needs_fork,
    pytest.mark.skipif(sys.platform != "linux", reason="the probes read /proc and mount file systems"),
]
CASES = {"pictures": 2000, "checkpoints": 600, "bundles": 500, "recipes": 400, "states": 400}
CASES |= {"kills": 4, "disks": 4, "names": 3, "calls": 1000}
JOBS = {"disks": ("predict", "training"), "names": ("predict", "build")}
"""Of the four commands, where not all: a build takes seconds."""


@pytest.mark.parametrize("program", CASES)
def test_no_finding(program: str, tmp_path: Path) -> None:
    options = ("--jobs", *JOBS[program]) if program in JOBS else ()
    options += ("--keep", tmp_path / "findings", "--json", tmp_path / "figures.json")
    ended = run_python(CHECKOUT / f"tests/stress/{program}.py", "--cases", CASES[program], *options, timeout=900)
    assert ended.returncode == 0, explained(ended)
    entry = json.loads((tmp_path / "figures.json").read_text("utf-8"))[f"{program}.py"]
    assert entry["findings"] == 0
    assert entry["figures"].get("cases", entry["figures"].get("calls")) == CASES[program]
