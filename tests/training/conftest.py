"""Fixtures of the training tests."""

from __future__ import annotations

from collections.abc import Iterator

import plain_inference
import pytest


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine torch spends more time on handing out such small work than on doing it."""
    with plain_inference.one_thread():
        yield
