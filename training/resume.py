"""Check the state of an earlier run before a trainer takes it over: nothing changes unless all of it can be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from isnet_trt.errors import CheckpointError, first_few
from isnet_trt.recipes import Recipe
from isnet_trt.training.classes import Classes
from isnet_trt.training.diagnose import finite
from isnet_trt.training.fit import CLASSIFIER, differences, shapes_of
from isnet_trt.training.model import ISNet


def check_state(state: Mapping[str, Any], recipe: Recipe, model: ISNet, optimiser: Optimizer, path: Path) -> None:
    """Raise CheckpointError unless the state read from ``path`` continues a run of ``recipe``."""
    classes = Classes.noted(state, path)
    if classes:
        classes.check(recipe, path)
    weights, step = state.get("model"), state.get("cur_iter")
    if weights is None or not _is_state_dict(weights):
        raise _unusable(path, "its entry 'model' is no state dict")
    _check_fit(weights, recipe, model, path)
    if bad := [name for name, tensor in weights.items() if not finite(tensor)]:
        raise _unusable(path, f"NaN or infinite values in {first_few(bad)}")
    if type(step) is not int or step < 0:
        raise _unusable(path, f"its entry 'cur_iter' is {step!r:.40}, not a number of iterations")
    _check_optimiser(state.get("optimizer"), optimiser, path)


def _unusable(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is no training state that can be continued: {reason}")


def _is_state_dict(item: Any) -> bool:
    return isinstance(item, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in item.items())


def _check_fit(weights: Mapping[str, Tensor], recipe: Recipe, model: ISNet, path: Path) -> None:
    own = model.state_dict()
    misfits = differences(shapes_of(weights), shapes_of(own))
    if not misfits.count:
        kinds = [name for name, t in weights.items() if t.is_floating_point() != own[name].is_floating_point()]
        if kinds:
            raise _unusable(path, f"wrong element types in {first_few(kinds)}")
        return
    saved = weights.get(CLASSIFIER)
    classes = len(saved) if saved is not None and saved.dim() == 4 else recipe.labels.count
    if classes != recipe.labels.count:
        raise CheckpointError(
            f"{path} was trained on {classes} classes, the recipe {recipe.name} has {recipe.labels.count}: a run goes "
            f"on with its own classes only. Start a new one from its weights: --init {path} --out ANOTHER"
        )
    raise CheckpointError(f"{path} does not fit the recipe {recipe.name}:\n{misfits.describe()}")


def _check_optimiser(saved: Any, own: Optimizer, path: Path) -> None:
    """The same numbers for the same parameters; a momentum buffer has the shape of its parameter."""
    expected = own.state_dict()["param_groups"]
    match saved:
        case {"state": dict() as state, "param_groups": list() as groups} if len(groups) == len(expected):
            pairs = list(zip(groups, expected, strict=True))
        case _:
            raise _unusable(path, "its entry 'optimizer' is no optimiser's state")
    parameters = dict(enumerate(p for group in own.param_groups for p in group["params"]))
    for group, wanted in pairs:
        numbers = [name for name, value in wanted.items() if isinstance(value, bool | int | float)]
        if not isinstance(group, dict) or group.get("params") != wanted["params"]:
            raise _unusable(path, "its optimiser has other parameters")
        if bad := [name for name in numbers if not isinstance(group.get(name, wanted[name]), bool | int | float)]:
            raise _unusable(path, f"its optimiser's {first_few(bad)} is no number")
    for number, entry in state.items():
        buffer = entry.get("momentum_buffer") if isinstance(entry, dict) else entry
        fits = buffer is None or (isinstance(buffer, Tensor) and buffer.is_floating_point() and finite(buffer))
        if number not in parameters or not fits or (buffer is not None and buffer.shape != parameters[number].shape):
            raise _unusable(path, f"its optimiser's state of parameter {number!r:.40} does not fit")
