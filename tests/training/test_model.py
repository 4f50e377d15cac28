"""The two forms of the network against the reference's stored outputs and against each other."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import golden_model
import numpy as np
import pytest
import torch
from golden_files import GOLDEN, load_golden
from torch import Tensor, nn

from isnet_trt.errors import SettingsError
from isnet_trt.recipes import RECIPES
from isnet_trt.recipes.architecture import Architecture, Backbone
from isnet_trt.training.model import ISNet, Outputs, inference_form
from isnet_trt.training.model.context import class_map
from isnet_trt.training.model.ops import class_mask, class_weights

RESNET_TINY = Backbone("resnet_tiny", "bottleneck", (2, 2, 2, 2), stem_width=4, width=4)
RESNEST_TINY = Backbone("resnest_tiny", "split_attention", (2, 2, 2, 2), stem_width=4, width=4)
TINY = {
    "resnet": Architecture(RESNET_TINY, 7, head_channels=12, context_channels=6),
    "resnet_shortcut": Architecture(RESNET_TINY, 7, "leaky_relu", 5, 12, 6),
    "resnest": Architecture(RESNEST_TINY, 7, head_channels=12, context_channels=6),
    "resnest_shortcut": Architecture(RESNEST_TINY, 7, "leaky_relu", 5, 12, 6),
}
PROBES = ("stem", "layer1", "layer2", "layer3", "layer4", "bottleneck", "ilc_net", "decoder_stage1", "slc_net")
QUICK = ("isnet_resnet50os8_ade20k", "isnet_resnest101os8_lip")
ROUNDING = 1e-4
"""float32, largest error over the standard deviation; two float32 implementations differ by about 1e-5."""


def tiny(kind: str, seed: int = 0) -> ISNet:
    """A small float64 model with weights and statistics that leave no layer near its default."""
    torch.manual_seed(seed)
    model = ISNet(TINY[kind]).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


@contextlib.contextmanager
def recorded(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    modules = {p: net.get_submodule(p if hasattr(net, p) else f"backbone_net.{p}") for p in PROBES}

    def keep(probe: str) -> object:
        return lambda _module, _inputs, output: seen.__setitem__(probe, output.clone())

    hooks = [module.register_forward_hook(keep(probe)) for probe, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def check_golden(name: str, form: str) -> None:
    golden = np.load(GOLDEN / f"golden_{name}.npz")
    model = golden_model.model(name)
    net = inference_form(model) if form == "inference" else model
    with torch.no_grad(), recorded(net) as seen:
        logits = net(golden_model.picture(golden["seed"], *golden["image_hw"]))
    for probe in PROBES:
        values = seen[probe][0].numpy()
        assert values.shape == tuple(golden[f"probe_{probe}_shape"]), probe
        error = np.abs(values.reshape(-1)[golden[f"probe_{probe}_idx"]] - golden[f"probe_{probe}_f32"]).max()
        assert error / golden[f"probe_{probe}_stats"][1] < ROUNDING, probe
    check = load_golden("check_example")
    std = float(golden["logits_f16"].astype(np.float32).std())
    difference = logits.numpy().reshape(-1)[golden["logits_idx"]] - golden["logits_f32"]
    assert logits.shape[1:] == tuple(golden["logits_shape"])
    assert np.abs(difference).max() / std <= check.BOUNDS["fp32"]["max"] / 20
    assert np.sqrt((difference**2).mean()) / std <= check.BOUNDS["fp32"]["rms"] / 10
    assert (logits[0].numpy().argmax(0) == golden["logits_argmax"]).mean() >= check.BOUNDS["fp32"]["argmax"]
    assert (seen["decoder_stage1"][0].numpy().argmax(0) == golden["stage1_argmax"]).all()


@pytest.mark.parametrize("name", golden_model.NAMES)
def test_parameters_have_the_published_names_shapes_types_and_order(name: str) -> None:
    with torch.device("meta"):
        state = ISNet(RECIPES[name].architecture).state_dict()
    entries = [[key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")] for key, tensor in state.items()]
    assert entries == golden_model.spec(name)


@pytest.mark.parametrize("form", ["training", "inference"])
@pytest.mark.parametrize("name", QUICK)
def test_reference_outputs(name: str, form: str) -> None:
    check_golden(name, form)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["training", "inference"])
@pytest.mark.parametrize("name", [name for name in golden_model.NAMES if name not in QUICK])
def test_reference_outputs_of_all_models(name: str, form: str) -> None:
    check_golden(name, form)


@pytest.mark.parametrize("size", [(33, 47), (64, 40), (57, 9), (41, 66)])
@pytest.mark.parametrize("kind", TINY)
def test_inference_form_is_the_same_function(kind: str, size: tuple[int, int]) -> None:
    model = tiny(kind)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        want, got = model(x), inference_form(model)(x)
    stride = model.architecture.output_stride
    assert want.shape == (2, 7, -(-size[0] // stride), -(-size[1] // stride))
    # Rounding of float64 only: the two forms are equal as formulas (log counts pass through float32).
    assert (got - want).abs().max() / want.std() < 1e-6


def test_inference_form_of_a_positions_own_class_alone() -> None:
    """One class everywhere: K - 1 classes are absent, and every position sees the one centre."""
    model = tiny("resnet")
    nn.init.zeros_(model.decoder_stage1[4].weight)
    model.decoder_stage1[4].bias.data = torch.arange(7.0, dtype=torch.float64)
    x = torch.randn(1, 3, 49, 35, dtype=torch.float64)
    with torch.no_grad():
        want, got = model(x), inference_form(model)(x)
    assert got.isfinite().all()
    assert (got - want).abs().max() < 1e-6


def test_ties_between_classes_go_to_the_first_in_both_forms() -> None:
    model = tiny("resnet", seed=3)
    classifier = model.decoder_stage1[4]
    # Only a constant is a certain tie: equal rows of weights may be summed up in different orders.
    classifier.weight.data[1:] = 0
    classifier.bias.data[1:] = 0.1
    x = torch.randn(1, 3, 40, 56, dtype=torch.float64)
    with torch.no_grad(), recorded(model) as seen:
        want = model(x)
    with torch.no_grad():
        got = inference_form(model)(x)
    assert seen["decoder_stage1"].argmax(1).unique().tolist() == [0, 1]
    assert (got - want).abs().max() < 1e-6


@pytest.mark.parametrize("form", ["training", "inference"])
@pytest.mark.parametrize("kind", TINY)
def test_pictures_of_a_batch_do_not_mix(kind: str, form: str) -> None:
    model = tiny(kind)
    net = inference_form(model) if form == "inference" else model
    x = torch.randn(3, 3, 43, 37, dtype=torch.float64)
    with torch.no_grad():
        together, alone = net(x), torch.cat([net(x[i : i + 1]) for i in range(3)])
    assert (together - alone).abs().max() < 1e-10


def test_inference_form_leaves_its_source_as_it_was() -> None:
    model = tiny("resnest_shortcut").train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    form = inference_form(model)
    assert model.training
    assert not form.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    shared = {t.data_ptr() for t in form.parameters()} & {t.data_ptr() for t in model.parameters()}
    assert not shared
    assert not [m for m in form.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout2d)]
    assert not [name for name, _ in form.named_modules() if "auxiliary" in name]


@pytest.mark.parametrize("kind", ["resnet", "resnest_shortcut"])
def test_training_mode_gives_three_predictions_and_every_parameter_a_gradient(kind: str) -> None:
    model = tiny(kind).train()
    outputs = model(torch.randn(2, 3, 45, 61, dtype=torch.float64))
    assert isinstance(outputs, Outputs)
    detail = (12, 16) if model.architecture.shortcut_channels else (6, 8)
    assert outputs.stage2.shape == (2, 7, *detail)
    assert outputs.stage1.shape == outputs.auxiliary.shape == (2, 7, 6, 8)
    sum(output.square().mean() for output in outputs).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_semantic_context_statistics_count_a_centre_once_per_position() -> None:
    """In training the batch statistics of the key projection are those over positions, not over classes."""
    model = tiny("resnet").train()
    norm = model.slc_net.correlate_net.value_project[1]
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()))
    norm.momentum = 1.0
    model(torch.randn(2, 3, 45, 61, dtype=torch.float64))
    assert seen[0].shape == (2, 6, 6, 8)
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_class_map_and_its_gradients_are_those_of_an_indexed_read(memory_format: torch.memory_format) -> None:
    torch.manual_seed(4)
    features, logits = (torch.randn(2, n, 6, 9, dtype=torch.float64).to(memory_format=memory_format) for n in (5, 7))
    logits[:, 3] = -100  # a class without positions
    leaves = [features.requires_grad_(), logits.requires_grad_()]
    labels = logits.detach().flatten(2).argmax(1)
    weights = class_weights(logits.flatten(2), class_mask(labels, 7))
    centres = features.flatten(2) @ weights.transpose(1, 2)
    want = centres.gather(2, labels[:, None].expand(-1, 5, -1)).reshape(features.shape)
    got, direction = class_map(features, logits), torch.randn(2, 5, 6, 9, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * direction).sum(), leaves) for y in (got, want)]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", TINY)
def test_training_keeps_the_layout_of_the_images_in_every_layer(kind: str) -> None:
    model = ISNet(TINY[kind]).to(memory_format=torch.channels_last).train()
    layouts = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, inputs, _y, name=name: layouts.__setitem__(name, inputs[0]))
    model(torch.randn(2, 3, 64, 80).to(memory_format=torch.channels_last))
    assert len(layouts) > 30
    assert not [n for n, x in layouts.items() if not x.is_contiguous(memory_format=torch.channels_last)]


@pytest.mark.slow
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", TINY)
def test_training_compiles_to_one_graph(kind: str, amp: torch.dtype | None) -> None:
    torch._dynamo.reset()
    model = ISNet(TINY[kind]).train()
    with torch.autocast("cpu", amp, enabled=amp is not None):
        explained = torch._dynamo.explain(model)(torch.randn(2, 3, 40, 56))
    assert (explained.graph_count, explained.break_reasons) == (1, [])


def test_second_prediction_teaches_the_first_classifier() -> None:
    model = tiny("resnet").train()
    model(torch.randn(2, 3, 45, 61, dtype=torch.float64)).stage2.square().sum().backward()
    assert model.decoder_stage1[4].weight.grad.abs().sum() > 0


def test_without_auxiliary_head() -> None:
    spec = replace(TINY["resnet"], num_classes=3)
    model = ISNet(spec, auxiliary=False)
    x = torch.randn(2, 3, 32, 24)
    assert not [name for name in model.state_dict() if name.startswith("auxiliary")]
    assert model.eval()(x).shape == (2, 3, 4, 3)
    with pytest.raises(SettingsError, match="auxiliary=True"):
        model.train()(x)


def test_inference_form_exports_with_every_dimension_free() -> None:
    form = inference_form(tiny("resnest_shortcut"))
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=9), 3: torch.export.Dim("width", min=9)}
    program = torch.export.export(form, (torch.randn(2, 3, 65, 98, dtype=torch.float64),), dynamic_shapes=(dims,))
    nodes = [str(node.target) for node in program.graph.nodes if "isnet_trt" in str(node.target)]
    assert nodes == ["isnet_trt.attention.default", "isnet_trt.region_pool.default", "isnet_trt.attention.default"]
    for shape in ((1, 3, 33, 47), (3, 3, 64, 65), (2, 3, 9, 100)):
        x = torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():
            assert (program.module()(x) - form(x)).abs().max() < 1e-10
