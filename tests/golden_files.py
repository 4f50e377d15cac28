"""Where the reference's fixtures lie, and their two modules (the folder is no package)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

GOLDEN = Path(__file__).parent / "golden"


def load_golden(name: str) -> ModuleType:
    """A module of the fixtures' folder: ``fill`` (weights and pictures) or ``check_example`` (the comparison)."""
    spec = importlib.util.spec_from_file_location(f"golden_{name}", GOLDEN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
