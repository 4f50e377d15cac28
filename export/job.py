"""One build's settled choices, and what it tells the user while it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isnet_trt.engines.select import Choice
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.export.engines.base import EngineBuilder
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.interrupts import interruptible
from isnet_trt.export.lowering import Arithmetic
from isnet_trt.export.options import EngineOptions, PrecisionOptions
from isnet_trt.export.samples import Samples
from isnet_trt.recipes import Recipe
from isnet_trt.training.checkpoint import Checkpoint
from isnet_trt.training.model import ISNet


@dataclass(frozen=True)
class Job:
    """One build. ``table`` is the folder of the calibration; ``say`` takes one line for the user."""

    checkpoint: Checkpoint
    model: ISNet
    choice: Choice
    builder: EngineBuilder
    arithmetic: Arithmetic
    engine: EngineOptions
    precision: PrecisionOptions
    shapes: Shapes
    kernels: bool
    samples: Samples
    table: Path
    labelled: Labelled | None
    say: Callable[[str], None]

    @property
    def recipe(self) -> Recipe:
        """The checkpoint's recipe."""
        return self.checkpoint.recipe

    def note(self, text: str) -> None:
        """Tell the user something about the current stage."""
        self.say(f"            {text}")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage of the build, whose seconds the user is told; Ctrl-C ends it."""
        start = time.perf_counter()
        with interruptible():
            yield
        self.say(f"{name:11} {time.perf_counter() - start:.1f} s")

    def introduce(self) -> None:
        """Tell the user what is built, and what of the options and images is left out."""
        self.say(f"recipe      {self.recipe.name}")
        for note in self.checkpoint.notes:
            self.note(note)
        self.say(f"engine      {self.choice.kind}: {self.choice.reason}")
        if not self.builder.library.compiles and (self.engine.static or self.engine.batch > 1):
            self.note(f"--static and --batch have no meaning: {self.choice.kind} takes any size and number")
        if not self.arithmetic.eight_bits:  # the calibration of eight bits reports it itself
            for reason in self.samples.left_out:
                self.note(f"left out: {reason}")
