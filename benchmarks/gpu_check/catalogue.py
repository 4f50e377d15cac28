"""All checks; `check.Check.rank` orders them."""

from __future__ import annotations

import importlib

from benchmarks.gpu_check.check import Check

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
    """Every check, in the order of the modules."""
    return [check for module in MODULES for check in importlib.import_module(module).CHECKS]
