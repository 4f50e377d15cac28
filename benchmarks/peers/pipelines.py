"""What is usually written around a session of ONNX Runtime: loops, MONAI's windows, transformers' post-processing.

All run the graph of one bundle in the session that the bundle's own engine has, on the same normalised pixels, one
window at a time. What is timed is what surrounds the network; each form is the best fair one of its kind.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.peers import Missing, Output, Runner, Setup
from benchmarks.peers.evaluation import merged, network_input, score_volumes, unmirrored
from benchmarks.peers.networks import library
from benchmarks.peers.reference import clear_pixels
from isnet_trt.bundle import read_bundle
from isnet_trt.merging.geometry import starts
from isnet_trt.runtime.opening import open_engine
from isnet_trt.settings import Inference

Array = NDArray[np.float32]


class SessionRunner(Runner):
    """The graph of a bundle under ONNX Runtime; a subclass makes labels of it.

    Raises:
        Missing: there is no bundle, or what a subclass needs is not installed.
    """

    about: str

    def __init__(self, setup: Setup) -> None:
        if setup.bundle is None:
            raise Missing("this peer needs a bundle, whose graph it runs")
        torch.set_num_threads(setup.threads)
        cv2.setNumThreads(setup.threads)
        bundle = read_bundle(setup.bundle)
        self.manifest = bundle.manifest
        self._engine = open_engine(bundle, "onnxruntime", threads=setup.threads)
        self.description = f"{self.about}, {self._engine.description}"
        self._seconds = 0.0

    def network(self, x: Tensor) -> Tensor:
        """Logits (B, K, h, w) of normalised pixels (B, 3, H, W)."""
        return torch.from_numpy(self.logits(x.contiguous().numpy()))

    def logits(self, x: Array) -> Array:
        """The same on arrays; ``x`` is contiguous."""
        start = time.perf_counter()
        logits = self._engine.run(x)
        self._seconds += time.perf_counter() - start
        return logits

    @torch.inference_mode()
    def run(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """See `benchmarks.peers.Runner.run`."""
        start, self._seconds = time.perf_counter(), 0.0
        output = self.label(image, inference)
        rest = time.perf_counter() - start - self._seconds
        return Output(output.labels, {"engine": self._seconds, "merge": rest}, output.clear)

    @abstractmethod
    def label(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        """Labels of one picture."""

    def _pixels(self, image: NDArray[np.uint8]) -> Tensor:
        return network_input(image, self.manifest.preprocess)

    def _only(self, inference: Inference, expected: Inference, why: str) -> None:
        if inference != expected:
            raise Missing(f"{why}, not {inference.describe()}")


class TorchLoop(SessionRunner):
    """The loop in PyTorch: windows enlarged and added into a volume, volumes resized, averaged, arg max."""

    about = f"PyTorch {torch.__version__} loop"

    def label(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        volumes = score_volumes(self.network, self._pixels(image), inference, self.manifest.labels.flip_pairs)
        mean = merged(volumes, (image.shape[0], image.shape[1]))
        return Output(mean.argmax(0).numpy(), clear=lambda: clear_pixels(mean))


class NumpyLoop(SessionRunner):
    """The same loop in NumPy, with OpenCV's resize for each class."""

    about = f"NumPy {np.__version__} and OpenCV {cv2.__version__} loop"

    def label(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        if inference.scales != (1.0,):
            raise Missing(f"the loop has one scale, not {inference.describe()}")
        pixels = self._pixels(image).numpy()
        total: Any = 0
        for mirrored in (False, True) if inference.flip else (False,):
            shown = np.ascontiguousarray(pixels[..., ::-1]) if mirrored else pixels
            scores = self._scores(shown, inference)
            total += self._unmirrored(scores) if mirrored else scores
        return Output(total.argmax(0))

    def _unmirrored(self, scores: Array) -> Array:
        for left, right in self.manifest.labels.flip_pairs:
            scores[[left, right]] = scores[[right, left]]
        return scores[..., ::-1]

    def _scores(self, pixels: Array, inference: Inference) -> Array:
        """Scores (K, H, W) of one pass."""
        height, width = pixels.shape[2:]
        if inference.mode == "whole":
            logits = self.logits(pixels)[0]
            return enlarged(softmax(logits) if inference.softmax_before_resize else logits, height, width)
        assert inference.window is not None
        assert inference.stride is not None
        total, count = None, np.zeros((height, width), np.float32)
        for top, bottom in starts(height, inference.window[0], inference.stride[0]):
            for left, right in starts(width, inference.window[1], inference.stride[1]):
                window = np.ascontiguousarray(pixels[..., top:bottom, left:right])
                scores = enlarged(self.logits(window)[0], bottom - top, right - left)
                if total is None:
                    total = np.zeros((len(scores), height, width), np.float32)
                total[:, top:bottom, left:right] += softmax(scores) if inference.softmax_before_resize else scores
                count[top:bottom, left:right] += 1
        assert total is not None
        total /= count
        return total


def enlarged(scores: Array, height: int, width: int) -> Array:
    """Scores (K, height, width) of (K, h, w), class by class."""
    out = np.empty((len(scores), height, width), np.float32)
    for plane, source in zip(out, scores, strict=True):
        cv2.resize(source, (width, height), dst=plane, interpolation=cv2.INTER_LINEAR)
    return out


def softmax(scores: Array) -> Array:
    """Softmax over the classes, in place."""
    scores -= scores.max(0)
    np.exp(scores, out=scores)
    scores /= scores.sum(0)
    return scores


class Monai(SessionRunner):
    """MONAI's sliding windows.

    The predictor enlarges each window to its size: scores of another size would be averaged before they are enlarged,
    which gives other labels. MONAI has no mirrored passes: it is called twice.
    """

    def __init__(self, setup: Setup) -> None:
        monai = library("monai", "monai")
        self._infer: Callable[..., Any] = library("monai.inferers", "monai").sliding_window_inference
        self.about = f"MONAI {monai.__version__} sliding_window_inference"
        super().__init__(setup)

    def label(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        x = self._pixels(image)
        total = self._scores(x, inference)
        if inference.flip:
            total += unmirrored(self._scores(x.flip(3), inference), self.manifest.labels.flip_pairs)
        return Output(total[0].argmax(0).numpy())

    def _scores(self, x: Tensor, inference: Inference) -> Tensor:
        window, stride = inference.window or tuple(x.shape[2:]), inference.stride or tuple(x.shape[2:])
        overlap = tuple(1 - step / side for step, side in zip(stride, window, strict=True))
        whole, probabilities = inference.mode == "whole", inference.softmax_before_resize

        def predict(part: Tensor) -> Tensor:
            logits = self.network(part)
            if probabilities and whole:
                logits = logits.softmax(1)
            scores = F.interpolate(logits, size=part.shape[2:], mode="bilinear")
            return scores.softmax(1) if probabilities and not whole else scores

        scores: Tensor = self._infer(x, window, 1, predict, overlap=overlap)
        return scores


class Transformers(SessionRunner):
    """transformers' post-processing of SegFormer, on the logits of the session."""

    def __init__(self, setup: Setup) -> None:
        transformers = library("transformers", "transformers")
        self.about = f"transformers {transformers.__version__} post_process_semantic_segmentation"
        super().__init__(setup)
        self.processor = transformers.SegformerImageProcessor(do_resize=False)
        self._output = library("transformers.modeling_outputs", "transformers").SemanticSegmenterOutput

    def label(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        self._only(inference, Inference(), "transformers' post-processing takes one pass over the whole picture")
        outputs = self._output(logits=self.network(self._pixels(image)))
        (labels,) = self.processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])
        return Output(labels.numpy())


class TransformersPipeline(Transformers):
    """transformers' image-segmentation pipeline around the session; the label map is put together from its masks."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        transformers = library("transformers", "transformers")
        self.about = f"transformers {transformers.__version__} image-segmentation pipeline"
        names = dict(enumerate(self.manifest.labels.names))
        tiny = {"hidden_sizes": [8, 16, 32, 64], "depths": [1] * 4, "decoder_hidden_size": 8, "id2label": names}
        model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**tiny)).eval()
        # The session instead of its layers.
        model.forward = lambda pixel_values: self._output(logits=self.network(pixel_values))
        self.description = f"{self.about}, {self._engine.description}"
        self._labels = {name: number for number, name in names.items()}
        self._pipeline = transformers.pipeline("image-segmentation", model=model, image_processor=self.processor)

    def label(self, image: NDArray[np.uint8], inference: Inference) -> Output:
        from PIL import Image

        self._only(inference, Inference(), "transformers' pipeline takes one pass over the whole picture")
        labels = np.zeros(image.shape[:2], np.int64)
        for segment in self._pipeline(Image.fromarray(image), subtask="semantic"):
            labels[np.asarray(segment["mask"]) > 0] = self._labels[segment["label"]]
        return Output(labels)
