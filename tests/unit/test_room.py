"""Room in memory is made in the background, a step at a time, and nothing is lost on the way."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monolith_kv as mkv
from monolith_kv import sealing
from monolith_kv._table import in_hand_bytes
from monolith_kv.storage.overflow import fids_of
from monolith_kv.storage.record_file import RecordWriter

DIM = 64
IDS = np.arange(60_000, dtype=np.uint64)
LIMIT = 16 << 20


@pytest.fixture
def store(store_dir: Path) -> Iterator[mkv.Store]:
    """A store with rows up to its limit, whose background is the test itself."""
    with mkv.open(store_dir, delta_interval=None, memory_limit=LIMIT) as store:
        table = store.create_table("item", DIM, optimizer=mkv.SGD(lr=1.0))
        budget(store).wake = lambda: None
        for start in range(0, len(IDS), 1000):
            ids = IDS[start : start + 1000]
            table.upsert(ids, np.repeat(ids.astype(np.float32)[:, None], DIM, axis=1))
        yield store


def budget(store: mkv.Store) -> Any:
    return store._state.budget


def evicted(store: mkv.Store) -> int:
    return int(store.stats()["tables"]["item"]["counters"]["evicted"])


def make_room(store: mkv.Store) -> int:
    steps = 1
    while budget(store).step():
        steps += 1
    return steps


def test_a_step_is_bounded_and_steps_make_room_for_the_calls_that_follow(store):
    before = evicted(store)
    budget(store).step()
    assert 0 < evicted(store) - before <= 1.1 * (1 << 20) / (4 * DIM)
    make_room(store)
    # Some slabs are kept for the next rows.
    assert store.stats()["memory"]["used"] <= LIMIT + (4 << 20)
    before = evicted(store)
    table = store.table("item")
    table.pull(np.arange(10**6, 10**6 + 500, dtype=np.uint64))
    assert evicted(store) == before
    assert make_room(store) == 1  # There is enough left.


def test_rows_that_change_while_their_records_are_written_stay_in_memory(store, monkeypatch):
    table, overflow = store.table("item"), store._state.overflow
    write, changed, removed = overflow.write, [], []

    def slow_write(table_id, core, records):
        fids = fids_of(records)
        if not changed:  # A call comes in between: here, since the mutex is free.
            changed.extend(fids[:10].tolist())
            removed.extend(fids[10:15].tolist())
            table.push(fids[:10], np.full((10, DIM), -1.0, np.float32))
            table.remove(fids[10:15])
        return write(table_id, core, records)

    monkeypatch.setattr(overflow, "write", slow_write)
    before, rows = evicted(store), overflow.rows
    budget(store).step()
    assert len(changed) == 10
    assert overflow.rows - rows == evicted(store) - before > 0
    expected = IDS.astype(np.float32)
    expected[changed] += 1.0
    expected[removed] = 0.0
    assert np.array_equal(table.lookup(IDS)[:, 0], expected)
    assert store.verify() == []


def test_what_rows_that_left_memory_took_on_disk_is_given_back(store):
    make_room(store)
    assert store._state.overflow.bytes > 0
    store.table("item").remove(IDS)
    store._state.overflow.shrink()
    assert store._state.overflow.bytes == 0


def test_rows_of_a_table_that_is_dropped_while_their_records_are_written_stay(store, monkeypatch):
    overflow, entry = store._state.overflow, store._state.tables["item"]
    write, before = overflow.write, entry.core.cold_rows

    def slow_write(*arguments):
        places = write(*arguments)
        store.drop_table("item")
        return places

    monkeypatch.setattr(overflow, "write", slow_write)
    budget(store).step()
    assert entry.core.cold_rows == before
    assert overflow.bytes == 0


def test_a_call_that_needs_room_during_a_step_leaves_its_rows_alone(store, monkeypatch):
    table, overflow = store.table("item"), store._state.overflow
    write, seen = overflow.write, []

    def slow_write(table_id, core, records):
        seen.append(set(fids_of(records).tolist()))
        if len(seen) == 1:
            new = np.arange(10**6, 10**6 + 20_000, dtype=np.uint64)
            table.upsert(new, np.ones((len(new), DIM), np.float32))
        return write(table_id, core, records)

    monkeypatch.setattr(overflow, "write", slow_write)
    budget(store).step()
    assert len(seen) > 1
    assert all(not seen[0] & others for others in seen[1:])
    assert np.array_equal(table.lookup(IDS)[:, 0], IDS.astype(np.float32))


def test_a_tier_that_cannot_be_written_ends_a_step_and_keeps_its_rows(store, monkeypatch):
    table, overflow = store.table("item"), store._state.overflow

    def full(*arguments):
        raise mkv.StoreFullError("the disk is full")

    before = evicted(store)
    monkeypatch.setattr(overflow, "write", full)
    assert not budget(store).step()
    assert evicted(store) == before
    monkeypatch.undo()
    assert np.array_equal(table.lookup(IDS)[:, 0], IDS.astype(np.float32))
    make_room(store)
    assert evicted(store) > before


def test_all_tables_give_room_by_their_share(store_dir):
    with mkv.open(store_dir, delta_interval=None, memory_limit=LIMIT) as store:
        big, small = (store.create_table(name, DIM, optimizer=mkv.SGD()) for name in ("b", "s"))
        for start in range(0, 60_000, 1000):
            ids = np.arange(start, start + 1000, dtype=np.uint64)
            big.upsert(ids, np.ones((1000, DIM), np.float32))
            small.upsert(ids[:500], np.ones((500, DIM), np.float32))
        tables = store.stats()["tables"].values()
        b, s = (table["rows"] - table["cold_rows"] for table in tables)
        assert 1.5 < b / s < 3


def test_stats_tell_what_went_between_the_tiers(store_dir):
    with mkv.open(store_dir, delta_interval=None, memory_limit="4MiB") as store:
        table = store.create_table("item", DIM, optimizer=mkv.SGD())
        assert store.stats()["overflow"]["hit_rate"] is None
        ids = np.arange(30_000, dtype=np.uint64)
        table.upsert(ids, np.ones((len(ids), DIM), np.float32))
        cold = store.stats()["tables"]["item"]["cold_rows"]
        table.lookup(ids)
        found = store.stats()["overflow"]
        assert (found["evicted"], found["cold_hits"], found["promoted"]) == (cold, cold, 0)
        assert found["evicted_bytes"] == cold * store.stats()["tables"]["item"]["record_bytes"]
        assert found["hit_rate"] == pytest.approx(1 - cold / len(ids))
        table.pull(ids[:5000])
        assert store.stats()["overflow"]["promoted"] > 0


def test_a_table_is_dropped_once_no_seal_reads_its_cold_rows(store, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    write, sealed = sealing._write, []

    def wait_and_write(*arguments):
        begun.set()
        assert go.wait(30)
        return write(*arguments)

    monkeypatch.setattr(sealing, "_write", wait_and_write)
    seal = threading.Thread(target=lambda: sealed.append(store.seal()))
    drop = threading.Thread(target=store.drop_table, args=("item",))
    seal.start()
    assert begun.wait(30)
    drop.start()
    drop.join(0.2)
    assert drop.is_alive()
    go.set()
    seal.join()
    drop.join()
    assert [delta.rows for delta in sealed] == [len(IDS)]
    assert store.tables == {}


@pytest.mark.parametrize("kind", ["seal", "snapshot"])
def test_what_a_file_has_in_hand_sends_few_rows_out(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    limit = 2 << 20
    with mkv.open(store_dir, delta_interval=None, memory_limit=limit) as store:
        table = store.create_table("item", 24, optimizer=mkv.SGD())
        for start in range(0, 12_000, 1000):
            table.upsert(IDS[start : start + 1000], np.ones((1000, 24), np.float32))
        write = RecordWriter.append

        def append(self: RecordWriter, *args: Any, **options: Any) -> None:
            with store._state.mutex:  # As a call of another thread does in between.
                budget(store).settle()
            write(self, *args, **options)

        monkeypatch.setattr(RecordWriter, "append", append)
        before = evicted(store)
        store.seal() if kind == "seal" else store.snapshot()
        assert evicted(store) - before < 1_000


@pytest.mark.parametrize("kind", ["seal", "snapshot"])
def test_several_tables_have_in_hand_no_more_than_one(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    limit, rows = 64 << 20, 12_000  # Room for all: nothing leaves memory meanwhile.
    seen: list[int] = []
    write = RecordWriter.append

    def append(self: RecordWriter, *args: Any, **options: Any) -> None:
        seen.append(in_hand_bytes())
        write(self, *args, **options)

    with mkv.open(store_dir, delta_interval=None, memory_limit=limit) as store:
        for name in "abc":
            table = store.create_table(name, 24, optimizer=mkv.SGD())
            table.upsert(IDS[:rows], np.ones((rows, 24), np.float32))
        if kind == "snapshot":
            store.seal()  # Ids of rows that no delta has yet would be in hand, too.
        monkeypatch.setattr(RecordWriter, "append", append)
        before = in_hand_bytes()
        store.seal() if kind == "seal" else store.snapshot()
        monkeypatch.undo()
        assert limit // 80 < max(seen) - before <= limit // 64
        assert in_hand_bytes() == before


def test_what_was_freed_goes_back_after_seals_and_snapshots_of_a_store_with_a_limit(
    store, folder, monkeypatch
):
    given = []
    monkeypatch.setattr("monolith_kv.budget.give_back_freed", lambda: given.append(True))
    store.seal()
    store.snapshot()
    assert len(given) == 2
    with mkv.open(folder / "free", delta_interval=None) as other:
        other.create_table("item", DIM)
        other.seal()
        other.snapshot()
    assert len(given) == 2
