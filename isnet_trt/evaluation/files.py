"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from isnet_trt.errors import SettingsError


def make_folder(folder: Path, option: str) -> Path:
    """``folder``, made if it is missing; ``option`` is what asked for it.

    Raises:
        SettingsError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{option} {folder}: the folder cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise SettingsError(f"{option} {folder}: the folder cannot be written to")
    return folder


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one beside it.

    Raises:
        SettingsError: it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}; it is as it was") from None
    finally:
        temporary.unlink(missing_ok=True)
