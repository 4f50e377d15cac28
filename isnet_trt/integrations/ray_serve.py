"""Serve a bundle with Ray Serve: an application that segments encoded images sent over HTTP or through a handle.

Ray Serve does routing, batching, restarts and autoscaling (https://docs.ray.io/en/latest/serve/index.html).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from isnet_trt.bundle import read_bundle
from isnet_trt.bundle.draft import absolute
from isnet_trt.errors import ImageError, IsnetError, OutOfMemory, SettingsError, needs
from isnet_trt.integrations.calls import Call, inference_of
from isnet_trt.integrations.calls import segment as segment_calls
from isnet_trt.pictures.files import encode_png
from isnet_trt.pictures.results import mark_png
from isnet_trt.runtime.segmenter import Segmenter

with needs("isnet_trt.integrations.ray_serve", "ray"):
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

_PROBE = np.zeros((64, 64, 3), np.uint8)


def application(
    bundle: str | os.PathLike[str],
    *,
    name: str = "isnet_trt",
    replicas: tuple[int, int] = (1, 1),
    target_ongoing_requests: float = 4,
    batch: int = 8,
    batch_wait_s: float = 0.0,
    num_gpus: float = 0,
    num_cpus: int = 1,
    engine: str | None = None,
    health_check_period_s: float = 10,
    health_check_timeout_s: float = 120,
    **deployment: Any,
) -> serve.Application:
    """The application of a bundle, for `ray.serve.run`.

    Args:
        bundle: its folder, which every node finds under this path.
        name: of the deployment.
        replicas: (least, most); Ray Serve starts further ones while replicas have more than
            ``target_ongoing_requests`` requests each.
        batch: images that a replica segments together; it waits ``batch_wait_s`` seconds for them to come.
        num_gpus: of a replica, also a fraction.
        num_cpus: of a replica: threads of ONNX Runtime and of the merge.
        engine: "onnxruntime" instead of the bundle's own engine.
        health_check_period_s: a replica that has segmented nothing for so long segments a small image.
        health_check_timeout_s: a replica that does not finish this in time is replaced; longer than a batch takes.
        deployment: further options of `ray.serve.deployment`.

    POST an encoded image to the application's route: the label map is answered as PNG (class ids, 8 bits; 16 above 256
    classes). Inference settings are query parameters: ``preset``, ``mode``, ``window`` and so on. Status 400: the image
    or a parameter cannot be used; 503: too little memory; 500: the engine failed; the body is {"error": reason}.
    Through a handle: ``labels(content, parameters)``.

    Raises:
        BundleError: there is no such bundle.
    """
    read_bundle(bundle, verify=False)
    device = "cuda" if num_gpus else "auto"
    options = {"engine": engine, "threads": max(1, int(num_cpus)), "device": device}
    least, most = replicas
    settings = {
        "name": name,
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
        "max_ongoing_requests": max(2 * batch, 2),
        "autoscaling_config": {
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": target_ongoing_requests,
        },
        "health_check_period_s": health_check_period_s,
        "health_check_timeout_s": health_check_timeout_s,
    }
    deployed = serve.deployment(Replica).options(**{**settings, **deployment})
    return deployed.bind(str(absolute(bundle)), options, batch, batch_wait_s, health_check_period_s)


class Replica:
    """A process of the application, with a segmenter of its own."""

    def __init__(
        self, bundle: str, options: Mapping[str, Any], batch: int = 8, batch_wait_s: float = 0.0, period_s: float = 10
    ) -> None:
        self._segmenter = Segmenter.open(bundle, **options)
        self._period_s = period_s
        self._last = -np.inf
        self._batched.set_max_batch_size(batch)
        self._batched.set_batch_wait_timeout_s(batch_wait_s)

    async def __call__(self, request: Request) -> Response:
        """Answer an HTTP request."""
        try:
            if request.method != "POST":
                raise SettingsError(f"{request.method}: POST the content of an image file")
            labels = await self.labels(await request.body(), dict(request.query_params))
        except Exception as error:
            reason = str(error) if isinstance(error, IsnetError) else f"{type(error).__name__}: {error}"
            return JSONResponse({"error": reason}, status_code=_status(error))
        return Response(mark_png(encode_png(labels)), media_type="image/png")

    async def labels(self, content: bytes, parameters: Mapping[str, Any] | None = None) -> np.ndarray:
        """The label map (H, W) of an encoded image, with the inference settings that ``parameters`` name.

        Raises:
            ImageError: the image cannot be segmented.
            SettingsError: a parameter is unknown, or its value cannot be used.
            EngineError: the engine failed.
        """
        call = Call([content], {"inference": inference_of(parameters or {}, self._segmenter)})
        call = await self._batched(call)
        if call.error is not None:
            raise call.error
        return call.results[0].labels

    @serve.batch
    async def _batched(self, calls: list[Call]) -> list[Call]:
        await asyncio.to_thread(segment_calls, self._segmenter, calls)
        if any(call.error is None for call in calls):
            self._last = time.monotonic()
        return calls

    async def check_health(self) -> None:
        """Segment a small image, unless one was segmented lately; what fails makes Ray Serve replace the replica."""
        if time.monotonic() - self._last > self._period_s:
            await asyncio.to_thread(self._segmenter, _PROBE)


def _status(error: Exception) -> int:
    if isinstance(error, OutOfMemory):
        return 503
    return 400 if isinstance(error, ImageError | SettingsError) else 500
