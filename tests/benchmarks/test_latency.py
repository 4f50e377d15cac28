"""The command: its result file, bad bundles, bad pictures, missing peers."""

from __future__ import annotations

from pathlib import Path

import bench_samples
import cv2
import numpy as np
import pytest
from bench_bundles import tiny

from benchmarks import latency, results, sections
from isnet_trt import cli
from isnet_trt.bundle import read_bundle

FAST = ["--rounds", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    cv2.imwrite(str(folder / "good.png"), np.random.default_rng(3).integers(0, 256, (45, 67, 3), np.uint8))
    return folder


def test_result_file_has_machine_command_and_records(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "one.json"
    arguments = [str(bundle), "--images", str(pictures), "--preset", "ms-flip", "--batch", "2", "--out", str(out)]
    assert latency.main([*arguments, *FAST]) == 0
    data = results.read(out)
    assert {"processor", "cores", "clock", "governor", "numa_nodes", "gpus", "versions", "command"} <= set(
        data["machine"]
    )
    assert data["machine"]["cpus_allowed"] == _status("Cpus_allowed_list")
    assert data["machine"]["memory_nodes_allowed"] == _status("Mems_allowed_list")
    (record,) = data["records"]
    assert record["picture"] == [45, 67]
    assert record["windows"] == 4
    assert record["contenders"][0]["status"] == "timed"
    assert record["preset"] == "ms-flip"
    assert data["gaps"] == []


def _status(name: str) -> str:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith(name))


def test_bad_input_is_named_and_the_rest_is_measured(
    bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "corrupt.jpg").write_bytes(b"\xff\xd8 no picture")
    out = tmp_path / "one.json"
    missing, peer = str(tmp_path / "nowhere"), ["--against", "openvino"]
    arguments = [missing, str(bundle), "--images", str(pictures), *peer, *FAST, "--out", str(out)]
    assert latency.main(arguments) == cli.FAILED
    data = results.read(out)
    assert len(data["records"]) == 1
    assert data["records"][0]["contenders"][0]["status"] == "timed"
    named = {gap["what"].split(": ")[-1].split("/")[-1] for gap in data["gaps"]}
    assert named == {"nowhere", "picture corrupt.jpg", "openvino"}
    errors = capsys.readouterr().err
    assert "corrupt.jpg" in errors
    assert "nowhere" in errors


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_no_picture_at_all_is_an_error(
    bundle: Path, tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    if content:
        (folder / "bad.png").write_bytes(content)
    out = tmp_path / "one.json"
    assert cli.run(latency.main, [str(bundle), "--images", str(folder), *FAST, "--out", str(out)]) == cli.ERROR
    assert "picture" in capsys.readouterr().err
    assert not out.exists()


def test_no_bundle_and_no_checkpoint_are_errors(tmp_path: Path, bundle: Path) -> None:
    assert cli.run(latency.main, [str(tmp_path / "nowhere"), *FAST]) == cli.ERROR
    assert cli.run(latency.main, [str(bundle), "--ckpt", str(tmp_path / "no.pth"), *FAST]) == cli.ERROR


def test_a_bundle_that_answers_otherwise_fails_the_command(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    wrong = tiny(tmp_path / "wrong", gain=-1.0)
    out = tmp_path / "one.json"
    assert latency.main([str(bundle), str(wrong), "--images", str(pictures), *FAST, "--out", str(out)]) == cli.FAILED
    assert [c["status"] for c in results.read(out)["records"][0]["contenders"]] == ["timed", "refused"]


def test_a_checkout_that_is_named_is_a_peer(bundle: Path, tmp_path: Path) -> None:
    bundles, ckpt = [read_bundle(bundle)], tmp_path / "one.pth"
    for against, peers in ((None, ["reference", "checkout"]), (["checkout", "pytorch"], ["checkout", "pytorch"])):
        setups = latency.setups(bundles, against, ckpt, 1, reference=tmp_path)
        assert [setup.kind for setup in setups] == ["bundle", *peers]
        assert all(setup.checkout == tmp_path for setup in setups if setup.kind == "checkout")
    assert [setup.kind for setup in latency.setups(bundles, None, ckpt, 1)] == ["bundle", "reference"]


def test_text_names_the_oracle_and_the_memory_on_the_gpu() -> None:
    record = {**bench_samples.latency(), "labels_of": "reference"}
    record["contenders"][0]["memory"]["device"] = 300 << 20
    text = sections.text([record])
    assert "labels compared with those of reference" in text
    assert "on the GPU MiB" in text
    assert text.count(" 300 |") == 1


def test_a_lower_precision_brings_its_own_bound(tmp_path: Path) -> None:
    report = {"tolerance": {"agreement": 0.93}}
    rough = read_bundle(tiny(tmp_path / "rough", precision="int8", parity=report))
    plain = read_bundle(tiny(tmp_path / "plain"))
    least = latency.bounds([plain, rough])
    assert least["isnet_trt onnxruntime int8"] == 0.93
    assert "isnet_trt onnxruntime fp32" not in least
