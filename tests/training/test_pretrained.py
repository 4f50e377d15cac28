"""Starting weights: the public layouts of ImageNet backbones, and ISNets of other classes."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isnet_trt.errors import CheckpointError
from isnet_trt.recipes import recipe
from isnet_trt.recipes.architecture import RESNEST101, RESNET50, RESNET101, Architecture, Backbone
from isnet_trt.training.model import ISNet
from isnet_trt.training.pretrained import BACKBONE, load_backbone, load_matching

Shapes = dict[str, tuple[int, ...]]
DEEP, SHALLOW = (3, 4, 23, 3), (3, 4, 6, 3)
# An eighth of the width, so that the tests are quick; names and depths are the real ones.
R50, R101 = (dataclasses.replace(one, width=8, stem_width=4) for one in (RESNET50, RESNET101))
S101 = dataclasses.replace(RESNEST101, width=8, stem_width=8)


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


@pytest.mark.parametrize(
    ("shapes", "count", "checksum"),
    [
        (resnet("plain", SHALLOW, width=64), 320, 1283222237),
        (resnet("timm", SHALLOW, width=64), 332, 873819227),
        (resnet("timm", DEEP, width=64), 638, 3166588936),
        (resnet("timm", DEEP, True, True, 64), 935, 2167762144),
        (resnet("timm", SHALLOW, pooled=True, width=64), 332, 2475703134),
    ],
)
def test_the_layouts_made_here_are_the_libraries(shapes: Shapes, count: int, checksum: int) -> None:
    """Checksums of the state dicts of torchvision 0.28.0 and timm 1.0.31."""
    text = "\n".join(sorted(f"{name} {list(shape)}" for name, shape in shapes.items()))
    assert (len(shapes), zlib.crc32(text.encode())) == (count, checksum)


def weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of these names and shapes, from which no other entry has the values."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return {n: torch.tensor(7) if n.endswith("num_batches_tracked") else value for n, value in tensors.items()}


def network(backbone: Backbone) -> ISNet:
    """A backbone under a narrow head."""
    return ISNet(Architecture(backbone, 5, head_channels=16, context_channels=8))


def filled(net: ISNet) -> dict[str, Tensor]:
    return {n.removeprefix(BACKBONE): t for n, t in net.state_dict().items() if n.startswith(BACKBONE)}


def to_ours(name: str) -> str:
    """timm's name of a deep stem -> this model's, from its documentation: conv1 is a sequence, bn1 follows it."""
    for old, new in (("conv1.", "stem."), ("bn1.", "stem.7.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@pytest.mark.parametrize(
    ("kind", "backbone", "split"),
    [
        ("timm", R50, False),
        ("openmmlab", R50, False),
        ("timm", R101, False),
        ("openmmlab", R101, False),
        ("timm", S101, True),
        ("openmmlab", S101, True),
    ],
)
def test_whole_backbones(kind: str, backbone: Backbone, split: bool, tmp_path: Path) -> None:
    state = weights(resnet(kind, backbone.depths, split, pooled=split))
    # OpenMMLab wraps its files, timm does not.
    torch.save({"state_dict": state, "meta": {"epoch": 100}} if kind == "openmmlab" else state, tmp_path / "w.pth")
    net = network(backbone)
    head = {n: t.clone() for n, t in net.state_dict().items() if not n.startswith(BACKBONE)}
    report = load_backbone(net, tmp_path / "w.pth")
    renamed = {(to_ours(n) if kind == "timm" else n): t for n, t in state.items() if not n.startswith("fc.")}
    got = filled(net)
    assert set(got) == set(renamed)
    assert all(torch.equal(got[name], tensor) for name, tensor in renamed.items())
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in head.items())
    assert len(report.matched) == len(renamed)
    assert report.left_out == ((("fc.weight", "fc.bias"), "classifier of the file"),)
    assert "bottleneck" in report.random
    assert "backbone_net" not in report.describe()


def test_torchvision_fits_but_for_the_stem(tmp_path: Path) -> None:
    state = weights(resnet("plain", SHALLOW))
    torch.save(state, tmp_path / "resnet50.pth")
    net = network(R50)
    before = {n: t.clone() for n, t in filled(net).items() if n.startswith("stem.")}
    report = load_backbone(net, tmp_path / "resnet50.pth")
    got = filled(net)
    assert all(torch.equal(got[n], t) for n, t in state.items() if n.startswith("layer"))
    assert all(torch.equal(got[n], t) for n, t in before.items())
    left = {why: names for names, why in report.left_out}
    assert left["its stem is one 7x7 convolution, this one has three 3x3"][0] == "conv1.weight"
    assert report.random[0] == "backbone_net.stem"
    assert "7x7" in report.describe()


def test_a_segmentation_model_of_openmmlab_gives_its_backbone(tmp_path: Path) -> None:
    state = {f"backbone.{n}": t for n, t in weights(resnet("openmmlab", SHALLOW)).items() if not n.startswith("fc.")}
    torch.save({"state_dict": {**state, "decode_head.conv_seg.bias": torch.zeros(19)}}, tmp_path / "pspnet.pth")
    report = load_backbone(network(R50), tmp_path / "pspnet.pth")
    assert len(report.matched) == 330
    assert report.left_out == ((("decode_head.conv_seg.bias",), "not of the backbone"),)


def test_without_batch_counters_and_in_half_precision(tmp_path: Path) -> None:
    state = {n: t.half() for n, t in weights(resnet("timm", SHALLOW)).items() if "num_batches" not in n}
    torch.save(state, tmp_path / "half.pth")
    net = network(R50)
    load_backbone(net, tmp_path / "half.pth")
    got = filled(net)["layer3.5.conv2.weight"]
    assert got.dtype == torch.float32
    assert torch.equal(got, state["layer3.5.conv2.weight"].float())


@pytest.mark.parametrize(
    ("shapes", "backbone", "message"),
    [
        (resnet("timm", DEEP), R50, r"not of the backbone resnet50.*\n.*unexpected: layer3\.6\.conv1\.weight"),
        (resnet("plain", SHALLOW), R101, r"not of the backbone resnet101.*\n.*missing: layer3\.6"),
        (resnet("timm", SHALLOW, pooled=True), R50, r"(?s)downsample\.2.*ResNet-D or ResNeSt"),
        (resnet("timm", SHALLOW), S101, r"of another shape: stem\.0\.weight \[4, 3, 3, 3\] instead of \[8"),
        ({"features.0.weight": (64, 3, 3, 3)}, R50, r"no ResNet or ResNeSt.*begins with features\.0\.weight"),
    ],
)
def test_other_backbones_are_refused_and_change_nothing(
    shapes: Shapes, backbone: Backbone, message: str, tmp_path: Path
) -> None:
    torch.save(weights(shapes), tmp_path / "other.pth")
    net = network(backbone)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_backbone(net, tmp_path / "other.pth")
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_unusable_files(tmp_path: Path) -> None:
    net = network(R50)
    state = weights(resnet("timm", SHALLOW))
    state["layer1.0.conv1.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"nan\.pth: NaN or infinite values in 1 entries: layer1\.0\.conv1"):
        load_backbone(net, tmp_path / "nan.pth")
    torch.save(net, tmp_path / "pickled.pth")  # a whole module: would run code of the file
    with pytest.raises(CheckpointError, match="nothing of it was run"):
        load_backbone(net, tmp_path / "pickled.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_backbone(net, tmp_path / "none.pth")


DEMO = recipe("isnet_demo").architecture


def saved(architecture: Architecture, path: Path, auxiliary: bool = True) -> dict[str, Tensor]:
    state = ISNet(architecture, auxiliary).state_dict()
    torch.save({"model": state, "cur_epoch": 3}, path)
    return state


@pytest.mark.parametrize("shortcut", [None, 16])
def test_fine_tuning_leaves_the_classifiers_out_and_says_so(shortcut: int | None, tmp_path: Path) -> None:
    released = dataclasses.replace(DEMO, num_classes=19, shortcut_channels=shortcut)
    state = saved(released, tmp_path / "released.pth")
    net = ISNet(dataclasses.replace(released, num_classes=4))
    before = {n: t.clone() for n, t in net.state_dict().items()}
    report = load_matching(net, tmp_path / "released.pth")
    last = "decoder_stage2.4" if shortcut else "decoder_stage2.1"
    classifiers = ("decoder_stage1.4.", f"{last}.", "auxiliary_decoder.4.")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith(classifiers) else state[name]), name
    assert {why for _, why in report.left_out} == {"19 classes instead of 4"}
    assert [n for names, _ in report.left_out for n in names] == [n for n in state if n.startswith(classifiers)]
    assert "19 classes instead of 4" in report.describe()
    assert set(report.random) == {"decoder_stage1.4", last if shortcut else "decoder_stage2", "auxiliary_decoder.4"}


def test_the_same_number_of_classes_fits_whole(tmp_path: Path) -> None:
    state = saved(DEMO, tmp_path / "same.pth")
    net = ISNet(DEMO)
    report = load_matching(net, tmp_path / "same.pth")
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert report.left_out == report.random == ()


@pytest.mark.parametrize("name", ["ema_state_dict", "model_ema"])
def test_a_file_of_averaged_weights_alone_is_taken_and_says_so(name: str, tmp_path: Path) -> None:
    """``--weights`` is no option of training; beside other weights the averaged ones are left alone."""
    state = saved(DEMO, tmp_path / "plain.pth")
    torch.save({name: state, "epoch": 3}, tmp_path / "ema.pth")
    for load in (load_matching, load_backbone):
        net = ISNet(DEMO)
        assert "; averaged weights, the only ones in the file; " in load(net, tmp_path / "ema.pth").describe()
        key = "backbone_net.stem.0.weight"
        assert torch.equal(net.state_dict()[key], state[key])
    torch.save({name: {n: t + 1 for n, t in state.items()}, "model": state}, tmp_path / "both.pth")
    assert "averaged weights" not in load_matching(net := ISNet(DEMO), tmp_path / "both.pth").describe()
    assert torch.equal(net.state_dict()[key], state[key])


def test_with_and_without_the_shortcut(tmp_path: Path) -> None:
    plain = dataclasses.replace(DEMO, shortcut_channels=None)
    saved(DEMO, tmp_path / "shortcut.pth")
    report = load_matching(ISNet(plain), tmp_path / "shortcut.pth")
    assert report.random == ("decoder_stage2",)
    saved(plain, tmp_path / "plain.pth")
    report = load_matching(ISNet(DEMO), tmp_path / "plain.pth")
    assert set(report.random) == {"shortcut", "decoder_stage2"}


def test_files_without_auxiliary_head(tmp_path: Path) -> None:
    saved(DEMO, tmp_path / "inference.pth", auxiliary=False)
    report = load_matching(ISNet(DEMO), tmp_path / "inference.pth")
    assert report.random == ("auxiliary_decoder",)


def test_an_isnet_of_another_backbone_is_refused(tmp_path: Path) -> None:
    deeper = dataclasses.replace(DEMO, backbone=dataclasses.replace(DEMO.backbone, depths=(1, 2, 3, 1)), num_classes=3)
    saved(deeper, tmp_path / "deeper.pth")
    net = ISNet(DEMO)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"differs in more than the classes:\n.*unexpected: .*layer3\.2\."):
        load_matching(net, tmp_path / "deeper.pth")
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
