"""``isnet-trt COMMAND``: every command under one name, its help without heavy packages, completion and suggestions."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from children import explained, run_python

import isnet_trt
from isnet_trt import cli
from isnet_trt.__main__ import COMMANDS, dispatcher, main

ROOT = Path(__file__).parents[1]
ABSENT = "torch onnx tensorrt tensorrt_rtx triton onnxruntime polygraphy onnxscript matplotlib scipy yaml PIL cuda"
WITHOUT = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from isnet_trt.__main__ import main
"""
HELP = """
import contextlib, io, time
for name in sys.argv[1:]:
    start, page = time.process_time(), io.StringIO()
    try:
        with contextlib.redirect_stdout(page):
            main([name, "--help"])
    except SystemExit as end:
        print(name, end.code, time.process_time() - start, page.getvalue().split(chr(10))[0], sep="|")
"""


def test_help_of_every_command_needs_no_heavy_package() -> None:
    ran = run_python("-c", WITHOUT + HELP, *COMMANDS)
    assert ran.stderr == ""
    rows = [line.split("|") for line in ran.stdout.splitlines()]
    assert [row[0] for row in rows] == list(COMMANDS)
    for name, status, seconds, usage in (row[:4] for row in rows):
        assert (status, usage.startswith(f"usage: isnet-trt {name} [-h]")) == ("0", True)
        assert float(seconds) < 1


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        ("train --recipe isnet_demo", "torch", "train"),
        ("build --ckpt a.pth --out b", "onnx", "build"),
        ("qat --ckpt a.pth --out b.pth", "torch", "build,train"),
        ("compare a.onnx b.onnx", "onnx", "build"),
        ("bench postprocess", "torch", "bench"),
        ("data check tiles.yaml", "yaml", "train"),
        ("predict BUNDLE nothing.png --out OUT", "", ""),
    ],
)
def test_a_missing_package_is_one_line_with_its_extra(arguments: str, package: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "tiles.yaml").write_text("name: tiles")
    ran = run_python("-c", WITHOUT + f"sys.exit(main({arguments.split()!r}))", cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (cli.ERROR, 1), explained(ran)
    assert ran.stderr.startswith("error: ")
    assert package in ran.stderr
    assert not extra or f"pip install '.[{extra}]'" in ran.stderr


def test_every_module_that_can_be_started_is_a_command() -> None:
    files = [
        path for folder in ("isnet_trt", "training", "export", "kernels") for path in (ROOT / folder).rglob("*.py")
    ]
    started = {str(path.relative_to(ROOT)) for path in files if 'if __name__ == "__main__"' in path.read_text("utf-8")}
    modules = {name.removesuffix(".py").replace("/", ".").removesuffix(".__main__") for name in started}
    modules = {name if name.startswith("isnet_trt") else f"isnet_trt.{name}" for name in modules} - {"isnet_trt"}
    assert modules == {name for command in COMMANDS.values() for name in command.names} - {"benchmarks"}


def test_every_benchmark_is_a_command() -> None:
    from benchmarks.__main__ import COMMANDS as benchmarks

    folder = ROOT / "benchmarks"
    started = {path.stem for path in folder.glob("*.py") if 'if __name__ == "__main__"' in path.read_text("utf-8")}
    assert started - {"__main__"} == set(benchmarks)


@pytest.mark.parametrize("prog", ["isnet-trt", "python -m isnet_trt"])
def test_help_names_commands_as_they_were_started(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--help"], prog)
    page = capsys.readouterr().out
    assert page.startswith(f"usage: {prog} build")
    assert f"  {prog} build --ckpt model.pth" in page
    assert f"{prog} recipes lists them" in page
    assert "isnet_trt." not in page.replace("isnet_trt.evaluate --dataset", "")
    assert cli.command_line("isnet_trt.build") == "python -m isnet_trt.build"


@pytest.mark.parametrize("command", [*COMMANDS, "data check", "bundle show"])
def test_no_help_names_a_command_otherwise(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert "python -m" not in capsys.readouterr().out


def test_explanations_beside_commands_stay_in_their_column(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bundle", "--help"])
    lines = capsys.readouterr().out.splitlines()
    beside = [line.index("every file") for line in lines if "every file against" in line]
    assert beside == [line.index("bundle; says") for line in lines if "bundle; says" in line]


def test_a_module_of_its_own_has_its_own_name() -> None:
    page = run_python("-m", "isnet_trt.training.recipes", "--help", check=True).stdout
    assert page.startswith("usage: python -m isnet_trt.training.recipes")


def test_version_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"isnet-trt {isnet_trt.__version__}\n")
    assert main([]) == cli.ERROR
    page = capsys.readouterr().err
    assert [name for name in COMMANDS if name not in page] == []


@pytest.mark.parametrize(("typed", "near"), [("biuld", "build"), ("evalute", "evaluate"), ("Predict", "predict")])
def test_the_nearest_command_is_named(typed: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([typed])
    assert ended.value.code == cli.ERROR
    assert f"did you mean '{near}'?" in capsys.readouterr().err


def test_arguments_are_passed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "isnet_demo"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "isnet_demo"


def test_the_console_script_is_declared() -> None:
    scripts = [entry for entry in importlib.metadata.entry_points(group="console_scripts") if entry.name == "isnet-trt"]
    assert "isnet-trt = isnet_trt.__main__:main" in (ROOT / "setup.py").read_text("utf-8")
    assert all(script.load() is main for script in scripts)


def test_completion_knows_commands_options_and_files(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    script = tmp_path / "isnet-trt"
    script.write_text(run_python("-m", "isnet_trt", "--print-completion", "bash", check=True).stdout)
    # shtab completes the program's name; the completion function is what `complete -F` registers.
    function = re.search(r"complete .*-F (\S+) ", script.read_text())
    assert function

    def complete(*words: str) -> set[str]:
        code = f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; "
        code += f"{function[1]} isnet-trt; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        ran = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        return set(ran.stdout.split())

    assert complete("isnet-trt", "b") == {"build", "bundle", "bench"}
    assert complete("isnet-trt", "build", "--prec") == {"--precision"}
    assert complete("isnet-trt", "build", "--precision", "b") == {"bf16"}
    assert complete("isnet-trt", "bundle", "v") == {"verify"}
    assert complete("isnet-trt", "build", "--ckpt", "isn") == {"isnet-trt"}


def test_completion_without_shtab_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "zsh"]) == cli.ERROR
    assert "pip install '.[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("prog", ["isnet-trt", "python -m isnet_trt"])
def test_zsh_has_a_script(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["--print-completion", "zsh"], prog) == 0
    assert capsys.readouterr().out.startswith("#compdef isnet-trt")


def test_the_full_parser_has_the_options_of_each_module() -> None:
    (sub,) = (action for action in dispatcher().parser()._actions if action.dest == "command")
    assert {name: parser.prog for name, parser in sub.choices.items()} == {
        name: f"isnet-trt {name}" for name in COMMANDS
    }
    assert "--static" in sub.choices["build"]._option_string_actions
