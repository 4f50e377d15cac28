"""Compiled kernels execute what `counts.json` says; the predictions of the calibration are near what was measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import ptx_counts
import pytest
import triton
from ptx_counts import CountedKernels, SampledMemory, _units

from isnet_trt.cuda.plan_steps import Clear, Launch
from tests.interpreter import NEEDED
from tests.kernels import counting, plan_counts
from tests.kernels.counting import CALIBRATION, COUNTS, PAGE, calibrate, count, multiplying, page
from tests.kernels.variants import set_folder

MOST = 0.05
"""Largest relative change of a count."""
ERROR, ATTENTION_ERROR = 2.0, 1.2
"""Largest factor between a predicted and a measured time, and of attention, which has a rate of its own."""
RECORDS = json.loads(COUNTS.read_text("utf-8"))
PLANS = json.loads(plan_counts.PLANS.read_text("utf-8"))
POINTS = json.loads(CALIBRATION.read_text("utf-8"))


def changes(records: list[dict], stored: list[dict]) -> list[str]:
    """What differs by more than `MOST`, and what is missing on either side."""

    def flat(items: list[dict]) -> dict[str, int]:
        titles = {id(r): f"sm_{r['arch']} {r['kernel']}, {r['case']}" for r in items}
        return {f"{titles[id(r)]}: {name}": number for r in items for name, number in r["counts"].items()}

    now, before = flat(records), flat(stored)
    names = sorted(now.keys() | before.keys())
    values = {name: (before.get(name, 0), now.get(name, 0)) for name in names}
    return [f"{name} {a} -> {b}" for name, (a, b) in values.items() if abs(a - b) > MOST * min(a, b)]


@pytest.mark.slow
@NEEDED
@pytest.mark.parametrize("arch", counting.ARCHES)
def test_no_kernel_executes_more_than_it_did(arch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rise is a loss of speed on a GPU; after a gain, or with another Triton, count again with ``--write``."""
    if triton.__version__ != POINTS["triton"]:
        pytest.skip(f"the counts are those of Triton {POINTS['triton']}, this is {triton.__version__}")
    counting.compile_for_counting(tmp_path, arch)
    records = list(count(tmp_path, arch))
    assert changes(records, [record for record in RECORDS if record["arch"] == arch]) == []
    if arch == plan_counts.ARCH:
        stored = PLANS[0]["stages"]
        for stage, entry in plan_counts.count(PLANS[0]["plan"], tmp_path)["stages"].items():
            for name, number in entry["counts"].items():
                assert number == pytest.approx(stored[stage]["counts"][name], rel=MOST), (stage, name)
    monkeypatch.setattr(ptx_counts, "BLOCKS", 7)
    sample, whole = finite(tmp_path, arch, 70), finite(tmp_path, arch, 7)
    assert sample == Counter({name: 10 * number for name, number in whole.items()} | {"launches": 1})


def finite(folder: Path, arch: int, blocks: int) -> Counter[str]:
    """The counts of a kernel whose blocks are alike."""
    kernels = CountedKernels(set_folder(folder, "19", arch), arch, SampledMemory(), Counter())
    number = blocks * kernels.constants("finite_fp32")["BLOCK"]
    values, flag = kernels.memory.hold("values", bytes(4 * number)), kernels.memory.hold("flag", bytes(4))
    kernels.launch("finite_fp32", 0, values=values, flag=flag, at=0, count=number)
    assert kernels.counts["instructions"] > number // 32
    return kernels.counts


def test_a_change_of_five_percent_is_seen() -> None:
    more = json.loads(json.dumps(RECORDS))
    counts = more[3]["counts"]
    counts["instructions"] = round(1.04 * counts["instructions"])
    assert changes(more, RECORDS) == []
    counts["instructions"] = round(1.06 * RECORDS[3]["counts"]["instructions"])
    assert len(changes(more, RECORDS)) == 1
    assert len(changes(RECORDS[1:], RECORDS)) == len(RECORDS[0]["counts"])


def test_predictions_are_within_a_factor_of_what_was_measured() -> None:
    rates = calibrate()
    ratios = {p["case"]: rates.seconds(p["counts"]) * 1e6 / p["microseconds"] for p in POINTS["kernels"]}
    assert all(1 / ERROR <= ratio <= ERROR for ratio in ratios.values()), ratios
    assert 0.8 < np.median([*ratios.values()]) < 1.25
    assert rates.issue > 1
    ratios = {p["case"]: rates.attention(p["counts"]) * 1e6 / p["microseconds"] for p in POINTS["attention"]}
    assert len(ratios) == 4
    assert all(1 / ATTENTION_ERROR <= ratio <= ATTENTION_ERROR for ratio in ratios.values()), ratios


def test_warps_that_multiply_in_turn_hide_their_other_instructions() -> None:
    rates = calibrate()
    counts = {"launches": 1, "instructions": 100_000_000, "matrix": 100_000_000}
    others = rates.attention(counts) - multiplying(counts) - rates.launch
    assert others == pytest.approx(rates.beside * 100e6 / (4 * 132 * 1.755e9))
    assert rates.attention(counts, groups=2) == pytest.approx(multiplying(counts) + rates.launch)
    counts["instructions"] *= 20  # more than the other group's products hide
    assert rates.attention(counts, groups=2) == pytest.approx(rates.launch + multiplying(counts) / 2 + 10 * others)


def test_every_kernel_is_counted_on_every_architecture() -> None:
    counted = {(record["arch"], record["kernel"], record["case"]) for record in RECORDS}
    cases = [(family, case) for family in counting.CASES for case, _ in counting.cases(family)]
    everywhere = {(arch, *case) for arch in counting.ARCHES for case in cases}
    assert counted == {record for record in everywhere if record[0] == 90 or record[2] not in counting.SPECIALISED}
    for record in RECORDS:
        assert record["kernel"] not in ("attention", "region_pool") or record["counts"]["matrix"], record


def test_the_page_has_the_tables() -> None:
    text = PAGE.read_text("utf-8")
    assert page(RECORDS) in text
    assert plan_counts.page(PLANS, calibrate()) in text


@pytest.mark.parametrize("record", PLANS, ids=lambda record: record["plan"])
def test_every_launch_of_a_plan_is_counted(record: dict) -> None:
    steps = [step for step in plan_counts.planned(record["plan"]).steps if isinstance(step, Launch | Clear)]
    launches = {stage: entry["counts"]["launches"] for stage, entry in record["stages"].items() if stage != "copy"}
    assert launches == Counter(step.stage for step in steps)
    assert [stored["plan"] for stored in PLANS] == list(plan_counts.CASES)


@pytest.mark.parametrize(("plan", "most"), [("ADE 480×640, whole", 60e-6), ("Cityscapes 1024×2048, ms+flip", 8e-3)])
def test_predicted_sums_stay_below_their_aims(plan: str, most: float) -> None:
    record = next(record for record in PLANS if record["plan"] == plan)
    assert 0 < plan_counts.predicted(record, calibrate()) <= most


def test_a_count_of_no_instructions_takes_its_bytes_time() -> None:
    rates = calibrate()
    copies = {"stages": {"copy": {"bytes": round(counting.BANDWIDTH), "counts": {"launches": 1}}}}
    assert plan_counts.predicted(copies, rates) == pytest.approx(1)


@pytest.mark.parametrize(
    ("addresses", "size", "units"),
    [(range(0, 128, 4), 4, 4), (range(16, 144, 4), 4, 5), (range(0, 512, 16), 16, 16), ([96] * 32, 4, 1)],
)
def test_sectors_of_a_warp(addresses: list[int], size: int, units: int) -> None:
    assert len(_units(np.array(addresses), size, 32)) == units
