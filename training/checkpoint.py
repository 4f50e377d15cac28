"""Checkpoints: found in a file without running anything, matched to a recipe entry by entry, written atomically.

The layout is that of the published models: a dictionary whose entry ``model`` is the network's state dict; training
adds entries of its own beside it (optimiser, epoch, classes).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isnet_trt.errors import CheckpointError, first_few
from isnet_trt.files import replacing, sync
from isnet_trt.recipes import RECIPES, Recipe, is_described
from isnet_trt.recipes import recipe as recipe_named
from isnet_trt.training.archive import CheckpointFile, opened
from isnet_trt.training.classes import Classes
from isnet_trt.training.fit import AUXILIARY, COUNTER, Fit, compare, expected, fits, shapes_of
from isnet_trt.training.model import ISNet
from isnet_trt.training.wrapped import Entries, Which, only_averaged, weights_in

StateDict = dict[str, Tensor]
_PREFIX = "module."
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """Weights that fit their recipe.

    ``state_dict`` has the model's names in the model's order, all floating-point entries float32 on the CPU; without
    the ``auxiliary_decoder.*`` entries if the file has none. ``sha256`` is the file's, in hex. ``notes`` are sentences
    about what was recognised, filled in or left out. ``weights``: "ema" if they are the running average.
    """

    path: Path
    recipe: Recipe
    state_dict: StateDict
    sha256: str
    notes: tuple[str, ...]
    weights: Which = "plain"

    @property
    def has_auxiliary(self) -> bool:
        """Whether the auxiliary head, which only training needs, is there."""
        return any(name.startswith(AUXILIARY) for name in self.state_dict)


def load_checkpoint(
    path: str | os.PathLike[str], recipe: str | Recipe | None = None, weights: Which = "plain"
) -> Checkpoint:
    """Read a checkpoint; find the recipe that it belongs to, or check that it fits the given one.

    Accepted: a dictionary with ``model`` (or ``state_dict``, …) and anything beside it, or a bare state dict; names
    with or without the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``); with or without batch counters;
    with or without the auxiliary head; floating types of 16 to 64 bits, converted to float32; ZIP archives and the
    older format of torch, of any pickle protocol, and safetensors. Nothing in the file is run.

    Args:
        path: the file.
        recipe: the recipe, or its name; None finds it from names and shapes (backbone, classes, shortcut).
        weights: "plain", or "ema" for the running average that the trainer kept beside the weights.

    Raises:
        CheckpointError: the file cannot be read, is no checkpoint, has unusable values, does not fit, or was trained on
            other classes than the recipe's.
        SettingsError: no recipe has the given name.
    """
    given = recipe_named(recipe) if isinstance(recipe, str) else recipe
    source = _find(Path(path))
    notes: list[str] = [] if source == Path(path) else [f"the link was followed to {source}"]
    with opened(source) as file:
        entries = weights_in(file.content, source, weights, notes)
        classes = Classes.noted(file.content, source)
        if given and classes:  # before the shapes, which differ as well where the number of classes does
            classes.check(given, source)
        fitting = _choose(entries, given or _noted_recipe(file.content, source, notes), source, notes)
        notes.append(_word_of(classes, fitting))
        if classes and not given:
            classes.check(fitting, source)
        _check_types(entries, source)
        state = _complete(entries, fitting, file, notes)
        # After the fit: a file of another network should be called that, not damaged.
        _check_values(state, source)
        return Checkpoint(source, fitting, state, file.sha256, tuple(notes), weights)


def read_weights(path: str | os.PathLike[str], notes: list[str] | None = None) -> tuple[StateDict, Classes | None]:
    """The checked weights of a file under their plain names, whatever network they belong to, and its noted classes.

    Averaged weights are taken where the file has no others; ``notes`` receives a sentence about that.

    Raises:
        CheckpointError: as `load_checkpoint`, but for the fit.
    """
    source = _find(Path(path))
    with opened(source) as file:
        which: Which = "ema" if only_averaged(file.content) else "plain"
        if which == "ema" and notes is not None:
            notes.append("averaged weights, the only ones in the file")
        entries = weights_in(file.content, source, which, [])
        _check_types(entries, source)
        state = {name: _own(file.tensor(entry)) for name, entry in entries.items()}
        _check_values(state, source)
        return state, Classes.noted(file.content, source)


def read_state(path: Path) -> dict[Any, Any]:
    """A training checkpoint's whole content, its tensors on the CPU.

    Raises:
        CheckpointError: the file cannot be read or is no dictionary.
    """
    with opened(path) as file:
        if not isinstance(file.content, dict):
            raise CheckpointError(f"{path} holds a {type(file.content).__name__}, not the state of a training run")
        return dict(file.loaded(file.content))


def load_model(checkpoint: Checkpoint) -> ISNet:
    """The network of a checkpoint, in evaluation mode; without an auxiliary head if the checkpoint has none."""
    # No time for random weights, which the state dict would replace.
    with torch.device("meta"):
        model = ISNet(checkpoint.recipe.architecture, auxiliary=checkpoint.has_auxiliary)
    model = model.to_empty(device="cpu")
    model.load_state_dict(checkpoint.state_dict)
    return model.eval()


def save_checkpoint(path: str | os.PathLike[str], model_state: Mapping[str, Tensor], /, **extra: Any) -> None:
    """Write ``{"model": model_state, **extra}``, replacing ``path`` only once the new file is whole and readable.

    Tensors are stored from the CPU and names without the prefix ``module.``. ``extra`` may hold tensors, numbers,
    strings, lists and dictionaries.

    Raises:
        CheckpointError: the file cannot be written, or could not be read back; ``path`` is as it was.
    """
    file = Path(path)
    model = {name.removeprefix(_PREFIX): tensor.detach().cpu() for name, tensor in model_state.items()}
    try:
        with replacing(file) as temporary:
            with temporary.open("wb") as stream:
                # ``model`` last: no extra entry can take its place.
                torch.save({**extra, "model": model}, stream)
                stream.flush()
                # Before the rename: else a power cut could leave the new name with an empty file.
                os.fsync(stream.fileno())
            # Read back while the old file is still there: a failing disk may not show when it is written to.
            with opened(temporary, shown=file):
                pass
        sync(file.parent)
    # torch's ZIP writer reports a full disk as RuntimeError, raised while the system's error was handled.
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause).partition("\n")[0]
        raise CheckpointError(
            f"{file} could not be written: {reason}; it is as it was. Make room or see to the disk, then go on"
        ) from error


def _find(path: Path) -> Path:
    """The file itself, or CheckpointError."""
    try:
        return _followed(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _followed(path: Path) -> Path:
    """``path``. A dangling link, such as a trainer's ``latest``, is resolved as the trainer wrote it."""
    if path.is_symlink() and not path.exists():
        target = path.readlink()
        # The reference's trainer writes the target relative to its working directory, not to the link.
        for candidate in (target, path.parent / target.name):
            if candidate.is_file():
                return candidate
        raise CheckpointError(f"{path} is a link to {target}, which does not exist; give the file itself")
    if path.suffix.lower() == ".onnx":
        raise CheckpointError(
            f"{path} is an ONNX graph, no checkpoint of an ISNet; a bundle is built from it by "
            f"python -m isnet_trt.build --onnx {path} --recipe FILE.yaml --out DIR (docs/any-network.md)"
        )
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it (*.pth)")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; check the path of the checkpoint")
    return path


def _noted_recipe(content: Any, path: Path, notes: list[str]) -> Recipe | None:
    """The recipe whose name our trainer stored in the file; None without such a name.

    A recipe from a YAML file may have as many classes as a published one and yet other ones, so its checkpoint must not
    be recognised by its shapes as the published recipe's.
    """
    name = content.get("recipe") if isinstance(content, Mapping) else None
    if not isinstance(name, str):
        return None
    if name not in RECIPES:
        raise CheckpointError(
            f"{path} was trained by the recipe {name!r:.100}, which a file of its own describes: give that file "
            "(--recipe FILE.yaml), since the checkpoint does not hold all of it"
        )
    notes.append(f"recipe {name}, as noted in the file")
    return RECIPES[name]


def _word_of(classes: Classes | None, recipe: Recipe) -> str:
    """A sentence about who says what the classes are called."""
    if classes is not None:
        return "class names and colours are those noted in the file"
    source = recipe.dataset if is_described(recipe.dataset) else f"recipe {recipe.name}"
    return f"class names and colours are taken from {source}: the file notes none to compare them with"


def _check_types(entries: Entries, path: Path) -> None:
    """Refuse tensors that are not of the kind that their name promises."""
    bad = [f"{name} ({entry.dtype})" for name, entry in entries.items() if not _has_type(name, entry.dtype)]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} entries are not weights in float64, float32, float16 or bfloat16: {first_few(bad)}; "
            "convert them before saving"
        )


def _has_type(name: str, dtype: torch.dtype) -> bool:
    return dtype in _FLOATS or (name.endswith(COUNTER) and not (dtype.is_floating_point or dtype.is_complex))


def _choose(state: Entries, given: Recipe | None, path: Path, notes: list[str]) -> Recipe:
    """``given`` if the weights fit it, or the recipe that they fit."""
    shapes = shapes_of(state)
    if given is not None:
        fit = compare(shapes, given)
        if fit.differences.count:
            raise CheckpointError(_misfit(fit, fits(shapes)[0], path))
        return given
    best = fits(shapes)[0]
    if best.differences.count:
        raise CheckpointError(_no_fit(best, shapes, path))
    spec = best.recipe.architecture
    shortcut = "with" if spec.shortcut_channels else "without"
    notes.append(
        f"recipe {best.recipe.name} found from the file's content: "
        f"{spec.backbone.name}, {spec.num_classes} classes, {shortcut} shortcut"
    )
    return best.recipe


def _misfit(fit: Fit, best: Fit, path: Path) -> str:
    text = f"{path} does not fit recipe {fit.recipe.name}:\n{fit.differences.describe()}\n"
    if not best.differences.count:
        return text + f"It fits {best.recipe.name}: use that recipe, or name none."
    nearest = "" if best.recipe is fit.recipe else f"; the nearest is {best.recipe.name}"
    return text + f"It fits no other recipe either{nearest}."


def _no_fit(best: Fit, shapes: Mapping[str, tuple[int, ...]], path: Path) -> str:
    if not set(expected(best.recipe.architecture)) & set(shapes):
        return (
            f"{path}: none of its {len(shapes)} entries belongs to an ISNet; it begins with {first_few(list(shapes))}"
        )
    return (
        f"{path} fits no recipe. The nearest is {best.recipe.name} ({best.recipe.labels.count} classes), "
        f"from which it differs:\n{best.differences.describe()}\n"
        "A model of classes of your own needs its recipe: --recipe FILE.yaml (docs/fine-tuning.md). "
        "`python -m isnet_trt.training.recipes` lists the published ones."
    )


def _complete(entries: Entries, recipe: Recipe, file: CheckpointFile, notes: list[str]) -> StateDict:
    """All entries in the model's order, float32, read from the file; missing batch counters are 0."""
    types = sorted({str(e.dtype) for e in entries.values() if e.dtype.is_floating_point and e.dtype != torch.float32})
    notes += [f"weights stored as {', '.join(types)} were converted to float32"] if types else []
    names = list(expected(recipe.architecture))
    if not any(name.startswith(AUXILIARY) for name in entries):
        notes.append("the auxiliary head is missing: good for inference, not for training")
        names = [name for name in names if not name.startswith(AUXILIARY)]
    missing = [name for name in names if name not in entries]  # `compare` lets nothing but batch counters be missing
    notes += [f"{len(missing)} missing batch counters were set to 0"] if missing else []
    zero = torch.zeros((), dtype=torch.int64)
    return {name: _own(file.tensor(entries[name])) if name in entries else zero.clone() for name in names}


def _own(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 (counters in int64), contiguous; copied only if it is not."""
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return tensor.to(dtype).contiguous()


def _check_values(state: StateDict, path: Path) -> None:
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinite values in {len(bad)} entries: {first_few(bad)}; the weights are lost"
        )
    negative = [name for name, tensor in state.items() if name.endswith("running_var") and (tensor < 0).any()]
    if negative:
        raise CheckpointError(f"{path}: negative variances in {len(negative)} entries: {first_few(negative)}")
