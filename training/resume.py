"""Check the state of an earlier run before a trainer takes it over: nothing changes unless all of it can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from isnet_trt.errors import CheckpointError, first_few
from isnet_trt.recipes import Recipe
from isnet_trt.training.classes import Classes
from isnet_trt.training.diagnose import finite
from isnet_trt.training.fit import CLASSIFIER, differences, shapes_of
from isnet_trt.training.model import ISNet
from isnet_trt.training.optimiser import IMPLEMENTATION

_DEFAULTS = {"nesterov": False, "maximize": False, "differentiable": False}
"""Settings that the optimiser states of older versions of torch lack."""


@dataclass(frozen=True)
class OwnState:
    """What the state of an earlier run must fit; ``length`` are the iterations of an epoch."""

    recipe: Recipe
    model: ISNet
    optimiser: Optimizer
    scaler: GradScaler
    length: int


def check_state(state: Mapping[str, Any], own: OwnState, path: Path, advice: str = "go on from another one") -> None:
    """Raise CheckpointError unless the state read from ``path`` continues a run; ``advice`` is for a damaged one."""
    classes = Classes.noted(state, path)
    if classes:
        classes.check(own.recipe, path)
    weights = state.get("model")
    try:
        if weights is None or not _is_state_dict(weights):
            raise _Unusable("its entry 'model' is no state dict")
        _check_fit(weights, own.recipe, own.model, path)
        if bad := [name for name, tensor in weights.items() if not finite(tensor)]:
            raise _Unusable(f"NaN or infinite values in {first_few(bad)}")
        _check_progress(state, own.length)
        _check_optimiser(state.get("optimizer"), own.optimiser)
        _check_scaler(state.get("grad_scaler"), own.scaler)
    except _Unusable as reason:
        raise CheckpointError(
            f"{path} is no training state that can be continued: {reason}. Nothing was changed; {advice}"
        ) from None


class _Unusable(Exception):
    """Why a state cannot be continued."""


def _check_progress(state: Mapping[str, Any], length: int) -> None:
    """The iterations done, the complete epochs that follow from them, and the rows of the tables (newer states)."""
    step, rows = state.get("cur_iter"), state.get("rows", {})
    if type(step) is not int or step < 0:
        raise _Unusable(f"its entry 'cur_iter' is {step!r:.40}, not a number of iterations")
    epoch = state.get("cur_epoch")
    if type(epoch) is not int or epoch != step // length:
        raise _Unusable(f"its entry 'cur_epoch' is {epoch!r:.40}, but {step} iterations are {step // length} epochs")
    if not isinstance(rows, dict) or not all(type(count) is int and count >= 0 for count in rows.values()):
        raise _Unusable(f"its entry 'rows' is {rows!r:.40}, not the numbers of rows in the tables")


def _check_scaler(saved: Any, own: GradScaler) -> None:
    """The loss scaling of a run with fp16; a run without may go on with it, and the other way round."""
    if saved is None or not own.is_enabled():
        return
    expected = own.state_dict()
    if not isinstance(saved, dict) or set(saved) != set(expected):
        raise _Unusable("its entry 'grad_scaler' is no state of a loss scaler")
    bad = [name for name, value in saved.items() if type(value) not in (int, float) or not 0 <= value < math.inf]
    if bad or not saved["scale"]:
        raise _Unusable(f"its loss scaler's {first_few(bad or ['scale'])} cannot be used")


def _is_state_dict(item: Any) -> bool:
    return isinstance(item, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in item.items())


def _check_fit(weights: Mapping[str, Tensor], recipe: Recipe, model: ISNet, path: Path) -> None:
    own = model.state_dict()
    misfits = differences(shapes_of(weights), shapes_of(own))
    if not misfits.count:
        kinds = [name for name, t in weights.items() if t.is_floating_point() != own[name].is_floating_point()]
        if kinds:
            raise _Unusable(f"wrong element types in {first_few(kinds)}")
        return
    saved = weights.get(CLASSIFIER)
    classes = len(saved) if saved is not None and saved.dim() == 4 else recipe.labels.count
    if classes != recipe.labels.count:
        raise CheckpointError(
            f"{path} was trained on {classes} classes, the recipe {recipe.name} has {recipe.labels.count}: a run goes "
            f"on with its own classes only. Start a new one from its weights: --init {path} --out ANOTHER"
        )
    raise CheckpointError(f"{path} does not fit the recipe {recipe.name}:\n{misfits.describe()}")


def _fits_setting(saved: Any, own: Any) -> bool:
    """Whether a saved number can take the place of ``own``; switches must be the same, or open where ``own`` is."""
    if isinstance(own, bool):
        return saved is own
    if own is None:
        return saved is None or isinstance(saved, bool)
    return not isinstance(own, int | float) or (type(saved) in (int, float) and 0 <= saved < math.inf)


def _equal_numbers(saved: Any, own: list[int]) -> bool:
    """Whether ``saved`` is the list ``own``; a tensor in its place cannot be compared with it."""
    return isinstance(saved, list) and all(type(number) is int for number in saved) and saved == own


def _check_optimiser(saved: Any, own: Optimizer) -> None:
    """The same numbers for the same parameters; a momentum buffer has the shape of its parameter."""
    expected = own.state_dict()["param_groups"]
    match saved:
        case {"state": dict() as state, "param_groups": list() as groups} if len(groups) == len(expected):
            pairs = list(zip(groups, expected, strict=True))
        case _:
            raise _Unusable("its entry 'optimizer' is no optimiser's state")
    parameters = dict(enumerate(p for group in own.param_groups for p in group["params"]))
    for group, wanted in pairs:
        if not isinstance(group, dict) or not _equal_numbers(group.get("params"), wanted["params"]):
            raise _Unusable("its optimiser has other parameters")
        if bad := [
            name
            for name, value in wanted.items()
            if not _fits_setting(group.get(name, _DEFAULTS.get(name)), None if name in IMPLEMENTATION else value)
        ]:
            raise _Unusable(f"its optimiser's {first_few(bad)} cannot be used")
    # Before the first step there are none; then every parameter has one.
    if state and set(state) != set(parameters):
        raise _Unusable(f"its optimiser's state has {len(state)} of {len(parameters)} parameters")
    for number, entry in state.items():
        buffer = entry.get("momentum_buffer") if isinstance(entry, dict) else entry
        fits = buffer is None or (isinstance(buffer, Tensor) and buffer.is_floating_point() and finite(buffer))
        if not fits or (buffer is not None and buffer.shape != parameters[number].shape):
            raise _Unusable(f"its optimiser's state of parameter {number!r:.40} does not fit")
