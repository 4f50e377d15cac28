"""What a segmenter tells about itself: statistics, Prometheus text, repr, records, profiler ranges."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forked import in_child, needs_fork
from prometheus_client.parser import text_string_to_metric_families
from small_bundle import write_bundle

from isnet_trt import Segmenter
from isnet_trt.errors import EngineError, ImageError, SettingsError
from isnet_trt.telemetry import ranges
from isnet_trt.telemetry.stats import BUCKETS, About, Histogram, Recorder, prometheus

PICTURE = np.random.default_rng(3).integers(0, 256, (41, 57, 3), np.uint8)


@pytest.fixture
def segmenter(tmp_path: Path) -> Iterator[Segmenter]:
    with Segmenter.open(write_bundle(tmp_path / "bundle").folder, threads=1) as opened:
        yield opened


def test_calls_failures_and_stages_are_counted(segmenter: Segmenter) -> None:
    results = [segmenter(PICTURE), *segmenter.map([PICTURE] * 2, inference="ms-flip")]
    with pytest.raises(ImageError):
        segmenter(PICTURE.astype(np.float32))
    with pytest.raises(SettingsError):
        segmenter(PICTURE, inference="none")
    with pytest.raises(ImageError):
        list(segmenter.map([PICTURE[..., 0]]))
    stats = segmenter.stats()
    assert (stats.calls, stats.failures) == (6, {"ImageError": 2, "SettingsError": 1})
    assert (stats.seconds.count, sum(stats.seconds.counts)) == (3, 3)
    for stage in ("read", "resize", "engine", "merge"):
        total = sum(result.seconds[stage] for result in results)
        assert stats.stages[stage].count == 3
        assert stats.stages[stage].sum == pytest.approx(total)
    assert stats.seconds.sum >= sum(sum(result.seconds.values()) for result in results)
    assert stats.memory["process_peak"] >= stats.memory["process"] > 1 << 20
    assert json.loads(json.dumps(stats.to_json()))["calls"] == 6


def test_statistics_of_a_closed_segmenter_stay(segmenter: Segmenter) -> None:
    segmenter(PICTURE)
    segmenter.close()
    with pytest.raises(EngineError):
        segmenter(PICTURE)
    assert (segmenter.stats().calls, segmenter.stats().failures) == (2, {"EngineError": 1})


def test_threads_lose_no_count() -> None:
    recorder = Recorder()

    def work() -> None:
        for _ in range(2000):
            recorder.succeeded(0.5, {"engine": 0.25})
            recorder.failed(ValueError())
            recorder.stats(About("e", "d"), {})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = recorder.stats(About("e", "d"), {})
    assert (stats.calls, stats.failures, stats.seconds.count) == (16000, {"ValueError": 8000}, 8000)
    assert stats.stages["engine"].sum == 2000.0


def test_statistics_while_a_call_runs(segmenter: Segmenter) -> None:
    with segmenter._lock:  # as a call holds it
        assert segmenter.stats().calls == 0


@needs_fork
def test_a_forked_child_is_refused_and_counts_nothing(segmenter: Segmenter) -> None:
    segmenter._recorder._lock.acquire()  # as a thread of the parent may hold it for ever

    def child() -> str:
        messages = []
        for use in (segmenter.stats, lambda: segmenter(PICTURE)):
            with pytest.raises(EngineError) as error:
                use()
            messages.append(str(error.value))
        return " ".join(messages)

    try:
        assert in_child(child).count("fork") >= 2
    finally:
        segmenter._recorder._lock.release()


def test_histograms_have_fixed_buckets() -> None:
    recorder = Recorder()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] * 1.01, BUCKETS[-1] * 2):
        recorder.succeeded(seconds, {})
    times = recorder.stats(About("e", "d"), {}).seconds
    assert (times.counts[0], times.counts[1], times.counts[-1], times.count) == (2, 1, 1, 4)
    assert times.quantile(0.5) == BUCKETS[0]
    assert times.quantile(1.0) == times.largest == BUCKETS[-1] * 2
    assert (Histogram().mean, Histogram().quantile(0.9)) == (0.0, 0.0)
    assert times.mean == pytest.approx(times.sum / 4)


def test_prometheus_text_is_read_by_its_own_parser(segmenter: Segmenter) -> None:
    segmenter(PICTURE)
    with pytest.raises(ImageError):
        segmenter(PICTURE[..., 0])
    stats = segmenter.stats()
    text = stats.prometheus()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    types = {name: family.type for name, family in families.items()}
    assert types == {
        "isnet_trt_segmenter_info": "gauge",
        "isnet_trt_calls": "counter",
        "isnet_trt_failures": "counter",
        "isnet_trt_call_seconds": "histogram",
        "isnet_trt_stage_seconds": "histogram",
        "isnet_trt_memory_bytes": "gauge",
    }
    (info,) = families["isnet_trt_segmenter_info"].samples
    assert info.labels["recipe"] == "isnet_small"
    assert [sample.value for sample in families["isnet_trt_calls"].samples] == [2]
    failures = {sample.labels["type"]: sample.value for sample in families["isnet_trt_failures"].samples}
    assert failures == {"ImageError": 1, "EngineError": 0, "OutOfMemory": 0, "SettingsError": 0}
    stages = families["isnet_trt_stage_seconds"].samples
    engine = [sample for sample in stages if sample.labels["stage"] == "engine"]
    buckets = [(sample.labels["le"], sample.value) for sample in engine if sample.name.endswith("_bucket")]
    assert [float(bound) for bound, _ in buckets] == [*BUCKETS, float("inf")]
    assert sorted(count for _, count in buckets) == [count for _, count in buckets]
    assert buckets[-1][1] == next(sample.value for sample in engine if sample.name.endswith("_count")) == 1
    total = next(sample.value for sample in engine if sample.name.endswith("_sum"))
    assert total == pytest.approx(stats.stages["engine"].sum)


def test_several_segmenters_share_their_families() -> None:
    names = ('a"b', "c\\d", "e\nf")
    all_stats = [Recorder().stats(About("onnxruntime", "CPU", bundle=name), {"process": 5}) for name in names]
    families = list(text_string_to_metric_families(prometheus(*all_stats)))
    assert len({family.name for family in families}) == len(families)
    info = families[0].samples
    assert tuple(sample.labels["bundle"] for sample in info) == names
    assert len({sample.labels["segmenter"] for sample in info}) == 3


def test_repr_says_what_it_is(segmenter: Segmenter) -> None:
    text = repr(segmenter)
    for part in ("bundle'", "recipe='isnet_small'", "engine='onnxruntime'", "device='CPU'", "preset='default'"):
        assert part in text
    assert "precision=" in text
    assert "closed" not in text
    segmenter.close()
    assert repr(segmenter).endswith(" closed>")


def test_records_of_opening_calls_and_failures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "isnet_trt")
    with Segmenter.open(write_bundle(tmp_path / "bundle").folder, threads=1) as segmenter:
        segmenter(PICTURE)
        with pytest.raises(ImageError):
            segmenter(PICTURE[..., 0])
    opened, called, failed = (r for r in caplog.records if r.name == "isnet_trt.runtime.segmenter")
    assert "recipe='isnet_small'" in opened.getMessage()
    assert (called.levelname, "engine" in vars(called)["stages"]) == ("DEBUG", True)
    assert (failed.levelname, vars(failed)["error"]) == ("INFO", "ImageError")


class Domain:
    """A profiler's domain that notes the ranges."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def get_event_attributes(self, message: str) -> str:
        return message

    def push_range(self, attributes: str) -> None:
        self.events.append(f"+{attributes}")

    def pop_range(self) -> None:
        self.events.append("-")


def test_ranges_of_stages_and_batches_are_nested(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = Domain()
    monkeypatch.setattr(ranges, "_domain", domain)
    monkeypatch.setattr(ranges, "_attributes", {})
    segmenter(PICTURE)
    text = " ".join(domain.events)
    batch = "+batch +gather - +engine - +merge - - +batch +gather - -"
    assert text == f"+submit +read - +resize - {batch} - +collect -"
    domain.events.clear()
    with pytest.raises(ImageError):
        segmenter(PICTURE[..., 0])
    assert domain.events.count("-") * 2 == len(domain.events)


def test_nvtx_is_used_where_it_is_installed() -> None:
    nvtx = pytest.importorskip("nvtx")
    assert ranges._looked or ranges.look_for_nvtx() is None
    assert hasattr(ranges._domain, "push_range")
    assert type(ranges._domain) is type(nvtx.get_domain(ranges.DOMAIN))
    with ranges.annotate("a name"):
        pass


def test_without_nvtx_nothing_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(ranges, "_looked", False)
    monkeypatch.setattr(ranges, "_domain", None)
    ranges.look_for_nvtx()
    assert ranges.push("engine") is False
    ranges.pop(False)
