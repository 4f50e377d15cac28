"""Calibration: run the float32 graph under ONNX Runtime and collect statistics of its inner tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
from tqdm import tqdm

from isnet_trt.errors import BuildError, SettingsError, first_few
from isnet_trt.export.graph import INPUT
from isnet_trt.export.network_inputs import NetworkInput
from isnet_trt.export.quantise.placement import calibrated_tensors
from isnet_trt.export.quantise.table import JSON, Table, check_writable, digest
from isnet_trt.export.quantise.tensor_statistics import TensorStatistics
from isnet_trt.export.sessions import open_session

SAVE_EVERY = 16
_RUN_BYTES = 2**31
"""Bytes of inner tensors that one run may return; an input with more is run several times."""
_BYTES_PER_PIXEL = 64
"""Bytes of one wide inner tensor per pixel of the input: 256 channels of float32 at stride 4."""


def calibrate(
    proto: onnx.ModelProto,
    inputs: Iterable[NetworkInput],
    folder: str | os.PathLike[str] | None = None,
    *,
    total: int | None = None,
    threads: int | None = None,
    progress: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> Table:
    """Collect statistics of every tensor that a placement may round.

    Args:
        proto: the float32 graph, from `export_graph`.
        inputs: named network inputs (1, 3, h, w), such as `calibration_inputs`.
        folder: where the table is saved every `SAVE_EVERY` inputs. A table that is already there is continued if it
            belongs to the same graph and ``inputs`` (their ``fingerprint``) and has no more than their ``limit``; a
            complete one costs nothing. A table that is damaged or not whole is made anew.
        total: number of inputs for the progress bar; default: the ``limit`` of ``inputs``.
        threads: CPU threads; default: the physical cores.
        warn: receives one line when a stored table is not used.

    Raises:
        BuildError: a tensor has NaN or infinite values; the message names it. Or the table cannot be saved.
        SettingsError: ``inputs`` is empty.
    """
    names = calibrated_tensors(proto)
    table = Table(digest(proto), str(getattr(inputs, "fingerprint", "")))
    if folder is not None:
        stored = _stored(table, names, getattr(inputs, "limit", None), Path(folder), warn)
        if stored is None:
            check_writable(Path(folder), len(names))
        table = stored or table
    done = len(table.inputs)
    total = total or getattr(inputs, "limit", None)
    with open_session(proto, names, threads) as session:
        for number, item in enumerate(tqdm(inputs, "calibration", total, disable=None if progress else True)):
            # Made again but not run: the order of the inputs is fixed, so that the table simply goes on.
            if number < done:
                continue
            _add(session, table, names, item)
            if folder is not None and len(table.inputs) % SAVE_EVERY == 0:
                table.save(folder)
    if not table.inputs:
        raise SettingsError("calibration had no inputs; give at least one picture")
    if folder is not None and len(table.inputs) > done:
        table.save(folder)
    return table


def _stored(new: Table, names: list[str], limit: int | None, folder: Path, warn: Callable[[str], None]) -> Table | None:
    """The table in ``folder`` if it is whole and belongs to the graph and inputs of ``new``; None with a warning."""
    if not os.path.lexists(folder / JSON):
        return None
    try:
        table = Table.load(folder)
    except BuildError as error:  # costs a new calibration, not the build
        warn(f"warning: calibrating again: {error}")
        return None
    if (table.graph, table.source) != (new.graph, new.source):
        warn(f"calibrating again: the table in {folder} is of another model or of other pictures")
    elif limit is not None and len(table.inputs) > limit:
        warn(f"calibrating again: the table in {folder} has {len(table.inputs)} inputs, and {limit} are asked for")
    elif missing := [name for name in names if table.inputs and name not in table.records]:
        warn(f"warning: calibrating again: the table in {folder} lacks {first_few(missing)}")
    else:
        return table
    return None


def _add(session: Any, table: Table, names: list[str], item: NetworkInput) -> None:
    """Run one input, as often as `_RUN_BYTES` demands, and add its tensors."""
    group_size = max(8, _RUN_BYTES // (item.pixels[0, 0].size * _BYTES_PER_PIXEL))
    for start in range(0, len(names), group_size):
        group = names[start : start + group_size]
        # The network's input is calibrated too, but is no output of the session.
        inner = [name for name in group if name != INPUT]
        values = dict(zip(inner, session.run(inner, {INPUT: item.pixels}), strict=True))
        for name in group:
            table.records.setdefault(name, TensorStatistics()).add(name, values.get(name, item.pixels))
    table.inputs.append(item.name)
