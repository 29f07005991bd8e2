"""TTL: what a compaction takes is exact to the second, and a clock that jumps does no harm."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from model import ManualClock

import monolith_kv as mkv

HOUR, DAY = 3_600, 86_400


def opened(path: Path, clock: ManualClock, **options: Any) -> mkv.Store:
    return mkv.open(path, delta_interval=None, clock=clock, **options)


def ones(count: int) -> np.ndarray:
    return np.ones((count, 1), np.float32)


def filled(store: mkv.Store, name: str, ttl: Any, ids: Any) -> mkv.Table:
    table = store.create_table(name, 1, ttl=ttl)
    table.upsert(u64(ids), ones(len(ids)))
    return table


# --- to the second -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("age", "lives"), [(0, True), (59, True), (59.999, True), (60, False), (60.001, False)]
)
def test_a_row_expires_at_its_ttl_to_the_second(
    store_dir: Path, clock: ManualClock, age: float, lives: bool
) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", 60, [1])
        clock.advance(age)
        done = store.compact()
        assert (done.expired, done.finished) == (0 if lives else 1, True)
        assert (1 in table) == lives


@pytest.mark.parametrize("ttl", [90, 90.0, "90s", "1.5m", 89.2])
def test_a_ttl_is_a_duration_in_whole_seconds_rounded_up(
    store_dir: Path, clock: ManualClock, ttl: Any
) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", ttl, [1])
        clock.advance(89)
        store.compact()
        assert 1 in table
        clock.advance(1)
        store.compact()
        assert 1 not in table


def test_age_counts_from_the_whole_second_of_the_last_change(
    store_dir: Path, clock: ManualClock
) -> None:
    clock.now = 1_000.9
    with opened(store_dir, clock) as store:
        table = filled(store, "t", 10, [1])
        assert table.timestamps(u64([1, 2])).tolist() == [1_000, -1]
        clock.now = 1_010.0
        assert store.compact().expired == 1


def test_push_and_upsert_renew_a_row_and_pull_does_not(store_dir: Path, clock: ManualClock) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", 60, [1, 2, 3])
        clock.advance(40)
        table.push(u64([1]), ones(1))
        table.upsert(u64([2]), ones(1))
        table.pull(u64([3]))
        clock.advance(20)
        assert store.compact().expired == 1
        assert table.contains(u64([1, 2, 3])).tolist() == [True, True, False]


def test_slots_have_their_own_ttl_and_others_never_expire(
    store_dir: Path, clock: ManualClock
) -> None:
    short, long, other = (7 << 48) + 1, (9 << 48) + 1, (8 << 48) + 1
    with opened(store_dir, clock) as store:
        table = filled(store, "t", {7: 10, 9: "1h"}, [short, long, other])
        clock.advance(10)
        assert store.compact().expired == 1
        clock.advance(HOUR)
        assert store.compact().expired == 1
        clock.advance(1_000 * DAY)
        assert store.compact().expired == 0
        assert table.contains(u64([short, long, other])).tolist() == [False, False, True]


def test_none_in_a_ttl_mapping_stands_for_all_other_slots(
    store_dir: Path, clock: ManualClock
) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", {7: HOUR, None: 10}, [(7 << 48) + 1, 5])
        clock.advance(10)
        store.compact()
        assert table.contains(u64([(7 << 48) + 1, 5])).tolist() == [True, False]


def test_a_configured_ttl_holds_for_rows_that_are_there(
    store_dir: Path, clock: ManualClock
) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", None, [1])
        clock.advance(DAY)
        assert store.compact().expired == 0
        table.configure(ttl="1h")
        assert store.compact().expired == 1
        assert 1 not in table


# --- until it is removed -----------------------------------------------------------------------


def test_an_expired_row_lives_until_compaction_and_can_be_renewed(
    store_dir: Path, clock: ManualClock
) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", 60, [1])
        clock.advance(DAY)
        assert 1 in table
        assert len(table) == 1
        assert table.lookup(u64([1])).any()
        table.push(u64([1]), ones(1))
        assert store.compact().expired == 0


def test_expired_rows_are_removals_of_the_next_delta(store_dir: Path, clock: ManualClock) -> None:
    with opened(store_dir, clock) as store:
        filled(store, "t", 60, range(5))
        store.seal()
        clock.advance(60)
        store.compact()
        delta = store.seal()
        assert (delta.rows, delta.removals) == (0, 5)


def test_a_crash_that_takes_a_compaction_back_is_told(store_dir: Path, clock: ManualClock) -> None:
    killed = store_dir.parent / "killed"
    with opened(store_dir, clock) as store:
        filled(store, "t", 10, [1])
        store.seal()
        clock.advance(10)
        assert store.compact().expired == 1
        shutil.copytree(store_dir, killed)
    with pytest.warns(mkv.DataLossWarning), opened(killed, clock) as store:
        assert 1 in store.table("t")


def test_an_expired_id_comes_back_fresh(store_dir: Path, clock: ManualClock) -> None:
    with opened(store_dir, clock) as store:
        table = store.create_table("t", 2, ttl=60)
        first = table.pull(u64([1])).copy()
        table.push(u64([1]), np.ones((1, 2), np.float32))
        clock.advance(60)
        store.compact()
        np.testing.assert_array_equal(table.pull(u64([1])), first)
        assert (table.state(u64([1]))["accumulator"] == np.float32(0.1)).all()


def test_compaction_in_slices_ends_where_one_does(store_dir: Path, clock: ManualClock) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", 60, range(20_000))
        clock.advance(30)
        table.upsert(np.arange(0, 20_000, 3, dtype=np.uint64), ones(6_667))
        clock.advance(30)
        expired, finished = 0, False
        while not finished:
            done = store.compact(budget=1e-4, force=True)
            expired, finished = expired + done.expired, done.finished
        assert expired == 20_000 - 6_667
        assert len(table) == 6_667
        assert table.contains(np.arange(0, 20_000, 3, dtype=np.uint64)).all()


def test_a_replica_expires_nothing_by_itself(store_dir: Path, clock: ManualClock) -> None:
    replica_dir = store_dir.parent / "replica"
    with opened(store_dir, clock) as store, opened(replica_dir, clock, mode="replica") as replica:
        filled(store, "t", 60, [1])
        replica.apply(store.seal())
        clock.advance(DAY)
        with contextlib.suppress(mkv.ReadOnlyError):
            assert replica.compact().expired == 0
        assert 1 in replica.table("t")
        store.compact()
        replica.apply(store.seal())
        assert 1 not in replica.table("t")


# --- a clock that jumps ------------------------------------------------------------------------


def test_no_row_expires_early_when_the_clock_goes_back(store_dir: Path, clock: ManualClock) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", HOUR, [1, 2])
        born = int(clock.now)
        clock.advance(-DAY)
        store.compact()
        table.push(u64([1]), ones(1))
        assert table.timestamps(u64([1])).tolist() == [born]
        clock.advance(DAY + HOUR - 1)
        assert store.compact().expired == 0
        clock.advance(1)
        assert store.compact().expired == 2


def test_a_jump_ahead_empties_no_large_table(store_dir: Path, clock: ManualClock) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", HOUR, range(1_001))
        other = filled(store, "small", HOUR, range(1_000))
        store.seal()
        digest = store.digest("t")
        clock.advance(DAY)
        with pytest.raises(mkv.ClockError):
            store.compact()
        # Counted before the first one goes: all are there; the other table is compacted.
        assert (len(table), store.digest("t")) == (1_001, digest)
        assert len(other) == 0
        delta = store.seal()
        assert (delta.rows, delta.removals) == (0, 1_000)


def test_force_takes_what_the_clock_rule_would_keep(store_dir: Path, clock: ManualClock) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", HOUR, range(1_001))
        clock.advance(DAY)
        assert store.compact(force=True).expired == 1_001
        assert len(table) == 0


@pytest.mark.parametrize(
    ("old", "young", "stops"),
    [(1_000, 0, False), (1_001, 0, True), (2_000, 2_000, False), (2_001, 2_000, True)],
)
def test_the_clock_rule_is_over_half_and_over_a_thousand(
    store_dir: Path, clock: ManualClock, old: int, young: int, stops: bool
) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", HOUR, range(old))
        clock.advance(HOUR)
        if young:
            table.upsert(u64(range(10_000, 10_000 + young)), ones(young))
        if stops:
            with pytest.raises(mkv.ClockError):
                store.compact()
            assert len(table) == old + young
        else:
            assert store.compact().expired == old


def test_a_clock_that_came_back_from_ahead_leaves_all_as_it_was(
    store_dir: Path, clock: ManualClock
) -> None:
    with opened(store_dir, clock) as store:
        table = filled(store, "t", HOUR, range(5_000))
        clock.advance(1_000 * DAY)
        with pytest.raises(mkv.ClockError):
            store.compact()
        clock.advance(-1_000 * DAY)
        assert store.compact().expired == 0
        assert len(table) == 5_000


# --- memory ------------------------------------------------------------------------------------

MEMORY_OF_EXPIRY = """
import os, sys
import numpy as np, psutil
import monolith_kv as mkv

now = 1_000_000.0
store = mkv.open(sys.argv[1], durability="none", delta_interval=None, clock=lambda: now)
table = store.create_table("t", 64, ttl=60)
process = psutil.Process(os.getpid())
empty = process.memory_info().rss
for start in range(0, 400_000, 10_000):
    table.pull(np.arange(start, start + 10_000, dtype=np.uint64))
full = process.memory_info().rss
keep = np.arange(0, 400_000, 100, dtype=np.uint64)
now += 60
table.upsert(keep, np.ones((len(keep), 64), np.float32))
done = store.compact(force=True)
store.seal()
after = process.memory_info().rss
assert done.expired == 396_000 and len(table) == 4_000, done
assert (table.lookup(keep) == 1).all()
print(full - empty, after - empty, done.bytes_freed)
store.close()
"""


def test_resident_memory_falls_after_expiry(store_dir: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_EXPIRY, str(store_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    full, after, freed = map(int, run.stdout.split())
    rows_bytes = 400_000 * 64 * 4 * 2
    assert full > rows_bytes
    # One row in a hundred stays, spread over all of the memory: it has to be moved together.
    assert after < full / 4
    assert freed > rows_bytes / 2
