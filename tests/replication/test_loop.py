"""The loop: goes on after errors, waits longer each time, ends when told to."""

import threading

import pytest

import monolith_kv as mkv
from monolith_kv.replication import Stopped, repeat
from monolith_kv.replication.loop import BACKOFF_MAX_S, delay_s


def test_errors_are_told_and_the_loop_goes_on() -> None:
    stop = threading.Event()
    told: list[str] = []
    outcomes = iter([OSError("no disk"), mkv.CorruptionError("bad"), None])

    def step() -> None:
        outcome = next(outcomes)
        if outcome is None:
            stop.set()
        else:
            raise outcome

    repeat(step, stop, poll_s=1e-6, failed=lambda error: told.append(str(error)))
    assert told == ["no disk", "bad"]


def test_a_step_that_was_stopped_ends_the_loop() -> None:
    def step() -> None:
        raise Stopped

    repeat(step, threading.Event())


def test_any_other_exception_is_a_bug_and_is_raised() -> None:
    def step() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        repeat(step, threading.Event())


def test_delays_grow_to_a_minute_and_are_spread() -> None:
    assert delay_s(1.0, 0, 0.7) == 1.0
    assert delay_s(1.0, 1, 0.0) == 1.0
    assert delay_s(1.0, 3, 0.5) == 6.0
    assert delay_s(1.0, 10**6, 0.999) <= BACKOFF_MAX_S
    assert delay_s(300.0, 5, 0.999) <= 300.0
    assert len({delay_s(1.0, 4, chance / 10) for chance in range(10)}) == 10
