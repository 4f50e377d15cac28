r"""Folders with quotes, dollars, newlines and other characters in their names: results as in a folder called "plain".

    python tests/stress/names.py --cases 60

Each case runs a command whose inputs and results lie below a folder of a random name, made of characters that shells,
formats, globs and terminals take for their own. The results must be those of a plain name, to the byte, and the
output must not hold a control character of the name.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jobs
import probe
from tqdm import tqdm

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


def main() -> int:
    """Run the cases, the jobs in turn; the exit status."""
    parser = probe.parser(__doc__, 60, "names")
    jobs.add_option(parser)
    arguments = parser.parse_args()
    counts, findings = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as root:
        expected = {}
        for name, job in jobs.all_jobs(Path(root) / "inputs", arguments.jobs).items():
            ended = jobs.run(job, Path(root) / f"plain-{name}")
            assert ended.status == 0, ended.output
            expected[name] = jobs.contents(Path(root) / f"plain-{name}", temporary=True)
        turns = jobs.turns(arguments.jobs)
        for number in tqdm(range(arguments.first, arguments.first + arguments.cases), "names", disable=None):
            job, place = turns[number % len(turns)], Path(root) / str(number)
            moved = jobs.all_jobs(place / name_of(number) / "inputs", [job])[job]
            # The same files and times: digests and a calibration's fingerprint are among the results.
            shutil.copytree(Path(root) / "inputs", place / name_of(number) / "inputs", dirs_exist_ok=True)
            if reason := run_once(moved, place / name_of(number) / "run", expected[job]):
                findings.append(f"case {number} ({job}), {name_of(number)!r}: {reason!r}")
                probe.show(findings[-1])
            counts[job] += 1
            shutil.rmtree(os.fsencode(place))
    return probe.finish(arguments, {"cases": arguments.cases, **dict(sorted(counts.items()))}, findings)


if __name__ == "__main__":
    sys.exit(main())
