"""A disk that fills up under predict, build, calibration and training: a clear error, and nothing half left.

    python tests/stress/disks.py --cases 60

Each case gives a command a file system with room for a share of its results that the case's number decides (a tmpfs;
without the right to mount one, a limit on the size of files). A command that cannot write everything ends with one
message and a status above 0, not with a traceback; what is left is whole or absent. With room, the same command then
ends as if nothing had been.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jobs
from kills import left

from isnet_trt.cli import BUG

PLENTY = 64 << 20


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A tmpfs of ``size`` bytes at ``folder``; False where none can be mounted."""
    folder.mkdir()
    mounted = _succeeds("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _succeeds(*command: str) -> bool:
    program = shutil.which(command[0])
    return program is not None and not subprocess.run(command, capture_output=True, check=False).returncode


def fill_once(number: int, reference: jobs.Reference, folder: Path) -> tuple[str, bool]:
    """What is wrong with a full disk and the next run, and whether the disk was too small."""
    size = int(random.Random(number).uniform(0, 1.1) * reference.bytes) + 1
    with small_disk(folder, size) as mounted:
        longest = size * reference.largest // reference.bytes
        limit = (lambda: None) if mounted else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest)))
        full = jobs.run(reference.job, folder, prepare=limit)
        if reason := _unclear(full) or left(reference, folder):
            return f"with {size} bytes: {reason}", full.status > 0
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={PLENTY}", str(folder)], check=True)
        ended = jobs.run(reference.job, folder)
        if ended.status:
            return f"the run with room ends with {ended.status}: {ended.output[-300:]}", full.status > 0
        return jobs.differences(jobs.contents(folder, temporary=True), reference.whole), full.status > 0


def _unclear(ended: jobs.Ended) -> str:
    """What is wrong with how a command ended on a full disk."""
    clear = ended.status == 0 or (0 < ended.status < BUG and "Traceback" not in ended.output)
    return "" if clear else f"status {ended.status}: {ended.output[-400:]}"


def fill_case(number: int, reference: jobs.Reference, folder: Path) -> tuple[str, str]:
    """The finding of a case, if any, and how it is counted."""
    reason, full = fill_once(number, reference, folder)
    return reason, "refused" if full else "had room"


if __name__ == "__main__":
    sys.exit(jobs.run_cases(__doc__, 60, "full disks", fill_case))
