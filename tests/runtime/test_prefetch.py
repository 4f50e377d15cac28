"""Items submitted early, results in order."""

from __future__ import annotations

import pytest

from isnet_trt.errors import EngineError
from isnet_trt.runtime.prefetch import prefetch


class Log:
    """Submits and collects numbers; ``bad_…`` says which fail."""

    def __init__(self, bad_submit=(), bad_collect=()):
        self.done = []
        self.bad_submit, self.bad_collect = bad_submit, bad_collect

    def submit(self, item):
        self.done.append(f"submit {item}")
        if item in self.bad_submit:
            raise ValueError(f"submit {item}")
        return item

    def collect(self, item):
        self.done.append(f"collect {item}")
        if item in self.bad_collect:
            raise EngineError(f"collect {item}")
        return 10 * item


@pytest.mark.parametrize(
    ("depth", "order"),
    [
        (0, ["submit 1", "collect 1", "submit 2", "collect 2", "submit 3", "collect 3"]),
        (1, ["submit 1", "submit 2", "collect 1", "submit 3", "collect 2", "collect 3"]),
        (5, ["submit 1", "submit 2", "submit 3", "collect 1", "collect 2", "collect 3"]),
    ],
)
def test_order(depth, order):
    log = Log()
    assert list(prefetch(iter([1, 2, 3]), log.submit, log.collect, depth)) == [10, 20, 30]
    assert log.done == order


def test_noitem():
    assert list(prefetch([], Log().submit, Log().collect, 1)) == []


def test_a_failed_submission_is_raised_after_the_results_before_it():
    log = Log(bad_submit={3})
    results = prefetch([1, 2, 3, 4], log.submit, log.collect, 2)
    assert [next(results), next(results)] == [10, 20]
    with pytest.raises(ValueError, match="submit 3"):
        next(results)
    assert "submit 4" not in log.done


def test_a_failed_collection_leaves_noitem_submitted():
    log = Log(bad_collect={1})
    results = prefetch([1, 2, 3], log.submit, log.collect, 1)
    with pytest.raises(EngineError, match="collect 1"):
        next(results)
    assert log.done == ["submit 1", "submit 2", "collect 1", "collect 2"]


def test_closing_early_collects_the_rest():
    log = Log(bad_collect={2})
    results = prefetch([1, 2, 3], log.submit, log.collect, 1)
    next(results)
    results.close()
    assert log.done == ["submit 1", "submit 2", "collect 1", "collect 2"]


def test_a_source_that_fails_is_like_an_item_that_fails():
    def source():
        yield 1
        raise KeyError("source")

    log = Log()
    results = prefetch(source(), log.submit, log.collect, 1)
    assert next(results) == 10
    with pytest.raises(KeyError, match="source"):
        next(results)
