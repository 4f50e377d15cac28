"""The evaluate command line, on real bundles around a small model and miniature trees of the datasets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_model
from children import environment, explained, run_python
from miniature import MAKERS, SIZES
from own_pictures import make_masks, mask
from PIL import Image

from isnet_trt import Inference, Segmenter, cli
from isnet_trt.bundle import CheckpointInfo
from isnet_trt.commands import evaluate
from isnet_trt.commands.evaluate import _choose_gpu
from isnet_trt.datasets.layouts import label_values, open_dataset
from isnet_trt.errors import SettingsError
from isnet_trt.evaluation.examples import Example, worst
from isnet_trt.evaluation.labelled import DrawnScenes, open_labelled
from isnet_trt.evaluation.picture import draw, grouped, interactive, row_shares
from isnet_trt.files import write_file
from isnet_trt.metrics import Agreement, Confusion
from isnet_trt.recipes import DATASETS
from isnet_trt.settings import Labels

FILES = {"evaluation", "evaluation.html", "evaluation.json", "evaluation.md"}
WHOLE = Inference()
FLIP = Inference(scales=(0.75, 1.0), flip=True, softmax_before_resize=True)


def make_bundle(folder: Path, labels: Labels, default: Inference = WHOLE, sha256: str = "0" * 64) -> Path:
    presets = {"default": default, "ms-flip": FLIP}
    return tiny_model.write_bundle(folder, labels, presets=presets, checkpoint=CheckpointInfo("tiny.pth", sha256))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Dataset -> (its miniature tree, the truth of val, a bundle with its classes)."""

    def make(name: str):
        if name not in kept:
            root = tmp_path_factory.mktemp(name)
            truth = MAKERS[name](root / "data", train=1, val=3)["val"]
            kept[name] = root / "data", truth, make_bundle(root / "bundle", DATASETS[name].labels)
        return kept[name]

    kept: dict = {}
    return make


def run(*arguments) -> int:
    return cli.run(evaluate.main, [str(argument) for argument in arguments])


def without_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if matplotlib were not there: a picture of 182 classes takes seconds."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


def report(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text("utf-8"))


def answers(bundle: Path, pictures, preset: str = "default") -> dict[str, np.ndarray]:
    with Segmenter.open(bundle, preset=preset) as segmenter:
        return {name: segmenter(pictures.files[i][0]).labels for i, name in enumerate(pictures.names)}


def counted(predicted: dict, truth: dict, classes: int) -> np.ndarray:
    """Truth by prediction, counted pixel by pixel."""
    counts = np.zeros((classes, classes), np.int64)
    for name, labels in predicted.items():
        for t, p in zip(truth[name].ravel(), labels.ravel(), strict=True):
            if 0 <= t < classes:
                counts[t, p] += 1
    return counts


@pytest.mark.parametrize(("name", "preset"), [*((name, "default") for name in MAKERS), ("lip", "ms-flip")])
def test_every_dataset_is_scored_exactly(dataset, tmp_path, capsys, monkeypatch, name, preset):
    data, truth, bundle = dataset(name)
    if DATASETS[name].labels.count > 100:
        without_picture(monkeypatch)
    assert run(bundle, "--dataset", name, "--data", data, "--preset", preset, "--out", tmp_path) == 0
    result = report(tmp_path)
    classes = DATASETS[name].labels.count
    counts = counted(answers(bundle, open_dataset(name, data, "val"), preset), truth, classes)
    [model] = result["models"]
    assert (np.array(model["confusion"]) == counts).all()
    confusion = Confusion(classes)
    confusion.counts = counts
    assert model["miou"] == confusion.metrics().miou
    assert model["all_accuracy"] == counts.trace() / counts.sum()
    assert [c["pixels"] for c in model["classes"]] == counts.sum(1).tolist()
    assert [c["predicted_pixels"] for c in model["classes"]] == counts.sum(0).tolist()
    nowhere = (counts.sum(0) + counts.sum(1)) == 0
    assert [c["iou"] is None for c in model["classes"]] == nowhere.tolist()
    assert result["dataset"]["name"] == name
    assert result["pictures"] == len(truth)
    assert result["images_per_second"] > 0
    assert model["inference"]["flip"] is (preset == "ms-flip")
    output = capsys.readouterr()
    assert f"{100 * model['miou']:.2f}" in output.out
    assert "picture/s" not in output.err  # no bar where there is no terminal
    assert {p.name for p in tmp_path.iterdir()} - {"confusion.png"} == FILES


def test_the_page_has_a_row_for_each_class(dataset, tmp_path):
    data, _, bundle = dataset("cityscapes")
    run(bundle, "--dataset", "cityscapes", "--data", data, "--out", tmp_path)
    model = report(tmp_path)["models"][0]
    summary, classes = (tmp_path / "evaluation.md").read_text("utf-8").split("## Most")[0].split("## Classes")
    assert f"| mIoU | {100 * model['miou']:.2f} |" in summary
    rows = [line.strip("| ").split(" | ") for line in classes.splitlines() if line.startswith("| ")][2:]
    for entry, cells in zip(model["classes"], rows, strict=True):
        iou = "–" if entry["iou"] is None else f"{100 * entry['iou']:.2f}"
        assert (cells[0], cells[1], cells[-1]) == (entry["name"].strip(), iou, f"{entry['pixels']:,}")


def test_a_bundle_against_itself_agrees_everywhere(dataset, tmp_path, capsys):
    data, _, bundle = dataset("cityscapes")
    assert run(bundle, "--dataset", "cityscapes", "--data", data, "--against", bundle, "--out", tmp_path) == 0
    result = report(tmp_path)
    comparison = result["comparison"]
    assert comparison["equal_pixels"] == comparison["equal_labelled_pixels"] == 1
    assert comparison["least_equal_picture"]["equal_pixels"] == 1
    assert comparison["same_weights"] is True
    assert comparison["miou_difference"] == 0
    assert set(comparison["iou_differences"]) <= {0, None}
    assert result["models"][0]["confusion"] == result["models"][1]["confusion"]
    assert "label 100 % of the pixels alike, 100 % of those with a truth" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "confusion_against.png", *FILES}
    assert not list(tmp_path.glob("evaluation/*difference*"))


def test_two_models_side_by_side(dataset, tmp_path, capsys):
    data, truth, bundle = dataset("lip")
    other = make_bundle(tmp_path / "other", DATASETS["lip"].labels, FLIP, "1" * 64)
    assert run(bundle, "--dataset", "lip", "--data", data, "--against", other, "--out", tmp_path / "out") == 0
    pictures = open_dataset("lip", data, "val")
    one, two = answers(bundle, pictures), answers(other, pictures)
    agreement = Agreement(20)
    for name in pictures.names:
        agreement.add(one[name], two[name], truth[name], name)
    result = report(tmp_path / "out")
    comparison, models = result["comparison"], result["models"]
    assert 0 < comparison["equal_pixels"] < 1
    assert comparison["same_weights"] is False
    assert comparison["equal_pixels"] == agreement.all_pixels
    assert comparison["equal_labelled_pixels"] == agreement.labelled_pixels
    assert comparison["least_equal_picture"] == {"name": agreement.least[1], "equal_pixels": agreement.least[0]}
    assert comparison["miou_difference"] == models[1]["miou"] - models[0]["miou"]
    for place, difference in enumerate(comparison["iou_differences"]):
        both = [model["classes"][place]["iou"] for model in models]
        assert difference == (None if None in both else both[1] - both[0])
    assert (np.array(models[1]["confusion"]) == counted(two, truth, 20)).all()
    output = capsys.readouterr().out
    assert "B − A" in output
    assert f"{100 * comparison['miou_difference']:+.4f}" in output


def test_limit_takes_pictures_evenly_spaced(dataset, tmp_path):
    data, truth, bundle = dataset("cityscapes")
    names = open_dataset("cityscapes", data, "val").names
    for limit, expected in ((1, names[:1]), (2, names[:2]), (9, names)):
        assert run(bundle, "--dataset", "cityscapes", "--data", data, "--limit", limit, "--out", tmp_path) == 0
        pixels = sum((truth[name] >= 0).sum() for name in expected)
        assert np.array(report(tmp_path)["models"][0]["confusion"]).sum() == pixels
    assert run(bundle, "--dataset", "cityscapes", "--data", data, "--split", "train", "--out", tmp_path) == 0
    assert report(tmp_path)["pictures"] == 1


def test_an_unreadable_picture_stops_or_is_listed(dataset, tmp_path, capsys):
    _, _, bundle = dataset("lip")
    MAKERS["lip"](tmp_path / "data", train=1, val=3)
    pictures = open_dataset("lip", tmp_path / "data", "val")
    damaged, annotation = pictures.files[1][0], pictures.files[2][1]
    damaged.write_bytes(b"damaged")
    options = (bundle, "--dataset", "lip", "--data", tmp_path / "data", "--out", tmp_path / "out")
    assert run(*options) == cli.ERROR
    assert str(damaged) in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    cv2.imwrite(str(annotation), np.full(SIZES[2], 77, np.uint8))
    assert run(*options, "--skip-unreadable") == cli.FAILED
    result = report(tmp_path / "out")
    assert result["pictures"] == 1
    assert [str(damaged) in result["skipped"][0], str(annotation) in result["skipped"][1]] == [True, True]
    assert np.array(result["models"][0]["confusion"]).sum() == SIZES[0][0] * SIZES[0][1]
    assert str(damaged) in (tmp_path / "out" / "evaluation.md").read_text("utf-8")
    assert str(damaged) in capsys.readouterr().err
    pictures.files[0][0].write_bytes(b"damaged too")
    assert run(*options, "--skip-unreadable") == cli.ERROR
    assert "none of the 3 pictures" in capsys.readouterr().err


def test_other_classes_are_refused_before_any_work(dataset, tmp_path, capsys):
    data, _, bundle = dataset("lip")
    for labels, message in [
        (DATASETS["cityscapes"].labels, "has 19 classes (road, sidewalk, building, …) but lip has 20"),
        (tiny_model.labels(20), "class 0 is 'class 0' in"),
    ]:
        other = make_bundle(tmp_path / str(labels.count), labels)
        for models in ((other,), (bundle, "--against", other)):
            assert run(*models, "--dataset", "lip", "--data", data, "--out", tmp_path / "out") == cli.ERROR
            output = capsys.readouterr().err
            assert message in output
            assert str(other) in output
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", MAKERS)
def test_exported_labels_are_in_the_files_own_values(dataset, tmp_path, monkeypatch, name):
    data, _, bundle = dataset(name)
    without_picture(monkeypatch)
    export = tmp_path / "server"
    assert run(bundle, "--dataset", name, "--data", data, "--out", tmp_path / "out", "--export", export) == 0
    pictures = open_dataset(name, data, "val")
    for picture, labels in answers(bundle, pictures).items():
        path = export / f"{picture}.png"
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert stored.dtype == np.uint8
        assert (pictures.values.apply(stored, path) == labels).all()
    if name == "cityscapes":
        assert set(np.unique(stored)) <= {7, 8, 11, 12, 13, *range(17, 29), 31, 32, 33} - {18}


@pytest.fixture
def binary(tmp_path):
    """The YAML file of pictures with masks of 0 and 1, all for validation but one, and a bundle of their classes."""
    file = make_masks(tmp_path, [mask(0, 1)] * 4, split=0.75)
    return file, make_bundle(tmp_path / "bundle", Labels(("background", "crack"), ((0, 0, 0), (255, 0, 0))))


def test_one_class_in_the_truth_gives_no_score(binary, tmp_path, capsys):
    file, bundle = binary
    for _, label in open_dataset(str(file), None, "val").files:
        Image.fromarray(mask(0, 255)).save(label)
    out = tmp_path / "evaluation"
    assert run(bundle, "--dataset", file, "--out", out) == 0
    [model] = report(out)["models"]
    assert (model["miou"], model["classes_in_truth"]) == (None, 1)
    assert [entry["pixels"] for entry in model["classes"]] == [3 * 48 * 56, 0]
    assert "1 of 2 classes occur in the labels, not crack; one class gives no mIoU" in capsys.readouterr().out
    assert "| mIoU | – |" in (out / "evaluation.md").read_text("utf-8")


def test_labels_of_all_classes_bring_no_remark(binary, tmp_path, capsys):
    file, bundle = binary
    assert run(bundle, "--dataset", file, "--out", tmp_path / "evaluation") == 0
    assert "classes occur" not in capsys.readouterr().out
    assert report(tmp_path / "evaluation")["models"][0]["classes_in_truth"] == 2


def test_nothing_labelled_is_an_error(binary, tmp_path, capsys):
    file, bundle = binary
    for _, label in open_dataset(str(file), None, "val").files:
        Image.fromarray(mask(255)).save(label)
    assert run(bundle, "--dataset", file, "--out", tmp_path / "evaluation") == cli.ERROR
    assert "none of the 3 pictures scored has a labelled pixel" in capsys.readouterr().err
    assert not list((tmp_path / "evaluation").glob("*"))


def test_a_dead_link_stops_or_is_listed(binary, tmp_path, capsys):
    file, bundle = binary
    picture = open_dataset(str(file), None, "val").files[1][0]
    picture.unlink()
    picture.symlink_to("gone.png")
    assert run(bundle, "--dataset", file, "--out", tmp_path / "evaluation") == cli.ERROR
    assert f"{picture} cannot be read: it is a link to gone.png" in capsys.readouterr().err
    assert run(bundle, "--dataset", file, "--out", tmp_path / "evaluation", "--skip-unreadable") == cli.FAILED
    assert report(tmp_path / "evaluation")["pictures"] == 2


@pytest.mark.parametrize(
    ("name", "folder", "pictures"),
    [
        ("cityscapes", "CityScapes/leftImg8bit/test", ["bonn/bonn_000000_000019", "mainz/mainz_000001_000019"]),
        ("ade20k", "release_test/testing", ["ADE_test_00000001"]),
        ("lip", "testing_images", ["100_7", "99_3"]),
    ],
)
def test_labels_of_test_pictures_for_a_server(dataset, tmp_path, capsys, name, folder, pictures):
    _, _, bundle = dataset(name)
    end = "_leftImg8bit.png" if name == "cityscapes" else ".jpg"
    expected = {}
    for number, picture in enumerate(pictures):
        path = tmp_path / "data" / folder / f"{picture}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, (41, 67 + number, 3), np.uint8))
        with Segmenter.open(bundle) as segmenter:
            expected[picture] = segmenter(path).labels
    options = (bundle, "--dataset", name, "--data", tmp_path / "data", "--split", "test", "--out", tmp_path / "out")
    assert run(*options) == cli.ERROR
    assert "add --export DIR" in capsys.readouterr().err
    assert run(*options, "--export", tmp_path / "server", "--against", bundle) == 0
    values = label_values(name)
    for picture, labels in expected.items():
        path = tmp_path / "server" / f"{picture}.png"
        assert (values.apply(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), path) == labels).all()
    output = capsys.readouterr().out
    assert f"{name} test: {len(pictures)} pictures" in output
    assert "label 100 % of the pixels alike, – % of those with a truth" in output
    assert "mIoU" not in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{bundle} --dataset cocostuff10k --split test --export x", "has no test pictures without labels"),
        ("{bundle} --dataset lip --data {data} --split test --export x", "testing_images is missing"),
        ("{bundle} --dataset scenes --data .", "need no folder"),
        ("{bundle} --dataset voc", "no dataset is called 'voc'"),
        ("{bundle} --dataset lip --data {data}/gone", "there is no such folder"),
        ("{bundle} --dataset lip --data {data} --preset best", "best"),
        ("{bundle} --dataset lip --data {data} --engine torch", "is for checkpoints"),
        ("{bundle} --dataset lip --data {data} --engine tensorrt", "tensorrt"),
        ("{bundle}/gone --dataset lip --data {data}", "neither a bundle's folder nor a checkpoint's file"),
        ("{data} --dataset lip --data {data}", "is not a bundle"),
        ("{data}/val_images --dataset lip --data {data} --engine onnxruntime", "is not a bundle"),
        ("{bundle}/model.onnx --dataset lip --data {data} --engine onnxruntime", "is a checkpoint, which PyTorch runs"),
        ("{bundle}/model.onnx --dataset lip --data {data}", "is an ONNX graph, no checkpoint"),
        ("{bundle} --dataset lip --data {data} --out {bundle}/model.onnx", "cannot be created"),
        ("{bundle} --dataset lip --data {data} --export {bundle}/model.onnx", "--export"),
        ("{bundle} --dataset lip --data {data} --export {data}/val_segmentations", "is one of the files read"),
    ],
)
def test_what_cannot_be_done_says_why(dataset, tmp_path, capsys, monkeypatch, options, message):
    data, _, bundle = dataset("lip")
    monkeypatch.chdir(tmp_path)
    assert run(*options.format(bundle=bundle, data=data).split()) == cli.ERROR
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert message in output
    assert not list(tmp_path.glob("evaluation/*"))


def test_a_bundle_needs_no_torch(dataset, tmp_path):
    data, _, bundle = dataset("cityscapes")
    code = (
        "import sys; from isnet_trt import evaluate; "
        f"status = evaluate.main([{str(bundle)!r}, '--dataset', 'cityscapes', '--data', {str(data)!r}, "
        f"'--out', {str(tmp_path)!r}]); sys.exit(status or 'torch' in sys.modules)"
    )
    run_python("-c", code, check=True)


def test_without_matplotlib_the_figures_are_written_all_the_same(dataset, tmp_path, capsys, monkeypatch):
    data, _, bundle = dataset("lip")
    without_picture(monkeypatch)
    assert run(bundle, "--dataset", "lip", "--data", data, "--out", tmp_path) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    assert "no confusion picture" in capsys.readouterr().err


@pytest.mark.parametrize("classes", [3, 19, 60])
def test_the_confusion_picture_has_room_for_every_class(classes):
    confusion = Confusion(classes)
    confusion.counts[:] = np.random.default_rng(classes).integers(0, 50, (classes, classes))
    confusion.counts[1] = 0
    png = draw(confusion, tuple(f"a class | {i}" for i in range(classes)), "title")
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert min(picture.shape[:2]) > 20 * classes  # pixels; the names are 8 points, 13 pixels, high
    shares = row_shares(confusion.counts)
    assert np.isnan(shares[1]).all()
    np.testing.assert_allclose(np.delete(shares, 1, 0).sum(1), 1, rtol=1e-12)  # float64


def test_the_page_says_what_it_was_made_with_and_shows_the_worst_pictures(dataset, tmp_path):
    data, truth, bundle = dataset("cityscapes")
    assert run(bundle, "--dataset", "cityscapes", "--data", data, "--out", tmp_path / "a b") == 0
    out = tmp_path / "a b"
    page, result = (out / "evaluation.md").read_text("utf-8"), report(out)
    digest = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert f"| bundle.json | SHA-256 `{digest}`, which" in page
    assert result["models"][0]["manifest_sha256"] == digest
    names = "".join(f"{name}\n" for name in open_dataset("cityscapes", data, "val").names)
    assert f"`{hashlib.sha256(names.encode()).hexdigest()}` is the SHA-256 of their names" in page
    assert f"| date | {result['created_at']} |" in page
    assert f"--out '{out}'` |" in page
    assert result["command"].endswith(f"--out '{out}'")
    answer = answers(bundle, open_dataset("cityscapes", data, "val"))
    shares = {}
    for name, labels in truth.items():
        valid = (labels >= 0) & (labels < 19)
        shares[name] = (answer[name] == labels)[valid].mean()
    order = sorted(shares, key=lambda name: (shares[name], name))
    assert re.findall(r"\*\*(\S+)\*\*: ([\d.]+) % equal", page) == [
        (name, f"{100 * shares[name]:.3f}") for name in order
    ]
    shown = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert len(shown) == 4 * len(order) + 2
    assert all((out / name).is_file() for name in shown)
    html = (out / "evaluation.html").read_text("utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)


def test_the_worst_pictures_are_kept_and_their_smallest_difference_is_marked():
    truth = np.zeros((400, 1400), np.int64)
    truth[:200] = 255
    kept: list[Example] = []
    for name, wrong in (("a", 0), ("c", 1), ("b", 1), ("d", 3)):
        labels = truth.copy()
        labels[201, 8 : 8 + wrong] = 1
        labels[0] = 2  # where there is no truth nothing is wrong
        example = Example.of(name, np.zeros((400, 1400, 3), np.uint8), truth, labels, classes=2)
        assert example.equal == 1 - wrong / (200 * 1400)
        assert example.image.shape == (160, 560, 3)
        assert example.differs.any() == (wrong > 0)  # a single pixel of six that a panel's pixel stands for
        kept = worst(3, kept, example)
    assert [example.name for example in kept] == ["d", "b", "c"]


def test_a_matrix_of_many_classes_is_grouped():
    names = tuple(f"class {number}" for number in range(150))
    confusion = Confusion(150)
    confusion.counts[:] = np.diag(np.arange(1, 151))
    confusion.counts[7, 140] = 900
    confusion.counts[3, 9] = 500
    some, some_names = grouped(confusion, names)
    assert some.counts.sum() == confusion.counts.sum()
    assert some_names[-1] == "126 other classes"
    assert set(some_names[:2]) == {"class 7", "class 140"}  # side by side
    assert abs(some_names.index("class 3") - some_names.index("class 9")) == 1
    assert some.counts[some_names.index("class 7"), some_names.index("class 140")] == 900
    few = Confusion(9)
    assert grouped(few, names[:9]) == (few, names[:9])


def test_the_interactive_matrix_holds_every_count_and_no_name_ends_it():
    confusion = Confusion(3)
    confusion.counts[:] = [[5, 0, 2], [0, 0, 0], [1, 0, 9]]
    html = interactive(confusion, ("a</script><img src=x>", "b", "c"), b"PNG")
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', html)[0])
    assert data["names"][0] == "a</script><img src=x>"
    assert "<img src=x>" not in html
    assert data["totals"] == [7, 0, 10]
    assert sorted(data["cells"]) == [[0, 0, 5], [0, 2, 2], [2, 0, 1], [2, 2, 9]]


def test_drawn_scenes_are_those_that_training_holds_out():
    from isnet_trt.training.data.scenes import held_out_scenes

    drawn = open_labelled("scenes", None, "val", 2)
    assert isinstance(drawn, DrawnScenes)
    assert len(drawn) == 2
    assert len(open_labelled("scenes", None, "val")) == 12
    small = DrawnScenes(2, (61, 97))
    held_out = held_out_scenes(2, (61, 97))
    for index in range(2):
        for ours, theirs in zip(small[index], held_out[index], strict=True):
            assert (ours == theirs).all()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(SettingsError, match="x cannot be written"):
        write_file(tmp_path / "x", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("visible", "local", "expected"), [(None, 1, "1"), ("4,6", 1, "6"), ("4,6", 2, "4"), ("", 1, "")]
)
def test_each_process_gets_its_own_gpu(monkeypatch, visible, local, expected):
    monkeypatch.setenv("LOCAL_RANK", str(local))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is taken back afterwards
        del os.environ["CUDA_VISIBLE_DEVICES"]
    _choose_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def torchrun(*arguments):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "isnet_trt.evaluate")
    return run_python(*launcher, *arguments, env=environment(OMP_NUM_THREADS="1"))


@pytest.mark.slow
def test_two_processes_count_what_one_counts(dataset, tmp_path):
    data, _, bundle = dataset("ade20k")  # three pictures: the processes get two and one
    other = make_bundle(tmp_path / "other", DATASETS["ade20k"].labels, FLIP)
    options = (bundle, "--dataset", "ade20k", "--data", data, "--against", other, "--threads", 1)
    assert run(*options, "--out", tmp_path / "one") == 0
    ran = torchrun(*options, "--out", tmp_path / "two", "--export", tmp_path / "labels")
    assert ran.returncode == 0, explained(ran)
    one, two = report(tmp_path / "one"), report(tmp_path / "two")
    assert two["processes"] == 2
    assert two["pictures"] == one["pictures"] == 3
    assert two["comparison"] == one["comparison"]
    timing = ("images_per_second", "seconds_per_picture")
    for mine, theirs in zip(one["models"], two["models"], strict=True):
        assert {k: v for k, v in mine.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }
    assert ran.stdout.count("mIoU") == 1  # one process speaks
    assert len(list((tmp_path / "labels").iterdir())) == 3


@pytest.mark.slow
def test_an_unreadable_picture_ends_all_processes(dataset, tmp_path):
    _, _, bundle = dataset("lip")
    MAKERS["lip"](tmp_path / "data", train=1, val=4)
    damaged = open_dataset("lip", tmp_path / "data", "val").files[3][0]
    damaged.write_bytes(b"damaged")
    options = (bundle, "--dataset", "lip", "--data", tmp_path / "data", "--out", tmp_path / "out")
    ran = torchrun(*options)
    assert ran.returncode != 0, explained(ran)
    assert str(damaged) in ran.stderr
    assert not list((tmp_path / "out").iterdir())
    ran = torchrun(*options, "--skip-unreadable")
    assert ran.returncode == 1, explained(ran)
    result = report(tmp_path / "out")
    assert result["pictures"] == 3
    assert len(result["skipped"]) == 1
