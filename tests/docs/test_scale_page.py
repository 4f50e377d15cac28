"""The figures of docs/scale.md are those of its formula with the committed inputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]


def test_figures_follow_from_the_committed_inputs() -> None:
    page = (CHECKOUT / "docs" / "scale.md").read_text("utf-8")
    result = json.loads((CHECKOUT / "benchmarks/results/scale-cpu-epyc-2-cores.json").read_text("utf-8"))
    (inputs,) = [record["figures"] for record in result["records"] if record["case"].startswith("scale.inputs")]
    for name, digits in (("read", 2), ("decode", 1), ("write", 1)):
        assert f"t_{name} {inputs[f'{name}_ms']:.{digits}f} ms" in page
    assert f"{inputs['image_bytes'] / 1e3:.0f} kB" in page
    names: dict[str, Any] = {}
    (formula,) = re.findall(r"```python\n(def images_per_second.*?)```", page, re.DOTALL)
    exec(formula, names)
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\w+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 8
    times = {f"t_{name}": inputs[f"{name}_ms"] / 1e3 for name in ("read", "decode", "write")}
    for gpus, actors, threads, t_gpu, rate, limit, minutes in rows:
        count = int(gpus)
        storage = {"bandwidth": count / 8 * 1.25e9, "image_bytes": inputs["image_bytes"]}
        per_s, least = names["images_per_second"](
            count, int(actors), int(threads), 8 * count, t_gpu=int(t_gpu) / 1e3, **times, **storage
        )
        assert (float(rate), limit) == (pytest.approx(per_s, abs=0.5), least)
        assert float(minutes) == pytest.approx(1e6 / per_s / 60, abs=0.051)
