"""A bundle that segments in milliseconds, for the commands that predict."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_model


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny_model.labels(6))
