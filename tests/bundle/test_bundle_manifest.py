"""bundle.json: the way there and back, and every kind of damage named by its field."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundle import manifest

from isnet_trt import Segmenter
from isnet_trt.bundle import CUDA_ONNX, MANIFEST, CheckpointInfo, FileInfo, read_bundle
from isnet_trt.bundle.manifest import SCHEMA_VERSION, Tuning, manifest_from_json
from isnet_trt.engines.info import EngineInfo
from isnet_trt.errors import BundleError

ENGINE_INFO = EngineInfo(
    "tensorrt-rtx",
    "1.7.1.116",
    "model.engine",
    ("8.9", "12.0"),
    "NVIDIA GeForce RTX 4090",
    "CUDA 13.0",
    ((1, 3, 33, 35), (1, 3, 513, 511), (2, 3, 1024, 2048)),
    "plugin",
    version_compatible=True,
)


def _data() -> dict[str, Any]:
    files = {"model.onnx": FileInfo(12, "cd" * 32)}
    return json.loads(json.dumps(manifest(ENGINE_INFO, files=files).to_json()))


def test_there_and_back() -> None:
    original = manifest(ENGINE_INFO, files={"model.onnx": FileInfo(12, "cd" * 32)})
    assert manifest_from_json(json.loads(json.dumps(original.to_json())), "bundle.json") == original


def test_averaged_weights_are_noted_and_usual_ones_are_left_out() -> None:
    """So that readers from before the field take every bundle but those of averaged weights."""
    assert "weights" not in _data()["checkpoint"]
    averaged = manifest(ENGINE_INFO, checkpoint=CheckpointInfo("a.pth", "ab" * 32, "ema"))
    data = json.loads(json.dumps(averaged.to_json()))
    assert data["checkpoint"]["weights"] == "ema"
    assert manifest_from_json(data, "bundle.json") == averaged
    data["checkpoint"]["weights"] = "best"
    with pytest.raises(BundleError, match=r"field 'checkpoint\.weights' is 'best'; it must be one of 'plain', 'ema'"):
        manifest_from_json(data, "bundle.json")


def _set(data: Any, path: str, value: Any) -> None:
    *parents, last = (int(name) if name.isdigit() else name for name in path.split("/"))
    for name in parents:
        data = data[name]
    if value is KeyError:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("recipe", KeyError, "the manifest lacks recipe"),
        ("surprise", 1, "the manifest has unknown entries: surprise"),
        ("recipe", 7, "field 'recipe' must be a string, but is an integer"),
        ("output_stride", 8.0, "field 'output_stride' must be an integer, but is a number"),
        ("output_stride", True, "field 'output_stride' must be an integer, but is a boolean"),
        ("output_stride", 0, "output stride 0"),
        ("labels", [], "field 'labels' must be an object, but is a list"),
        ("labels/names", "abc", "field 'labels.names' must be a list, but is a string"),
        ("labels/names", ["one"], "field 'labels': 1 class names but 3 palette colours"),
        ("labels/palette/1", [1, 2], "field 'labels.palette[1]' has 2 entries instead of 3"),
        ("labels/palette/1", [1, 2, None], "field 'labels.palette[1][2]' must be an integer, but is null"),
        ("preprocess/std", [1, 1, 0], "field 'preprocess': normalisation std (1.0, 1.0, 0.0) must be positive"),
        ("labels/palette/1", [1, 2, 300], "palette colour (1, 2, 300) of class 1 is outside 0 to 255"),
        ("labels/palette/0", [-1, 2, 3], "palette colour (-1, 2, 3) of class 0 is outside"),
        ("labels/palette/0", [0, 0, 2**63], "field 'labels.palette[0][2]' is a number beyond 64 bits"),
        ("labels/palette/0", [0, 0, 10**400], "field 'labels.palette[0][2]' is a number beyond 64 bits"),
        ("labels", {"names": [], "palette": [], "flip_pairs": []}, "0 classes"),
        ("labels/names/1", "x" * 10**6, "the name of class 1 has 1000000 characters"),
        ("labels/names/1", "a\ud800b", "field 'labels.names[1]' holds lone surrogates"),
        ("labels/flip_pairs", [[0, 3]], "flip pair (0, 3)"),
        ("preprocess/std", [1e59, 1, 1], "field 'preprocess': normalisation std (1e+59, 1.0, 1.0) must be positive"),
        ("preprocess/std", [1, -2, 1], "normalisation std"),
        ("preprocess/std", [1, 1e-300, 1], "normalisation std"),
        ("preprocess/std", [float("inf"), 1, 1], "field 'preprocess.std[0]' is no finite number"),
        ("preprocess/std", [10**400, 1, 1], "field 'preprocess.std[0]' is a number beyond 64 bits"),
        ("preprocess/mean", [float("-inf"), 1, 1], "field 'preprocess.mean[0]' is no finite number"),
        ("preprocess/mean", [0, 0, -1e30], "normalisation mean"),
        ("preprocess/size", [2**31, 512], "has more than 268435456 pixels"),
        ("preprocess/size", [0, 512], "must be positive"),
        ("preprocess/size", [30000, 30000], "has more than 268435456 pixels"),
        ("presets/ms-flip/window", [2**31, 2**31], "field 'presets.ms-flip': window"),
        ("presets/ms-flip/scales", [1e-9, float("inf")], "field 'presets.ms-flip.scales[1]' is no finite number"),
        ("presets/ms-flip/scales", [1] * 100_000, "100000 scales"),
        ("output_stride", 2**31, "output stride 2147483648 must be 1 to 256"),
        ("network", KeyError, "the manifest lacks network"),
        ("network/activation", "relu", "field 'network.activation' is 'relu'; it must be one of 'none', 'softmax', 's"),
        ("network/size_multiple", 0, "field 'network': size multiple 0 must be 1 to 1024"),
        ("network/padding_value", [0, 0, 256], "field 'network': padding value (0.0, 0.0, 256.0) is outside 0 to 255"),
        ("network/threshold", 1.5, "field 'network': threshold 1.5 must be a probability"),
        ("network/threshold", 0.5, "a threshold separates two classes, background and one other, not 3"),
        ("preprocess/channel_order", "gbr", "field 'preprocess.channel_order' is 'gbr'; it must be one of 'rgb', 'b"),
        ("recipe", "\udfff", "field 'recipe' holds lone surrogates"),
        ("parity/max", float("inf"), "field 'parity.max' is no finite number"),
        ("parity/\udc80", 1, "a name in field 'parity' holds lone surrogates"),
        ("parity/deep", functools.reduce(lambda inner, _: [inner], range(40), []), "nested more than 32 levels deep"),
        ("files/\ud800.onnx", {"bytes": 1, "sha256": "0" * 64}, "a name in field 'files' holds lone surrogates"),
        ("engine/library_version", "9" * 5000, "is no version"),
        ("engine/compute_capabilities", ["8.9; rm"], "compute capability '8.9; rm'"),
        ("engine/shapes", [[1, 3, 8, 8]], "1 shapes instead of the smallest, usual and largest"),
        ("engine/shapes/1", [2**31, 3, 512, 512], "must be positive and have at most"),
        ("engine/shapes/0", [2, 3, 4096, 4096], "are not the smallest, usual and largest"),
        ("surprise\x1b[2J", 1, "unknown entries: surprise\\x1b[2J."),
        ("preprocess/keep_ratio", 0, "field 'preprocess.keep_ratio' must be a boolean, but is an integer"),
        ("presets", {}, "no preset called default"),
        ("presets/ms-flip/window", KeyError, "field 'presets.ms-flip' lacks window"),
        ("presets/ms-flip/window", None, "field 'presets.ms-flip': mode 'slide' needs a window"),
        ("presets/ms-flip/mode", "tile", "field 'presets.ms-flip.mode' is 'tile'; it must be one of 'whole', 'slide'"),
        ("presets/ms-flip/scales", ["1"], "field 'presets.ms-flip.scales[0]' must be a number, but is a string"),
        ("engine/shapes/2", [1, 3, 5], "field 'engine.shapes[2]' has 3 entries instead of 4"),
        ("engine/context", KeyError, "field 'engine' lacks context"),  # optional in schema 1 only
        ("engine/version_compatible", KeyError, "field 'engine' lacks version_compatible"),
        ("engine/context", "none", "field 'engine.context' is 'none'; it must be one of 'plugin', 'native'"),
        ("engine/gpu", 4090, "field 'engine.gpu' must be a string, but is an integer"),
        ("checkpoint/sha256", "ab", "field 'checkpoint': 'ab' is no SHA-256"),
        ("files/model.onnx/bytes", -1, "field 'files.model.onnx': -1 bytes"),
        ("files/model.onnx/sha256", "x" * 64, "field 'files.model.onnx': 'xxxx"),
    ],
)
def test_damage_names_file_and_field(path: str, value: Any, said: str) -> None:
    data = _data()
    _set(data, path, value)
    with pytest.raises(BundleError) as caught:
        manifest_from_json(data, "somewhere/bundle.json")
    assert str(caught.value).startswith("somewhere/bundle.json is damaged: ")
    assert said in str(caught.value)


def test_a_hundred_thousand_classes() -> None:
    names, palette = [f"class {i}" for i in range(100_000)], [[0, 0, 0]] * 100_000
    data = _data() | {"labels": {"names": names, "palette": palette, "flip_pairs": []}}
    with pytest.raises(BundleError, match="'labels': 100000 classes; a label map holds 1 to 65535"):
        manifest_from_json(data, "bundle.json")


def test_messages_stay_short_and_printable() -> None:
    for key, value in (("x" * 10**6, 1), ("recipe", ["y" * 10**6]), ("schema_version", "\x1b]0;" * 10**5)):
        with pytest.raises(BundleError) as caught:
            manifest_from_json(_data() | {key: value}, "bundle.json")
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()


def test_a_network_at_full_resolution() -> None:
    data = _data() | {"output_stride": 1}
    assert manifest_from_json(data, "bundle.json").output_stride == 1


def test_every_field_is_needed() -> None:
    for name in _data():
        data = _data()
        del data[name]
        with pytest.raises(BundleError, match=name):
            manifest_from_json(data, "bundle.json")


def test_newer_schema_says_who_wrote_it_and_what_to_do() -> None:
    data = copy.deepcopy(_data()) | {"schema_version": SCHEMA_VERSION + 1, "isnet_trt_version": "9.8", "new_field": 1}
    with pytest.raises(BundleError, match=r"schema version 5, written by isnet_trt 9\.8.*Upgrade isnet_trt"):
        manifest_from_json(data, "bundle.json")


@pytest.mark.parametrize(("kind", "context"), [("onnxruntime", None), ("tensorrt-rtx", "native")])
def test_a_bundle_of_the_first_schema_still_opens(kind: str, context: str | None) -> None:
    data = _data() | {"schema_version": 1}
    data["engine"]["kind"] = kind
    del data["engine"]["context"], data["engine"]["version_compatible"]
    del data["network"], data["preprocess"]["channel_order"]
    before = copy.deepcopy(data)
    made = manifest_from_json(data, "bundle.json")
    assert data == before
    assert (made.engine.context, made.engine.version_compatible) == (context, False)
    assert made.schema_version == SCHEMA_VERSION


def test_the_type_of_logits_is_written_where_it_is_not_float32() -> None:
    """Readers from before the field take all other bundles."""
    data = json.loads(json.dumps(manifest().to_json()))
    assert data["schema_version"] == 3
    assert "output" not in data["engine"]
    assert manifest_from_json(data, "bundle.json").engine.output == "fp32"
    half = manifest(EngineInfo("onnxruntime", "1.32.0", CUDA_ONNX, output="fp16"))
    data = json.loads(json.dumps(half.to_json()))
    assert (data["schema_version"], data["engine"]["output"]) == (SCHEMA_VERSION, "fp16")
    assert manifest_from_json(data, "bundle.json") == half
    data["engine"]["output"] = "int8"
    with pytest.raises(BundleError, match=r"'engine\.output' is 'int8'; it must be one of 'fp32', 'fp16', 'bf16'"):
        manifest_from_json(data, "bundle.json")


def test_a_stored_bundle_of_the_second_schema_still_opens_and_segments() -> None:
    stored = Path(__file__).parent / "schema_2"  # written by isnet_trt 0.1.0, as `small_bundle.write_bundle` does
    assert json.loads((stored / MANIFEST).read_text("utf-8"))["schema_version"] == 2
    bundle = read_bundle(stored)
    assert dataclasses.replace(bundle.manifest, files={}) == manifest()
    with Segmenter.open(bundle) as segmenter:
        assert segmenter(np.full((24, 32, 3), 200, np.uint8), inference="ms-flip").labels.shape == (24, 32)


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.0, True])
def test_strange_schema_versions(version: Any) -> None:
    with pytest.raises(BundleError, match="no valid schema_version"):
        manifest_from_json(_data() | {"schema_version": version}, "bundle.json")


@pytest.mark.parametrize("data", [None, [], "bundle", 3])
def test_no_object(data: Any) -> None:
    with pytest.raises(BundleError, match="no JSON object"):
        manifest_from_json(data, "bundle.json")


def test_a_tuning_is_optional_and_checked() -> None:
    tuning = Tuning(2, 1, 4, None, None, "CPU", (64, 96), "default", 0.5)
    tuned = json.loads(json.dumps(_data() | {"tuning": dataclasses.asdict(tuning)}))
    assert manifest_from_json(tuned, "bundle.json").tuning == tuning
    assert "tuning" not in _data()  # bundles of earlier versions, and those that were not tuned
    assert manifest_from_json(_data(), "bundle.json").tuning is None
    for field, value in (("batch", 0), ("batch", 10**6), ("threads", 0), ("threads", -1)):
        damaged = tuned | {"tuning": tuned["tuning"] | {field: value}}
        with pytest.raises(BundleError, match=r"field 'tuning': batch \S+ and threads \S+ are not those of a tuning"):
            manifest_from_json(damaged, "bundle.json")
