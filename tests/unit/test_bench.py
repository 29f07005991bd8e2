"""The parts of the benchmarks that decide something: verdicts, percentiles, turns, counts."""

import threading
import time

import numpy as np
import pytest
from monolith_kv_tools.bench import goals, harness, instructions, traffic, writes
from monolith_kv_tools.bench.goals import AIM, MISS, OK, Figure, Goal

from monolith_kv import _yardsticks

RATIO = Goal("more is better", 0.5, 0.8)
BYTES = Goal("less is better", 28.0, 18.0, at_least=False)


# --- goals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "value", "expected"),
    [
        (RATIO, 0.49, MISS),
        (RATIO, 0.5, OK),
        (RATIO, 0.79, OK),
        (RATIO, 0.8, AIM),
        (BYTES, 28.1, MISS),
        (BYTES, 28.0, OK),
        (BYTES, 18.1, OK),
        (BYTES, 18.0, AIM),
        (Goal("no aim", 5.0), 500.0, OK),
        (RATIO, float("nan"), MISS),
        (BYTES, float("nan"), MISS),
    ],
)
def test_verdict_turns_at_floor_and_aim(goal, value, expected):
    assert goals.verdict(goal, value) == expected


def test_every_aim_is_beyond_its_floor():
    for goal in goals.GOALS.values():
        assert goals.verdict(goal, goal.floor) == OK
        assert goal.aim is None or goals.verdict(goal, goal.aim) == AIM


def test_a_figure_of_a_smaller_table_is_in_brackets_and_misses_nothing():
    small = Figure("insert", 0.1, rows=1_000_000)
    assert "(MISS)" in goals.line(small)
    assert goals.misses([small]) == []
    assert goals.misses([Figure("insert", 0.1, rows=20_000_000)]) == ["insert"]


def test_the_table_names_what_was_not_measured():
    figures = [Figure(key, 1.0, 20_000_000) for key in goals.GOALS if key != "import"]
    assert f"not measured: {goals.GOALS['import'].text}" in goals.table(figures)
    assert "not measured" not in goals.table([*figures, Figure("import", 1.0, 0)])


def test_figures_survive_their_file(tmp_path):
    figures = [Figure("insert", 0.5, 7, "detail"), Figure("import", 80.0, 0)]
    for each in figures:
        goals.append(tmp_path / "figures", each)
    assert goals.read(tmp_path / "figures") == figures


# --- the harness ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_percentile_is_a_value_that_its_share_does_not_exceed(share, expected):
    values = np.random.default_rng(0).permutation(np.arange(1, 101)).tolist()
    assert harness.percentile(values, share) == expected


def test_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        harness.percentile([], 0.5)


@pytest.fixture
def clock(monkeypatch):
    """A list of the one time that perf_counter tells."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_ratio_of_two_is_twice_as_fast_as_the_yardstick(clock):
    def work():
        clock[0] += 1.5

    def yardstick():
        clock[0] += 3.0

    def before():
        clock[0] += 100.0  # Not timed.

    result = harness.compare("two", work, yardstick, rounds=5, before=before)
    assert (result.seconds, result.yardstick_s) == (1.5, 3.0)
    assert (result.ratio, result.low, result.high) == (2.0, 2.0, 2.0)


def test_each_comes_first_in_every_second_round():
    calls = []
    harness.compare(
        "order", lambda: calls.append("w"), lambda: calls.append("y"), rounds=4, warm_up=0
    )
    assert "".join(calls) == "ywwyywwy"


def test_a_paused_disturber_does_nothing():
    ran = threading.Event()
    calls = [0]

    def work():
        calls[0] += 1
        ran.set()
        return True

    with harness.Disturber(work) as disturber:
        assert calls == [0]
        disturber.resume()
        assert ran.wait(10)
        disturber.pause()
        before = calls[0]
        assert before > 0
        assert not disturber.is_done
    assert calls[0] == before


def test_a_disturber_that_fails_says_so():
    def work():
        raise OSError("broken")

    with harness.Disturber(work) as disturber:
        disturber.resume()
        with pytest.raises(OSError, match="broken"):
            disturber.pause()


def test_windows_end_when_the_disturber_has_nothing_left():
    with harness.Disturber(lambda: False) as disturber:
        result = harness.beside(lambda: None, disturber, windows=1000, window_s=0.001)
    assert result.windows == 1


# --- traffic and yardsticks ----------------------------------------------------------------------


def test_distinct_batches_have_no_id_twice_and_repeated_ones_their_share():
    rng = np.random.default_rng(0)
    distinct = traffic.distinct_positions(rng, 1000, 900, 3).reshape(3, 900)
    repeated = traffic.repeat_some(rng, distinct.reshape(-1), 900, 0.3).reshape(3, 900)
    for one, other in zip(distinct, repeated, strict=True):
        assert len(np.unique(one)) == 900
        assert len(np.unique(other)) == 630
        assert set(other) <= set(one)


def test_the_limit_of_a_push_with_repetitions_sums_and_steps():
    rng = np.random.default_rng(0)
    rows = rng.random((50, 5), np.float32)
    states = np.full_like(rows, 0.1)
    positions = rng.integers(0, 50, 200)
    gradients = rng.normal(0, 1, (200, 5)).astype(np.float32)
    sums = np.zeros_like(rows)
    np.add.at(sums, positions, gradients)
    touched = np.unique(positions)
    expected_states, expected = states.copy(), rows.copy()
    expected_states[touched] += sums[touched] ** 2
    expected[touched] -= 0.05 * sums[touched] / np.sqrt(expected_states[touched])

    _yardsticks.step_sums(rows, states, *writes.grouped(positions), gradients, 0.05)

    np.testing.assert_allclose(states, expected_states, rtol=1e-4)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-6)


# --- instructions --------------------------------------------------------------------------------


def test_preparation_is_not_counted():
    counts = instructions.by_kind([("lookup", 10), ("pull", 4)], [10**9, 1000, 10**6, 600])
    assert counts == {"lookup": 100.0, "pull": 150.0}


def test_a_missing_dump_is_not_taken_for_another():
    with pytest.raises(ValueError, match="2 kinds need 4 dumps, got 3"):
        instructions.by_kind([("lookup", 10), ("pull", 4)], [1, 2, 3])


RECORDED = {"lookup": 200.0, "pull": 210.0, "push": 1000.0, "remove": 700.0}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"lookup": 210.0}, []),
        ({"lookup": 210.1}, ["lookup"]),
        ({"pull": 300.0, "push": 1051.0}, ["pull", "push"]),
        ({"remove": 9000.0}, []),
    ],
)
def test_five_in_a_hundred_more_is_the_most(changed, expected):
    assert instructions.judged({**RECORDED, **changed}, RECORDED)[1] == expected


def test_what_was_not_counted_or_not_recorded_does_not_pass():
    counts = {"lookup": 200.0, "pull": 210.0}
    assert instructions.judged(counts, {"lookup": 200.0})[1] == ["pull", "push"]


def test_a_failure_elsewhere_names_what_differs():
    recorded = {"compiler": "gcc 12", "vector": "avx2"}
    [first, *_] = instructions.explained(recorded, {"compiler": "gcc 14", "vector": "avx2"})
    assert "compiler gcc 12, here gcc 14" in first
    assert "vector" not in first


def test_totals_are_read_from_a_dump(tmp_path):
    (tmp_path / "part").write_text("version: 1\nsummary: 12\n\nfn=(1)\n0 12\n\ntotals: 34\n")
    assert instructions.total(tmp_path / "part") == 34
