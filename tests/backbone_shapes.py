"""Names and shapes of the public ImageNet weights of ResNet and ResNeSt, by library."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]


def norm(name: str, width: int) -> Shapes:
    entries = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{entry}": (width,) for entry in entries}, f"{name}.num_batches_tracked": ()}


def stem(kind: str, width: int) -> Shapes:
    if kind == "plain":
        return {"conv1.weight": (2 * width, 3, 7, 7), **norm("bn1", 2 * width)}
    conv, last = ("conv1", "bn1") if kind == "timm" else ("stem", "stem.7")
    convs = {f"{conv}.0.weight": (width, 3, 3, 3), f"{conv}.3.weight": (width, width, 3, 3)}
    convs[f"{conv}.6.weight"] = (2 * width, width, 3, 3)
    return {**convs, **norm(f"{conv}.1", width), **norm(f"{conv}.4", width), **norm(last, 2 * width)}


def block(name: str, inputs: int, width: int, split: bool, first: bool, pooled: bool) -> Shapes:
    shapes: Shapes = {f"{name}.conv1.weight": (width, inputs, 1, 1), **norm(f"{name}.bn1", width)}
    if split:
        hidden = max(width // 2, 32)
        shapes |= {f"{name}.conv2.conv.weight": (2 * width, width // 2, 3, 3), **norm(f"{name}.conv2.bn0", 2 * width)}
        shapes |= {f"{name}.conv2.fc1.weight": (hidden, width, 1, 1), f"{name}.conv2.fc1.bias": (hidden,)}
        shapes |= {f"{name}.conv2.fc2.weight": (2 * width, hidden, 1, 1), f"{name}.conv2.fc2.bias": (2 * width,)}
        shapes |= norm(f"{name}.conv2.bn1", hidden)
    else:
        shapes |= {f"{name}.conv2.weight": (width, width, 3, 3), **norm(f"{name}.bn2", width)}
    shapes |= {f"{name}.conv3.weight": (4 * width, width, 1, 1), **norm(f"{name}.bn3", 4 * width)}
    if first:
        at = 1 if pooled else 0
        shapes[f"{name}.downsample.{at}.weight"] = (4 * width, inputs, 1, 1)
        shapes |= norm(f"{name}.downsample.{at + 1}", 4 * width)
    return shapes


def resnet(kind: str, depths: tuple[int, ...], split: bool = False, pooled: bool = False, width: int = 8) -> Shapes:
    """Names and shapes of a classifier's state dict; ``kind`` of stem: plain, timm or openmmlab; real width: 64."""
    narrow = width if split else width // 2
    shapes, inputs = stem(kind, narrow), 2 * narrow
    for stage, depth in enumerate(depths):
        for i in range(depth):
            shapes |= block(f"layer{stage + 1}.{i}", inputs, width << stage, split, i == 0, pooled)
            inputs = 4 * width << stage
    return {**shapes, "fc.weight": (1000, 32 * width), "fc.bias": (1000,)}
