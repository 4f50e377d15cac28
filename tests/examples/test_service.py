"""examples/service: the HTTP service in a process of its own, asked as clients ask it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import small_bundle
from children import PATIENCE, explained, run_python, start_python
from prometheus_client.parser import text_string_to_metric_families

from isnet_trt import Segmenter

SERVICE = Path(__file__).parents[2] / "examples" / "service" / "service.py"
PICTURE = small_bundle.image(3, 70, 107)
JPEG = cv2.imencode(".jpg", PICTURE)[1].tobytes()
Answer = tuple[int, bytes, dict[str, str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "small").folder


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    process = start_python(SERVICE, bundle, "--port", 0, "--threads", 1)
    try:
        line = process.stdout.readline()
        assert line.startswith("<Segmenter engine='onnxruntime'"), line + process.stderr.read()
        yield int(re.search(r"http://127\.0\.0\.1:(\d+)\n", line)[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@contextmanager
def in_this_process(bundle: Path, waiting: int = 8, **constants: float) -> Iterator[Any]:
    """The service in a thread, with other ``constants`` of its module."""
    specification = spec_from_file_location("service", SERVICE)
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    vars(module).update(constants)
    with (
        Segmenter.open(bundle, threads=1) as segmenter,
        module.Service(("127.0.0.1", 0), segmenter, waiting=waiting) as service,
    ):
        thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield service
        finally:
            service.shutdown()
            thread.join()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
    finally:
        connection.close()


def test_labels_and_shares_are_the_segmenters(port: int, bundle: Path) -> None:
    with Segmenter.open(bundle, threads=1) as segmenter:
        want = segmenter(JPEG)
    status, content, headers = ask(port, "POST", "/labels", JPEG)
    assert (status, headers["content-type"]) == (200, "image/png")
    labels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, want.labels)
    assert len(np.unique(labels)) > 1
    status, content, _ = ask(port, "POST", "/shares", JPEG)
    data = json.loads(content)
    assert (status, data["height"], data["width"]) == (200, 70, 107)
    assert {entry["id"]: entry["share"] for entry in data["classes"]} == want.shares()
    assert all(entry["name"] == want.names[entry["id"]] for entry in data["classes"])
    assert "engine" in data["seconds"]


def test_metrics_count_calls_and_failures(port: int) -> None:
    def counted() -> tuple[float, float]:
        status, content, _ = ask(port, "GET", "/metrics")
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(content.decode())}
        calls = families["isnet_trt_calls"].samples
        failures = families["isnet_trt_failures"].samples if "isnet_trt_failures" in families else []
        return sum(s.value for s in calls), sum(s.value for s in failures if s.labels["type"] == "ImageError")

    calls, failures = counted()
    assert ask(port, "POST", "/shares", JPEG)[0] == 200
    assert ask(port, "POST", "/shares", b"no picture")[0] == 400
    assert counted() == (calls + 2, failures + 1)


@pytest.mark.parametrize(
    ("request_line", "body", "status", "reason"),
    [
        ("POST /labels", b"no picture", 400, "picture"),
        ("POST /labels", b"", 400, "empty"),
        ("POST /labels", JPEG[: len(JPEG) // 2], 400, "(bytes"),
        ("POST /elsewhere", JPEG, 404, "/labels and /shares"),
        ("GET /labels", None, 404, "/metrics and /health"),
    ],
)
def test_bad_requests_are_told_why(port: int, request_line: str, body: bytes | None, status: int, reason: str) -> None:
    got, content, headers = ask(port, *request_line.split(), body)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert reason in json.loads(content)["error"]
    assert ask(port, "GET", "/health")[:2] == (200, b"ok\n")


def test_a_body_that_is_too_large_is_answered_while_it_is_sent(bundle: Path) -> None:
    with in_this_process(bundle, LINGER_SECONDS=PATIENCE) as service:
        status, content, _ = ask(service.server_address[1], "POST", "/labels", bytes(65 << 20))
    assert (status, "limit" in json.loads(content)["error"]) == (413, True)


def raw(port: int, request: bytes) -> bytes:
    """What is answered to bytes after which the client sends no more."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("length", "status"),
    [(b"", 411), (b"-5", 411), (b"99999999999", 413), (b"%d" % (len(JPEG) + 9), 400)],
)
def test_lengths_that_are_not_those_of_a_picture(port: int, length: bytes, status: int) -> None:
    header = b"Content-Length: %b\r\n" % length if length else b""
    answer = raw(port, b"POST /labels HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n" + JPEG)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer


def test_many_clients_at_once_each_get_their_labels(port: int, bundle: Path) -> None:
    pictures = [cv2.imencode(".png", np.roll(PICTURE, 8 * shift, 1))[1].tobytes() for shift in range(6)]
    with Segmenter.open(bundle, threads=1) as segmenter:
        want = [segmenter(picture).labels for picture in pictures]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda picture: ask(port, "POST", "/labels", picture), pictures))
    for (status, content, _), labels in zip(answers, want, strict=True):
        assert status == 200
        np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), -1), labels)


def test_a_full_service_says_so_and_goes_on(bundle: Path) -> None:
    with in_this_process(bundle, waiting=1) as service:
        port = service.server_address[1]
        with service.places:
            status, content, headers = ask(port, "POST", "/labels", JPEG)
            assert (status, headers["retry-after"]) == (503, "1")
            assert "waiting" in json.loads(content)["error"]
        assert ask(port, "POST", "/labels", JPEG)[0] == 200


def test_a_bundle_that_is_none_is_named(tmp_path: Path) -> None:
    ran = run_python(SERVICE, tmp_path / "none")
    assert (ran.returncode, ran.stdout) == (2, ""), explained(ran)
    assert ran.stderr.startswith(f"error: {tmp_path / 'none'} is not a folder")
