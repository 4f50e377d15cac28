"""Rights of another user, for files that may not be read or written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the super-user's rights, if the tests have them."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def reachable(folder: Path) -> Iterator[None]:
    """Let any user into ``folder`` and write there: pytest's temporary folders are their owner's only."""
    changed = {path: path.stat().st_mode for path in (folder, *folder.parents) if path.stat().st_uid == os.geteuid()}
    changed = {path: mode for path, mode in changed.items() if not mode & 0o001}
    for path in changed:
        path.chmod(0o755)
    writable = folder.stat().st_mode
    folder.chmod(0o777)
    try:
        yield
    finally:
        folder.chmod(writable)
        for path, mode in changed.items():
            path.chmod(mode)
