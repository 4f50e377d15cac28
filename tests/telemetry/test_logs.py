"""``-v`` and ``--log-json``, before the command and after it; the library itself is quiet."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from children import CHECKOUT, run_python
from small_bundle import write_bundle

from isnet_trt import cli
from isnet_trt.__main__ import main
from isnet_trt.telemetry import logs

PICTURE = CHECKOUT / "export" / "pictures" / "chelsea.jpg"


@pytest.mark.parametrize("words", ["--log-json FILE bundle show nowhere", "bundle show nowhere --log-json FILE"])
def test_json_lines_are_appended_to_a_file(words: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for _ in range(2):
        assert main(words.replace("FILE", str(path)).split()) == cli.ERROR
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    errors = [line for line in lines if line["level"] == "ERROR"]
    assert [line["message"].split()[0] for line in errors] == ["nowhere"] * 2
    assert {"time", "logger", "process", "thread"} <= errors[0].keys()


def test_a_dash_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "show", "nowhere", "--log-json", "-"]) == cli.ERROR
    output = capsys.readouterr()
    assert output.out == ""
    assert json.loads(output.err.splitlines()[-1])["level"] == "ERROR"


def test_more_is_shown_with_every_v(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "show", "nowhere"]) == cli.ERROR
    assert capsys.readouterr().err.startswith("error: nowhere is not a folder")
    assert main(["bundle", "show", "nowhere", "-vv"]) == cli.ERROR
    assert "Traceback" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--log-json", str(tmp_path / "none" / "log")]) == cli.ERROR
    output = capsys.readouterr()
    assert output.out == ""
    assert "--log-json" in output.err


@pytest.mark.parametrize("content", [b"\x89PNG", b'{\n "schema": 3\n}', b'{"status": "ok"}\n', b"[1]"])
def test_records_are_not_appended_to_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert main(["recipes", "--log-json", str(tmp_path / "a")]) == cli.ERROR
    assert (tmp_path / "a").read_bytes() == content


def test_no_handler_stays(tmp_path: Path) -> None:
    before = list(logs.ROOT.handlers)
    assert main(["-vv", "recipes", "--log-json", str(tmp_path / "log")]) == 0
    assert (logs.ROOT.handlers, logs.ROOT.level) == (before, logging.NOTSET)


def test_the_library_is_quiet() -> None:
    code = "import isnet_trt, logging; logging.getLogger('isnet_trt.x').error('text')"
    assert run_python("-c", code, check=True).stderr == ""


def test_extra_fields_and_tracebacks(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logs.command_line():
        logs.write_json(str(path))
        try:
            raise ValueError("é")
        except ValueError:
            logs.ROOT.exception("failed: %d", 7, extra={"stage": "engine", "path": tmp_path})
    (line,) = map(json.loads, path.read_text("utf-8").splitlines())
    assert (line["message"], line["stage"], line["path"]) == ("failed: 7", "engine", str(tmp_path))
    assert line["exception"].endswith("ValueError: é")


def test_what_a_command_prints_is_recorded_but_not_shown_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logs.command_line():
        logs.show(2)
        logs.write_json(str(tmp_path / "log"))
        logs.logged(print, logs.ROOT)("  a line")
    assert capsys.readouterr() == ("  a line\n", "")
    assert json.loads((tmp_path / "log").read_text("utf-8"))["message"] == "a line"


def test_opening_a_segmenter_is_shown_with_v(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "bundle").folder
    for options, shown in (("", False), ("-v", True)):
        assert main(["predict", str(bundle), str(PICTURE), "--out", str(tmp_path / "out"), *options.split()]) == 0
        assert ("opened <Segmenter" in capsys.readouterr().err) == shown
