"""What got worse from one result to the next: planted changes are found, noise is not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from bench_samples import OURS, THEIRS, TWIN, accuracy, latency, result

from benchmarks import regress, results
from isnet_trt import cli

SLOWED = tuple(1.1 * s for s in TWIN)


def verdicts(base: dict, new: dict, **limits: float) -> dict[str, str]:
    changes = regress.compare(base, new, regress.Limits(**limits))
    return {change.name.split(", ")[-1]: change.verdict for change in changes}


def test_two_runs_of_the_same_are_the_same() -> None:
    assert set(verdicts(result(latency(OURS)), result(latency(TWIN))).values()) == {"same"}


@pytest.mark.parametrize("theirs", [THEIRS, None])
def test_planted_ten_per_cent_is_caught(theirs: tuple[float, ...] | None) -> None:
    steady = tuple(2.0 + 0.004 * (s - 2) for s in OURS)
    control = theirs and tuple(2.4 + 0.01 * (s - 2.4) for s in theirs)
    base = result(latency(steady, control))
    assert verdicts(base, result(latency(tuple(1.1 * s for s in steady), control)))["seconds"] == "worse"
    assert verdicts(base, result(latency(tuple(s / 1.1 for s in steady), control)))["seconds"] == "better"
    assert verdicts(base, result(latency(tuple(1.02 * s for s in steady), control)))["seconds"] == "same"


def slowed(data: dict, factor: float) -> dict:
    """A result with the seconds of every bundle and merge ``factor`` times as long."""
    data = copy.deepcopy(data)
    for record in data["records"]:
        if record["kind"] == "latency":
            for one in record["contenders"]:
                if one["kind"] == "bundle":
                    one["seconds"] = [factor * s for s in one["seconds"]]
        elif record["kind"] == "postprocess":
            record["seconds"]["isnet_trt"] = [factor * s for s in record["seconds"]["isnet_trt"]]
    return data


def test_the_docs_say_what_is_found_in_the_committed_result() -> None:
    base = results.read(results.FOLDER / "cpu-epyc-2-cores.json")
    worse = []
    for factor in (1.1, 1.2):
        changes = [c for c in regress.compare(base, slowed(base, factor)) if c.name.endswith("seconds")]
        worse.append(sum(c.verdict == "worse" for c in changes))
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text("utf-8")
    assert f"{worse[0]} of the {len(changes)} figures are called worse, the other {len(changes) - worse[0]}" in page
    assert f"20 % longer: {worse[1]} |" in page


def test_recorded_noise_is_allowed_for() -> None:
    base = result(latency(OURS, None))
    assert verdicts(base, result(latency(SLOWED, None)))["seconds"] == "worse"
    wobbling = tuple(s * f for s, f in zip(SLOWED, (0.8, 1.2, 0.9, 1.1, 0.8, 1.2, 0.85, 1.15, 1.0), strict=True))
    assert verdicts(base, result(latency(wobbling, None)))["seconds"] == "same"


def test_seconds_of_a_busy_machine_prove_nothing_without_a_control() -> None:
    busy = tuple(s * f for s, f in zip(TWIN, (1.5, 1.9, 1.6, 1.8, 1.5, 1.9, 1.5, 1.8, 1.7), strict=True))
    assert verdicts(result(latency(OURS, None)), result(latency(busy, None)))["seconds"] == "noisy"
    assert verdicts(result(latency(busy, None)), result(latency(OURS, None)))["seconds"] == "noisy"
    assert verdicts(result(latency(OURS)), result(latency(busy)))["seconds"] == "worse"  # the control was not slower


def test_one_round_tells_no_noise() -> None:
    def once(ours: float) -> dict:
        return result(latency((ours,), (4.0,)))

    assert verdicts(once(2.0), once(2.1))["seconds"] == "same"
    assert verdicts(once(2.0), once(2.3))["seconds"] == "worse"
    assert verdicts(once(2.3), once(2.0))["seconds"] == "better"


def test_too_few_rounds_on_one_side_tell_no_noise() -> None:
    """5 % between steady rounds is a change, between a single round and steady ones it is not."""
    steady, slower = (tuple(seconds + 0.001 * i for i in range(9)) for seconds in (2.0, 2.1))
    assert verdicts(result(latency(steady, None)), result(latency(slower, None)))["seconds"] == "worse"
    assert verdicts(result(latency(steady, None)), result(latency(slower[:1], None)))["seconds"] == "same"
    assert verdicts(result(latency(steady[:2], None)), result(latency(slower, None)))["seconds"] == "same"


def test_a_bundle_whose_labels_agree_less_is_worse() -> None:
    def agreeing(equal: float) -> dict:
        return result(latency(OURS, equal=equal))

    assert verdicts(agreeing(1.0), agreeing(0.99))["labels equal"] == "worse"
    assert verdicts(agreeing(0.99), agreeing(1.0))["labels equal"] == "better"
    assert verdicts(agreeing(1.0), agreeing(0.9995))["labels equal"] == "same"


def test_a_bundle_that_fails_in_the_new_result_is_worse() -> None:
    failed = latency(OURS)
    bundle = failed["contenders"][0]
    failed["contenders"][0] = {k: bundle[k] for k in ("name", "kind")} | {
        "agreement": {},
        "status": "refused",
        "why": "failed: its process ended with status -9",
    }
    changes = verdicts(result(latency(OURS)), result(failed))
    assert changes["answered"] == "worse"
    assert changes["seconds"] == "gap"


def test_a_merge_that_answers_otherwise_is_worse() -> None:
    def merged(equal: float) -> dict:
        sides = {"isnet_trt": list(OURS), "reference": list(THEIRS)}
        about = {"kind": "postprocess", "case": "one pass", "memory": {"isnet_trt": None, "reference": None}}
        return result({**about, "seconds": sides, "labels_equal": equal})

    assert verdicts(merged(1.0), merged(0.99))["labels equal"] == "worse"


def test_a_machine_that_is_slower_as_a_whole_is_no_regression() -> None:
    slower = latency(tuple(1.5 * s for s in TWIN), tuple(1.5 * s for s in THEIRS))
    assert verdicts(result(latency(OURS)), result(slower, processor="another"))["seconds"] == "same"


@pytest.mark.parametrize("machine", [{"processor": "another"}, {"cores": 1}], ids=str)
def test_seconds_of_another_machine_are_not_compared(machine: dict) -> None:
    found = verdicts(result(latency(OURS, None)), result(latency(SLOWED, None), **machine))
    assert found["seconds"] == "gap"
    assert found["labels equal"] == "same"


def test_lost_accuracy_is_caught() -> None:
    base = result(accuracy())
    found = verdicts(base, result(accuracy(miou=0.7215)))
    assert found["mIoU"] == "worse"
    assert found["labels equal (all)"] == "same"
    assert verdicts(base, result(accuracy(equal=0.9985)))["labels equal (all)"] == "worse"
    assert set(verdicts(base, result(accuracy(miou=0.7229))).values()) == {"same"}


def test_more_memory_is_caught() -> None:
    heavy = latency(OURS)
    heavy["contenders"][0]["memory"]["beyond"] *= 2
    assert verdicts(result(latency(OURS)), result(heavy))["memory beyond weights"] == "worse"


def test_command_tells_by_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, same, slow, empty = (tmp_path / f"{name}.json" for name in ("base", "same", "slow", "empty"))
    results.write(base, result(latency(OURS)))
    results.write(same, result(latency(TWIN)))
    results.write(slow, result(latency(SLOWED)))
    results.write(empty, result())
    assert regress.main([str(base), str(same)]) == 0
    assert regress.main([str(base), str(slow)]) == cli.FAILED
    assert "worse  ADE whole 512x683" in capsys.readouterr().out
    assert cli.run(regress.main, [str(base), str(empty)]) == cli.ERROR
    (tmp_path / "bad.json").write_text("{", "utf-8")
    assert cli.run(regress.main, [str(base), str(tmp_path / "bad.json")]) == cli.ERROR
    (tmp_path / "other.json").write_text('{"schema": 99}', "utf-8")
    assert cli.run(regress.main, [str(tmp_path / "other.json"), str(base)]) == cli.ERROR
