"""The background seals, compacts and prefetches by itself, and tells what it fails at."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest
from checks import u64, until
from model import ManualClock

import monolith_kv as mkv

OFTEN = 0.02  # seconds between two seals
DAY = 86_400


def ones(count: int) -> np.ndarray:
    return np.ones((count, 1), np.float32)


def test_it_seals_what_was_touched_and_nothing_otherwise(
    store_dir: Path, clock: ManualClock
) -> None:
    with mkv.open(store_dir, delta_interval=OFTEN, clock=clock) as store:
        table = store.create_table("t", 1)
        until(lambda: store.sequence == 1)
        table.upsert(u64([1]), ones(1))
        until(lambda: store.sequence == 2)
        # Two more rounds of the background: it has nothing to publish, and publishes nothing.
        for _ in range(2):
            threading.Event().wait(2 * OFTEN)
        assert store.sequence == 2
        rows = [(delta.rows, delta.sealed_at) for delta in store.deltas()]
        assert rows == [(0, clock.now), (1, clock.now)]


def test_it_removes_expired_rows_and_publishes_their_removal(
    store_dir: Path, clock: ManualClock
) -> None:
    with mkv.open(store_dir, delta_interval=OFTEN, clock=clock) as store:
        table = store.create_table("t", 1, ttl=60)
        table.upsert(u64(range(500)), ones(500))
        clock.advance(59)
        table.upsert(u64([1_000]), ones(1))
        clock.advance(1)
        until(lambda: len(table) == 1)
        until(lambda: sum(delta.removals for delta in store.deltas()) == 500)
        assert 1_000 in table


def test_it_leaves_a_table_alone_that_a_jump_of_the_clock_would_empty(
    store_dir: Path, clock: ManualClock
) -> None:
    with mkv.open(store_dir, delta_interval=OFTEN, clock=clock) as store:
        table = store.create_table("t", 1, ttl=60)
        other = store.create_table("small", 1, ttl=60)
        table.upsert(u64(range(1_001)), ones(1_001))
        other.upsert(u64([1]), ones(1))
        clock.advance(DAY)
        until(lambda: "t" in store.stats()["suspects"])
        until(lambda: len(other) == 0)
        # Calls go on; all rows are there, and those that are pushed are young again.
        assert len(table) == 1_001
        table.push(u64(range(600)), ones(600))
        until(lambda: len(table) == 600)


def test_what_it_fails_at_the_next_call_raises_and_then_it_goes_on(
    store_dir: Path, clock: ManualClock
) -> None:
    with mkv.open(store_dir, delta_interval=OFTEN, clock=clock) as store:
        table = store.create_table("t", 1)
        until(lambda: store.sequence == 1)
        deltas, aside = store_dir / "deltas", store_dir / "aside"
        deltas.rename(aside)
        deltas.write_text("in the way")
        table.upsert(u64([1]), ones(1))
        until(lambda: store.stats()["background"]["error"] is not None)
        with pytest.raises((OSError, mkv.Error)):
            table.upsert(u64([2]), ones(1))
        deltas.unlink()
        aside.rename(deltas)
        until(lambda: store.sequence >= 2)
        with contextlib.suppress(OSError, mkv.Error):
            table.upsert(u64([3]), ones(1))  # It may have failed once more before that.
        table.upsert(u64([4]), ones(1))
        assert table.contains(u64([1, 4])).all()


@pytest.mark.parametrize("durability", ["interval", "batch"])
def test_no_call_is_acknowledged_past_the_interval_while_seals_fail(
    store_dir: Path, clock: ManualClock, durability: str
) -> None:
    with mkv.open(store_dir, delta_interval=OFTEN, clock=clock, durability=durability) as store:
        table = store.create_table("t", 1)
        until(lambda: store.sequence == 1)
        deltas, aside = store_dir / "deltas", store_dir / "aside"
        deltas.rename(aside)
        deltas.write_text("in the way")
        table.upsert(u64([1]), ones(1))
        until(lambda: store.stats()["background"]["error"] is not None)
        acknowledged = 0
        for fid in range(2, 22):
            with contextlib.suppress(OSError, mkv.Error):
                table.upsert(u64([fid]), ones(1))
                acknowledged += 1
        # A call log has them all the same: there each error is raised once.
        assert (acknowledged == 0) is (durability == "interval")
        assert table.lookup(u64([1])).any()
        deltas.unlink()
        aside.rename(deltas)
        until(lambda: store.sequence >= 2)

        def goes_on() -> bool:  # It may have failed once more before, and the seal is just ending.
            with contextlib.suppress(OSError, mkv.Error):
                table.upsert(u64([30]), ones(1))
                return True
            return False

        until(goes_on)
        table.upsert(u64([31]), ones(1))


def test_a_seal_that_succeeds_lets_calls_go_on_at_once(store_dir: Path, clock: ManualClock) -> None:
    with mkv.open(store_dir, delta_interval="1h", clock=clock) as store:
        table = store.create_table("t", 1)
        store._state.overdue = mkv.StoreFullError("no room")
        with pytest.raises(mkv.StoreFullError, match="the seal that is due fails"):
            table.upsert(u64([1]), ones(1))
        assert store.seal() is not None
        table.upsert(u64([1]), ones(1))


def test_without_an_interval_nothing_goes_on_behind_the_back(
    store_dir: Path, clock: ManualClock
) -> None:
    before = threading.active_count()
    with mkv.open(store_dir, delta_interval=None, clock=clock) as store:
        table = store.create_table("t", 1, ttl=60)
        table.upsert(u64([1]), ones(1))
        clock.advance(DAY)
        assert threading.active_count() == before
        assert (store.sequence, len(table)) == (0, 1)


@pytest.mark.parametrize("mode", ["r", "replica"])
def test_a_store_that_only_reads_has_no_background(
    store_dir: Path, clock: ManualClock, mode: str
) -> None:
    path = store_dir
    mkv.open(store_dir, delta_interval=None, clock=clock).close()
    if mode == "replica":
        path = store_dir.with_name("replica")
    before = threading.active_count()
    with mkv.open(path, mode=mode, delta_interval=OFTEN, clock=clock):
        assert threading.active_count() == before


def test_close_ends_it_and_seals_the_rest(store_dir: Path, clock: ManualClock) -> None:
    before = threading.active_count()
    with mkv.open(store_dir, delta_interval="1h", memory_limit="64KiB", clock=clock) as store:
        table = store.create_table("t", 512)
        ids = u64(range(100))
        table.upsert(ids, np.ones((100, 512), np.float32))
        table.prefetch(ids)
    assert threading.active_count() == before
    with mkv.open(store_dir, delta_interval=None, clock=clock) as store:
        assert store.sequence == 1
        assert len(store.table("t")) == 100
