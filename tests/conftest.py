"""What the tests share: the reference's fixtures and checkpoints made from them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from golden_files import GOLDEN, load_golden

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests that interrupt one would hang.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def fill() -> ModuleType:
    """The generator of the fixtures' weights and pictures."""
    return load_golden("fill")


@pytest.fixture(scope="session")
def filled(fill: ModuleType) -> Callable[[str], dict[str, np.ndarray]]:
    """Recipe name -> the fixtures' weights as numpy arrays."""

    def weights(recipe: str) -> dict[str, np.ndarray]:
        return fill.fill(json.loads((GOLDEN / f"state_dict_{recipe}.json").read_text("utf-8")))

    return weights
