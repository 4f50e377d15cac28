"""From the exported graph to the graphs of a bundle: calibration, search for a mix, ranges, lowering."""

from __future__ import annotations

import onnx

from isnet_trt.export.job import Job
from isnet_trt.export.lowering import LoweredGraphs, flavour_of, lower_graph
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


def prepare_graphs(proto: onnx.ModelProto, job: Job) -> tuple[LoweredGraphs, Mix | None]:
    """The graphs of ``proto`` in the job's arithmetic, and which blocks a search kept out of eight bits."""
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
    if job.arithmetic.precision != "fp32":
        with job.stage("ranges"):
            ranges = measure_ranges(proto, (image.pixels for image in job.samples.typical), progress=True)
    skip = (*keep, *(mixed.skip if mixed else ()))
    return lower_graph(proto, job.arithmetic, job.choice.kind, ranges, table, skip), mixed


def _mixed(proto: onnx.ModelProto, table: Table, job: Job, max_drop: float) -> Mix:
    """Blocks are ranked by equal labels, which is finer; mIoU decides where there are labels."""
    rank = Agreement(proto, job.samples.typical)
    evaluate: Evaluate = rank
    if job.labelled is not None:
        pairs = (job.labelled[index] for index in range(len(job.labelled)))
        evaluate = MeanIoU(job.recipe, [(image[..., ::-1], truth) for image, truth in pairs], job.recipe.default)
    flavour = flavour_of(job.arithmetic.precision, job.choice.kind)
    mix = find_mix(proto, table, flavour, max_drop, evaluate, rank=rank, folder=job.table)
    job.note(mix.summary())
    return mix


def _calibrated(proto: onnx.ModelProto, inputs: CalibrationInputs, job: Job) -> Table:
    table = calibrate(proto, inputs, job.table)
    for note in (*inputs.notes, *(f"left out: {reason}" for reason in inputs.skipped)):
        job.note(note)
    if idle := table.idle():
        job.note(f"always zero on these pictures: {', '.join(idle[:5])}{' …' * (len(idle) > 5)}")
    return table
