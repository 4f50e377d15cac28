"""One build's settings and progress messages, and the way from its exported graph to the graphs of its bundle."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from isnet_trt.engines.select import Choice
from isnet_trt.evaluation.labelled import Labelled
from isnet_trt.export.engines.base import EngineBuilder
from isnet_trt.export.engines.profiles import Shapes
from isnet_trt.export.interrupts import interruptible
from isnet_trt.export.lowering import Arithmetic, LoweredGraphs, flavour_of, lower_graph
from isnet_trt.export.network import Network
from isnet_trt.export.onnx_edit import output_type
from isnet_trt.export.options import EngineOptions, PrecisionOptions
from isnet_trt.export.parity import Target
from isnet_trt.export.precision import without_last_cast
from isnet_trt.export.quantise import (
    Agreement,
    CalibrationInputs,
    Evaluate,
    MeanIoU,
    Mix,
    Table,
    calibrate,
    find_mix,
    quantisable_layers,
)
from isnet_trt.export.quantise.placement import select_layers
from isnet_trt.export.ranges import measure_ranges
from isnet_trt.export.samples import Samples
from isnet_trt.recipes import NetworkRecipe, Recipe


@dataclass(frozen=True)
class Job:
    """One build.

    ``table`` is the folder of the calibration; ``say`` takes one line for the user; ``start`` is when it began,
    by `time.monotonic`. ``target`` is the share of equal labels that the user asks for, ``command`` what they typed.
    """

    network: Network
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
    start: float = field(default_factory=time.monotonic)
    target: Target | None = None
    command: str = ""

    @property
    def recipe(self) -> Recipe | NetworkRecipe:
        """The network's recipe."""
        return self.network.recipe

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
        """Tell the user the recipe and the engine, and which options have no effect and images are left out."""
        self.say(f"recipe      {self.recipe.name}")
        for line in self.network.findings:
            self.say(line)
        for note in self.network.notes:
            self.note(note)
        self.say(f"engine      {self.choice.kind}: {self.choice.reason}")
        batched = self.engine.batch > 1 and not self.builder.runs_on_gpu(self.engine)
        if not self.builder.library.compiles and (self.engine.static or batched):
            self.note(f"--static and --batch have no meaning: {self.choice.kind} takes any size and number")
        if not self.arithmetic.eight_bits:  # the calibration of eight bits reports it itself
            for reason in self.samples.left_out:
                self.note(f"left out: {reason}")


def prepare_graphs(proto: onnx.ModelProto, job: Job) -> tuple[LoweredGraphs, Mix | None]:
    """Calibrate and lower ``proto``; returns its graphs, and the mix if ``max_drop`` asks for a search."""
    keep, max_drop, inputs = job.precision.keep, job.precision.max_drop, job.samples.calibration
    ranges, table, mixed = None, None, None
    if job.arithmetic.eight_bits and inputs is not None:
        flavour = flavour_of(job.arithmetic.precision, job.choice.kind)
        select_layers(quantisable_layers(proto, flavour), keep)  # refuses unknown names before the long calibration
        with job.stage("calibration"):
            table = _calibrated(proto, inputs, job)
        if max_drop is not None:
            with job.stage("sensitivity"):
                mixed = _mixed(proto, table, job, max_drop)
    # Also for int8 and fp8: what stays out of eight bits may be half precision with an fp32 fallback.
    if job.arithmetic.precision != "fp32":
        with job.stage("ranges"):
            ranges = measure_ranges(proto, (image.pixels for image in job.samples.typical), progress=True)
    skip = (*keep, *(mixed.skip if mixed else ()))
    graphs = lower_graph(proto, job.arithmetic, job.choice.kind, ranges, table, skip)
    if job.engine.half_logits:
        graphs = replace(graphs, engine=without_last_cast(graphs.engine))
        if output_type(graphs.engine) == "fp32":
            job.note("--half-logits has no effect: the network computes its output in float32")
    return graphs, mixed


def _mixed(proto: onnx.ModelProto, table: Table, job: Job, max_drop: float) -> Mix:
    """Search for the blocks to keep out of eight bits.

    Blocks are ranked by the share of equal labels, which is finer; mIoU decides where there are labels.
    """
    rank = Agreement(proto, job.samples.typical, job.network.head)
    evaluate: Evaluate = rank
    if job.labelled is not None:
        pairs = (job.labelled[index] for index in range(len(job.labelled)))
        # Labelled sets give B, G, R; the runtime takes R, G, B.
        shown = [(image[..., ::-1], truth) for image, truth in pairs]
        evaluate = MeanIoU(job.recipe, shown, job.recipe.default, job.network.stride)
    flavour = flavour_of(job.arithmetic.precision, job.choice.kind)
    mix = find_mix(proto, table, flavour, max_drop, evaluate, rank=rank, folder=job.table, warn=job.note)
    job.note(mix.summary())
    return mix


def _calibrated(proto: onnx.ModelProto, inputs: CalibrationInputs, job: Job) -> Table:
    table = calibrate(proto, inputs, job.table, warn=job.note)
    for note in (*inputs.notes, *(f"left out: {reason}" for reason in inputs.skipped)):
        job.note(note)
    if idle := table.idle():
        job.note(f"always zero on these pictures: {', '.join(idle[:5])}{' …' * (len(idle) > 5)}")
    return table
