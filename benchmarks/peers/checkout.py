"""A checkout of the public reference implementation (SSSegmentation), run by its own code.

Its network, its windows, its scales and flips (``auginference``), its merge (each volume resized to the picture's size,
then averaged: ``ssseg/test.py``). Only the picture's decoding and normalisation are ours. Versions 1.5 to 1.7 keep
their settings of inference under two different sets of names; both are given.
"""

from __future__ import annotations

import copy
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers import Missing, Output, Runner, Setup
from benchmarks.peers.evaluation import merged
from benchmarks.peers.networks import device
from isnet_trt.pictures.preprocess import normalise, resize
from isnet_trt.settings import Inference
from isnet_trt.training.checkpoint import Checkpoint


def load(setup: Setup) -> CheckoutRunner:
    """The network of the checkout with the weights of the checkpoint.

    Raises:
        Missing: no checkout was given, it lacks the modules, or they cannot be imported or built here.
    """
    if setup.checkout is None:
        raise Missing("no checkout of the reference was given; --reference PATH names its folder")
    root = Path(setup.checkout).resolve()
    if not (root / "ssseg" / "modules").is_dir():
        raise Missing(f"{root} is no checkout of SSSegmentation: it has no ssseg/modules")
    if not (root / "ssseg" / "configs" / "isnet").is_dir():
        why = "the package on PyPI leaves the configs out; take the repository"
        raise Missing(f"{root} has no ssseg/configs/isnet: {why}")
    torch.set_num_threads(setup.threads)
    checkpoint = setup.checkpoint()
    try:
        segmentor = _build(root, checkpoint)
    except Exception as error:  # other people's code may fail in any way; which one is in the message
        raise Missing(f"the checkout cannot be used here: {type(error).__name__}: {error}") from None
    return CheckoutRunner(segmentor, checkpoint)


def _build(root: Path, checkpoint: Checkpoint) -> Any:
    sys.path.insert(0, str(root))
    modules = importlib.import_module("ssseg.modules")
    family = importlib.import_module(f"ssseg.configs.isnet.{checkpoint.recipe.name}")
    config = copy.deepcopy(family.SEGMENTOR_CFG)
    config["backbone"]["pretrained"] = False
    segmentor = modules.BuildSegmentor(segmentor_cfg=config, mode="TEST").eval()
    kept = segmentor.state_dict()
    segmentor.load_state_dict({**kept, **checkpoint.state_dict}, strict=True)
    torch.backends.cudnn.allow_tf32 = False  # as ssseg/test.py does
    return segmentor.to(device())


class CheckoutRunner(Runner):
    """The reference's own evaluation of one picture."""

    def __init__(self, segmentor: Any, checkpoint: Checkpoint) -> None:
        version = getattr(sys.modules["ssseg"], "__version__", "of unknown version")
        threads = f"{device()}, {torch.get_num_threads()} threads"
        self.description = f"SSSegmentation {version}, PyTorch {torch.__version__} eager, {threads}"
        self._segmentor, self._recipe = segmentor, checkpoint.recipe

    @torch.inference_mode()
    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """See `benchmarks.peers.Runner.run`."""
        start = time.perf_counter()
        self._segmentor.cfg["inference"] = self._settings(inference)
        pixels = normalise(resize(image, self._recipe.preprocess), self._recipe.preprocess).transpose(2, 0, 1)
        volumes = self._segmentor.auginference(torch.from_numpy(np.ascontiguousarray(pixels)[None]))
        networks = time.perf_counter()
        labels = merged([volume[:1] for volume in volumes], (image.shape[0], image.shape[1])).argmax(0).numpy()
        return Output(labels, {"engine": networks - start, "merge": time.perf_counter() - networks})

    def _settings(self, inference: Inference) -> dict[str, Any]:
        tta: dict[str, Any] = {
            "multiscale": list(inference.scales),
            "flip": inference.flip,
            "use_probs_before_resize": inference.softmax_before_resize,
        }
        flip_pairs = self._recipe.labels.flip_pairs
        pairs = {"fixed_seg_target_pairs": list(flip_pairs)} if flip_pairs else {}
        mode, windows = {"mode": inference.mode}, {"cropsize": inference.window, "stride": inference.stride}
        newer = {"forward": mode | windows, "tta": tta | pairs, "evaluate": {"metric_list": ["iou", "miou"]}}
        return newer | mode | {"opts": windows, "tricks": tta} | pairs
