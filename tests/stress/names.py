r"""Folders with quotes, dollars, newlines and other characters in their names: results as in a folder called "plain".

    python tests/stress/names.py --cases 60

Each case runs a command whose inputs and results lie below a folder of a random name, made of characters that shells,
formats, globs and terminals take for their own. The results must be those of a plain name, to the byte, and the
output must not hold a control character of the name.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import jobs

PARTS = (
    *(
        "'",
        '"',
        "$",
        "$HOME",
        "`id`",
        "$(id)",
        "\n",
        "\t",
        "\r",
        "\\",
        "\\n",
        "{",
        "}",
        "{0}",
        "{split}",
        "%",
        "%s",
        "%%",
    ),
    *(
        "*",
        "?",
        "[a]",
        "[",
        "!",
        "~",
        "#",
        "&",
        ";",
        "|",
        "<b>",
        "(",
        ")",
        " ",
        "  ",
        "-",
        "--out",
        ".",
        "..a",
        "=",
        ",",
    ),
    *("é", "日本", "🎉", "\u202e", "\x1b[31m", "\x07", "\x7f", "\udcff", "e\u0301", "a" * 40, "name", ".png", ".yaml"),
)


def name_of(number: int) -> str:
    """A random name that a file system takes."""
    chance = random.Random(number)
    name = "".join(chance.choice(PARTS) for _ in range(chance.randint(1, 6)))
    return name if name.strip(".") else f"{name}x"


def run_once(job: jobs.Job, folder: Path, whole: dict[str, object]) -> str:
    """What is wrong with a run in ``folder``."""
    name = folder.parent.name
    ended = jobs.run(job, folder)
    shown = {character for character in name if ord(character) < 32 or ord(character) == 127} - {"\n", "\r", "\t"}
    if ended.status:
        return f"status {ended.status}: {ended.output[-400:]}"
    if visible := [character for character in shown if character in ended.output]:
        return f"the output holds {visible!r}"
    return jobs.differences(jobs.contents(folder, temporary=True), whole)


def name_case(number: int, reference: jobs.Reference, folder: Path) -> tuple[str, str]:
    """The finding of a case, if any, and how it is counted."""
    named = folder / name_of(number)
    job = jobs.all_jobs(named / "inputs", [reference.job.name])[reference.job.name]
    # The same files and times: digests and a calibration's fingerprint are among the results.
    shutil.copytree(folder.parent / "inputs", named / "inputs", dirs_exist_ok=True)
    reason = run_once(job, named / "run", reference.whole)
    return f"{named.name!r}: {reason!r}" if reason else "", "tried"


if __name__ == "__main__":
    sys.exit(jobs.run_cases(__doc__, 60, "names", name_case))
