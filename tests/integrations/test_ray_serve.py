"""A bundle as a Ray Serve application on a local cluster, asked over HTTP and by handle; by ``make test-ray``."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from children import PATIENCE, free_ports, wait_until
from integrations import ray_cluster
from small_bundle import image

from isnet_trt import Segmenter
from isnet_trt.errors import BundleError, EngineError, ImageError, SettingsError

pytestmark = [pytest.mark.slow, pytest.mark.ray]
if ray_cluster.MISSING:
    pytest.skip(ray_cluster.MISSING, allow_module_level=True)

from ray import serve  # noqa: E402
from ray.serve.handle import DeploymentHandle  # noqa: E402

from isnet_trt.integrations.ray_serve import Replica, application  # noqa: E402

PNG = cv2.imencode(".png", image(3))[1].tobytes()


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[tuple[str, DeploymentHandle]]:
    """The application's URL and handle."""
    (port,) = free_ports(1)
    with ray_cluster.cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        app = application(bundle, replicas=(1, 2), batch=4, health_check_period_s=1)
        handle = serve.run(app, name="streets", route_prefix="/streets")
        yield f"http://127.0.0.1:{port}/streets", handle
        serve.shutdown()


def post(url: str, content: bytes | None, method: str = "POST") -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=content, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            assert response.headers["content-type"] == "image/png"
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def labels_of(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def test_http_answers_with_the_label_map(served: tuple[str, DeploymentHandle], segmenter: Segmenter) -> None:
    for query, inference in (("", "default"), ("?preset=ms-flip", "ms-flip")):
        status, png = post(served[0] + query, PNG)
        assert status == 200
        np.testing.assert_array_equal(labels_of(png), segmenter(PNG, inference=inference).labels)
    settings = segmenter.inference.replace(mode="slide", window=(40, 48), stride=(24, 24), flip=True)
    status, png = post(f"{served[0]}?mode=slide&window=40x48&stride=24x24&flip=true", PNG)
    np.testing.assert_array_equal(labels_of(png), segmenter(PNG, inference=settings).labels)


def test_a_handle_returns_the_label_map_or_raises(served: tuple[str, DeploymentHandle], segmenter: Segmenter) -> None:
    labels = served[1].labels.remote(PNG, {"scales": "0.5 1"}).result()
    want = segmenter(PNG, inference=segmenter.inference.replace(scales=(0.5, 1.0)))
    np.testing.assert_array_equal(labels, want.labels)
    with pytest.raises(ImageError, match="cut off"):
        served[1].labels.remote(PNG[:100]).result()
    with pytest.raises(SettingsError, match="there are: default, ms-flip"):
        served[1].labels.remote(PNG, {"preset": "best"}).result()


@pytest.mark.parametrize(
    ("query", "content", "method", "reason"),
    [
        ("", b"no image", "POST", "not a picture"),
        ("", b"", "POST", "empty"),
        ("", None, "GET", "POST the content of an image file"),
        ("?preset=best", PNG, "POST", "there are: default, ms-flip"),
        ("?windows=9", PNG, "POST", "parameter windows is unknown"),
    ],
)
def test_bad_requests_are_told_why(
    served: tuple[str, DeploymentHandle], query: str, content: bytes | None, method: str, reason: str
) -> None:
    status, body = post(served[0] + query, content, method)
    assert status == 400
    assert reason in json.loads(body)["error"]


def test_many_requests_of_which_a_tenth_is_damaged(served: tuple[str, DeploymentHandle], segmenter: Segmenter) -> None:
    want = segmenter(PNG).labels
    contents = [PNG[:90] if number % 10 == 3 else PNG for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda content: post(served[0], content), contents))
    for content, (status, body) in zip(contents, answers, strict=True):
        if content == PNG:
            np.testing.assert_array_equal(labels_of(body), want)
        else:
            assert status == 400
            assert "90 bytes" in json.loads(body)["error"]


def test_a_killed_replica_is_replaced(served: tuple[str, DeploymentHandle], segmenter: Segmenter) -> None:
    before = ray_cluster.processes("ServeReplica:streets")
    assert before
    ray_cluster.kill(before)
    answers: list[tuple[int, bytes]] = []

    def answered() -> bool:
        answers.append(post(served[0], PNG))
        return answers[-1][0] == 200 and bool(ray_cluster.processes("ServeReplica:streets") - before)

    wait_until(answered, lambda: answers[-1], interval=0.2)
    np.testing.assert_array_equal(labels_of(answers[-1][1]), segmenter(PNG).labels)


def test_the_health_check_segments_an_image_and_fails_with_the_engine(bundle: Path) -> None:
    async def check(replica: Replica) -> None:
        await replica.check_health()

    replica = Replica(str(bundle), {"threads": 1}, period_s=0)
    asyncio.run(check(replica))
    assert replica._segmenter.stats().calls == 1
    replica._segmenter.close()
    with pytest.raises(EngineError, match="was closed"):
        asyncio.run(check(replica))


def test_a_bundle_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="none is not a folder"):
        application(tmp_path / "none")
