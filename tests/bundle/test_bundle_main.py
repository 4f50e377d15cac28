"""``python -m isnet_trt.bundle``, as a user calls it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from children import explained
from small_bundle import SLIDE, write_bundle

from isnet_trt import cli
from isnet_trt.bundle import ENGINE, MANIFEST, ONNX, CheckpointInfo, content_digest, read_bundle
from isnet_trt.bundle.__main__ import main
from isnet_trt.bundle.manifest import manifest_from_json
from isnet_trt.engines.info import EngineInfo
from isnet_trt.engines.table import library
from isnet_trt.errors import BundleError
from isnet_trt.settings import Labels, NetworkFacts, Preprocess


def _call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isnet_trt.bundle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_show_is_a_page_about_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ((1, 3, 33, 35), (1, 3, 512, 512), (2, 3, 1024, 2048))
    engine = EngineInfo("tensorrt", "10.13.3.9", ENGINE, ("8.9",), "NVIDIA L4", "CUDA 13.0", shapes, "plugin", True)
    bundle = write_bundle(tmp_path / "small", engine)
    assert main(["show", str(bundle.folder)]) == 0
    page = capsys.readouterr().out
    for said in (
        "isnet_small, fp32",
        "2026-01-02T03:04:05+00:00 by isnet_trt 0.1.0",
        f"small.pth, SHA-256 {'ab' * 32}",
        "tensorrt 10.13.3.9, model.engine, built on NVIDIA L4 (CUDA 13.0)",
        "the bundle's kernels, as plugins",
        "tensorrt 10.13.3.9 and later ones of the same major version",
        "compute capability 8.9",
        "1x3x33x35 … 1x3x512x512 … 2x3x1024x2048",
        "exactly 473x473",
        "logits of 3 classes at stride 8",
        "0 left, 1 right, 2 sky",
        "left / right",
        f"ms-flip: {SLIDE.describe()}",
        f"model.onnx, {bundle.manifest.files[ONNX].bytes} bytes",
        "engine: ONNX Runtime",
        "pictures: picture a.png, max 1e-05",
    ):
        assert said in page


def test_show_prints_the_digests_that_tell_bundles_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "small")
    assert main(["show", str(bundle.folder)]) == 0
    page = capsys.readouterr().out
    assert f"SHA-256 {hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest()} of {MANIFEST}" in page
    digests = {name: info.sha256 for name, info in bundle.manifest.files.items()}
    assert f"SHA-256 {content_digest(digests)} of all files but the report's" in page
    listed = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    assert content_digest(digests) == hashlib.sha256(listed.encode()).hexdigest()
    report = {"precision.md": "0" * 64, "precision/1-input.jpg": "1" * 64}
    assert content_digest({**digests, **report}) == content_digest(digests)
    assert content_digest({**digests, "precision_table.bin": "0" * 64}) != content_digest(digests)


def test_show_json_is_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "small")
    assert main(["show", "--json", str(bundle.folder)]) == 0
    assert manifest_from_json(json.loads(capsys.readouterr().out), "stdout") == bundle.manifest


def test_show_says_nothing_of_the_content(tmp_path: Path) -> None:
    """It is for looking: a changed byte is found by verify."""
    bundle = write_bundle(tmp_path / "small")
    content = bytearray(bundle.path(ONNX).read_bytes())
    content[-1] ^= 1
    bundle.path(ONNX).write_bytes(content)
    assert main(["show", str(bundle.folder)]) == 0
    assert cli.run(main, ["verify", str(bundle.folder)]) == cli.ERROR


def test_show_tells_the_facts_of_other_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = Labels(("paper", "text"), ((0, 0, 0), (9, 9, 9)))
    network = NetworkFacts("sigmoid", 0.3, "align_corners", 32, "centre", (1, 2.5, 255))
    folder = write_bundle(
        tmp_path / "small", labels=labels, network=network, preprocess=Preprocess(None, channel_order="bgr")
    ).folder
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "BGR, not resized; minus 123.675" in shown
    assert "to a multiple of 32, at the centre, with 1 2.5 255" in shown
    output = (
        "probabilities (sigmoid) of 1 class at stride 8, label 1 above a probability of 0.3, enlarged to the input's"
    )
    assert output in shown


HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202e\u2028"


def test_control_characters_are_never_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From every text of a manifest, by show, show --json and verify, as an error message too."""
    labels = Labels((HOSTILE, "نیم‌فاصله"), ((0, 0, 0),) * 2)  # the second has a zero-width non-joiner, as it should
    engine = EngineInfo("tensorrt", "10.13.3.9", ENGINE, (), f"GPU {HOSTILE}", HOSTILE)
    texts = dict.fromkeys(("recipe", "precision", "created_at", "isnet_trt_version"), HOSTILE)
    parity = {HOSTILE: HOSTILE, "rows": [{HOSTILE: HOSTILE}], "list": [HOSTILE], "deep": {"a": [HOSTILE]}}
    checkpoint = CheckpointInfo(HOSTILE, "ab" * 32)
    folder = write_bundle(
        tmp_path / "small", engine, labels=labels, checkpoint=checkpoint, parity=parity, **texts
    ).folder
    (folder / f"notes{HOSTILE}").touch()
    for arguments in (["show"], ["show", "--json"], ["verify"]):
        cli.run(main, [*arguments, str(folder)])
        out, err = capsys.readouterr()
        assert (out + err).replace("\n", "").replace("\u200c", "").isprintable()
        assert "title" in out + err
    path = folder / MANIFEST
    path.write_text(path.read_text("utf-8").replace('"output_stride": 8', '"output_stride": "\\u001b[2J"'), "utf-8")
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert str(caught.value).isprintable()


def test_verify_names_what_is_not_of_the_bundle(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "small").folder
    for name in ("README.md", "Thumbs.db", ".DS_Store"):
        (folder / name).touch()
    result = _call("verify", folder)
    assert result.returncode == 0, explained(result)
    assert "not of the bundle, left unread: .DS_Store, README.md, Thumbs.db\n" in result.stdout


def test_verify_whole(tmp_path: Path) -> None:
    result = _call("verify", write_bundle(tmp_path / "small").folder)
    assert result.returncode == 0, explained(result)
    assert "1 files, all as they were built" in result.stdout
    assert "its engine (onnxruntime) can run here" in result.stdout


@pytest.mark.skipif(library("tensorrt").installed_version() is not None, reason="tensorrt is installed")
def test_verify_whole_but_not_runnable_here(tmp_path: Path) -> None:
    result = _call("verify", write_bundle(tmp_path / "small", EngineInfo("tensorrt", "10.1", ENGINE)).folder)
    assert result.returncode == cli.FAILED, explained(result)
    assert "2 files, all as they were built" in result.stdout
    assert "its engine cannot run here: " in result.stdout
    assert "pip install" in result.stdout


@pytest.mark.parametrize("damage", ["absent", "file", "manifest", "schema"])
def test_verify_damaged(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "small"
    if damage != "absent":
        write_bundle(folder)
    path = folder / (ONNX if damage == "file" else MANIFEST)
    if damage == "schema":
        path.write_text(path.read_text("utf-8").replace('"schema_version": ', '"schema_version": 9'), "utf-8")
    elif damage != "absent":
        path.write_bytes(path.read_bytes()[:-9])
    result = _call("verify", folder)
    assert result.returncode == cli.ERROR, explained(result)
    assert result.stderr.startswith(f"error: {folder}")
    assert result.stderr.count("\n") == 1


def test_help_teaches() -> None:
    result = _call("--help")
    assert result.returncode == 0, explained(result)
    for said in ("show bundles/ade", "verify bundles/ade", "exit status"):
        assert said in result.stdout
    assert _call("repair", "x").returncode == cli.ERROR
