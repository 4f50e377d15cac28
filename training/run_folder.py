"""The checkpoints of a training run in the published layout, and the link to the newest.

    checkpoints-epoch-3.pth        after epoch 3
    checkpoints-mid-epoch.pth      written between two epochs (--save-every, an interruption)
    checkpoints-epoch-latest.pth   a link to the newest of them, relative to this folder

The link names its target without a folder, so it is found from any working directory and moves with the folder.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from isnet_trt.errors import CheckpointError
from isnet_trt.files import replace_link
from isnet_trt.training.checkpoint import read_state, save_checkpoint
from isnet_trt.training.diagnose import finite

LATEST = "checkpoints-epoch-latest.pth"
MID_EPOCH = "checkpoints-mid-epoch.pth"


class RunFolder:
    """The checkpoints under ``folder``; all of them are kept, or the last ``keep`` epochs'."""

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self.folder, self.keep = folder, keep

    @property
    def latest(self) -> Path:
        """The link to the newest checkpoint."""
        return self.folder / LATEST

    @property
    def occupied(self) -> bool:
        """Whether there is a link to the newest checkpoint, wherever it leads, or a checkpoint without it."""
        return os.path.lexists(self.latest) or bool(self._checkpoints())

    def _checkpoints(self) -> list[Path]:
        """The checkpoints, the newest first."""
        paths = [path for path in self.folder.glob("checkpoints-*.pth") if path.name != LATEST and path.is_file()]
        return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)

    def newest(self) -> Path:
        """The file that `LATEST` leads to; without the link, before which a run may have been killed, the newest.

        Raises:
            CheckpointError: there is no checkpoint, or the link leads nowhere.
        """
        checkpoints = self._checkpoints()
        if not self.occupied:
            raise CheckpointError(f"{self.latest} does not exist: there is nothing to resume, start without --resume")
        if not os.path.lexists(self.latest):
            return checkpoints[0]
        if not os.path.exists(self.latest):  # noqa: PTH110  # Path.exists raises for a link to itself
            raise CheckpointError(f"{self.latest} is a link that leads nowhere: {self.advice(self.latest)}")
        return self.latest

    def advice(self, unusable: Path) -> str:
        """What to do if a checkpoint cannot be used."""
        real = os.path.realpath(unusable)
        other = next((path for path in self._checkpoints() if os.path.realpath(path) != real), None)
        if other is None:
            return f"copy it back, or move {self.folder} away and start anew"
        return f"go on from an earlier one (ln -sfn {other.name} {shlex.quote(str(self.latest))}), or copy it back"

    def save(self, model: Mapping[str, Tensor], epoch: int, epoch_ended: bool, **extra: Any) -> Path:
        """Write a checkpoint and make `LATEST` a link to it; each of the two replaces its predecessor at once.

        Args:
            model: the state dict.
            epoch: number of complete epochs.
            epoch_ended: True at the end of an epoch, False within one.
            extra: further entries.

        Raises:
            CheckpointError: weights are not finite, or the file cannot be written; the files before stay as they are.
        """
        bad = [name for name, tensor in model.items() if not finite(tensor)]
        if bad:
            raise CheckpointError(
                f"{bad[0]} and {len(bad) - 1} more of the weights hold NaN or infinite values: not saved. "
                f"The last good checkpoint is {self.latest}; lower the learning rate, or train without --amp"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / (epoch_file(epoch) if epoch_ended else MID_EPOCH)
        save_checkpoint(path, model, cur_epoch=epoch, **extra)
        # The link after the file: it never names one that is not whole.
        self._link_to(path)
        # Only now: until the link was set, the newest checkpoint may have been the mid-epoch file.
        if epoch_ended:
            self._clear(epoch)
        return path

    def _link_to(self, path: Path) -> None:
        try:
            replace_link(self.latest, path.name)
        except OSError as error:
            raise CheckpointError(f"{path} was written, but {self.latest} cannot be set to it: {error}") from error

    def _clear(self, epoch: int) -> None:
        """Remove the checkpoints that are not needed after the end of ``epoch``."""
        (self.folder / MID_EPOCH).unlink(missing_ok=True)
        # One file is enough: the earlier ones went after the epochs before.
        if self.keep and epoch > self.keep:
            (self.folder / epoch_file(epoch - self.keep)).unlink(missing_ok=True)

    def read(self, **required: Any) -> dict[str, Any]:
        """The newest checkpoint's content on the CPU; entries named in ``required`` must have these values.

        Raises:
            CheckpointError: there is none, it cannot be read, or it belongs to a run with other settings.
        """
        path = self.newest()
        try:
            state = read_state(path.resolve())
        except CheckpointError as error:
            raise CheckpointError(
                f"{path.resolve()} cannot be read as the state of a run ({error}); {self.advice(path)}"
            ) from None
        for key, value in required.items():
            if type(state.get(key)) is not type(value) or state[key] != value:
                raise CheckpointError(f"{path} was trained with {key} {state.get(key)!r:.100}, not {value!r}")
        return state


def epoch_file(epoch: int) -> str:
    """The name of the checkpoint after an epoch, counted from 1."""
    return f"checkpoints-epoch-{epoch}.pth"
