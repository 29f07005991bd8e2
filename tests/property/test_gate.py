"""The admission gate: never late, seldom early, forgetful after its window, durable where it says.

Thresholds and streams are counted exactly beside the store, so "late" and "early" are facts.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import WIDE, u64
from model import ManualClock

import monolith_kv as mkv

DAY = 86_400
IDS = 200_000 if WIDE else 40_000
ERROR = 0.01


def opened(path: Path, clock: ManualClock, **options: Any) -> mkv.Store:
    return mkv.open(path, delta_interval=None, clock=clock, **options)


def gate(threshold: Any, window: Any = "1d", capacity: int = 10_000) -> mkv.FrequencyGate:
    return mkv.FrequencyGate(threshold, window=window, capacity=capacity, error=1e-4)


def zipf_shares(count: int) -> np.ndarray:
    shares = 1.0 / np.arange(1, count + 1)
    return shares / shares.sum()


def stream(shape: str, threshold: int) -> np.ndarray:
    """Draws of 0..IDS-1, about as many of each as the threshold asks for."""
    random = np.random.default_rng(threshold)
    draws = IDS * threshold
    if shape == "uniform":
        return random.integers(0, IDS, draws)
    return random.choice(IDS, draws, p=zipf_shares(IDS))


@pytest.mark.parametrize("shape", ["uniform", "zipf"])
@pytest.mark.parametrize("threshold", [2, 5, 20])
def test_no_id_is_late_and_at_most_the_error_share_is_early(
    folder: Path, clock: ManualClock, shape: str, threshold: int
) -> None:
    fids = np.random.default_rng(9).integers(0, 2**64, IDS, np.uint64)
    counts = np.zeros(IDS, np.int64)
    ever_early = np.zeros(IDS, bool)
    with opened(folder / "s", clock) as store:
        admission = mkv.FrequencyGate(threshold, capacity=IDS, error=ERROR)
        table = store.create_table("t", 1, admission=admission)
        for draws in np.array_split(stream(shape, threshold), IDS * threshold // 8_192):
            table.pull(fids[draws])
            seen = np.unique(draws)
            counts[seen] += 1
            present = table.contains(fids[seen])
            assert present[counts[seen] >= threshold].all(), "an id was admitted late"
            ever_early[seen] |= present & (counts[seen] < threshold)
        below = (counts > 0) & (counts < threshold)
        assert below.sum() > IDS / 20, "the stream must leave ids below the threshold"
        assert ever_early.sum() <= ERROR * (counts > 0).sum()
        assert len(table) == (counts >= threshold).sum() + (ever_early & below).sum()


def test_an_id_counts_once_in_a_batch(folder: Path, clock: ManualClock) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(3))
        for _ in range(2):
            assert not table.pull(u64([5, 5, 5, 5])).any()
        assert 5 not in table
        assert table.pull(u64([5, 5])).any()
        assert 5 in table


def test_lookups_and_pushes_are_no_sightings(folder: Path, clock: ManualClock) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(2))
        table.lookup(u64([5]))
        table.lookup_pooled(u64([5]), [0])
        table.push(u64([5]), np.ones((1, 2), np.float32))
        table.contains(u64([5]))
        table.pull(u64([5]))
        assert 5 not in table


def test_upsert_passes_the_gate(folder: Path, clock: ManualClock) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(20))
        table.upsert(u64([5]), np.ones((1, 2), np.float32))
        assert 5 in table


def test_slots_have_their_own_thresholds_and_others_none(folder: Path, clock: ManualClock) -> None:
    in_seven, in_nine, elsewhere = (7 << 48) + 1, (9 << 48) + 1, (8 << 48) + 1
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate({7: 3, 9: 2}))
        ids = u64([in_seven, in_nine, elsewhere])
        admitted = []
        for _ in range(3):
            table.pull(ids)
            admitted.append(table.contains(ids).tolist())
        assert admitted == [[False, False, True], [False, True, True], [True, True, True]]


# --- the window --------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", range(0, 2 * DAY, DAY // 7))
def test_a_sighting_counts_for_a_whole_window_at_any_phase_of_it(
    folder: Path, clock: ManualClock, phase: int
) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(2))
        table.pull(u64([1]))
        clock.advance(phase)
        table.pull(u64([5]))
        clock.advance(DAY - 1)
        table.pull(u64([5]))
        assert 5 in table


@pytest.mark.parametrize("phase", range(0, 2 * DAY, DAY // 7))
def test_a_sighting_older_than_two_windows_counts_for_nothing(
    folder: Path, clock: ManualClock, phase: int
) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(2))
        table.pull(u64([1]))
        clock.advance(phase)
        table.pull(u64([5]))
        clock.advance(2 * DAY + 1)
        table.pull(u64([5]))
        assert 5 not in table
        table.pull(u64([5]))
        assert 5 in table


def test_a_clock_that_goes_back_makes_no_id_late(folder: Path, clock: ManualClock) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(2, window="1h"))
        table.pull(u64([5]))
        clock.advance(-1_800)
        table.pull(u64([5]))
        assert 5 in table
        clock.advance(-30 * DAY)
        table.pull(u64([6]))
        table.pull(u64([6]))
        assert 6 in table


# --- durability --------------------------------------------------------------------------------


def once_seen(path: Path, clock: ManualClock, **options: Any) -> mkv.Store:
    store = opened(path, clock, **options)
    table = store.create_table("t", 2, admission=gate(2))
    table.upsert(u64([1]), np.ones((1, 2), np.float32))
    table.pull(u64([5]))
    assert 5 not in table
    return store


def assert_counted(store: mkv.Store) -> None:
    """The sighting of `once_seen` is there: one more admits; an id never seen needs two."""
    table = store.table("t")
    table.pull(u64([5, 6]))
    assert table.contains(u64([5, 6])).tolist() == [True, False]


def test_sightings_survive_a_clean_close(folder: Path, clock: ManualClock) -> None:
    once_seen(folder / "s", clock).close()
    with opened(folder / "s", clock) as store:
        assert_counted(store)


@pytest.mark.parametrize("durability", ["none", "interval", "batch", "sync"])
def test_sightings_survive_a_kill_after_a_seal(
    folder: Path, clock: ManualClock, durability: str
) -> None:
    with once_seen(folder / "s", clock, durability=durability) as store:
        store.seal()
        shutil.copytree(folder / "s", folder / "killed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        killed = opened(folder / "killed", clock)
    with killed as store:
        assert_counted(store)


def test_sightings_survive_a_kill_after_a_seal_that_publishes_nothing(
    folder: Path, clock: ManualClock
) -> None:
    with once_seen(folder / "s", clock) as store:
        store.seal()
        store.table("t").pull(u64([7]))
        assert store.seal() is None
        shutil.copytree(folder / "s", folder / "killed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        killed = opened(folder / "killed", clock)
    with killed as store:
        assert_counted(store)
        store.table("t").pull(u64([7]))
        assert 7 in store.table("t")


def test_sightings_survive_snapshot_and_restore(folder: Path, clock: ManualClock) -> None:
    with once_seen(folder / "s", clock) as store:
        store.snapshot(folder / "day.snapshot")
    with mkv.restore(folder / "day.snapshot", folder / "r", clock=clock) as store:
        assert_counted(store)


def test_gates_of_several_snapshots_add_up(folder: Path, clock: ManualClock) -> None:
    for shard in ("a", "b"):
        with opened(folder / shard, clock) as store:
            table = store.create_table("t", 2, admission=gate(3))
            table.pull(u64([5]))
            store.snapshot(folder / f"{shard}.snapshot")
    snapshots = [folder / "a.snapshot", folder / "b.snapshot"]
    with mkv.restore(snapshots, folder / "r", clock=clock) as store:
        store.table("t").pull(u64([5, 6]))
        assert store.table("t").contains(u64([5, 6])).tolist() == [True, False]


def test_a_gate_that_cannot_be_added_to_another_is_told(folder: Path, clock: ManualClock) -> None:
    for shard, capacity in (("a", 1_000), ("b", 2_000_000)):
        with opened(folder / shard, clock) as store:
            other = mkv.FrequencyGate(2, capacity=capacity, window="1d")
            store.create_table("t", 2, admission=other).pull(u64([5]))
            store.snapshot(folder / f"{shard}.snapshot")
    snapshots = [folder / "a.snapshot", folder / "b.snapshot"]
    with pytest.warns(mkv.DataLossWarning, match="gate of table t in .*b.snapshot") as told:
        mkv.restore(snapshots, folder / "r", clock=clock).close()
    assert [Path(warning.filename).name for warning in told] == ["test_gate.py"]


def test_a_gate_can_be_taken_away_and_put_back(folder: Path, clock: ManualClock) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(2))
        table.configure(admission=None)
        table.pull(u64([5]))
        assert 5 in table
        table.configure(admission=gate(2))
        table.pull(u64([6]))
        assert 6 not in table


@pytest.mark.parametrize("way", ["killed", "replica"])
def test_a_sighting_in_a_snapshot_and_in_the_delta_after_it_counts_once(
    folder: Path, clock: ManualClock, way: str
) -> None:
    with opened(folder / "s", clock) as store:
        table = store.create_table("t", 2, admission=gate(3))
        table.pull(u64([5]))
        snapshot = store.snapshot()
        delta = store.seal()
        if way == "killed":
            shutil.copytree(folder / "s", folder / "killed")
            again = opened(folder / "killed", clock)
        else:
            again = mkv.restore(snapshot.path, folder / "r", mode="replica", clock=clock)
            again.apply(delta)
            again.promote()
    with again:
        again.table("t").pull(u64([5]))
        assert 5 not in again.table("t")
        again.table("t").pull(u64([5]))
        assert 5 in again.table("t")
