"""libisnet_trt: built by ``isnet-trt c-config``, used from C and C++ programs, with everything that can go wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_bundle
from children import environment, explained

from isnet_trt import Segmenter, embed
from isnet_trt.commands import c_config
from isnet_trt.errors import BuildError, PackageMissing, SettingsError
from isnet_trt.settings import Preprocess
from tests.c_api.programs import FOLDER, ROOT, WARNINGS, answers, build, needs_tools, run

PICTURE = np.random.default_rng(7).integers(0, 256, (17, 23, 3), np.uint8).repeat(5, 0).repeat(5, 1)[:77, :109].copy()
HEIGHT, WIDTH = PICTURE.shape[:2]
HEADER = (ROOT / "isnet_trt" / "c_api" / "isnet.h").read_text("utf-8")
STATUS = {name: int(value) for name, value in re.findall(r"\b(ISNET_[A-Z_]+) = (-?\d+)", HEADER)}
ARGUMENT, IMAGE = STATUS["ISNET_BAD_ARGUMENT"], STATUS["ISNET_BAD_IMAGE"]
ABI, CLOSED, BUNDLE = STATUS["ISNET_BAD_ABI"], STATUS["ISNET_CLOSED"], STATUS["ISNET_BAD_BUNDLE"]
pytestmark = needs_tools


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle.write_bundle(tmp_path_factory.mktemp("bundle") / "small").folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bundle whose calls take less time than what is around them."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    return small_bundle.write_bundle(folder, preprocess=Preprocess((17, 33), keep_ratio=False)).folder


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """The library as users build it, in a folder whose name has to be quoted."""
    folder = tmp_path_factory.mktemp("c api")
    assert c_config.main(["--build", "--prefix", str(folder), "--cmake-option", WARNINGS[0]]) == 0
    return folder


@pytest.fixture(scope="module")
def programs(prefix, tmp_path_factory):
    """The programs of the tests and, as a part of their project, those of examples/embed."""
    folder = build(FOLDER, tmp_path_factory.mktemp("programs"), f"-DCMAKE_PREFIX_PATH={prefix}", *WARNINGS)
    (folder / "picture.ppm").write_bytes(b"P6 %d %d 255\n" % (WIDTH, HEIGHT) + PICTURE.tobytes())
    return folder


@pytest.mark.parametrize(("preset", "threads"), [("default", 3), pytest.param("ms-flip", 1, marks=pytest.mark.slow)])
def test_the_c_example_gets_the_labels_of_python(preset, threads, programs, bundle, tmp_path):
    out = tmp_path / "labels.pgm"
    result = run(programs / "service", sys.executable, bundle, preset, threads, programs / "picture.ppm", out, "cpu")
    assert result.returncode == 0, explained(result)
    assert result.stdout == f"{HEIGHT} x {WIDTH} pixels, {threads} threads, same label map\n"
    with Segmenter.open(bundle, threads=1) as segmenter:
        labels = segmenter(PICTURE, inference=preset).labels
    assert len(np.unique(labels)) > 1
    assert out.read_bytes() == b"P5 %d %d 255\n" % (WIDTH, HEIGHT) + labels.tobytes()


@pytest.mark.slow
def test_the_c_example_says_what_is_wrong(programs, bundle, tmp_path):
    out = tmp_path / "labels.pgm"
    wrong = {
        (tmp_path / "none", "default", "cpu"): f"BundleError: {tmp_path / 'none'} is not a folder",
        (bundle, "best", "cpu"): "SettingsError: preset 'best' is unknown",
        (bundle, "default", "cuda:63"): "EngineUnavailable: device 'cuda:63'",
    }
    for (folder, preset, device), message in wrong.items():
        result = run(programs / "service", sys.executable, folder, preset, 2, programs / "picture.ppm", out, device)
        assert (result.returncode, result.stdout) == (1, ""), explained(result)
        assert result.stderr.startswith(message)
    assert not out.exists()


@pytest.mark.parametrize(("frames", "rate"), [(300, 20000), pytest.param(12, 10, marks=pytest.mark.slow)])
def test_the_node_counts_every_frame_once(frames, rate, programs, bundle):
    result = run(programs / "node", bundle, frames, rate)
    assert (result.returncode, result.stderr) == (0, ""), explained(result)
    numbers = re.search(
        r"^(\d+) frames published, (\d+) segmented, (\d+) dropped, (\d+) failed, the last is (\d+)$",
        result.stdout,
        re.M,
    )
    published, segmented, dropped, failed, last = map(int, numbers.groups())
    assert (published, failed, last) == (frames, 0, frames - 1)
    assert segmented + dropped == published
    assert segmented >= 1
    assert dropped > 0 or rate < 1000


@pytest.mark.slow
def test_flags_and_pkg_config_compile_a_program(prefix, tmp_path, capsys):
    def values(*options):
        assert c_config.main([*options, "--prefix", str(prefix)]) == 0
        return capsys.readouterr().out.strip()

    program, source = tmp_path / "service", ROOT / "examples" / "embed" / "service.c"
    subprocess.run(f"cc -std=c11 {source} -o {program} {values('--cflags', '--libs')} -pthread", shell=True, check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.startswith("usage: ")) == (2, True), explained(result)
    page = (ROOT / "docs" / "embedding.md").read_text("utf-8")
    snippet = f'#include <stdio.h>\n#include "isnet.h"\nint main(void) {{{page.split("```c")[1].split("```")[0]}}}'
    compile_only = f"cc -std=c11 -Wall -Wextra -Werror -fsyntax-only -x c - {values('--cflags')}"
    subprocess.run(compile_only, input=snippet, text=True, shell=True, check=True)
    table = dict(line.split(maxsplit=1) for line in values().splitlines())
    assert table["python"] == sys.executable
    assert (Path(table["cmake-dir"]) / "isnet_trtConfig.cmake").is_file()
    assert (Path(table["source-dir"]) / "CMakeLists.txt").is_file()
    if shutil.which("pkg-config"):
        env = environment(PKG_CONFIG_PATH=table["pkg-config-dir"])
        flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "isnet_trt"], env=env, text=True)
        subprocess.run(f"cc -std=c11 {source} -o {program} {flags.strip()} -pthread", shell=True, check=True)


def test_c_config_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match=re.escape(f"--build --prefix {tmp_path}")):
        c_config.main(["--cflags", "--prefix", str(tmp_path)])
    with pytest.raises(BuildError, match="not a full path to an existing compiler"):
        c_config.main(["--build", "--prefix", str(tmp_path), "--cmake-option=-DCMAKE_C_COMPILER=/nowhere/cc"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageMissing, match="needs cmake"):
        c_config.main(["--build", "--prefix", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_header_and_the_python_side_agree():
    assert {status for _, status in embed.STATUSES} < set(STATUS.values())
    assert (STATUS["ISNET_NO_MEMORY"], STATUS["ISNET_FAILED"]) == (embed.NO_MEMORY, embed.FAILED)
    assert re.search(r"define ISNET_ABI_VERSION (\d+)", HEADER)[1] == str(embed.ABI)
    assert len(set(STATUS.values())) == len(STATUS) == 15


def check(lines, expected):
    """Each line has the expected status, and the expected part in its message."""
    assert [status for status, _ in lines] == [status for status, _ in expected]
    for (_, message), (_, part) in zip(lines, expected, strict=True):
        assert part in message


def test_wrong_images_and_calls(programs, bundle):
    images = [
        (IMAGE, "null pointer"),
        (IMAGE, "the pitch 38 is shorter than a row of 13 pixels, 39 bytes"),
        (IMAGE, "height 0"),
        (IMAGE, "width -13"),
        (IMAGE, "2147483647 x 2147483647 pixels is larger than ISNET_TRT_MAX_PIXELS"),
        (ARGUMENT, "order ''"),
        (ARGUMENT, "order 'yuv'"),
        (IMAGE, "one and a half times a height"),
        (ARGUMENT, "memory of cuda:1"),
        (IMAGE, r"device 'gpu\udcff' is unknown"),
        (ARGUMENT, "overlaps the image"),
    ]
    calls = [
        (ARGUMENT, "isnet_image is a NULL pointer"),
        (ARGUMENT, "isnet_labels is a NULL pointer"),
        (ARGUMENT, "null pointer"),
        (ARGUMENT, "the pitch 12 is shorter"),
        (ARGUMENT, "preset 'best' is unknown"),
        (ARGUMENT, "leave stream out"),
        (CLOSED, "NULL pointer; did isnet_open fail?"),
        (CLOSED, "is no handle of isnet_open"),
    ]
    sizes = [
        (0, ""),
        (ABI, "sets fields that this library"),
        (ABI, "isnet_image.size is 0, at least 96"),  # the first version's size: it can only grow
        (ABI, "size is 18446744073709551615"),
    ]
    check(answers(programs / "probe", "calls", bundle), [*images, *calls, *sizes, (0, "")])


def test_wrong_handles(programs, bundle):
    lines = run(programs / "probe", "handles", bundle).stdout.splitlines()
    statuses = [int(line.split()[0]) for line in lines if re.match(r"-?\d+ ", line)]
    opened = [
        ARGUMENT,
        ARGUMENT,
        BUNDLE,
        ARGUMENT,
        ARGUMENT,
        ARGUMENT,
        STATUS["ISNET_NO_ENGINE"],
        ARGUMENT,
        ABI,
        BUNDLE,
    ]
    assert statuses == [*opened, ARGUMENT, ARGUMENT, 0, 0, CLOSED, CLOSED, CLOSED]
    assert lines[3] == "no handle"
    assert "/nowhere/\\udcff€ is not a folder" in lines[2]
    assert "there is no class 3: the bundle has 3" in lines[11]
    assert lines[-1] == "0"


@pytest.mark.slow
def test_a_damaged_bundle(programs, bundle, tmp_path):
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    model = damaged / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    ((status, message),) = answers(programs / "probe", "open", damaged)
    assert status == BUNDLE
    assert "model.onnx" in message


@pytest.mark.slow
def test_memory_that_runs_out(programs, bundle):
    """ONNX Runtime is given none: each call fails, those with wrong arguments as before."""
    lines = answers(programs / "probe", "calls", bundle, ISNET_TRT_MAX_MEMORY="1000")
    assert [lines[19][0], lines[-1][0]] == [STATUS["ISNET_NO_MEMORY"]] * 2
    assert "raise ISNET_TRT_MAX_MEMORY" in lines[-1][1]
    assert lines[0][0] == IMAGE


@pytest.mark.slow
def test_a_description(programs, bundle):
    lines = run(programs / "probe", "describe", bundle).stdout.splitlines()
    with Segmenter.open(bundle) as segmenter:
        text = segmenter.description
    assert lines[:2] == ["0 ", f"1 3|onnxruntime|CPU|isnet_small|fp32|default|{text}"]
    assert lines[3::2] == ["left 1 2 3 255", "right 4 5 6 255", "sky 70 130 255 255"]


@pytest.mark.slow
def test_python_that_does_not_start(programs, tmp_path):
    not_executable = tmp_path / "python"
    not_executable.write_text("")
    lines = answers(programs / "probe", "start", "/nowhere/python", tmp_path, not_executable, sys.executable)
    assert [status for status, _ in lines] == [STATUS["ISNET_NO_PYTHON"]] * 3 + [0]  # a wrong name spoils nothing
    assert all(
        f"{name} is not a program" in line[1] for name, line in zip(["/nowhere/python", tmp_path], lines, strict=False)
    )
    result = run(programs / "probe", "open", tmp_path, ISNET_TRT_PYTHON="/nowhere/other")
    assert result.stdout.startswith(f"{STATUS['ISNET_NO_PYTHON']} isnet_start: /nowhere/other is not a program")


@pytest.mark.slow
def test_python_without_its_library_or_without_isnet_trt(programs, tmp_path):
    twice = run(programs / "probe", "start", sys.executable, sys.executable, PYTHONHOME=str(tmp_path))
    assert twice.returncode == 0
    assert twice.stdout.count(f"{STATUS['ISNET_NO_PYTHON']} Python does not start: ") == 2
    assert twice.stdout.count("is PYTHONHOME unset?") == 2
    package = tmp_path / "isnet_trt"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for code, status, part in (
        ("import no_such_package", STATUS["ISNET_NO_PYTHON"], "No module named 'no_such_package'; isnet_start needs"),
        ("", ABI, "does not fit the installed Python package isnet_trt"),
    ):
        (package / "embed.py").write_text(code)
        ((answer, message),) = answers(programs / "probe", "start", sys.executable, PYTHONPATH=str(tmp_path))
        assert (answer, part in message) == (status, True)


def test_versions(programs):
    lines = answers(programs / "probe", "versions")
    assert [status for status, _ in lines] == [embed.ABI, ABI, STATUS["ISNET_NOT_STARTED"]]
    assert f"isnet.h of ABI {embed.ABI + 1}, the library" in lines[1][1]


def test_the_process_stays_as_it_was(programs, bundle):
    quiet = {"ORT_DISABLE_TELEMETRY": None}
    before, call, after = run(programs / "probe", "process", bundle, LC_ALL="C", **quiet).stdout.splitlines()
    assert call == "0 "
    assert set(after.split()) ^ set(before.split()) == {"before", "after", "ORT_DISABLE_TELEMETRY=1"}
    assert "locale C " in after


@pytest.mark.slow
def test_a_forked_process(programs, bundle):
    lines = answers(programs / "probe", "fork", bundle)
    assert [status for status, _ in lines] == [STATUS["ISNET_FORKED"]] * 3 + [0, 0]
    assert "Fork before isnet_start" in lines[0][1]


@pytest.mark.slow
def test_a_process_that_ends_while_threads_call(programs, tiny):
    """Libraries destroy what is theirs in exit(): calls must have ended by then."""
    for _ in range(3):
        assert answers(programs / "probe", "exit", tiny) == []


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", [0, 10, 20, 30, 50, 80, 120, 200, 300, 400])
def test_a_process_that_ends_while_threads_open(milliseconds, programs, tiny):
    """Also the first time, when the engine's library is being imported by one of them."""
    assert answers(programs / "probe", "exit", tiny, milliseconds) == []


@pytest.mark.slow
def test_a_process_whose_main_thread_ends(programs, tiny):
    """pthread_exit() in main() is no exit(): other threads go on calling."""
    assert answers(programs / "probe", "end-main-thread", tiny) == [(0, ""), (0, "")]


@pytest.mark.slow
def test_two_copies_of_the_library_as_plugins(programs, prefix, bundle, tmp_path):
    """Opened with RTLD_LOCAL, which hides Python's symbols from the extension modules, and closed again."""
    first = prefix / "lib" / "libisnet_trt.so"
    second = shutil.copy(first, tmp_path / "libisnet_trt_other.so")
    lines = answers(programs / "plugin", first, second, bundle)
    assert lines == [(0, "")] * 8 + [(1, "two handles")]


@pytest.mark.slow
def test_the_cpp_wrapper(programs, bundle):
    result = run(programs / "wrapper", bundle)
    assert (result.returncode, result.stdout, result.stderr) == (0, "all right\n", ""), explained(result)


def test_a_host_with_its_own_python(programs, bundle):
    result = run(programs / "interpreter", bundle, ISNET_TRT_PYTHON=sys.executable)
    assert (result.returncode, result.stderr) == (0, ""), explained(result)
    lines = result.stdout.splitlines()
    ended = STATUS["ISNET_ENDED"]
    assert "another package: -9 " in lines[0]
    assert lines[1:5] == ["start: 0 ", "open: 0 ", "with the lock: 0 ", "pending: 1, lock: 1"]
    assert lines[5].startswith(f"interrupted: {STATUS['ISNET_INTERRUPTED']} KeyboardInterrupt")
    assert lines[6:8] == ["raised in the host: 1", "afterwards: 0 "]
    failures = [re.search(r": (-\d+) \w", line)[1] for line in lines[8:14]]
    assert failures == ["-1", "-1", "-7", "-1", "-1", "-1"]
    assert "ZeroDivisionError: division by zero (<string>:1); this is a bug" in lines[8]
    assert lines[14:18] == ["restored: 0 ", "threads: 0 ", "left: 0", "blocks: as before"]
    assert lines[18].startswith(f"inherited: {STATUS['ISNET_FORKED']} InheritedHandle")
    assert lines[19:23] == ["own: 0 ", "own call: 0 ", "child: 0", "without the lock: 0 "]
    assert sum(line.startswith(f"thread at the end: {ended} ") for line in lines) == 3
    assert "finalised: 0" in lines
    assert [line.split(": ")[1].split()[0] for line in lines[-4:]] == [str(ended)] * 3 + ["1"]


def test_calls_from_threads_that_come_and_go(programs, tiny):
    result = run(programs / "calls", tiny, 400, 8)
    assert (result.returncode, result.stderr) == (0, ""), explained(result)
    good, refused, closed, wrong = map(int, re.findall(r"\d+", result.stdout))
    assert (good + closed, refused, wrong) == (360, 40, 0)
    assert good > 200


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_ten_thousand_calls_under_a_sanitizer(sanitizer, tiny, tmp_path):
    flags = f"-fsanitize={sanitizer} -fno-omit-frame-pointer"
    options = (f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    folder = build(FOLDER, tmp_path / "made", "-DLIBRARY=ON", *options)
    suppressions = {"LSAN_OPTIONS": FOLDER / "lsan.supp", "TSAN_OPTIONS": FOLDER / "tsan.supp"}
    variables = {name: f"suppressions={path} print_suppressions=0" for name, path in suppressions.items()}
    commands = [("calls", tiny, 10_000, 8), ("wrapper", tiny), ("interpreter", tiny)]
    commands += [("probe", question, tiny) for question in ("calls", "handles", "describe", "fork")]
    for program, *arguments in commands:
        result = run(folder / program, *arguments, **variables, ISNET_TRT_PYTHON=sys.executable)
        assert "Sanitizer" not in result.stderr, result.stderr[-4000:]
        assert result.returncode == 0, explained(result)
    if sanitizer == "address":
        result = run(folder / "probe", "leak", tiny, **variables, ISNET_TRT_PYTHON=sys.executable)
        assert "640 byte(s) leaked in 10 allocation(s)" in result.stderr
