"""The pages' commands and Python code do what the pages say: they are run, in order, in a copy of the checkout."""

from __future__ import annotations

import ast
import doctest
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from documented import LANGUAGES, PAGES, ROOT, Command, blocks, commands, missing_lines, python, skeleton
from excused import EXCUSED, SHORTER
from supplies import NAMES, SUPPLIES, interpreter, supply

MOST_EXCUSED = 43
"""Commands in `EXCUSED`: raise it only with a reason that no fixture and no shorter form can answer."""
ELSEWHERE = {
    "docs/embedding.md": "tests/test_embedding.py runs its code, and looks at what is printed and imported",
    "docs/serving.md": "asks a Triton Inference Server; tests/integrations/test_triton_server.py runs its code",
    "docs/scale.md": "needs Ray and a cluster; tests/integrations/test_ray_*.py make these calls",
    "docs/engines.md": "builds a TensorRT-RTX engine for minutes; tests/export/engines builds others with this call",
}
PROGRAMS = {"isnet-trt": "-m isnet_trt", "python": "", "python3": "", "torchrun": "-m torch.distributed.run"}
OPTIONAL = ("jq", "make", "cmake", "cc")
"""Programs that a machine may lack; commands with them are then left out."""
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "demo", "runs", "bundles", "golden", "build", "*.egg-info", ".*_cache", ".hypothesis"
)
TEXTS = {page: (ROOT / page).read_text("utf-8") for page in PAGES}


def own_page(command: Command) -> str:
    """The page that a command is run on: of several, the first under docs/."""
    pages = [page for page in PAGES if command.text in {each.text for each in commands(TEXTS[page])}]
    return next((page for page in pages if page.startswith("docs/")), pages[0])


def runnable(page: str) -> list[Command]:
    """The commands of a page that are run there."""
    return [c for c in commands(TEXTS[page]) if c.text not in EXCUSED and own_page(c) == page]


def in_copy(text: str) -> str:
    """The command as it is run: `/data` lies in the copy, and what takes long is made shorter."""
    shorter = next((options for pattern, options in SHORTER.items() if re.search(pattern, text)), "")
    return f"{re.sub(r'(?<![^ =])/data/', 'data/', text)} {shorter}".strip()


def unknown_names(page: str) -> list[str]:
    """Names of files and folders in a page's commands that nothing makes and no fixture supplies."""
    unknown: list[str] = []
    outputs: set[str] = set()
    for command in runnable(page):
        command = Command(in_copy(command.text))
        outputs |= command.outputs
        for word in command.words:
            path = re.fullmatch(r"\.?[\w.-]+(/[\w.-]+)+|[\w-]+\.(pth|onnx|yaml|png|jpe?g|mp4|tiff?|ppm)", word)
            made = word in SUPPLIES or (ROOT / word).exists() or any(word.startswith(out) for out in outputs)
            unknown += [word] if path and not made and Path(word).parts[0] != ".venv" else []
    return unknown


@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_a_command_is_supplied(page: str) -> None:
    assert unknown_names(page) == [], (
        f"commands of {page} name these, which no earlier command makes: add what makes them, in miniature, to "
        "SUPPLIES in tests/docs/supplies.py, or the command with its reason to EXCUSED in tests/docs/excused.py"
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_what_it_holds(page: str) -> None:
    odd = [(block.language, block.text) for block in blocks(TEXTS[page]) if block.language not in LANGUAGES]
    assert odd == [], "use bash for commands, text for what is printed and for diagrams"


def test_excuses_supplies_and_shortenings_are_needed() -> None:
    shown = {command.text for page in PAGES for command in commands(TEXTS[page])}
    assert set(EXCUSED) - shown == set(), "no page has these commands any more: take them out of EXCUSED"
    assert len(EXCUSED) <= MOST_EXCUSED
    assert all(len(reason) > 10 for reason in EXCUSED.values())
    idle = [pattern for pattern in SHORTER if not any(re.search(pattern, text) for text in shown)]
    assert idle == []
    named = {word for page in PAGES for command in runnable(page) for word in Command(in_copy(command.text)).words}
    named |= {text for page in PAGES if page not in ELSEWHERE for text in strings(page_script(page))}
    assert {name for name in SUPPLIES if name not in named and name != ".venv"} == set(), "no page names these any more"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkout with what `make` installs, and programs that start this Python."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=LEFT_OUT)
    supply([".venv"], folder)
    for name, arguments in PROGRAMS.items():
        interpreter(tmp_path / "bin" / name, arguments)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The copy and the tests' modules first among what is imported, and the programs first on the path."""
    packages = os.pathsep.join(map(str, (folder, folder / "tests", folder / "tests" / "docs")))
    return {
        **os.environ,
        "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": packages,
        "HOME": str(folder.parent),
        "ISNET_TRT_TRACEBACK": "1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_commands_run(page: str, copy: Path) -> None:
    variables: list[str] = []
    for command in runnable(page):
        if re.fullmatch(r"[A-Z_]+=(\"[^\"]*\"|\S*)", command.text):
            variables.append(command.text)
            continue
        text = in_copy(command.text)
        if lacking := [program for program in OPTIONAL if program in text.split() and not shutil.which(program)]:
            warnings.warn(f"{page}: {text} is not run: {lacking[0]} is not installed here", stacklevel=1)
            continue
        supply([word for word in Command(text).words if word not in Command(text).outputs], copy)
        shown = (
            "" if Path("/dev/nvidiactl").exists() else command.output
        )  # the pages show what is printed without a GPU
        run_shell(page, "\n".join([*variables, text]), shown, copy)


def run_shell(page: str, script: str, shown: str, folder: Path) -> None:
    """Run one command in ``folder``; it must succeed and print what the page shows."""
    (folder.parent / ".local/share/bash-completion/completions").mkdir(parents=True, exist_ok=True)
    line = ["bash", "-eo", "pipefail", "-c", script]
    ran = subprocess.run(
        line, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL
    )
    advice = "mend the page, or add what it needs to SUPPLIES in tests/docs/supplies.py"
    printed = ran.stdout + ran.stderr
    assert ran.returncode == 0, f"{page}: {script}\nexit status {ran.returncode}: {advice}\n{printed[-4000:]}"
    assert missing_lines(shown, printed) == [], f"{page}: {script}\ndoes not print what the page shows\n{printed}"


def page_script(page: str) -> str:
    """A page's Python code as one script: the variables that it takes for granted, then its blocks in order."""
    code = "\n".join(_with_results(block) if ">>> " in block else block for block in python(TEXTS[page]))
    given = [statements for name, statements in NAMES.items() if used_before_set(name, code)]
    return "\n".join(["from documented import skeleton", *given, code])


def used_before_set(name: str, code: str) -> bool:
    """Whether the first place where a script has the variable is not one that sets it."""
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name) and node.id.rstrip("s") == name]
    first = min(found, key=lambda node: (node.lineno, node.col_offset), default=None)
    return first is not None and isinstance(first.ctx, ast.Load)


def _with_results(block: str) -> str:
    """A console session as code that compares what each expression gives with what the page shows, but for numbers."""
    lines = []
    for example in doctest.DocTestParser().get_examples(block):
        source, shown = example.source.strip(), skeleton(example.want.strip().strip("()"))
        lines.append(f"assert skeleton(repr(({source})).strip('()')) == {shown!r}" if shown else source)
    return "\n".join(lines)


def strings(script: str) -> list[str]:
    """The strings in a script: names of files, among others."""
    constants = (node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Constant))
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("page", [p for p in PAGES if python(TEXTS[p]) and p not in ELSEWHERE])
def test_the_code_runs(page: str, tmp_path: Path) -> None:
    script = page_script(page)
    supply(strings(script), tmp_path)
    if "isnet_trt.export" not in script:
        script += "\nimport sys\nassert not {'torch', 'onnx', 'triton'} & set(sys.modules), 'heavy'\n"
    (tmp_path / "page.py").write_text(script, "utf-8")
    ran = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment(ROOT), capture_output=True, text=True, timeout=240
    )
    hint = "add variables that the page takes for granted to NAMES in tests/docs/supplies.py, and files to SUPPLIES"
    assert ran.returncode == 0, f"{page}: {hint}\n{ran.stderr}"


def test_commands_are_found_with_their_output() -> None:
    page = textwrap.dedent(
        """\
        Text with `make x`.

        ```
        make a    # a remark
        tool --one \\
          --two 'a  b'
        ```

        ```text
        3.5 s
        ```

            indented 'one'   # remark
            indented two

        Then `make a` prints:

        ```text
        later
        ```

        An error, of no command:

        ```text
        error
        ```

        ```console
        $ first
        done in 3 s
        $ second
        ```
        """
    )
    assert commands(page) == [
        Command("make a", "later\n"),
        Command("tool --one --two 'a b'", "3.5 s\n"),
        Command("indented 'one'"),
        Command("indented two"),
        Command("first", "done in 3 s\n"),
        Command("second"),
    ]
    assert Command("A=x/y.pth run --out b > c").words == ["A=x/y.pth", "x/y.pth", "run", "--out", "b", "c"]


def test_what_is_printed_is_compared_but_for_numbers() -> None:
    shown = "opened in 0.06 s: Engine (why)\n  …\nroad  91.5  –\n"
    assert missing_lines(shown, "before\nopened in 12 s: Engine (else)\nmore\nroad  3  4\n") == []
    assert missing_lines(shown, "opened in 12 s: Motor\nroad  3  4\n") == ["opened in # s: Engine"]
    assert missing_lines(shown, "road  3  4\nopened in 12 s: Engine") == ["road # #"]
    assert missing_lines("road 1\nroad 2", "road 3") == ["road #"]
