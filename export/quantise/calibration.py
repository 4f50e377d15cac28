"""Calibration: the float32 graph under ONNX Runtime with its inner tensors as outputs, observed input by input."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from isnet_trt.errors import BuildError, SettingsError
from isnet_trt.export.graph import INPUT
from isnet_trt.export.parity import NetworkInput
from isnet_trt.export.quantise.placement import calibrated_tensors
from isnet_trt.export.quantise.table import JSON, Table, digest
from isnet_trt.export.quantise.tensor_statistics import TensorStatistics
from isnet_trt.export.sessions import open_session

SAVE_EVERY = 16
_AT_ONCE = 2**31
"""Bytes of inner tensors that one run may return; beyond, an input is run several times."""
_BYTES_PER_PIXEL = 64
"""Bytes of one wide inner tensor for each pixel of the input: 256 channels of float32 at stride 4."""


def calibrate(
    proto: onnx.ModelProto,
    inputs: Iterable[NetworkInput],
    folder: str | os.PathLike[str] | None = None,
    *,
    total: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Table:
    """Observe every tensor that a placement may round.

    Args:
        proto: the float32 graph, as `export_graph` makes it.
        inputs: named network inputs (1, 3, h, w), such as `calibration_inputs`.
        folder: where the table is kept while it grows; one that is there already, of the same graph and from the same
            ``inputs`` (their ``fingerprint``) but no more of them, is continued, so that a finished one costs nothing.
        total: number of inputs for the progress bar; default: that of ``inputs``, where it is known.
        threads: CPU threads; default: the physical cores.

    Raises:
        BuildError: a tensor has NaN or infinite values; the message names it. Or the table cannot be kept in
            ``folder``.
        SettingsError: there was no input.
    """
    table = _begin(proto, inputs, folder)
    done, names = len(table.inputs), calibrated_tensors(proto)
    total = total or getattr(inputs, "limit", None)
    with open_session(proto, names, threads) as session:
        for number, one in enumerate(tqdm(inputs, "calibration", total, disable=None if progress else True)):
            if number < done:
                continue
            _observe(session, table, names, one)
            if folder is not None and len(table.inputs) % SAVE_EVERY == 0:
                table.save(folder)
    if not table.inputs:
        raise SettingsError("calibration had no inputs; give at least one picture")
    if folder is not None and len(table.inputs) > done:
        table.save(folder)
    return table


def _begin(proto: onnx.ModelProto, inputs: Iterable[NetworkInput], folder: str | os.PathLike[str] | None) -> Table:
    """The table to go on with: the stored one if it is of this graph and these inputs, else an empty one."""
    graph, source = digest(proto), str(getattr(inputs, "fingerprint", ""))
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise BuildError(f"{folder} is no folder: the calibration table is kept there; move it away")
    if folder is not None and (Path(folder) / JSON).exists():
        try:
            table = Table.load(folder)
        except BuildError:
            table = Table()
        few_enough = len(table.inputs) <= getattr(inputs, "limit", len(table.inputs))
        if (table.graph, table.source) == (graph, source) and few_enough:
            return table
    return Table(graph, source)


def _observe(session: Any, table: Table, names: list[str], one: NetworkInput) -> None:
    at_once = max(8, _AT_ONCE // (one.pixels[0, 0].size * _BYTES_PER_PIXEL))
    for start in range(0, len(names), at_once):
        group = [name for name in names[start : start + at_once] if name != INPUT]
        values = dict(zip(group, session.run(group, {INPUT: one.pixels}), strict=True))
        if INPUT in names[start : start + at_once]:
            values[INPUT] = one.pixels
        for name, value in values.items():
            table.records.setdefault(name, TensorStatistics()).add(name, value)
    table.inputs.append(one.name)
