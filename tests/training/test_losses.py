"""The training loss and its gradients against the reference's, and its treatment of ignored pixels."""

import golden_model
import numpy as np
import pytest
import torch
from golden_files import GOLDEN
from torch import nn

from isnet_trt.recipes import IGNORE, RECIPES
from isnet_trt.training.losses import losses, pixel_loss
from isnet_trt.training.model import Outputs

LOSS, GRADIENT = 1e-4, 1e-3
"""float32, relative."""


@pytest.mark.parametrize(
    "name", ["isnet_resnet50os8_ade20k", pytest.param("isnet_resnest101os8_lip", marks=pytest.mark.slow)]
)
def test_losses_and_gradients_of_the_reference(name: str) -> None:
    golden = np.load(GOLDEN / "golden_train.npz")
    model = golden_model.model(name).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout2d):
            module.eval()
    height, width = golden[f"{name}_hw"]
    seeds = golden[f"{name}_seeds"]
    x = torch.cat([golden_model.picture(seed, height, width) for seed in seeds])
    classes = RECIPES[name].labels.count
    labels = torch.from_numpy(np.stack([golden_model.target(seed, height, width, classes) for seed in seeds]))
    result = losses(model(x), labels)
    result.total.backward()
    keys = {"stage2": "cls_stage2", "stage1": "cls_stage1", "auxiliary": "aux", "total": "total"}
    for ours, theirs in keys.items():
        assert getattr(result, ours).item() == pytest.approx(float(golden[f"{name}_loss_{theirs}"]), rel=LOSS)
    parameters = dict(model.named_parameters())
    for key, norm in zip(golden[f"{name}_grad_names"], golden[f"{name}_grad_l2"], strict=True):
        assert parameters[str(key)].grad.norm().item() == pytest.approx(float(norm), rel=GRADIENT), key


def test_pixel_loss_is_the_mean_over_the_pixels_that_count() -> None:
    logits = torch.randn(1, 3, 2, 4)
    labels = torch.tensor([[[0, 2, IGNORE, 1], [IGNORE, IGNORE, 1, IGNORE]]])
    log_p = logits.log_softmax(1)[0]
    want = -(log_p[0, 0, 0] + log_p[2, 0, 1] + log_p[1, 0, 3] + log_p[1, 1, 2]) / 4
    assert pixel_loss(logits, labels).item() == pytest.approx(want.item(), rel=1e-6)


def test_crop_by_crop_gives_the_loss_and_gradient_of_the_batch() -> None:
    logits = torch.randn(3, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (3, 41, 50))
    labels[0, :9], labels[1] = IGNORE, IGNORE
    full = nn.functional.interpolate(logits, size=(41, 50), mode="bilinear", align_corners=False)
    want = nn.functional.cross_entropy(full, labels, ignore_index=IGNORE)
    got = pixel_loss(logits, labels)
    # Scaled, as with float16: the gradient is computed before it is known by what it is multiplied.
    gradients = [torch.autograd.grad(65536 * loss, logits)[0] / 65536 for loss in (want, got)]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_weights_of_the_three_predictions() -> None:
    logits, labels = torch.randn(1, 3, 2, 4), torch.zeros(1, 5, 9, dtype=torch.int64)
    one = pixel_loss(logits, labels).item()
    result = losses(Outputs(logits, logits, logits), labels)
    assert [v.item() / one for v in result] == pytest.approx([1.0, 0.4, 0.4, 1.8])


def test_a_batch_without_any_labelled_pixel_gives_nan() -> None:
    assert pixel_loss(torch.randn(1, 3, 2, 4), torch.full((1, 4, 8), IGNORE)).isnan()


def test_with_a_count_the_parts_of_a_batch_add_up_to_its_loss() -> None:
    logits = torch.randn(3, 4, 2, 3)
    labels = torch.randint(4, (3, 7, 11))
    labels[0, :5], labels[2] = IGNORE, IGNORE
    count = int((labels != IGNORE).sum())
    outputs = Outputs(logits, logits.flip(1), 2 * logits)
    whole = losses(outputs, labels)
    parts = [losses(Outputs(*(y[i : i + 1] for y in outputs)), labels[i : i + 1], count) for i in range(3)]
    for name in ("stage2", "stage1", "auxiliary", "total"):
        added = sum(getattr(part, name) for part in parts)
        assert added.item() == pytest.approx(getattr(whole, name).item(), rel=1e-6)  # float32
    assert parts[2].total.item() == 0
