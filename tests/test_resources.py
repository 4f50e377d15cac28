"""What a segmenter holds and gives back: memory, threads, the interpreter's lock."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny_model
from children import PATIENCE
from onnx import helper
from onnx_networks import save_network

from isnet_trt import RawImage, Segmenter
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.settings import Inference, Preprocess

RULE = Preprocess((200, 160))
PICTURE = np.random.default_rng(7).integers(0, 256, (149, 187, 3), np.uint8)
WIDE = 1600
"""Channels of the wide model: its weights are 10 MB, so that a leak of one session shows."""
WEIGHTS = 4 * WIDE * WIDE
KEPT: list[Segmenter] = []


def write_wide(path: Path) -> Path:
    """A stride-8 network of three convolutions whose middle one holds `WEIGHTS` bytes."""
    random = np.random.default_rng(0)
    shapes = {"first": (WIDE, 3, 1, 1), "middle": (WIDE, WIDE, 1, 1), "last": (11, WIDE, 1, 1)}
    weights = {name: random.standard_normal(shape, dtype=np.float32) / 40 for name, shape in shapes.items()}
    nodes = [
        helper.make_node("AveragePool", ["x"], ["cells"], kernel_shape=[8, 8], strides=[8, 8], ceil_mode=1),
        helper.make_node("Conv", ["cells", "first"], ["a"]),
        helper.make_node("Conv", ["a", "middle"], ["b"]),
        helper.make_node("Conv", ["b", "last"], ["y"]),
    ]
    return save_network(path, nodes, 11, weights)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return write_wide(tmp_path_factory.mktemp("wide") / "model.onnx")


def opened(model: Path, threads: int = 1) -> Segmenter:
    return Segmenter(open_onnx(model, threads=threads), tiny_model.labels(11), RULE, threads=threads)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def in_use() -> int:
    """Resident bytes, without what the C library has been given back and keeps for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss


def use_and_close(model):
    with opened(model) as segmenter:
        segmenter(PICTURE, probabilities=True)


def use_and_forget(model):
    opened(model)(PICTURE, out=bytearray(PICTURE[..., 0].size))


def close_and_keep(model):
    KEPT.append(opened(model))
    KEPT[-1](PICTURE)
    KEPT[-1].close()


@pytest.mark.parametrize("cycle", [use_and_close, use_and_forget, close_and_keep])
def test_open_use_close_returns_all_memory(cycle, wide, no_collector):
    """Ten cycles grow by less than the weights of one session, closed or merely forgotten, collector off."""
    for _ in range(3):
        cycle(wide)
    growths = []
    for _ in range(2):  # a leak shows in both; what other tests' threads do meanwhile, in one
        before = in_use()
        for _ in range(10):
            cycle(wide)
        growths.append(in_use() - before)
    assert min(growths) < WEIGHTS, growths


def test_many_calls_hold_no_more_than_one(wide, no_collector):
    with opened(wide) as segmenter:
        for shape in ((149, 187), (60, 200), (200, 60)):
            segmenter(np.resize(PICTURE, (*shape, 3)), probabilities=True)
        before = in_use()
        for _ in range(30):
            segmenter(PICTURE, probabilities=True, out=np.empty(PICTURE.shape[:2], np.uint8))
        grown = in_use() - before
    assert grown < 8 * 4 * 11 * PICTURE[..., 0].size  # of 30 probability maps, not even 8


def test_a_segmenter_is_freed_by_its_last_reference(tmp_path, no_collector):
    engine = tiny_model.open_tiny(tmp_path, 11)
    segmenter = Segmenter(engine, tiny_model.labels(11), RULE)
    watched = [weakref.ref(segmenter), weakref.ref(engine), weakref.ref(engine._session)]
    result = segmenter(PICTURE, inference=Inference(flip=True), points=[(1, 2)])
    rest = segmenter.map([PICTURE, PICTURE])
    next(rest)
    del engine, segmenter, rest
    assert [watch() for watch in watched] == [None] * 3
    assert result.labels.shape == PICTURE.shape[:2]


def test_a_failed_call_keeps_nothing_alive(tmp_path, no_collector):
    segmenter = Segmenter(tiny_model.open_tiny(tmp_path, 11), tiny_model.labels(5), RULE)
    image = PICTURE.copy()
    watch, watched = weakref.ref(segmenter), weakref.ref(image)
    with pytest.raises(Exception, match="5 classes"):
        segmenter(image)
    del segmenter, image
    assert (watch(), watched()) == (None, None)


def test_the_picture_is_let_go_with_the_call(tmp_path, no_collector):
    segmenter = opened(tiny_model.write_model(tmp_path / "tiny.onnx", 11))
    image = PICTURE.copy()
    watch = weakref.ref(image)
    result = segmenter(RawImage(image.ctypes.data, *image.shape[:2], owner=image))
    del image
    assert watch() is None
    assert result.labels.any()
    segmenter.close()


class Counter:
    """A thread of Python code that counts, and can only do so while nobody keeps the interpreter's lock."""

    def __enter__(self) -> Counter:
        self.count, self._stop = 0, False
        self._before = sys.getswitchinterval()
        # So long that nobody is made to hand over the lock: this thread goes on only where it is given away.
        sys.setswitchinterval(1000)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def _work(self) -> None:
        while not self._stop:
            self.count += 1
            time.sleep(0)  # gives the lock away at each step

    def during(self, call: Callable[[], object]) -> int:
        """How far the count went while ``call`` ran."""
        before = self.count
        call()
        return self.count - before

    def __exit__(self, *raised: object) -> None:
        sys.setswitchinterval(self._before)
        self._stop = True
        self._thread.join(60)


def test_other_threads_run_while_the_engine_works(wide):
    batch = np.zeros((8, 3, 160, 200), np.float32)
    keeps_the_lock = ctypes.PyDLL(None).usleep
    with opened(wide) as segmenter, Counter() as counter:
        # The scheduler may well give the counter no core during one run, hardly during twenty.
        assert any(counter.during(lambda: segmenter.engine.run(batch)) > 0 for _ in range(20))
        assert counter.during(lambda: keeps_the_lock(50_000)) == 0  # the count would show it


def test_segmenters_in_threads_do_not_disturb_each_other(tmp_path):
    model = tiny_model.write_model(tmp_path / "tiny.onnx", 11)
    pictures = [np.roll(PICTURE, 11 * i, axis=1) for i in range(12)]
    with opened(model) as alone:
        want = [alone(picture).labels for picture in pictures]
    barrier = threading.Barrier(4)

    def work(which: int) -> bool:
        with opened(model) as own:
            barrier.wait(PATIENCE)
            outs = [np.empty(picture.shape[:2], np.uint8) for picture in pictures]
            turns = range(which, which + len(pictures))
            for turn in turns:
                own(pictures[turn % 12], out=outs[turn % 12])
            return all((out == labels).all() for out, labels in zip(outs, want, strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4


def test_closing_waits_for_the_call_that_runs(tmp_path):
    segmenter = opened(tiny_model.write_model(tmp_path / "tiny.onnx", 11))
    run, inside, go_on = segmenter.engine.run, threading.Event(), threading.Event()

    def slow_run(batch):
        inside.set()
        assert go_on.wait(PATIENCE)
        return run(batch)

    segmenter.engine.run = slow_run
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(segmenter, PICTURE)
        assert inside.wait(PATIENCE)
        closing = pool.submit(segmenter.close)
        assert not closing.done()
        go_on.set()
        closing.result(PATIENCE)
        assert answer.result(PATIENCE).labels.shape == PICTURE.shape[:2]
