"""The exceptions of isnet_trt: one small family, every message with its cause, the file or value, and what to do."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories: control and format characters, lone surrogates, line and paragraph separators."""
_JOINERS = "\u200c\u200d"
"""Format characters that belong to words (Persian and Indic scripts, emoji)."""


def escaped(text: str, keep: str = "") -> str:
    r"""``text`` with the characters that steer a terminal, but those in ``keep``, as ``\x1b`` or ``\u202e``.

    Names in bundles, checkpoints and data sets come from others, and an escape sequence in one would change what is
    read on the screen. Lone surrogates, which cannot be written at all, are escaped too.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(c) if c not in keep and _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS and character not in _JOINERS


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class IsnetError(Exception):
    """Base of everything this library raises on purpose; catch it to catch them all.

    The message may quote names from files: control characters in it, but line breaks, are escaped.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(escaped(a, keep="\n") if isinstance(a, str) else a for a in args))


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


class InputShapeError(EngineError):
    """An engine does not take inputs of the shape that it was given."""


class TimeLimitExceeded(EngineError):
    """A network with a loop ran longer than it may."""


class OutOfMemory(EngineError):
    """The GPU or the host has too little free memory."""


_MEMORY_TYPES = ("OutOfMemoryError",)
"""Names of libraries' exception types for exhausted memory: torch's."""
_NO_MEMORY = "(-4:"
"""``cv2.Error.StsNoMem`` in the text of OpenCV's one exception type, whose ``code`` is always the latest error's."""
_MEMORY_TEXTS = re.compile(
    r"std::bad_alloc|allocate memory|not enough memory|out of memory|smaller than requested bytes|_ALLOC_FAILED"
)
"""Of exhausted memory in the messages of ONNX Runtime and of torch on the CPU, which have no type for it."""
_WITHOUT_TYPE = ("onnxruntime.", "torch.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whatever library, reports exhausted memory.

    By its type; where the library has one type for all errors, by its text, which is read here and nowhere else.
    """
    kind = type(error)
    if isinstance(error, MemoryError | OutOfMemory) or kind.__name__ in _MEMORY_TYPES:
        return True
    if kind.__module__ == "cv2":
        return _NO_MEMORY in str(error)
    # torch raises the built-in RuntimeError.
    generic = kind is RuntimeError or kind.__module__.startswith(_WITHOUT_TYPE)
    return generic and _MEMORY_TEXTS.search(str(error)) is not None


def engine_error(message: str, cause: BaseException) -> EngineError:
    """An `OutOfMemory` error where a library's exception reports exhausted memory, else an `EngineError`."""
    return (OutOfMemory if is_out_of_memory(cause) else EngineError)(message)


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


class PackageMissing(IsnetError):
    """A Python package that a command needs is not installed, or cannot be imported."""


@contextmanager
def needs(purpose: str, *extras: str) -> Iterator[None]:
    """Imports in this block that fail raise PackageMissing, which says what ``purpose`` needs and how to get it.

    ``extras`` are the optional dependencies of ``setup.py`` that bring the packages.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("isnet_trt"):  # a bug of this library, which no installation cures
            raise
        reason = " ".join(str(error).split())
        raise PackageMissing(f"{purpose} needs more packages ({reason}); {install_hint(*extras)}") from error


def install_hint(*extras: str) -> str:
    """The command that installs optional dependencies; the project is on no package index, only in its folder."""
    return f"pip install '.[{','.join(extras)}]' in the folder of isnet_trt's source"


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The first ``limit`` names, separated by commas, and how many more there are: a list for a message."""
    more = len(names) - limit
    return ", ".join(map(legible, names[:limit])) + (f", … ({more} more)" if more > 0 else "")


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the one of ``names`` that ``name`` may be a slip of, or nothing: an error's end."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def legible(name: str, limit: int = 300) -> str:
    """``name`` for a message: what is not printable escaped, the middle of a long one left out."""
    text = name if name.isprintable() else name.encode("unicode_escape").decode("ascii")
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"
