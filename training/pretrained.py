"""Starting weights for training: a backbone trained on ImageNet, or an ISNet trained on other classes.

Backbones are taken from the common public files, whose entries are renamed to this model's:

    =====================================  ===================================================================
    OpenMMLab ``resnet50_v1c`` and alike,   ``stem.0`` … ``stem.7``, ``layer1.0.conv1`` …; what the published
    ``resnest101_d2``                       models were trained from
    timm ``resnet50c``, ``resnet101c``,     ``conv1.0`` … ``conv1.6`` and ``bn1`` are the stem
    ``resnest101e``; the ResNeSt authors'
    torchvision and timm ``resnet50`` …     the four stages fit; the stem, one 7×7 convolution, does not
    =====================================  ===================================================================

All of them take R, G, B input with the mean and deviation of `isnet_trt.settings.Preprocess`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from isnet_trt.errors import CheckpointError, first_few
from isnet_trt.training.checkpoint import StateDict, read_weights
from isnet_trt.training.fit import AUXILIARY, COUNTER, differences, shapes_of
from isnet_trt.training.model import ISNet

BACKBONE = "backbone_net."
CLASSIFIERS = ("decoder_stage1.4", "decoder_stage2.1", "decoder_stage2.4", "auxiliary_decoder.4")
"""The layers whose output is one channel per class (stage 2: ``.4`` with the shortcut, ``.1`` without)."""
_PREFIXES = (BACKBONE, "backbone.", "encoder.")
_HEADS = ("fc.", "head.", "classifier.")
_DEEP_STEM = {f"conv1.{i}.": f"stem.{i}." for i in (0, 1, 3, 4, 6)} | {"bn1.": "stem.7."}
_PLAIN_STEM = ("conv1.", "bn1.")


@dataclass(frozen=True)
class Report:
    """The use that was made of a file's entries.

    ``matched`` are the model's entries that got values from the file, ``random`` the layers that keep their random
    start. ``left_out`` are (entries of the file, reason).
    """

    path: Path
    layout: str
    matched: tuple[str, ...]
    random: tuple[str, ...]
    left_out: tuple[tuple[tuple[str, ...], str], ...]

    def describe(self) -> str:
        """A few lines of text: layout, number of matched entries, entries left out with the reason, random layers."""
        lines = [f"{self.path}: {self.layout}; {len(self.matched)} entries taken over"]
        lines += [f"  left out ({why}): {len(names)} entries: {first_few(names)}" for names, why in self.left_out]
        lines += [f"  start at random: {', '.join(self.random)}"] if self.random else []
        return "\n".join(lines)


def load_backbone(model: ISNet, path: str | os.PathLike[str]) -> Report:
    """Give a model's backbone the weights of a public file; the head stays as it is.

    Nothing of the model changes unless every entry of the four stages fits, and all of the stem too or, where the
    file's stem is one 7×7 convolution, nothing of it.

    Raises:
        CheckpointError: the file cannot be read, or is of another backbone; the message says what differs.
    """
    notes: list[str] = []
    state, _ = read_weights(path, notes)
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in state)), "")
    inner = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
    layout, renamed = _renamed(inner)
    described = "; ".join([layout, *notes])
    target = {n.removeprefix(BACKBONE): t for n, t in model.state_dict().items() if n.startswith(BACKBONE)}
    stemless = layout.startswith("torchvision")
    needed = {name: tensor for name, tensor in target.items() if not (stemless and name.startswith("stem."))}
    # Before anything is loaded: a backbone that was filled in part would train badly without a message.
    misfits = differences(shapes_of({new: state[old] for new, old in renamed.items()}), shapes_of(needed))
    if misfits.count:
        raise CheckpointError(_no_backbone(path, model, layout, misfits.describe(), renamed))
    stem = tuple(n for n in inner.values() if stemless and n.removeprefix(prefix).startswith(_PLAIN_STEM))
    heads = tuple(n for n in inner.values() if n.removeprefix(prefix).startswith(_HEADS))
    others = tuple(n for n in state if not n.startswith(prefix))
    reasons = ((stem, "its stem is one 7x7 convolution, this one has three 3x3"), (heads, "classifier of the file"))
    taken = {BACKBONE + new: state[old] for new, old in renamed.items() if new in target}
    return _apply(model, taken, Path(path), described, (*reasons, (others, "not of the backbone")))


def _renamed(inner: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The layout, and this model's name -> the file's for everything that belongs to stem and stages."""
    body = {name: old for name, old in inner.items() if not name.startswith(_HEADS)}
    if "conv1.0.weight" in body:
        return "timm / ResNeSt layout with a deep stem", {_renamed_stem(name): old for name, old in body.items()}
    if "conv1.weight" in body:
        stages = {name: old for name, old in body.items() if not name.startswith(_PLAIN_STEM)}
        return "torchvision layout", stages
    return "OpenMMLab layout", body


def _renamed_stem(name: str) -> str:
    old = next((start for start in _DEEP_STEM if name.startswith(start)), None)
    return name if old is None else _DEEP_STEM[old] + name.removeprefix(old)


def _no_backbone(
    path: str | os.PathLike[str], model: ISNet, layout: str, misfits: str, renamed: Mapping[str, str]
) -> str:
    backbone = model.architecture.backbone
    stages = sorted({name.split(".")[0] for name in renamed if name.startswith("layer")})
    if not stages:
        names = first_few(list(renamed))
        return f"{path}: no ResNet or ResNeSt: none of its entries is called layer1.…; it begins with {names}"
    hint = ""
    # Index 2 exists only where an average pool stands in front of convolution and batch-norm.
    if backbone.block == "bottleneck" and "layer2.0.downsample.2.weight" in renamed:
        hint = (
            "\nIts shortcuts average before they convolve (ResNet-D or ResNeSt); take a ResNet-C (v1c) or plain ResNet."
        )
    return f"{path} ({layout}) is not of the backbone {backbone.name}, from which it differs:\n{misfits}{hint}"


def load_matching(model: ISNet, path: str | os.PathLike[str], names: Sequence[str] | None = None) -> Report:
    """Start a model from an ISNet of other classes: all weights but the classifiers, if those have other shapes.

    They start at random too where the file notes other classes than ``names``, or the same in another order.
    A second decoder stage with the shortcut does not fit one without; then that stage starts at random too, and so
    does the auxiliary head where the file has none. Nothing of the model changes if anything else differs.

    Raises:
        CheckpointError: the file cannot be read, is no ISNet, or differs in more than that.
    """
    notes: list[str] = []
    (state, noted), target = read_weights(path, notes), dict(model.state_dict())
    reasons = _allowed_differences(state, target)
    if noted is not None and names is not None and noted.names != tuple(names):
        layers = [layer for layer in CLASSIFIERS if _is_classifier(state.get(f"{layer}.weight"))]
        reasons = {f"{layer}.": "other classes, or in another order" for layer in layers} | reasons
    left = tuple(reasons)
    taken = {name: tensor for name, tensor in state.items() if not name.startswith(left)}
    optional = left if any(name.startswith(AUXILIARY) for name in state) else (*left, AUXILIARY)
    needed = {name: t for name, t in target.items() if name in taken or not name.startswith(optional)}
    misfits = differences(shapes_of(taken), shapes_of(needed))
    if misfits.count:
        raise CheckpointError(
            f"{path} is no ISNet like this one ({model.architecture.backbone.name}); it differs in more than the "
            f"classes:\n{misfits.describe()}"
        )
    starts = {why: tuple(start for start in reasons if reasons[start] == why) for why in reasons.values()}
    left_out = tuple((tuple(n for n in state if n.startswith(start)), why) for why, start in starts.items())
    return _apply(model, taken, Path(path), "; ".join(["ISNet", *notes]), left_out)


def _allowed_differences(state: StateDict, target: StateDict) -> dict[str, str]:
    """Start of the names that need not fit -> why: classifiers of other classes, a decoder with or without shortcut."""
    reasons: dict[str, str] = {}
    if ("shortcut.0.weight" in state) != ("shortcut.0.weight" in target):
        reasons = dict.fromkeys(("shortcut.", "decoder_stage2."), "one has the shortcut, the other has not")
    for layer in CLASSIFIERS:
        old, new = (entries.get(f"{layer}.weight") for entries in (state, target))
        if old is None or new is None or layer.startswith(tuple(reasons)) or len(old) == len(new):
            continue
        if _is_classifier(old) and _is_classifier(new):
            reasons[f"{layer}."] = f"{len(old)} classes instead of {len(new)}"
    return reasons


def _is_classifier(weight: Tensor | None) -> bool:
    """Whether it is one, and not the normalisation that has this name with the shortcut, or without."""
    return weight is not None and weight.dim() == 4


def _apply(
    model: ISNet, taken: StateDict, path: Path, layout: str, left_out: tuple[tuple[tuple[str, ...], str], ...]
) -> Report:
    state = model.state_dict()
    # All entries, so that the strict check of names stays on.
    model.load_state_dict({**state, **taken})
    kept = (name for name in state if name not in taken and not name.endswith(COUNTER))
    return Report(
        path, layout, tuple(taken), _layers(kept, taken), tuple((names, why) for names, why in left_out if names)
    )


def _layers(kept: Iterable[str], taken: Iterable[str]) -> tuple[str, ...]:
    """The layers that entries belong to: ``ilc_net`` if nothing of it was taken, else ``decoder_stage1.4`` …"""
    partly = {name.split(".")[0] for name in taken}
    parts = (name.split(".") for name in kept)
    return tuple(dict.fromkeys(".".join(names[: 2 if names[0] in partly else 1]) for names in parts))
