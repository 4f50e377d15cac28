"""``isnet-trt bundle export-triton``: the model repository, as Triton reads it (the server itself is asked in
test_triton_server.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from small_bundle import LABELS, write_bundle

from isnet_trt import cli
from isnet_trt.bundle import ENGINE, MANIFEST, Bundle, read_bundle
from isnet_trt.bundle.__main__ import main
from isnet_trt.bundle.triton_repository import Serving, configuration, export_triton
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import BundleError, SettingsError
from isnet_trt.settings import Labels


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "small")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_model_holds_the_bundle_and_names_the_repository(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-triton", str(bundle.folder), str(tmp_path / "new" / "models"), "--name", "street"]) == 0
    folder = tmp_path / "new" / "models" / "street"
    assert capsys.readouterr().out == f"{folder}: start the server with --model-repository={folder.parent}\n"
    assert tree(folder / "1" / "bundle") == tree(bundle.folder)
    assert tree(folder).keys() - {f"1/bundle/{name}" for name in tree(bundle.folder)} == {"config.pbtxt", "1/model.py"}
    assert [path.name for path in folder.parent.iterdir()] == ["street"]
    read_bundle(folder / "1" / "bundle")


def test_the_name_is_the_recipes(bundle: Bundle, tmp_path: Path) -> None:
    assert export_triton(bundle.folder, tmp_path).name == "isnet_small"


@pytest.mark.parametrize(
    ("kind", "serving", "group"),
    [
        ("onnxruntime", Serving(), "kind: KIND_CPU count: 1"),
        ("onnxruntime", Serving(3, gpus=(0, 2)), "kind: KIND_GPU count: 3 gpus: [ 0, 2 ]"),
        ("tensorrt", Serving(2), "kind: KIND_GPU count: 2"),
        ("tensorrt", Serving(gpus=(1,)), "kind: KIND_GPU count: 1 gpus: [ 1 ]"),
        ("tensorrt", Serving(4, engine="onnxruntime"), "kind: KIND_CPU count: 4"),
    ],
)
def test_instances_run_where_the_engine_can(tmp_path: Path, kind: str, serving: Serving, group: str) -> None:
    engine = None if kind == "onnxruntime" else EngineInfo(kind, "10.13", ENGINE, ("8.9",))
    text = configuration(write_bundle(tmp_path / "small", engine), "small", serving)
    assert f"instance_group [ {{ {group} }} ]" in text
    assert f'key: "engine" value: {{ string_value: "{serving.engine or kind}" }}' in text


def test_names_with_quotes_and_256_classes(tmp_path: Path) -> None:
    names = ('say "sky"', "back\\slash", "línea\nnueva", *map(str, range(254)))
    many = Labels(names, ((0, 0, 0),) * 257)
    text = configuration(write_bundle(tmp_path / "many", labels=many), "many", Serving())
    assert 'name: "LABELS" data_type: TYPE_UINT16' in text
    assert "dims: [ 257, -1, -1 ]" in text
    (line,) = (line for line in text.splitlines() if 'key: "names"' in line)
    value = line.split('string_value: "', 1)[1].removesuffix('" } }')
    assert tuple(json.loads(value.replace('\\"', '"').replace("\\\\", "\\"))) == names
    assert "TYPE_UINT8 dims: [ -1, -1 ] }" in configuration(write_bundle(tmp_path / "few"), "few", Serving())
    assert LABELS.count == 3


def test_an_exported_model_is_replaced_only_by_force(bundle: Bundle, tmp_path: Path) -> None:
    folder = export_triton(bundle.folder, tmp_path / "models", "small")
    before = tree(folder)
    with pytest.raises(BundleError, match="already holds an exported bundle; use --force"):
        export_triton(bundle.folder, tmp_path / "models", "small", Serving(2))
    assert tree(folder) == before
    export_triton(bundle.folder, tmp_path / "models", "small", Serving(2), force=True)
    assert b"count: 2" in tree(folder)["config.pbtxt"]


@pytest.mark.parametrize("obstacle", ["file", "folder", "version", "link"])
def test_what_is_no_exported_model_stays(bundle: Bundle, tmp_path: Path, obstacle: str) -> None:
    folder = tmp_path / "models" / "small"
    folder.parent.mkdir()
    if obstacle == "file":
        folder.write_text("mine")
    elif obstacle == "folder":
        folder.mkdir()
        (folder / "config.pbtxt").write_text("mine")
    elif obstacle == "version":
        (export_triton(bundle.folder, folder.parent, "small") / "2").mkdir()
    else:
        folder.symlink_to(bundle.folder)
    with pytest.raises(BundleError, match="choose another --name"):
        export_triton(bundle.folder, folder.parent, "small", force=True)
    assert os.path.lexists(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "ä", "x" * 129])
def test_names_that_no_folder_of_the_repository_can_have(bundle: Bundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="--name"):
        export_triton(bundle.folder, tmp_path / "models", name)
    assert not (tmp_path / "models").exists()


def test_a_damaged_bundle_is_not_exported(bundle: Bundle, tmp_path: Path) -> None:
    model = bundle.folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        export_triton(bundle.folder, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_the_command_line_says_what_is_wrong(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle.folder / MANIFEST).unlink()
    assert cli.run(main, ["export-triton", str(bundle.folder), str(tmp_path / "models")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
