"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from isnet_trt.errors import SettingsError
from isnet_trt.pictures.files import replacing


def make_folder(folder: Path, option: str) -> Path:
    """``folder``, created if it is missing; ``option`` names the command-line option that gave it.

    Raises:
        SettingsError: it cannot be created or written to.
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
        SettingsError: it cannot be written; an earlier file of this name stays.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}; it is as it was") from None
