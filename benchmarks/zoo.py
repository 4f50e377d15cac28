"""Segmentation networks of other libraries, with seeded random weights, for ``build --module benchmarks.zoo:NAME``.

No weights are downloaded. Random ones as a library initialises them give nearly constant logits, whose labels say
nothing; so the statistics of batch-norm are those of a few photographs, and the last layer is scaled until the logits
of every class have mean 0 and standard deviation 3 over them (`_calibrated`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from isnet_trt.pictures.files import read_image

CLASSES = 9
_PICTURES = Path(__file__).parents[1] / "export" / "pictures"
_SPREAD = 3.0
_FILE = "network.onnx"
Presets = Mapping[str, dict[str, Any]]
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "pixel_range": 1}


@dataclass(frozen=True)
class Network:
    """A network, and what a user would write down to build it.

    Attributes:
        factory: name of the function of this module that returns the ``nn.Module``; empty: the network is a file.
        keys: of its recipe, beside name, classes and normalisation.
        exporter: None: built with ``--module``. Else with ``--onnx`` from a file: written by PyTorch's "dynamo" or
            "torchscript" exporter, or "wheel": shipped by a package.
        options: further arguments of the build.
        packages: modules that must be installed.
        size: (height, width) of a file that takes no other; its presets have windows of that size.
        refused: every build of it is expected to be refused.
    """

    name: str
    factory: str
    packages: tuple[str, ...]
    keys: Mapping[str, Any] = field(default_factory=dict)
    exporter: str | None = None
    options: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    refused: bool = False

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def versions(self) -> dict[str, str]:
        """Version of each package."""
        return {name: importlib.metadata.version(name) for name in self.packages}

    def presets(self, presets: Presets) -> dict[str, dict[str, Any]]:
        """``presets`` as this network takes them: windows of its fixed size only, where it has one."""
        if self.size is None:
            return dict(presets)
        window = {"window": self.size, "stride": [side * 2 // 3 for side in self.size]}
        return {name: {**settings, **window} for name, settings in presets.items()}

    def recipe(self, presets: Presets) -> dict[str, Any]:
        """What its recipe says."""
        return recipe_keys(self.keys, self.presets(presets))

    def module(self) -> nn.Module:
        """The network in PyTorch, in evaluation mode."""
        module: nn.Module = globals()[self.factory]()
        return module

    def source(self, folder: Path) -> list[str]:
        """The arguments of the build, run in ``folder``, that name the network; its file is written there."""
        if self.exporter is None:
            return ["--module", f"{__name__}:{self.factory}", *self.options]
        path = folder / _FILE
        if self.exporter == "wheel":
            shutil.copyfile(_wheel_file(), path)
        else:
            sample = torch.zeros(1, 3, *self.size) if self.size else torch.zeros(2, 3, 128, 160)
            export_onnx(self.module(), path, sample, dynamo=self.exporter == "dynamo", fixed=self.size is not None)
        return ["--onnx", _FILE, *self.options]

    def own_run(self, folder: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """The network as its user runs it: normalised pixels (1, 3, h, w) -> output (1, K, h', w')."""
        name = self.options[1] if self.options else None
        if self.exporter is None:
            module = self.module()

            def run(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
                with torch.inference_mode():
                    outputs = outputs_of(module(torch.from_numpy(pixels)))
                return outputs[name or next(iter(outputs))].numpy()

            return run
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / _FILE), options, providers=["CPUExecutionProvider"])
        names = [name or session.get_outputs()[0].name]
        return lambda pixels: session.run(names, {session.get_inputs()[0].name: pixels})[0]


def recipe_keys(keys: Mapping[str, Any], presets: Presets) -> dict[str, Any]:
    """What a recipe says: ``keys`` beside `CLASSES` classes and ImageNet's normalisation."""
    return {"name": "example", "classes": CLASSES, **_IMAGENET, **keys, "presets": presets}


def write_recipe(folder: Path, keys: Mapping[str, Any]) -> Path:
    """Write a recipe as JSON, which is YAML."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(keys), "utf-8")
    return path


def _wheel_file() -> Path:
    """The text detector that rapidocr-onnxruntime ships; its package, which wants OpenCV's GUI, is not imported."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"


def export_onnx(
    module: nn.Module,
    path: Path,
    sample: Tensor,
    *,
    dynamo: bool = True,
    fixed: bool = False,
    input_name: str = "pixel_values",
    **options: Any,
) -> None:
    """An ONNX file as users write it: batch, height and width free unless ``fixed``; outputs by name.

    ``options`` are further ones of `torch.onnx.export`.
    """
    names: dict[str, Any] = {"input_names": [input_name], "output_names": list(outputs_of(module(sample)))}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            options["dynamic_shapes"] = None if fixed else (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
            torch.onnx.export(module, (sample,), path, dynamo=True, verbose=False, **names, **options)
        else:
            axes = {name: {0: "batch", 2: "height", 3: "width"} for names_ in names.values() for name in names_}
            torch.onnx.export(module, (sample,), path, dynamo=False, dynamic_axes=axes, **names, **options)


def outputs_of(value: Any) -> dict[str, Tensor]:
    """What a network returns, by name: a tensor, a dictionary or a ModelOutput of transformers."""
    return {"logits": value} if isinstance(value, Tensor) else dict(value.items())


def smp_unet() -> nn.Module:
    """U-Net of segmentation-models-pytorch."""
    return _smp("Unet")


def smp_unet_sigmoid() -> nn.Module:
    """The same with ``activation="sigmoid"``: a probability for each class on its own."""
    network: Any = _smp("Unet")
    # After the calibration, which is on logits; their spread of 3 would saturate many sigmoids, and those are ties.
    for values in network.segmentation_head[0].parameters():
        values.data /= _SPREAD
    network.segmentation_head[2] = nn.Sigmoid()
    return network


def smp_fpn() -> nn.Module:
    """FPN of segmentation-models-pytorch: its head enlarges by 4."""
    return _smp("FPN")


def smp_deeplabv3plus() -> nn.Module:
    """DeepLabV3+ of segmentation-models-pytorch: align-corners enlargements."""
    return _smp("DeepLabV3Plus")


def smp_pspnet() -> nn.Module:
    """PSPNet of segmentation-models-pytorch: pooled to 1, 2, 3 and 6 cells a side; enlarges by 8."""
    return _smp("PSPNet")


def smp_upernet() -> nn.Module:
    """UPerNet of segmentation-models-pytorch: pooled to 1, 2, 3 and 6 cells a side."""
    return _smp("UPerNet")


def smp_segformer() -> nn.Module:
    """SegFormer-B0 of segmentation-models-pytorch: its head enlarges by 4."""
    return _smp("Segformer", "mit_b0")


def _smp(name: str, encoder: str = "resnet18") -> nn.Module:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    network = getattr(smp, name)(encoder, encoder_weights=None, classes=CLASSES)
    return _calibrated(network, [network.segmentation_head[0]])


def hf_segformer(classes: int = CLASSES, **config: Any) -> nn.Module:
    """SegFormer-B0 of transformers: logits at a quarter of the input's size."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    network = SegformerForSemanticSegmentation(SegformerConfig(num_labels=classes, **config))
    return _calibrated(network, [network.decode_head.classifier])


def hf_maskformer() -> nn.Module:
    """MaskFormer of transformers: class scores and masks of queries, no logits of pixels."""
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, SwinConfig

    torch.manual_seed(0)
    swin = SwinConfig(embed_dim=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4)
    swin.out_features = ["stage1", "stage2", "stage3", "stage4"]
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    detr = DetrConfig(num_queries=20, d_model=64, encoder_attention_heads=2, decoder_attention_heads=2, **sizes)
    width = {"fpn_feature_size": 64, "mask_feature_size": 64}
    config = MaskFormerConfig(backbone_config=swin, decoder_config=detr, num_labels=CLASSES, **width)
    return _Named(MaskFormerForInstanceSegmentation(config), ("class_queries_logits", "masks_queries_logits")).eval()


class _Named(nn.Module):
    """A network of transformers that returns some of its outputs only."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        outputs = self.network(pixel_values)
        return {name: outputs[name] for name in self.names}


class _Semantic(nn.Module):
    """Queries as scores of pixels: what transformers' ``post_process_semantic_segmentation`` does before its resize."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> Tensor:
        outputs = self.network(pixel_values)
        classes = outputs["class_queries_logits"].softmax(-1)[..., :-1]
        masks = outputs["masks_queries_logits"].sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes, masks)


def hf_maskformer_semantic() -> nn.Module:
    """The same MaskFormer in a module that turns its queries into scores of pixels."""
    return _Semantic(hf_maskformer()).eval()


def tv_deeplabv3() -> nn.Module:
    """DeepLabV3 of torchvision, with the output of the auxiliary head."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    torch.manual_seed(0)
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "aux_loss": True}
    network = deeplabv3_mobilenet_v3_large(num_classes=CLASSES, **options)
    return _calibrated(network, [network.classifier[-1]])


def tv_lraspp() -> nn.Module:
    """LR-ASPP of torchvision: logits enlarged by 8."""
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    return _calibrated(network, [network.classifier.low_classifier, network.classifier.high_classifier])


class _Head(nn.Module):
    """A backbone of timm and a 1×1 convolution on its features of strides 8 and 16."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        self.backbone = timm.create_model(name, features_only=True, pretrained=False, out_indices=(1, 2))
        self.head = nn.Conv2d(sum(self.backbone.feature_info.channels()), CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        fine, deep = self.backbone(image)
        deep = F.interpolate(deep, size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.head(torch.cat([fine, deep], 1))


def timm_convnext() -> nn.Module:
    """ConvNeXt-Atto of timm with a head of one layer: logits at an eighth of the input's size."""
    torch.manual_seed(0)
    network = _Head("convnext_atto")
    return _calibrated(network, [network.head])


def _photographs(side: int = 128) -> Tensor:
    """Crops of the photographs of the build, normalised, (16, 3, side, side)."""
    # Many small ones: batch-norm behind a global mean has one value per crop.
    corners = [(top, left) for top in (0, side) for left in (0, side)]
    pictures = [read_image(path) for path in sorted(_PICTURES.glob("*.jpg"))]
    crops = [picture[y : y + side, x : x + side] for picture in pictures for y, x in corners]
    pixels = (np.stack(crops) / 255 - _IMAGENET["mean"]) / _IMAGENET["std"]  # type: ignore[operator]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32))


def _calibrated(network: nn.Module, last: list[nn.Conv2d]) -> nn.Module:
    """Set the statistics of batch-norm and scale the ``last`` layers, whose sum the logits are, on photographs."""
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    pictures = _photographs()
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the mean of all batches
            norm.train()
        network(pictures)
        network.eval()
        logits = next(iter(outputs_of(network(pictures)).values()))
        factor = _SPREAD / logits.std((0, 2, 3))
        for layer in last:
            layer.weight *= factor[:, None, None, None]
            layer.bias = nn.Parameter((torch.zeros(1) if layer.bias is None else layer.bias) * factor)
        first = last[0].bias
        assert first is not None
        first -= logits.mean((0, 2, 3)) * factor
    return network


def _side_by_side(classes: int) -> Callable[[], nn.Module]:
    # A quarter of B0's layers and channels: what surrounds a network shows beside a fast one.
    return lambda: hf_segformer(classes, depths=[1] * 4, hidden_sizes=[16, 32, 80, 128], decoder_hidden_size=64)


hf_segformer_9, hf_segformer_19, hf_segformer_150 = map(_side_by_side, (9, 19, 150))

_SMP, _HF, _TV = ("segmentation_models_pytorch", "timm"), ("transformers",), ("torchvision",)
_BY_32 = {"size_multiple": 32}
NETWORKS = (
    Network("smp Unet, ResNet-18", "smp_unet", _SMP, _BY_32),
    Network("smp Unet, a sigmoid for each class", "smp_unet_sigmoid", _SMP, {**_BY_32, "activation": "sigmoid"}),
    Network("smp FPN, ResNet-18", "smp_fpn", _SMP, _BY_32),
    Network("smp DeepLabV3+, ResNet-18", "smp_deeplabv3plus", _SMP, {"size_multiple": 16}),
    Network("smp PSPNet, ResNet-18, one size", "smp_pspnet", _SMP, {}, "dynamo", size=(144, 192)),
    Network("smp UPerNet, ResNet-18, one size", "smp_upernet", _SMP, {}, "dynamo", size=(128, 192)),
    Network("smp SegFormer, MiT-B0", "smp_segformer", _SMP, _BY_32),
    Network("transformers SegFormer-B0", "hf_segformer", _HF, {}, "dynamo"),
    Network("transformers MaskFormer", "hf_maskformer", _HF, {}, "dynamo", refused=True),
    Network("transformers MaskFormer, scores of pixels", "hf_maskformer_semantic", _HF, _BY_32),
    Network("torchvision DeepLabV3 with aux", "tv_deeplabv3", _TV, {}, "torchscript", ("--output", "out")),
    Network("torchvision LR-ASPP", "tv_lraspp", _TV),
    Network("timm ConvNeXt-Atto and a layer", "timm_convnext", ("timm",), {"size_multiple": 32}),
    Network(
        "rapidocr text detector (trained)",
        "",
        ("rapidocr_onnxruntime",),
        {"classes": ["text"], "activation": "sigmoid", "threshold": 0.3, "channel_order": "bgr"}
        | {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], **_BY_32},
        "wheel",
    ),
)
