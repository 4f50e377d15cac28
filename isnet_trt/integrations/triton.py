"""The model that Triton's Python backend runs: a `Segmenter` for each instance of the model.

`isnet_trt.bundle.triton_repository` writes the model repository. All tensors pass through DLPack: inputs are used where
they lie, in host or GPU memory, and the backend's own conversion, which mixes up sizes with NumPy 2, is not needed.
Interface: https://github.com/triton-inference-server/python_backend
"""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isnet_trt.bundle.triton_repository import BUNDLE, ENCODED, IMAGE, LABELS, PROBABILITIES
from isnet_trt.engines.cores import usable_cores
from isnet_trt.errors import ImageError, IsnetError, OutOfMemory, SettingsError
from isnet_trt.integrations.calls import Call, inference_of, segment
from isnet_trt.pictures.dlpack import capsule_of, mark_consumed
from isnet_trt.pictures.memory import HOST, Memory, Refused
from isnet_trt.pictures.protocols import memory_of
from isnet_trt.pictures.raw import RawImage
from isnet_trt.runtime.segmenter import Segmenter
from isnet_trt.telemetry.stats import BUCKETS, FAILURES


class TritonPythonModel:
    """An instance of the model; Triton calls its methods, one at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle beside model.py; ``args`` are the server's names and settings of the instance."""
        import triton_python_backend_utils as utils  # only a process of the server has this module

        self._utils: Any = utils
        config = json.loads(args["model_config"])
        try:
            self._segmenter = _open(args, config)
        except IsnetError as error:
            raise utils.TritonModelException(str(error)) from None
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
        }
        self._metrics = Metrics(utils.MetricFamily, labels)
        utils.Logger.log_info(f"{args['model_instance_name']}: {self._segmenter.description}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with its outputs or its own error."""
        calls = [self._read(request) for request in requests]
        segment(self._segmenter, calls)
        return [self._response(call) for call in calls]

    def finalize(self) -> None:
        """Close the bundle."""
        self._segmenter.close()

    def _read(self, request: Any) -> Call:
        try:
            if request.is_cancelled():
                raise Cancelled("the client cancelled the request")
            parameters = json.loads(request.parameters())
            order = parameters.pop("order", "rgb")
            outputs = frozenset(request.requested_output_names())
            inference = inference_of(parameters, self._segmenter)
            images = images_of({tensor.name(): tensor for tensor in request.inputs()}, order)
            return Call(images, {"inference": inference, "probabilities": PROBABILITIES in outputs}, outputs)
        except Exception as error:
            return Call(error=error)

    def _response(self, call: Call) -> Any:
        try:
            if call.error is not None:
                raise call.error
            tensors = [self._tensor(name, array) for name, array in arrays_of(call).items()]
            for result in call.results:
                self._metrics.succeeded(result.seconds)
        except Exception as error:
            self._metrics.failed(error)
            if not isinstance(error, IsnetError):
                self._utils.Logger.log_error("".join(traceback.format_exception(error)))
            return self._utils.InferenceResponse(error=self._triton_error(error))
        return self._utils.InferenceResponse(output_tensors=tensors)

    def _tensor(self, name: str, array: np.ndarray) -> Any:
        capsule = capsule_of(array)
        tensor = self._utils.Tensor.from_dlpack(name, capsule)
        mark_consumed(capsule)  # under another name than DLPack's, the backend leaves it to numpy to complain
        return tensor

    def _triton_error(self, error: Exception) -> Any:
        codes = self._utils.TritonError
        kinds = {
            Cancelled: codes.CANCELLED,
            ImageError: codes.INVALID_ARG,
            SettingsError: codes.INVALID_ARG,
            OutOfMemory: codes.UNAVAILABLE,
        }
        code = next((code for kind, code in kinds.items() if isinstance(error, kind)), codes.INTERNAL)
        return codes(str(error) if isinstance(error, IsnetError) else f"{type(error).__name__}: {error}", code)


class Cancelled(IsnetError):
    """The client gave up the request before it was computed."""


def _open(args: Mapping[str, str], config: Mapping[str, Any]) -> Segmenter:
    folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE
    engine = config["parameters"]["engine"]["string_value"]
    if args["model_instance_kind"] == "GPU":
        return Segmenter.open(folder, engine=engine, device=f"cuda:{args['model_instance_device_id']}")
    instances = sum(group["count"] for group in config["instance_group"])
    threads = None if instances == 1 else max(1, usable_cores() // instances)
    return Segmenter.open(folder, engine=engine, threads=threads)


def images_of(tensors: Mapping[str, Any], order: Any) -> list[Any]:
    """The images of a request: in place, or the content of image files.

    Raises:
        ImageError: there is not one input, it is empty, or a size cannot be segmented.
        SettingsError: ``order`` is unknown.
    """
    if len(tensors) != 1:
        raise ImageError(f"the request has {' and '.join(sorted(tensors)) or 'no input'}; send {IMAGE} or {ENCODED}")
    ((name, tensor),) = tensors.items()
    try:
        memory = memory_of(tensor, None)
    except Refused as reason:
        raise ImageError(f"the input {name} {reason}") from reason.__cause__
    if memory is None or 0 in memory.shape:
        raise ImageError(f"the input {name} is empty")
    if name == ENCODED:
        if memory.device != HOST:
            raise ImageError(f"the input {name} is in GPU memory; images are decoded on the host: send it from there")
        return list(memory.array())
    return list(_pixels(memory, order))


def _pixels(memory: Memory, order: Any) -> Iterator[RawImage]:
    count, height, width, channels = memory.shape
    if order not in ("rgb", "bgr"):  # the repository's input has three channels
        raise SettingsError(f"parameter order is {order!r}; give rgb or bgr")
    for number in range(count):
        address = memory.address + number * height * width * channels
        origin = {"device": memory.device, "stream": memory.stream, "owner": memory.owner}
        yield RawImage(address, height, width, order=order, **origin)


def arrays_of(call: Call) -> dict[str, np.ndarray]:
    """The requested outputs; ImageError where the images of the request have several sizes."""
    sizes = {result.labels.shape for result in call.results}
    if len(sizes) > 1:
        raise ImageError(f"the images have different sizes, {sorted(sizes)}: send each in a request of its own")
    arrays: dict[str, list[Any]] = {LABELS: [result.labels for result in call.results]}
    if PROBABILITIES in call.outputs:
        arrays[PROBABILITIES] = [result.probabilities for result in call.results]
    return {name: _stacked(images) for name, images in arrays.items() if name in call.outputs}


def _stacked(images: Sequence[Any]) -> np.ndarray:
    return images[0][None] if len(images) == 1 else np.stack(images)


class Metrics:
    """Calls, failures and seconds by stage, under the names of `isnet_trt.telemetry.stats` on the server's /metrics."""

    def __init__(self, families: Any, labels: Mapping[str, str]) -> None:
        text = "Images that were segmented, and failed requests."
        # An attribute: a family must outlive its metrics.
        self._calls = families(name="isnet_trt_calls_total", description=text, kind=families.COUNTER)
        text = "Failed requests by type of the error."
        failures = families(name="isnet_trt_failures_total", description=text, kind=families.COUNTER)
        text = "Time of each stage by image."
        stages = families(name="isnet_trt_stage_seconds", description=text, kind=families.HISTOGRAM)
        buckets = list(BUCKETS)
        self._call = self._calls.Metric(labels=labels)
        self._failure = functools.cache(lambda name: failures.Metric(labels={**labels, "type": name}))
        self._stage = functools.cache(lambda name: stages.Metric(labels={**labels, "stage": name}, buckets=buckets))
        for name in FAILURES:
            self._failure(name)

    def succeeded(self, seconds: Mapping[str, float]) -> None:
        """Count an image, and the ``seconds`` of its stages."""
        self._call.increment(1)
        for stage, part in seconds.items():
            self._stage(stage).observe(part)

    def failed(self, error: Exception) -> None:
        """Count a request that is answered with ``error``."""
        self._call.increment(1)
        self._failure(type(error).__name__).increment(1)
