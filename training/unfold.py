"""Convert weights that were trained in the inference form to the layout of the published checkpoints.

Each batch-norm becomes the identity with the convolution's bias: running mean 0, running variance 1 − eps, weight 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isnet_trt.training.model import InferenceISNet, ISNet
from isnet_trt.training.model.inference import MeanConv, ShortcutDecoder

_AUXILIARY = "auxiliary_decoder"
# The first prefix that fits is taken: the general ones stand last.
_RENAMED = (
    ("ilc_net.correlate_net.key_project.0.0", "ilc_net.key_project1"),
    ("ilc_net.correlate_net.key_project.1.", "ilc_net.key_project2."),
    ("ilc_net.correlate_net.value_project.0", "ilc_net.value_project"),
    ("ilc_net.correlate_net.", "ilc_net."),
    ("slc_net.correlate_net.", "slc_net."),
)


def unfold(network: InferenceISNet, model: ISNet) -> dict[str, Tensor]:
    """A state dict for an `ISNet` that computes what ``network`` does.

    ``model`` is the network from which ``network`` was created. It is not changed, and provides the auxiliary head,
    which the inference form does not have.
    """
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, norm_name, norm in _convolutions(model):
        weight, bias = (part.detach().clone() for part in _trained(network, name))
        state[f"{name}.weight"] = weight
        has_bias = f"{name}.bias" in state
        if has_bias:
            state[f"{name}.bias"] = bias
        if norm is not None:
            state[f"{norm_name}.weight"] = torch.ones_like(bias)
            state[f"{norm_name}.bias"] = torch.zeros_like(bias) if has_bias else bias
            state[f"{norm_name}.running_mean"] = torch.zeros_like(bias)
            state[f"{norm_name}.running_var"] = torch.full_like(bias, 1 - norm.eps)
    return state


def _convolutions(model: ISNet) -> Iterator[tuple[str, str, _BatchNorm | None]]:
    """Every convolution outside the auxiliary head, with the batch-norm behind it."""
    for path, parent in model.named_modules():
        children = [*parent.named_children(), ("", None)]
        for (name, child), (next_name, following) in itertools.pairwise(children):
            prefix = f"{path}." if path else ""
            if isinstance(child, nn.Conv2d) and not path.startswith(_AUXILIARY):
                norm = following if isinstance(following, _BatchNorm) else None
                yield prefix + name, prefix + next_name, norm


def _trained(network: InferenceISNet, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that was called ``name`` before folding."""
    for before, after in _RENAMED:
        if name.startswith(before):
            name = after + name[len(before) :]
            break
    final = network.decoder_stage2
    if isinstance(final, ShortcutDecoder) and name.startswith("decoder_stage2"):
        if name.endswith(".0"):
            # In the order in which the training form concatenates context and shortcut.
            return torch.cat([final.context.weight, final.detail.weight], 1), _bias(final.detail)
        assert isinstance(final.classifier, nn.Conv2d)
        return final.classifier.weight, _bias(final.classifier)
    part = network.get_submodule(name)
    if isinstance(part, MeanConv):
        return torch.cat([part.mean.weight[:, :, None, None], part.local.weight], 1), part.mean.bias
    assert isinstance(part, nn.Conv2d)
    return part.weight, _bias(part)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # every folded convolution has one
    return layer.bias
