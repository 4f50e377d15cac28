"""examples/ray as a user starts them, each with a cluster of its own; by ``make test-ray``."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from children import CHECKOUT, PATIENCE, environment, explained, free_ports, run_python, start_python
from integrations import ray_cluster
from small_bundle import image

from isnet_trt import Segmenter

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.skipif(bool(ray_cluster.MISSING), reason="make test-ray")]
EXAMPLES = CHECKOUT / "examples" / "ray"
ENVIRONMENT = environment(**ray_cluster.VARIABLES)


def test_segment_writes_masks_and_names_what_has_none(bundle: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        assert cv2.imwrite(str(images / f"{number}.png"), image(number))
    (images / "bad.png").write_bytes(b"no image")
    ran = run_python(EXAMPLES / "segment.py", bundle, tmp_path / "out", images, env=ENVIRONMENT)
    assert ran.returncode == 1, explained(ran)
    assert ran.stdout.splitlines()[-1] == "5 masks written, 0 were there, 1 images have none"
    assert f"error: {images / 'bad.png'}: ImageError: " in ran.stderr
    for number in range(5):
        labels = cv2.imread(str(tmp_path / "out" / f"{number}_labels.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(labels, segmenter(images / f"{number}.png").labels)


def test_the_service_answers_and_ends(bundle: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    content = cv2.imencode(".png", image(0))[1].tobytes()
    (port,) = free_ports(1)
    log = (tmp_path / "log").open("w")
    service = start_python(EXAMPLES / "service.py", bundle, "--port", port, stderr=log, env=ENVIRONMENT)
    try:
        lines = iter(service.stdout.readline, "")
        address = next(line.split()[-1] for line in lines if line.startswith("serving at "))
        request = urllib.request.Request(f"{address}?preset=ms-flip", data=content)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            labels = cv2.imdecode(np.frombuffer(response.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        service.send_signal(signal.SIGTERM)
        assert service.wait(PATIENCE) == 0
    finally:
        service.kill()
        service.communicate()
        log.close()
    np.testing.assert_array_equal(labels, segmenter(content, inference="ms-flip").labels)
