"""The bundle that the tests serve, and the label maps that they expect of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_bundle import write_bundle

from isnet_trt import Segmenter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small bundle."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "small").folder


@pytest.fixture(scope="module")
def segmenter(bundle: Path) -> Iterator[Segmenter]:
    """The bundle, opened in this process."""
    with Segmenter.open(bundle, threads=1) as opened:
        yield opened
