"""Items submitted early, results in order."""

from __future__ import annotations

import pytest

from isnet_trt.errors import EngineError
from isnet_trt.runtime.prefetch import prefetch


class Log:
    """Begins and finishes numbers; what fails is told by ``bad``."""

    def __init__(self, bad_begin=(), bad_finish=()):
        self.done = []
        self.bad_begin, self.bad_finish = bad_begin, bad_finish

    def begin(self, thing):
        self.done.append(f"begin {thing}")
        if thing in self.bad_begin:
            raise ValueError(f"begin {thing}")
        return thing

    def finish(self, thing):
        self.done.append(f"finish {thing}")
        if thing in self.bad_finish:
            raise EngineError(f"finish {thing}")
        return 10 * thing


@pytest.mark.parametrize(
    ("ahead", "order"),
    [
        (0, ["begin 1", "finish 1", "begin 2", "finish 2", "begin 3", "finish 3"]),
        (1, ["begin 1", "begin 2", "finish 1", "begin 3", "finish 2", "finish 3"]),
        (5, ["begin 1", "begin 2", "begin 3", "finish 1", "finish 2", "finish 3"]),
    ],
)
def test_order(ahead, order):
    log = Log()
    assert list(prefetch(iter([1, 2, 3]), log.begin, log.finish, ahead)) == [10, 20, 30]
    assert log.done == order


def test_nothing():
    assert list(prefetch([], Log().begin, Log().finish, 1)) == []


def test_what_fails_to_begin_is_said_after_the_answers_before_it():
    log = Log(bad_begin={3})
    answers = prefetch([1, 2, 3, 4], log.begin, log.finish, 2)
    assert [next(answers), next(answers)] == [10, 20]
    with pytest.raises(ValueError, match="begin 3"):
        next(answers)
    assert "begin 4" not in log.done


def test_what_fails_to_finish_leaves_nothing_begun():
    log = Log(bad_finish={1})
    answers = prefetch([1, 2, 3], log.begin, log.finish, 1)
    with pytest.raises(EngineError, match="finish 1"):
        next(answers)
    assert log.done == ["begin 1", "begin 2", "finish 1", "finish 2"]


def test_nobody_asks_for_more():
    log = Log(bad_finish={2})
    answers = prefetch([1, 2, 3], log.begin, log.finish, 1)
    next(answers)
    answers.close()
    assert log.done == ["begin 1", "begin 2", "finish 1", "finish 2"]


def test_a_source_that_fails_is_like_a_thing_that_fails():
    def source():
        yield 1
        raise KeyError("source")

    log = Log()
    answers = prefetch(source(), log.begin, log.finish, 1)
    assert next(answers) == 10
    with pytest.raises(KeyError, match="source"):
        next(answers)
