"""All checks; `check.Check.rank` orders them."""

from __future__ import annotations

import importlib

from benchmarks.gpu_check.check import Answer, CannotRun, Check, Setup

MODULES = (
    "benchmarks.gpu_check.machine",
    "benchmarks.gpu_check.kernels",
    "benchmarks.gpu_check.rtx",
    "benchmarks.gpu_check.context",
    "benchmarks.gpu_check.runtime",
    "benchmarks.gpu_check.sharing",
    "benchmarks.gpu_check.bundles",
    "benchmarks.gpu_check.refusals",
    "benchmarks.gpu_check.latency",
    "benchmarks.gpu_check.callers",
)
"""Modules whose ``CHECKS`` are run; importing them loads numpy only."""


def checks() -> list[Check]:
    """Every check, in the order of the modules; a module that cannot be imported here is one check that says why."""
    return [check for module in MODULES for check in of_module(module)]


def of_module(module: str) -> tuple[Check, ...]:
    """The checks of one module."""
    try:
        return tuple(importlib.import_module(module).CHECKS)
    except ImportError as error:
        return (_unusable(module.rsplit(".", 1)[-1], str(error)),)


def _unusable(name: str, reason: str) -> Check:
    def run(answer: Answer, setup: Setup) -> None:
        raise CannotRun(f"the checks cannot be imported: {reason}")

    return Check(f"{name}.import", f"the checks of {name} can be imported", run)
