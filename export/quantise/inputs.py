"""Network inputs for calibration: the user's pictures through the runtime's own preprocessing and windows."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isnet_trt.errors import ImageError, SettingsError
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.files import named, printable
from isnet_trt.merging import windows
from isnet_trt.pictures.files import read_image
from isnet_trt.pictures.finding import SUFFIXES, pictures_in
from isnet_trt.pictures.preprocess import normalise, padding_values, resize
from isnet_trt.settings import Inference, NetworkFacts, Preprocess, Size, size_text

LIMIT = 128
_PLAIN = NetworkFacts()


class CalibrationInputs:
    """Iterates over network inputs (1, 3, h, w) as `NetworkInput`, at most ``limit``.

    One picture gives many windows (scales, flip, slide). Each round takes one window of every picture, a different one
    in each round and spread over all passes, until there are ``limit`` inputs: few pictures give many windows each,
    many pictures one each. The order depends only on the folder's content.

    ``size`` is the only (height, width) that the network takes; None: any. ``skipped`` lists the pictures that could
    not be read or are smaller, one line each; it is complete after the iteration.
    """

    def __init__(
        self,
        files: list[Path],
        preprocess: Preprocess,
        inference: Inference,
        limit: int = LIMIT,
        network: NetworkFacts = _PLAIN,
        size: Size | None = None,
    ) -> None:
        self.size = size
        self.files, self.preprocess, self.inference, self.limit = files, preprocess, inference, limit
        self.padding = windows.Padding(network, padding_values(preprocess, network))
        self.skipped: list[str] = []
        self._used: set[Path] = set()

    @property
    def notes(self) -> list[str]:
        """Warnings about the inputs, such as that there is a single picture; complete after the iteration."""
        single = self._used if len(self._used) == 1 else set(self.files)
        return [_SINGLE.format(*single)] if len(single) == 1 else []

    @property
    def readable(self) -> list[Path]:
        """The files that inputs have come from so far."""
        return [file for file in self.files if file in self._used]

    def divided(self, every: int, limit: int) -> tuple[CalibrationInputs, CalibrationInputs]:
        """Two parts without a common picture: the second has one picture of ``every``, and gives ``limit`` inputs."""
        second = self.files[every - 1 :: every][:limit]
        first = [file for file in self.files if file not in set(second)]
        facts = self.padding.network, self.size
        return (
            CalibrationInputs(first, self.preprocess, self.inference, self.limit, *facts),
            CalibrationInputs(second, self.preprocess, self.inference, limit, *facts),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files' names, sizes and times and of the settings: of all that inputs are made from."""
        content = [*map(_stamp, self.files), repr(self.preprocess), repr(self.inference)]
        content += [] if self.padding.network.size_multiple == 1 else [repr(self.padding.network)]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def __iter__(self) -> Iterator[NetworkInput]:
        self.skipped, self._used = [], set()
        inputs = itertools.islice(self._rounds(), self.limit)
        # Taken apart, so that a folder without a readable picture is an error and not an empty table.
        first = next(inputs, None)
        if first is None:
            raise SettingsError(f"none of the {len(self.files)} pictures can be used: {'; '.join(self.skipped[:3])}")
        yield first
        yield from inputs

    def _rounds(self) -> Iterator[NetworkInput]:
        files = list(enumerate(self.files))
        for turn in itertools.count():
            remaining = []
            for number, file in files:
                try:
                    window = self._window(file, turn, number)
                except ImageError as error:
                    self.skipped.append(named(file, error))
                    # Left out of ``remaining``: not tried again in later rounds.
                    continue
                if window is not None:
                    self._used.add(file)
                    remaining.append((number, file))
                    yield window
            if not remaining:
                return
            files = remaining

    def _window(self, file: Path, turn: int, number: int) -> NetworkInput | None:
        """The window of one picture that round ``turn`` takes; None when all were taken."""
        # Read anew in each round: keeping every picture would take memory in proportion to the folder.
        image = normalise(resize(read_image(file), self.preprocess), self.preprocess)
        plan = windows.plan((image.shape[0], image.shape[1]), self.inference)
        if turn >= len(plan.windows):
            return None
        # Seeded by the file's place: every round and every build sees the same order of its windows.
        order = np.random.default_rng(number).permutation(len(plan.windows))
        planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
        index = int(order[turn])
        ((_, pixels),) = windows.gather(planes, plan.windows[index : index + 1], padding=self.padding)
        if self.size and pixels.shape[2:] != self.size:
            raise ImageError(
                f"a window has {size_text(pixels.shape[2:])}, the network takes {size_text(self.size)} only"
            )
        of_several = f", window {index + 1}" if len(plan.windows) > 1 else ""
        return NetworkInput(printable(file.name) + of_several, pixels, file)


def _stamp(file: Path) -> str:
    """Name, size and time: uncompressed pictures of one shape all have one size."""
    try:
        status = file.stat()
    except OSError as error:  # a dangling link: left out while iterating, with the reason
        return f"{printable(file.name)} {error.strerror}"
    return f"{printable(file.name)} {status.st_size} {status.st_mtime_ns}"


_SINGLE = (
    "{} is the only picture: the ranges of all others are guessed from it. The engine is built, but expect it to lose "
    "accuracy on pictures that differ; 32 to 128 typical pictures are enough"
)


def calibration_inputs(
    folder: str | os.PathLike[str],
    preprocess: Preprocess,
    inference: Inference,
    limit: int = LIMIT,
    network: NetworkFacts = _PLAIN,
    size: Size | None = None,
) -> CalibrationInputs:
    """The inputs from the pictures in ``folder``, or from the one picture that it names.

    Raises:
        SettingsError: there is no such folder, no picture in it, or ``limit`` is below 1. While iterating: none of
            the pictures can be used.
    """
    path = Path(folder)
    if limit < 1:
        raise SettingsError(f"calibration on {limit} inputs is impossible; use 1 or more")
    if not path.exists():
        raise SettingsError(f"{path} does not exist; give a folder of typical pictures for the calibration")
    files = pictures_in(path) if path.is_dir() else [path]
    if not files:
        raise SettingsError(
            f"{path}: no pictures for the calibration there ({', '.join(sorted(SUFFIXES))} are looked for, "
            "in the folder itself)"
        )
    return CalibrationInputs(files, preprocess, inference, limit, network, size)
