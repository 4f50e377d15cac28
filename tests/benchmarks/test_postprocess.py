"""Both merges get the same scores and give the same labels, windows, mirrored passes and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import postprocess, sections
from benchmarks.postprocess import Work
from isnet_trt import Inference, cli

WORKS = (
    Work("whole", 7, (57, 91), Inference()),
    Work("passes", 7, (57, 91), Inference("whole", None, None, (0.5, 1.0, 1.75), True, True)),
    Work("slide", 5, (97, 161), Inference("slide", (48, 80), (33, 50), (1.0,), True, True)),
)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_both_merges_agree(work: Work) -> None:
    scores = postprocess.synthetic_scores(work)
    theirs = postprocess.theirs(work, scores)
    ours = postprocess.ours(work, postprocess.copied(scores), 2)
    assert len(np.unique(theirs)) > 2
    assert (ours == theirs).mean() > 0.999  # float32; sums in another order move nearly equal scores only


def test_record_has_times_ratio_and_memory() -> None:
    record = postprocess.measure(WORKS[1], threads=1, rounds=2)
    assert record["labels_equal"] > 0.999
    assert len(record["seconds"]["isnet_trt"]) == len(record["seconds"]["reference"]) == 2
    assert record["ratio"]["n"] == 2
    assert record["passes"] == 6
    assert all(held is not None and held >= 0 for held in record["memory"].values())
    assert "| passes " in sections.text([record])


def test_work_that_there_is_not_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "one.json"
    with pytest.raises(SystemExit) as ended:
        postprocess.main(["--work", "nonsense", "--out", str(out)])
    assert ended.value.code == cli.ERROR
    assert "ADE single pass" in capsys.readouterr().err
    assert not out.exists()
