"""Seconds as they were measured once, and records and results made from them, for tests of what is said about them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks import stats

# Nine interleaved rounds of one network on a machine that others used at times, isnet_trt and the plain reference form.
OURS = (1.84038840, 1.81834853, 1.82792528, 1.93085484, 2.24922575, 1.91831868, 1.85911823, 1.87459744, 1.97398540)
THEIRS = (2.47946345, 2.40694024, 2.42877007, 2.51765711, 2.35567974, 2.38813704, 2.45406650, 2.63550782, 2.97306945)
# Two contenders that are the same bundle, nine rounds.
TWIN = (1.85218840, 1.80934853, 1.83292528, 1.91185484, 2.21022575, 1.92631868, 1.84711823, 1.88259744, 1.98598540)

MACHINE = {"processor": "AMD EPYC (2 cores)", "cores": 2, "command": "python -m benchmarks.latency bundle"}


def contender(name: str, seconds: tuple[float, ...], kind: str = "bundle", equal: float = 1.0) -> dict[str, Any]:
    """A timed contender of a latency record."""
    figures = stats.spread(seconds)
    return {
        "name": name,
        "kind": kind,
        "description": "ONNX Runtime, 2 threads",
        "threads": 2,
        "agreement": {"all": equal, "clear": equal, "clear_share": 0.9},
        "status": "timed",
        "why": "",
        "seconds": list(seconds),
        "cores_busy": 1.9,
        "summary": asdict(figures),
        "images_per_s": 1 / figures.p50,
        "windows_per_s": 1 / figures.p50,
        "stages": {"resize": 0.01, "engine": 1.7, "merge": 0.05, "other": 0.0},
        "memory": {"loaded": 300 << 20, "peak": 500 << 20, "beyond": 200 << 20, "device": None},
        "energy_j": {},
    }


def latency(ours: tuple[float, ...] = OURS, theirs: tuple[float, ...] | None = THEIRS, **about: Any) -> dict[str, Any]:
    """A latency record of one bundle, and of the reference unless ``theirs`` is None."""
    contenders = [contender("isnet_trt onnxruntime fp32", ours, equal=about.pop("equal", 1.0))]
    ratios = []
    if theirs is not None:
        contenders.append(contender("reference", theirs, "reference"))
        ratio = asdict(stats.ratios(theirs, ours))
        ratios.append({"of": contenders[0]["name"], "over": "reference", **ratio})
    record = {
        "kind": "latency",
        "case": "ADE whole 512x683",
        "recipe": "isnet_resnet50os8_ade20k",
        "preset": "default",
        "picture": [512, 683],
        "inference": "whole, scale 1, logits",
        "windows": 1,
        "rounds": len(ours),
        "first_counts": False,
        "contenders": contenders,
        "ratios": ratios,
        "gaps": [],
        "warnings": [],
    }
    return {**record, **about}


def accuracy(miou: float = 0.723, equal: float = 0.9998) -> dict[str, Any]:
    """An accuracy record of two classes, one of which occurs nowhere."""
    names = ("checkpoint", "isnet_trt onnxruntime fp32")
    rows = [
        {
            "name": name,
            "miou": miou,
            "pixel_accuracy": 0.9,
            "iou": [miou, None],
            "agreement": {"all": equal, "clear": equal, "boundary": equal},
            "class_agreement": [equal, None],
        }
        for name in names
    ]
    return {
        "kind": "accuracy",
        "case": "isnet_resnet50os8_ade20k default",
        "recipe": "isnet_resnet50os8_ade20k",
        "preset": "default",
        "inference": "whole, scale 1, logits",
        "pictures": 4,
        "labelled": 4,
        "classes": ["road", "sky"],
        "rows": rows,
    }


def result(*records: dict[str, Any], gaps: tuple[dict[str, str], ...] = (), **machine: Any) -> dict[str, Any]:
    """A result file's content."""
    about = {"schema": 1, "date": "2026-11-23T12:00:00+00:00", "machine": {**MACHINE, **machine}}
    return {**about, "records": list(records), "gaps": list(gaps)}
