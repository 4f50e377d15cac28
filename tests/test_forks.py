"""Segmenters and other processes: a fork is refused and harms nobody, spawned processes work."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import tiny_model
from children import PATIENCE
from forked import in_child, needs_fork

from isnet_trt import Segmenter
from isnet_trt.engines.onnxruntime import open_onnx
from isnet_trt.errors import EngineError
from isnet_trt.settings import Preprocess

PICTURE = np.random.default_rng(7).integers(0, 256, (45, 61, 3), np.uint8)
BATCH = np.zeros((1, 3, 40, 56), np.float32)


def opened(path, threads=2):
    # Two threads: destroying a session with threads of its own is what hangs in a child.
    return Segmenter(open_onnx(path, threads=threads), tiny_model.labels(11), Preprocess((200, 96)), threads=2)


@pytest.fixture
def model(tmp_path):
    return tiny_model.write_model(tmp_path / "tiny.onnx", 11)


@needs_fork
def test_use_in_a_child_is_refused_and_the_parent_goes_on(model):
    segmenter = opened(model)
    want = segmenter(PICTURE).labels
    calls = (
        lambda: segmenter(PICTURE),
        lambda: segmenter.logits(BATCH),
        lambda: segmenter.score(BATCH, (5, 7)),
        lambda: next(segmenter.map([PICTURE])),
        lambda: segmenter.engine.run(BATCH),
    )
    for call in calls:
        message = in_child(call)
        assert message.startswith("EngineError: this ")
        assert f"opened in process {os.getpid()} and cannot be used in process" in message
        assert "Open a new one in the child" in message
    assert (segmenter(PICTURE).labels == want).all()
    segmenter.close()


@needs_fork
def test_closing_and_forgetting_in_a_child_neither_hangs_nor_harms(model):
    segmenter = opened(model)
    want = segmenter(PICTURE).labels

    def leave() -> str:
        nonlocal segmenter
        with segmenter:
            pass
        segmenter.close()
        segmenter.engine.close()
        del segmenter
        return "left"

    assert in_child(leave) == "left"
    assert (segmenter(PICTURE).labels == want).all()
    segmenter.close()


@needs_fork
def test_an_engine_alone_is_guarded_too(model):
    engine = open_onnx(model, threads=2)

    def forget() -> str:
        nonlocal engine
        engine.close()
        del engine
        return "forgotten"

    assert in_child(forget) == "forgotten"
    assert engine.run(BATCH).shape == (1, 11, 5, 7)
    engine.close()


@needs_fork
def test_a_fork_during_a_call_does_not_leave_the_child_waiting(model):
    """Another thread of the parent holds the segmenter's lock; in the child nobody will ever give it back."""
    segmenter = opened(model)
    run, inside, go_on = segmenter.engine.run, threading.Event(), threading.Event()

    def slow_run(batch):
        inside.set()
        assert go_on.wait(PATIENCE)
        return run(batch)

    segmenter.engine.run = slow_run
    caller = threading.Thread(target=segmenter, args=(PICTURE,))
    caller.start()
    assert inside.wait(PATIENCE)
    try:
        assert in_child(lambda: segmenter(PICTURE)).startswith("EngineError: this segmenter was opened in process")
        assert in_child(lambda: segmenter.close() or "closed") == "closed"
    finally:
        go_on.set()
        caller.join(PATIENCE)
    segmenter.close()


@needs_fork
def test_a_child_opens_its_own_beside_the_parents(model):
    segmenter = opened(model)
    want = segmenter(PICTURE).labels

    def own() -> str:
        with opened(model) as mine:
            return str(bool((mine(PICTURE).labels == want).all()))

    assert in_child(own) == "True"
    segmenter.close()


def labels_of(path, picture):
    """In a process of its own."""
    with opened(path, threads=1) as segmenter:
        return segmenter(picture).labels


@pytest.mark.parametrize("method", ["spawn", pytest.param("fork", marks=needs_fork)])
def test_several_processes_each_with_its_own(method, model):
    pictures = [np.roll(PICTURE, shift, axis=1) for shift in range(4)]
    with opened(model) as segmenter:
        want = [segmenter(picture).labels for picture in pictures]
        with multiprocessing.get_context(method).Pool(2) as pool:
            got = pool.starmap_async(labels_of, [(model, picture) for picture in pictures]).get(PATIENCE)
    for one, other in zip(got, want, strict=True):
        assert (one == other).all()


def test_a_segmenter_is_not_sent_to_another_process(model):
    with opened(model) as segmenter, pytest.raises(TypeError, match="send the bundle's path and open it there"):
        pickle.dumps(segmenter)


def test_errors_name_both_processes(monkeypatch):
    from isnet_trt.forks import OwnerProcess

    class Resource:
        pass

    owner = OwnerProcess(Resource())
    owner.check("this thing")
    monkeypatch.setattr(os, "getpid", lambda: 4_000_000)
    with pytest.raises(EngineError, match=r"this thing was opened in process \d+ .* process 4000000, forked"):
        owner.check("this thing")
