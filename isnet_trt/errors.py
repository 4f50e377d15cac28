"""The exceptions of isnet_trt: one small family, every message with its cause, the file or value, and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class IsnetError(Exception):
    """Base of everything this library raises on purpose; catch it to catch them all."""


class SettingsError(IsnetError, ValueError):
    """A setting (window, stride, scale, preset name, …) cannot be used as given."""


class ImageError(IsnetError, ValueError):
    """An image cannot be read, or its type, shape or size cannot be segmented."""


class BundleError(IsnetError):
    """A bundle is missing, incomplete, changed, or written by a newer version."""


class EngineUnavailable(IsnetError):
    """The engine that was asked for cannot run here: its library, version or device is missing."""


class EngineError(IsnetError):
    """An engine that should run here failed while it was loaded or used."""


class OutOfMemory(EngineError):
    """The GPU has too little free memory."""


class CheckpointError(IsnetError):
    """A checkpoint cannot be read, or its entries do not fit the recipe."""


class BuildError(IsnetError):
    """An engine or a bundle cannot be built."""


class ParityError(BuildError):
    """What was built does not compute what the checkpoint computes; nothing was written."""


class DataError(IsnetError):
    """A dataset is missing, half unpacked, or one of its files cannot be used as it is."""


class TrainingError(IsnetError):
    """Training cannot start or go on as it is set up."""


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The first ``limit`` names, separated by commas, and how many more there are: a list for a message."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f", … ({more} more)" if more > 0 else "")
