"""Exported bundles in a real Triton Inference Server, asked over HTTP and gRPC; run by ``make test-triton-server``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from children import CHECKOUT, PATIENCE, environment, explained, wait_until
from integrations import triton_server
from integrations.triton_server import SITE, Client, Server, running, start
from small_bundle import SLIDE, image, write_bundle

from isnet_trt import Segmenter
from isnet_trt.bundle import ENGINE
from isnet_trt.bundle.triton_repository import Serving, export_triton
from isnet_trt.engines.info import EngineInfo
from isnet_trt.integrations.triton_server import Address

pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton_server,
    pytest.mark.skipif(not SITE, reason=triton_server.MISSING),
]
SIZES = ((70, 107), (33, 48), (121, 64))
PROTOCOLS = ("http", "grpc")


def encoded(pixels: np.ndarray) -> np.ndarray:
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].reshape(1, -1)


def error_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, str]:
    """Status and message of the error that the server answers with."""
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return str(caught.value.status()), caught.value.message()


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_triton(bundle, tmp_path_factory.mktemp("repository"), "small", Serving(instances=2)).parent


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(repository, tmp_path_factory.mktemp("log") / "log") as started:
        yield started


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_labels_are_those_of_the_python_call(server: Server, segmenter: Segmenter, protocol: str) -> None:
    client, pixels = server.client(protocol), image(1)
    (labels,) = client.ask("small", {"IMAGE": pixels[None]})
    np.testing.assert_array_equal(labels[0], segmenter(pixels).labels)
    assert len(np.unique(labels)) > 1
    assert "PyCapsule" not in server.log.read_text("utf-8")  # numpy complains of capsules that were not marked
    (labels,) = client.ask("small", {"ENCODED": encoded(pixels)})
    np.testing.assert_array_equal(labels[0], segmenter(pixels).labels)
    (labels,) = client.ask("small", {"IMAGE": pixels[None, :, :, ::-1]}, order="bgr", preset="ms-flip")
    np.testing.assert_array_equal(labels[0], segmenter(pixels, inference="ms-flip").labels)


def client_environment() -> dict[str, str]:
    paths = environment()["PYTHONPATH"]
    return environment(PYTHONPATH=f"{paths}{os.pathsep}{SITE}")


def test_the_page_and_the_example_get_the_labels(server: Server, segmenter: Segmenter, tmp_path: Path) -> None:
    """The commands of docs/serving.md that ask the server, and its Python code."""
    ask = "python examples/triton/client.py 127.0.0.1:8001 ade photo.jpg --out labels"
    page = (CHECKOUT / "docs" / "serving.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert f"\n{ask}\n" in page
    assert cv2.imwrite(str(tmp_path / "photo.jpg"), image(7))
    (tmp_path / "damaged.png").write_bytes(b"no image")
    want = {preset: segmenter(tmp_path / "photo.jpg", inference=preset).labels for preset in ("default", "ms-flip")}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        there = [word.replace(":8001", f":{server.address.grpc}").replace('"ade"', '"small"') for word in command]
        options = {"cwd": tmp_path, "env": client_environment(), "capture_output": True, "text": True}
        return subprocess.run([sys.executable, *there], check=False, **options)

    words = ask.replace("examples/", f"{CHECKOUT}/examples/").replace(" ade ", " small ").split()[1:]
    ran = run(*words[:4], "damaged.png", "missing.png", *words[4:])
    assert (ran.returncode, ran.stderr.count("error: ")) == (1, 2), explained(ran)
    assert "8 bytes" in ran.stderr
    assert "missing.png" in ran.stderr
    assert re.fullmatch(r"photo\.jpg: (left|right|sky) [0-9.]+%, .*\n", ran.stdout)
    labels = cv2.imread(str(tmp_path / "labels" / "photo_labels.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, want["default"])
    assert run(*words).returncode == 0
    ran = run("-c", f"{code}\nnp.save('labels.npy', labels)")
    assert ran.returncode == 0, explained(ran)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), want["ms-flip"])
    assert "unknown model: 'none'" in run(words[0], words[1], "none", "photo.jpg").stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_windows_and_probabilities(server: Server, segmenter: Segmenter, protocol: str) -> None:
    pixels = image(2)
    settings = {"mode": "slide", "window": "40x48", "stride": "24x24", "scales": "1 0.5", "flip": True}
    labels, probabilities = server.client(protocol).ask(
        "small", {"IMAGE": pixels[None]}, ("LABELS", "PROBABILITIES"), **settings
    )
    inference = segmenter.inference.replace(
        mode="slide", window=(40, 48), stride=(24, 24), scales=(1.0, 0.5), flip=True
    )
    want = segmenter(pixels, inference=inference, probabilities=True)
    np.testing.assert_array_equal(labels[0], want.labels)
    np.testing.assert_array_equal(probabilities[0], want.probabilities)


def test_a_request_may_hold_several_images_of_one_size(server: Server, segmenter: Segmenter) -> None:
    pixels = np.stack([image(number) for number in range(5)])
    (labels,) = server.client().ask("small", {"IMAGE": pixels})
    assert labels.shape == (5, *SIZES[0])
    for one, own in zip(pixels, labels, strict=True):
        np.testing.assert_array_equal(own, segmenter(one).labels)


def test_tensors_in_shared_memory(server: Server, segmenter: Segmenter) -> None:
    from tritonclient.utils import shared_memory

    pixels, client = image(3), server.client()
    regions = {"in": pixels.nbytes, "out": pixels.nbytes // 3}
    handles = {}
    for name, size in regions.items():
        handles[name] = shared_memory.create_shared_memory_region(name, f"/isnet_{os.getpid()}_{name}", size)
        client.connection.register_system_shared_memory(name, f"/isnet_{os.getpid()}_{name}", size)
    try:
        shared_memory.set_shared_memory_region(handles["in"], [pixels])
        tensor = client.api.InferInput("IMAGE", (1, *pixels.shape), "UINT8")
        tensor.set_shared_memory("in", regions["in"])
        output = client.api.InferRequestedOutput("LABELS")
        output.set_shared_memory("out", regions["out"])
        client.connection.infer("small", [tensor], outputs=[output])
        labels = shared_memory.get_contents_as_numpy(handles["out"], np.uint8, SIZES[0])
        np.testing.assert_array_equal(labels, segmenter(pixels).labels)
    finally:
        client.connection.unregister_system_shared_memory()
        for handle in handles.values():
            shared_memory.destroy_shared_memory_region(handle)


BAD = {
    "damaged": ({"ENCODED": encoded(image(1))[:, :200]}, {}, "cut off"),
    "no image": ({"ENCODED": np.full((1, 40), 7, np.uint8)}, {}, "40 bytes"),
    "two inputs": ({"IMAGE": image(1)[None], "ENCODED": encoded(image(1))}, {}, "send IMAGE or ENCODED"),
    "empty": ({"IMAGE": image(1)[None, :0]}, {}, "empty"),
    "gray": ({"IMAGE": image(1)[None, :, :, :1]}, {}, "[-1,-1,-1,3]"),
    "preset": ({"IMAGE": image(1)[None]}, {"preset": "best"}, "there are: default, ms-flip"),
    "parameter": ({"IMAGE": image(1)[None]}, {"windows": "9x9"}, "parameter windows is unknown"),
    "window": ({"IMAGE": image(1)[None]}, {"mode": "slide", "window": "9"}, "such as '512x1024'"),
    "too large": ({"ENCODED": encoded(np.zeros((1, 1, 3), np.uint8))}, {}, "too many"),
}


def huge() -> np.ndarray:
    """A PNG whose header says 60000 x 60000 pixels."""
    content = bytearray(encoded(np.zeros((1, 1, 3), np.uint8)).tobytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    return np.frombuffer(bytes(content), np.uint8)[None]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_told_why(server: Server, protocol: str, name: str) -> None:
    inputs, parameters, message = BAD[name]
    inputs = {"ENCODED": huge()} if name == "too large" else inputs
    status, text = error_of(server.client(protocol).ask, "small", inputs, **parameters)
    assert status == ("400" if protocol == "http" else "StatusCode.INVALID_ARGUMENT"), text
    assert message in text


def test_one_damaged_image_of_a_request_is_the_requests_error(server: Server) -> None:
    good = encoded(image(1))
    bad = good.copy()
    bad[0, good.size // 2 :] = 0
    status, text = error_of(server.client().ask, "small", {"ENCODED": np.concatenate([good, bad])})
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "image" in text


def answers(server: Server, protocol: str, requests: Iterable[np.ndarray], threads: int = 4) -> list[Any]:
    """Labels of each request, or its error's (status, message), asked by several clients at once."""
    triton_server.api(protocol)
    from tritonclient.utils import InferenceServerException

    local = threading.local()

    def answer(content: np.ndarray) -> Any:
        if not hasattr(local, "client"):
            local.client = server.client(protocol)
        try:
            return local.client.ask("small", {"ENCODED" if content.ndim == 2 else "IMAGE": content})[0][0]
        except InferenceServerException as error:
            return str(error.status()), error.message()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(answer, requests))


def test_1000_requests_of_which_a_tenth_is_damaged(server: Server, segmenter: Segmenter) -> None:
    images = [image(number, *SIZES[number % 3]) for number in range(30)]
    want = [segmenter(pixels).labels for pixels in images]
    contents = [encoded(pixels) for pixels in images]
    requests = []
    for number in range(1000):
        content = images[number % 30][None] if number % 2 else contents[number % 30]
        requests.append(contents[number % 30][:, :150] if number % 10 == 3 else content)
    # Triton counts a request that a Python model answers with an error as a success.
    names = ("nv_inference_request_success", "isnet_trt_calls_total", "isnet_trt_failures_total")
    before = {name: server.metrics(name) for name in names}
    got = answers(server, "grpc", requests, threads=8)
    for number, answer in enumerate(got):
        if number % 10 == 3:
            assert answer[0] == "StatusCode.INVALID_ARGUMENT"
            assert "150 bytes" in answer[1]
        else:
            np.testing.assert_array_equal(answer, want[number % 30])

    def changes() -> list[float]:
        return [server.metrics(name) - value for name, value in before.items()]

    # The server counts a request after its response has been sent.
    wait_until(lambda: changes()[0] >= 1000, changes)
    assert changes() == [1000, 1000, 100]


def test_http_clients_at_once_with_mixed_sizes(server: Server, segmenter: Segmenter) -> None:
    images = [image(number, *SIZES[number % 3]) for number in range(60)]
    for pixels, labels in zip(images, answers(server, "http", [pixels[None] for pixels in images]), strict=True):
        np.testing.assert_array_equal(labels, segmenter(pixels).labels)


def ask_for_ever(address: Address) -> None:
    client = Client(address, "grpc")
    while True:
        client.ask("small", {"IMAGE": np.concatenate([image(4)[None]] * 2)}, preset="ms-flip")


def test_a_client_that_is_killed_disturbs_no_other(server: Server, segmenter: Segmenter) -> None:
    script = (
        "from integrations import test_triton_server as tests\n"
        "from isnet_trt.integrations.triton_server import Address\n"
        f"tests.ask_for_ever({server.address!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", script], env=environment(), cwd=CHECKOUT)
    try:
        before = server.metrics("nv_inference_request_success")

        def asked() -> bool:
            assert child.poll() is None
            return server.metrics("nv_inference_request_success") >= before + 3

        wait_until(asked)
    finally:
        child.kill()
        child.wait()
    test_http_clients_at_once_with_mixed_sizes(server, segmenter)


def test_statistics_have_the_stages(server: Server) -> None:
    client = server.client()
    before = {stage: server.metrics("isnet_trt_stage_seconds_count", stage=stage) for stage in ("engine", "merge")}
    failures = server.metrics("isnet_trt_failures_total", type="SettingsError")
    client.ask("small", {"IMAGE": np.stack([image(1), image(2)])})
    error_of(client.ask, "small", {"IMAGE": image(1)[None]}, preset="best")
    for stage, count in before.items():
        assert server.metrics("isnet_trt_stage_seconds_count", stage=stage) == count + 2
        assert server.metrics("isnet_trt_stage_seconds_sum", stage=stage) > 0
    assert server.metrics("isnet_trt_failures_total", type="SettingsError") == failures + 1


def test_the_configuration_names_classes_and_presets(server: Server) -> None:
    config = server.client("http").connection.get_model_config("small")["parameters"]
    assert config["names"]["string_value"] == '["left", "right", "sky"]'
    assert SLIDE.describe() in config["presets"]["string_value"]


def test_a_server_that_is_stopped_in_the_middle(repository: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    images, stopped = [image(number) for number in range(400)], threading.Event()
    with running(repository, tmp_path / "log") as server:

        def stop_after_the_first_answers() -> None:
            try:
                wait_until(lambda: server.metrics("nv_inference_request_success") >= 20)
            finally:
                server.process.send_signal(signal.SIGTERM)
                stopped.set()

        def requests() -> Iterator[np.ndarray]:
            for number, pixels in enumerate(images):
                if number == 300:
                    assert stopped.wait(PATIENCE)
                yield pixels[None]

        stop = threading.Thread(target=stop_after_the_first_answers)
        stop.start()
        got = answers(server, "grpc", requests())
        stop.join()
        assert server.process.wait(PATIENCE) == 0
    kinds = Counter("error" if isinstance(answer, tuple) else "labels" for answer in got)
    assert kinds["labels"] > 0
    assert kinds["error"] > 0
    for pixels, answer in zip(images, got, strict=True):
        if isinstance(answer, tuple):
            # NOT_FOUND: the model is unloaded already, and the server is about to close its ports.
            assert answer[0] in ("StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND"), answer
            assert answer[1]
        else:
            np.testing.assert_array_equal(answer, segmenter(pixels).labels)


def test_a_bundle_that_cannot_run_says_why_and_others_are_served(bundle: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    export_triton(bundle, models, "good")
    damaged = export_triton(bundle, models, "damaged") / "1" / "bundle" / "model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    other = write_bundle(tmp_path / "other", EngineInfo("tensorrt", "10.13", ENGINE, ("8.9",), "NVIDIA L4"))
    config = export_triton(other.folder, models, "other") / "config.pbtxt"
    config.write_text(config.read_text("utf-8").replace("KIND_GPU", "KIND_CPU"), "utf-8")
    options = ("--exit-on-error=false", "--strict-readiness=false")
    with running(models, tmp_path / "log", *options) as server:
        index = server.client("http").connection.get_model_repository_index()
        reasons = {model["name"]: model.get("reason", "") for model in index}
        assert server.client().ask("good", {"IMAGE": image(1)[None]})[0].shape == (1, *SIZES[0])
        status, text = error_of(server.client().ask, "damaged", {"IMAGE": image(1)[None]})
    assert (status, "'damaged'" in text) == ("StatusCode.NOT_FOUND", True)
    assert reasons["good"] == ""
    assert "model.onnx was changed after the bundle was built" in reasons["damaged"]
    assert "Traceback" not in reasons["damaged"]
    assert "onnxruntime" in reasons["other"]


def test_a_port_that_is_taken_is_named(server: Server, repository: Path, tmp_path: Path) -> None:
    process = start(repository, server.address, tmp_path / "log")
    assert process.wait(PATIENCE) != 0
    assert str(server.address.grpc) in (tmp_path / "log").read_text("utf-8")
    server.client().ask("small", {"IMAGE": image(1)[None]})
