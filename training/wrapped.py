"""The weights inside what training tools put around them: containers, prefixes of names, averaged copies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from isnet_trt.errors import CheckpointError, first_few
from isnet_trt.training.archive import Entry
from isnet_trt.training.stand_ins import kind_of
from isnet_trt.training.stored import Opaque, StoredTensor

Which = Literal["plain", "ema"]
_PLAIN = ("model", "state_dict", "model_state_dict", "model_state", "network", "net", "weights", "params")
_AVERAGED = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "averaged_model")
_DEEPEST = 4
_WRAPPER = r"(?:(?:module|_orig_mod|_forward_module|model|network|net)\.)*"
"""Put before the names by DataParallel, torch.compile, Lightning Fabric, and modules that hold the network."""
_SPLIT = re.compile(rf"({_WRAPPER}(?:(ema|ema_model|model_ema|averaged_model)\.{_WRAPPER})?)(.*)", re.DOTALL)
_COUNTERS = ("n_averaged", "steps")
"""Buffers of averaged models: torch's and mmengine's."""
_COPY = "ema_"
"""Put before the names of averaged copies among the weights; mmcv also writes ``_`` for each dot in them."""

Entries = dict[str, Entry]


def weights_in(content: Any, path: Path, which: Which, notes: list[str]) -> Entries:
    """The state dict inside a file's content, under its plain names.

    Args:
        content: of the file.
        path: the file, for messages.
        which: "plain" for the weights that were trained, "ema" for their running average beside them.
        notes: receives sentences about what was recognised and what was left out.

    Raises:
        CheckpointError: there are none, or the state dict has entries that are no tensors.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {kind_of(content)}, not a dictionary with the entry 'model'")
    keys, weights = _container(content, which)
    others = [kind if (kind := _legible(name)) else kind_of(name) for name in content if keys and name != keys[0]]
    notes += [f"left out beside the weights: {first_few(others)}"] if others else []
    entries = _tensors(weights, keys, path, notes)
    entries, copies = _without_copies(entries)
    averaged = (bool(keys) and keys[0] in _AVERAGED) or any(name in entries for name in _COUNTERS[:1])
    if keys and _swapped(content):
        notes.append("mmengine stored the averaged weights under 'state_dict': they are taken")
        averaged = True
    if which == "ema" and copies:
        notes.append(f"averaged weights: {len(copies)} entries; the other {len(entries) - len(copies)} have no average")
        entries, averaged = {**entries, **copies}, True
    elif copies:
        notes.append(f"{len(copies)} averaged weights ({_COPY}…) were left out; --weights ema takes them")
    return _chosen(entries, which == "ema" and not averaged, path, notes)


def state_dict_in(content: Any, path: Path, notes: list[str]) -> Entries:
    """The state dict inside a file's content under the names that are stored: those of any module.

    Raises:
        CheckpointError: there is none, or it has entries that are no tensors.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds {kind_of(content)}, not a state dict (names and tensors)")
    keys, weights = _container(content, "plain")
    return _tensors(weights, keys, path, notes)


def only_averaged(content: Any) -> bool:
    """Whether a file's content has averaged weights in an entry of their own, and no others."""
    if not isinstance(content, Mapping) or any(isinstance(item, StoredTensor | Tensor) for item in content.values()):
        return False
    plain, averaged = (any(_holds_tensors(content.get(name)) for name in names) for names in (_PLAIN, _AVERAGED))
    return averaged and not plain


def _container(content: Mapping[Any, Any], which: Which) -> tuple[list[str], Any]:
    """The names of the entries that lead to the state dict, and what is there."""
    keys: list[str] = []
    names = (*_AVERAGED, *_PLAIN) if which == "ema" and not _swapped(content) else _PLAIN
    found: Any = content
    while isinstance(found, Mapping) and len(keys) < _DEEPEST:
        present = [name for name in names if name in found and not isinstance(found[name], StoredTensor | Tensor)]
        key = next((name for name in present if _holds_tensors(found[name])), None)
        if key is None and (not present or any(isinstance(item, StoredTensor | Tensor) for item in found.values())):
            break
        keys.append(key or present[0])
        found = found[keys[-1]]
    return keys, found


def _holds_tensors(item: Any, depth: int = 0) -> bool:
    """Whether ``item`` is a state dict, or a dictionary around one."""
    if not isinstance(item, Mapping) or depth > _DEEPEST:
        return False
    return any(isinstance(value, StoredTensor | Tensor) for value in item.values()) or any(
        _holds_tensors(item[name], depth + 1) for name in (*_PLAIN, *_AVERAGED) if name in item
    )


def _swapped(content: Mapping[Any, Any]) -> bool:
    """Whether mmengine wrote the file: it exchanges the two sets of weights when it saves."""
    meta = content.get("meta")
    return isinstance(meta, Mapping) and "mmengine_version" in meta and "ema_state_dict" in content


def _tensors(weights: Any, keys: Sequence[str], path: Path, notes: list[str]) -> Entries:
    """The tensors of a state dict, numbers and texts between them left out."""
    if not isinstance(weights, Mapping) or not weights:
        where = f"the entry {'.'.join(keys)!r}" if keys else "the dictionary"
        kind = "empty" if isinstance(weights, Mapping) else kind_of(weights)
        raise CheckpointError(f"{path}: {where} is {kind} instead of a state dict (names and tensors)")
    entries = {name: item for name, item in weights.items() if isinstance(item, StoredTensor | Tensor)}
    others = {name: item for name, item in weights.items() if name not in entries}
    aside = [name for name, item in others.items() if isinstance(name, str) and not isinstance(item, Opaque)]
    if entries and all(isinstance(name, str) for name in entries):
        # Opaque entries may be weights of a kind that cannot be loaded, as sparse ones.
        others = {name: others[name] for name in others if name not in aside}
        notes += [f"left out between the weights: {first_few(aside)}"] if aside else []
    bad = [*others, *(name for name in entries if not isinstance(name, str))]
    if bad:
        shown = [f"{_legible(name, quoted=True)} ({kind_of(weights[name])})" for name in bad]
        hint = ""
        if not entries and any(name in weights for name in _AVERAGED):
            hint = "; --weights ema takes the averaged weights"
        raise CheckpointError(
            f"{path}: {len(bad)} of {len(weights)} entries are not named tensors: {first_few(shown)}; "
            f"expected a state dict, or a dictionary with one under 'model'{hint}"
        )
    return entries


def _legible(name: Any, quoted: bool = False) -> str:
    """A dictionary's key for a message."""
    if isinstance(name, str):
        return repr(name) if quoted else name
    return str(name) if isinstance(name, int) else kind_of(name)


def _without_copies(entries: Entries) -> tuple[Entries, Entries]:
    """``entries`` without the averaged copies of others among them; the copies, under the names of the others."""
    names = {name.replace(".", "_"): name for name in entries}
    copies: Entries = {}
    rest: Entries = {}
    for name, entry in entries.items():
        prefix, _, inner = _split(name)
        original = names.get((prefix + inner.removeprefix(_COPY)).replace(".", "_"))
        if inner.startswith(_COPY) and original not in (None, name):
            copies[str(original)] = entry
        else:
            rest[name] = entry
    return rest, copies


def _split(name: str) -> tuple[str, bool, str]:
    """The prefix that wrappers put before a name, whether one of them is an average, and the name itself."""
    match = _SPLIT.fullmatch(name)
    return (match[1], match[2] is not None, match[3]) if match else ("", False, name)


def _chosen(entries: Entries, averaged: bool, path: Path, notes: list[str]) -> Entries:
    """The largest set of entries with one prefix, without it; of averages if ``averaged``."""
    groups: dict[tuple[str, bool], Entries] = {}
    for name, entry in entries.items():
        prefix, of_average, inner = _split(name)
        groups.setdefault((prefix, of_average), {})[inner] = entry
    if averaged and not any(of_average for _, of_average in groups):
        raise CheckpointError(f"{path} holds no averaged weights ({_COPY}…, n_averaged): leave out --weights ema")
    wanted = averaged or not any(not of_average for _, of_average in groups)
    sizes = {key: len(group) for key, group in groups.items() if key[1] == wanted}
    largest = max(sizes.values())
    prefixes = [prefix for (prefix, _), size in sizes.items() if size == largest]
    if len(prefixes) > 1 and largest > 1:
        raise CheckpointError(
            f"{path} holds {len(prefixes)} sets of weights, with the prefixes {first_few(list(map(repr, prefixes)))}; "
            "save one of them alone: torch.save({'model': model.state_dict()}, FILE)"
        )
    chosen = groups.pop((prefixes[0], wanted))
    if prefixes[0]:
        notes.append(f"the prefix {_shortened(prefixes[0])!r} was taken off all names")
    left = [f"{prefix}{name}" for (prefix, _), group in groups.items() for name in group]
    left += [name for name in _COUNTERS if chosen.pop(name, None) is not None]
    notes += [f"left out between the weights: {first_few(left)}"] if left else []
    return chosen


def _shortened(prefix: str) -> str:
    parts = prefix.split(".")[:-1]
    repeated = len(parts) > 4 and len(set(parts)) == 1
    return f"{parts[0]}. ({len(parts)} times)" if repeated else prefix
