"""Checkpoint files: read without running anything that is in them, checked entry by entry, written atomically.

The layout is that of the published models: a dictionary whose entry ``model`` is the network's state dict; training
adds entries of its own beside it (optimiser, epoch).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isnet_trt.bundle.files import sha256
from isnet_trt.errors import CheckpointError, first_few
from isnet_trt.files import replacing
from isnet_trt.recipes import RECIPES, Recipe
from isnet_trt.recipes import recipe as recipe_named
from isnet_trt.training.fit import AUXILIARY, COUNTER, Fit, compare, expected, fits, shapes_of
from isnet_trt.training.model import ISNet

StateDict = dict[str, Tensor]
_CONTAINERS = ("model", "state_dict")
_PREFIX = "module."
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
"""First bytes of the two formats of `torch.save`: a ZIP archive, or a pickle of protocol 2 (the default) to 5."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights that fit their recipe.

    ``state_dict`` has the model's names in the model's order, all floating-point entries float32 on the CPU; without
    the ``auxiliary_decoder.*`` entries if the file has none. ``sha256`` is the file's, in hex. ``notes`` are sentences
    about what was recognised, filled in or left out.
    """

    path: Path
    recipe: Recipe
    state_dict: StateDict
    sha256: str
    notes: tuple[str, ...]

    @property
    def has_auxiliary(self) -> bool:
        """Whether the auxiliary head, which only training needs, is there."""
        return any(name.startswith(AUXILIARY) for name in self.state_dict)


def load_checkpoint(path: str | os.PathLike[str], recipe: str | Recipe | None = None) -> Checkpoint:
    """Read a checkpoint; find the recipe that it belongs to, or check that it fits the given one.

    Accepted: a dictionary with ``model`` (or ``state_dict``) and anything beside it, or a bare state dict; names with
    or without the prefix ``module.``; with or without batch counters; with or without the auxiliary head; floating
    types other than float32 are converted. Nothing but tensors and plain containers is ever created from the file.

    Args:
        path: the file.
        recipe: the recipe, or its name; None finds it from names and shapes (backbone, classes, shortcut).

    Raises:
        CheckpointError: the file cannot be read, is no checkpoint, has unusable values, or does not fit.
        SettingsError: no recipe has the given name.
    """
    given = recipe_named(recipe) if isinstance(recipe, str) else recipe
    file = _find(Path(path))
    notes: list[str] = [] if file == Path(path) else [f"the link was followed to {file}"]
    content = _read(file)
    state = _plain_names(_weights(content, file, notes), notes)
    _check_tensors(state, file)
    fitting = _choose(state, given or _noted_recipe(content, file, notes), file, notes)
    state = _complete(state, fitting, notes)
    # After the fit: a file of another network should be called that, not damaged.
    _check_values(state, file)
    return Checkpoint(file, fitting, state, sha256(file), tuple(notes))


def read_weights(path: str | os.PathLike[str]) -> StateDict:
    """The checked weights of a file under their plain names, whatever network they belong to.

    Raises:
        CheckpointError: as `load_checkpoint`, but for the fit.
    """
    file = _find(Path(path))
    state = _plain_names(_weights(_read(file), file, []), [])
    _check_tensors(state, file)
    _check_values(state, file)
    return state


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
            _read(temporary, shown=file)
        _sync_folder(file.parent)
    # torch's ZIP writer reports a full disk as RuntimeError.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{file} could not be written: {error}; it is as it was") from error


def _sync_folder(folder: Path) -> None:
    """Write a rename to the disk, so that it survives a power cut; only POSIX has a call for it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find(path: Path) -> Path:
    """The file itself. A dangling link, such as a trainer's ``latest``, is also resolved as the trainer wrote it."""
    if path.is_symlink() and not path.exists():
        target = path.readlink()
        # The reference's trainer writes the target relative to its working directory, not to the link.
        for candidate in (target, path.parent / target.name):
            if candidate.is_file():
                return candidate
        raise CheckpointError(f"{path} is a link to {target}, which does not exist; give the file itself")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the checkpoint file in it (*.pth)")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; check the path of the checkpoint")
    return path


def _read(path: Path, shown: Path | None = None) -> Any:
    """The file's content: tensors and plain containers only, mapped from the file where the format allows.

    Error messages name ``shown``, if given, instead of ``path``.
    """
    start = _start(path)
    if not start:
        raise CheckpointError(f"{path} is empty; copy or download the checkpoint again")
    if not start.startswith((_ZIP, *_PICKLES)):
        raise CheckpointError(f"{path} is not a PyTorch checkpoint (it begins with {start!r}); give a .pth file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on the pickle protocol, which the caller cannot change
            # Memory mapping leaves entries that are not used, such as the optimiser's state, on the disk.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(_ZIP))
    except Exception as error:  # a foreign file makes the reader raise anything
        raise CheckpointError(_unreadable(shown or path, error)) from None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _unreadable(path: Path, error: Exception) -> str:
    # torch's message advises to load with weights_only=False, which would run the file's code: not passed on. Its
    # exceptions have one type for all causes, so the cause is read from the message.
    objects = re.search(r"GLOBAL (\S+)", str(error))
    if objects:
        return (
            f"{path} holds a Python object ({objects[1]}) besides tensors and plain containers; nothing of it was run. "
            "Save the weights alone: torch.save({'model': model.state_dict()}, FILE)"
        )
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript archive; give the checkpoint with the state dict instead"
    return f"{path} is damaged, incomplete or no PyTorch checkpoint (nothing of it was run); copy or download it again"


def _weights(content: Any, path: Path, notes: list[str]) -> StateDict:
    """The state dict inside a file's content."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary with the entry 'model'")
    key = next((k for k in _CONTAINERS if k in content and not isinstance(content[k], Tensor)), None)
    weights = content if key is None else content[key]
    others = [] if key is None else [str(name) for name in content if name != key]
    notes += [f"left out beside the weights: {first_few(others)}"] if others else []
    if not isinstance(weights, Mapping) or not weights:
        where = "the dictionary" if key is None else f"the entry {key!r}"
        raise CheckpointError(f"{path}: {where} is {_kind(weights)} instead of a state dict (names and tensors)")
    bad = [f"{name!r} ({_kind(item)})" for name, item in weights.items() if not _is_entry(name, item)]
    if bad:
        raise CheckpointError(
            f"{path}: {len(bad)} of {len(weights)} entries are not named tensors: {first_few(bad)}; "
            "expected a state dict, or a dictionary with one under 'model'"
        )
    return dict(weights)


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
            f"{path} was trained by the recipe {name!r}, which a file of its own describes: give that file "
            "(--recipe FILE.yaml), since the checkpoint holds no class names"
        )
    notes.append(f"recipe {name}, as noted in the file")
    return RECIPES[name]


def _is_entry(name: Any, item: Any) -> bool:
    return isinstance(name, str) and isinstance(item, Tensor)


def _kind(item: Any) -> str:
    return "empty" if isinstance(item, Mapping) and not item else f"a {type(item).__name__}"


def _plain_names(state: StateDict, notes: list[str]) -> StateDict:
    """``state`` without the prefix of DataParallel, which may be there several times."""
    if not all(name.startswith(_PREFIX) for name in state):
        return state
    notes.append(f"the prefix {_PREFIX!r} was taken off all names")
    return _plain_names({name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}, notes)


def _check_tensors(state: StateDict, path: Path) -> None:
    """Refuse tensors that are not plain arrays of the kind that their name promises."""
    bad = [f"{name} ({t.layout}, {t.dtype}, {t.device})" for name, t in state.items() if not _is_plain(name, t)]
    if bad:
        raise CheckpointError(f"{path}: {len(bad)} entries are not plain floating-point tensors: {first_few(bad)}")


def _is_plain(name: str, tensor: Tensor) -> bool:
    kind = not (tensor.is_complex() or tensor.is_quantized) if name.endswith(COUNTER) else tensor.is_floating_point()
    return kind and tensor.layout is torch.strided and tensor.device.type == "cpu"


def _choose(state: StateDict, given: Recipe | None, path: Path, notes: list[str]) -> Recipe:
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
        "`python -m isnet_trt.training.recipes` lists the recipes."
    )


def _complete(state: StateDict, recipe: Recipe, notes: list[str]) -> StateDict:
    """All entries in the model's order, float32, copied from the mapped file; missing batch counters are 0."""
    types = sorted({str(t.dtype) for t in state.values() if t.is_floating_point() and t.dtype != torch.float32})
    notes += [f"weights stored as {', '.join(types)} were converted to float32"] if types else []
    names = list(expected(recipe.architecture))
    if not any(name.startswith(AUXILIARY) for name in state):
        notes.append("the auxiliary head is missing: good for inference, not for training")
        names = [name for name in names if not name.startswith(AUXILIARY)]
    missing = [name for name in names if name not in state]  # `compare` has let nothing but batch counters be missing
    notes += [f"{len(missing)} missing batch counters were set to 0"] if missing else []
    return {name: _own(state[name]) if name in state else torch.zeros((), dtype=torch.int64) for name in names}


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy, so that nothing stays mapped to the file."""
    dtype = torch.float32 if tensor.is_floating_point() else torch.int64
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor.detach())


def _check_values(state: StateDict, path: Path) -> None:
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinite values in {len(bad)} entries: {first_few(bad)}; the weights are lost"
        )
    negative = [name for name, tensor in state.items() if name.endswith("running_var") and (tensor < 0).any()]
    if negative:
        raise CheckpointError(f"{path}: negative variances in {len(negative)} entries: {first_few(negative)}")
