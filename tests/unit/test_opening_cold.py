"""A store that is opened from a snapshot with cold rows: they stay there, and all is as before."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import open_files_in, u64
from cold_store import (
    DIM,
    IDS,
    LIMIT,
    check,
    fill,
    parts_of,
    rows_of,
    sizes_of,
    tier_of,
)
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import checkpoint
from monolith_kv._table import in_hand_bytes
from monolith_kv.budget import Budget
from monolith_kv.loading import PENDING_BYTES_MAX
from monolith_kv.storage import recovery
from monolith_kv.storage.format import RecordKind
from monolith_kv.storage.record_file import RecordReader


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock, "durability": "batch"}


@pytest.mark.parametrize(
    ("record_bytes", "overflow_limit"), [(4 << 20, None), (32 << 10, None), (4 << 20, "1MiB")]
)
def test_cold_rows_are_not_touched_when_a_store_is_opened(
    folder: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    record_bytes: int,
    overflow_limit: str | None,
) -> None:
    # Many records, and records of many parts: the least limit allows some hundred rows in each.
    monkeypatch.setattr(checkpoint, "COLD_BYTES", record_bytes)
    options = {**options, "overflow_limit": overflow_limit}
    with fill(folder / "s", options) as store:
        path = store.snapshot().path
        sizes = sizes_of(RecordKind.COLD, path)
        assert max(sizes) < 2 * record_bytes
        assert min(sizes[:-1], default=record_bytes) >= record_bytes
        cold, digest = store.stats()["overflow"]["rows"], store.digest()
        times = store.table("t").timestamps(IDS)
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        overflow = store.stats()["overflow"]
        assert overflow["rows"] == cold > len(IDS) // 2
        assert RecordReader(path).meta["by_table"] == {"1": [len(IDS) - cold, cold]}
        assert (overflow["evicted"], overflow["promoted"]) == (0, 0)
        assert (tier_of(store).written_bytes, os.listdir(folder / "s" / "overflow")) == (0, [])
        assert overflow["bytes"] == cold * (store._state.tables["t"].core.record_bytes + 4)
        assert store.digest() == digest
        assert np.array_equal(store.table("t").timestamps(IDS), times)
        check(store)
        assert store.verify() == []


def test_all_is_well_when_no_row_is_cold_any_more(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FITS_SHARE", 0)
    with fill(folder / "s", options) as store:
        store.snapshot()
    with mkv.open(folder / "s", memory_limit="64MiB", **options) as store:
        assert store.stats()["overflow"]["rows"] > 0
        for ids in (IDS[::2], IDS):
            store.table("t").pull(ids.copy())
            check(store)
        assert store.stats()["overflow"]["rows"] == 0
        assert store.verify() == []


def test_without_a_limit_all_of_it_is_in_memory(folder: Path, options: dict[str, Any]) -> None:
    with fill(folder / "s", options) as store:
        store.snapshot()
        digest = store.digest()
    with mkv.open(folder / "s", **options) as store:
        assert store.digest() == digest
        check(store)
    path = next((folder / "s" / "snapshots").iterdir())
    for limit in (None, LIMIT):
        with mkv.restore(path, folder / f"r{limit}", memory_limit=limit, **options) as copy:
            assert copy.digest() == digest
            check(copy)


def test_a_snapshot_of_a_store_that_fits_has_no_cold_rows(
    folder: Path, options: dict[str, Any]
) -> None:
    for limit, expected in (("64MiB", False), (LIMIT, True)):
        path = folder / str(expected)
        with fill(path, options) as store:
            store.snapshot(folder / f"{limit}.snapshot")
        with mkv.open(path, memory_limit=limit, **options) as store:
            found = RecordReader(store.snapshot(folder / f"{limit}.again").path)
        assert any(record.kind == RecordKind.COLD for record in found) is expected


def test_a_store_is_within_its_limit_right_after_its_rows_came_in_one_record(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", **options) as store:
        store.create_table("t", DIM).upsert(IDS, rows_of(IDS, 0.0))
        path = store.snapshot(folder / "a").path
    assert len(sizes_of(RecordKind.ROWS, path)) == 1
    settings = {"mode": "replica", "memory_limit": LIMIT, "clock": options["clock"]}
    with mkv.restore(path, folder / "r", **settings) as replica:
        assert replica.stats()["overflow"]["rows"] > len(IDS) // 4
        check(replica)


def test_rows_in_memory_come_in_records_of_some_size(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "ROWS_BYTES", 20_000)  # Segments of the index have others.
    with fill(folder / "s", options) as store:
        path = store.snapshot().path
        sizes = sizes_of(RecordKind.ROWS, path)
        record = store._state.tables["t"].core.record_bytes
        assert len(sizes) > 2
        assert all(20_000 - record < size <= 20_000 for size in sizes[:-1])
        assert RecordReader(path).meta["digest"] == store.digest()


def test_many_cold_rows_come_in_larger_records(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "COLD_BYTES", 4 << 10)
    with fill(folder / "s", options) as store:
        many = sizes_of(RecordKind.COLD, store.snapshot(folder / "a").path)
        monkeypatch.setattr(checkpoint, "COLD_RECORDS", 2)
        few = sizes_of(RecordKind.COLD, store.snapshot(folder / "b").path)
        monkeypatch.setattr(checkpoint, "COLD_BYTES_MAX", 100 << 10)
        some = sizes_of(RecordKind.COLD, store.snapshot(folder / "c").path)
    assert len(few) <= 3 < len(some) < len(many)
    assert sum(few) == sum(some) == sum(many)


def test_a_snapshot_whose_rows_have_not_the_digest_that_is_kept_is_not_made(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options) as store:
        good = store.snapshot()
        core = store._state.tables["t"].core
        core.enter_cold(u64([]), np.empty(0, np.int64), 0, 1, 0)  # A digest of rows not there.
        with pytest.raises(mkv.CorruptionError, match="no snapshot was made"):
            store.snapshot()
        assert os.listdir(folder / "s" / "snapshots") == [os.path.basename(good.path)]
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        check(store)
        store.snapshot()


@pytest.mark.parametrize("seed", range(4))
def test_a_store_with_two_tiers_is_one_with_one(
    folder: Path, options: dict[str, Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    options = {**options, "snapshots_kept": 1}
    stores = [fill(folder / "two", options), mkv.open(folder / "one", **options)]
    table = stores[1].create_table("t", DIM, optimizer=mkv.Adagrad(), ttl="10d")
    table.upsert(IDS, rows_of(IDS, 0.0))
    limits = (LIMIT, None)
    for step in range(40):
        ids = np.unique(rng.choice(IDS, 400))
        what = rng.choice(["push", "remove", "upsert", "seal", "snapshot", "open", "kill", "time"])
        for number, store in enumerate(stores):
            table = store.table("t")
            if what == "push":
                table.pull(ids)
                table.push(ids, np.full((len(ids), DIM), 0.5, np.float32))
            elif what == "remove":
                table.remove(ids[:100])
            elif what == "upsert":
                table.upsert(ids, rows_of(ids, float(step)))
            elif what == "time":
                options["clock"].advance(86_400.0)
            elif what in ("seal", "snapshot"):
                getattr(store, what)()
            else:
                stores[number] = again(store, what, folder / f"{step}-{number}", limits[number],
                                       options)  # fmt: skip
        two, one = (store.table("t") for store in stores)
        assert np.array_equal(two.lookup(IDS), one.lookup(IDS)), (step, what)
        assert np.array_equal(two.contains(IDS), one.contains(IDS)), (step, what)
        assert np.array_equal(two.timestamps(IDS), one.timestamps(IDS)), (step, what)
        assert stores[0].digest() == stores[1].digest(), (step, what)
        assert stores[0]._state.tables["t"].core.check() == [], (step, what)
    for store in stores:
        store.close()


def again(
    store: mkv.Store, what: str, path: Path, limit: str | None, options: dict[str, Any]
) -> mkv.Store:
    """Close a store and open it, or open what a kill would have left of it."""
    if what == "open":
        path = Path(store.path)
    else:
        shutil.copytree(store.path, path)
    store.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return mkv.open(path, memory_limit=limit, **options)


@pytest.mark.parametrize("at_once", [4_000, 50])
def test_rows_that_change_while_a_snapshot_is_written_are_in_it_once(
    folder: Path, options: dict[str, Any], at_once: int
) -> None:
    with fill(folder / "s", options) as store:
        digest, table, left = store.digest(), store.table("t"), list(IDS)

        def change(done: int, rows: int) -> None:
            for start in range(0, at_once, 50):
                ids = u64(left[start : start + 50])
                table.pull(ids)
                table.push(ids, np.ones((len(ids), DIM), np.float32))
            del left[:at_once]

        path = store.snapshot(folder / "a", progress=change).path
        assert store.digest() != digest
    for limit in (LIMIT, None):
        with mkv.restore(path, folder / f"{limit}", memory_limit=limit, **options) as copy:
            assert copy.digest() == digest
            check(copy)


def test_memory_stays_within_its_limit_while_a_store_is_opened(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    many, dim, limit = u64(range(100_000)), 64, 8 << 20
    with mkv.open(folder / "s", **options) as store:
        store.create_table("t", dim).upsert(many, np.zeros((len(many), dim), np.float32))
        store.seal()
        store.snapshot()
    used: list[int] = []
    settle = Budget.settle

    def watched(self: Budget, need: int = 0) -> None:
        used.append(self.used() - in_hand_bytes())
        settle(self, need)

    monkeypatch.setattr(Budget, "settle", watched)
    with mkv.open(folder / "s", memory_limit=limit, **options) as store:
        assert store.stats()["overflow"]["rows"] > len(many) // 2
    assert max(used) < 2 * limit + PENDING_BYTES_MAX


# --- the snapshot goes -------------------------------------------------------------------------


def deleted_snapshots(store: mkv.Store) -> list[str]:
    """Its files that this process keeps though they have no name any more."""
    return [path for path in open_files_in(store.path) if ".snapshot (deleted)" in path]


@pytest.fixture
def retiring(folder: Path, options: dict[str, Any]) -> Iterator[mkv.Store]:
    """A store that was opened from a snapshot which is retired now."""
    options = {**options, "snapshots_kept": 1}
    with fill(folder / "s", options) as store:
        store.snapshot()
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        assert parts_of(store)
        store.table("t").upsert(IDS[:1], rows_of(IDS[:1], 0.0))
        store.snapshot()
        yield store


def test_rows_are_moved_out_of_a_snapshot_that_is_retired(retiring: mkv.Store) -> None:
    assert len(deleted_snapshots(retiring)) == 1
    check(retiring)
    cold = retiring.stats()["overflow"]["rows"]
    tier_of(retiring).shrink()
    assert (parts_of(retiring), deleted_snapshots(retiring)) == ([], [])
    assert retiring.stats()["overflow"]["rows"] == cold
    check(retiring)


def test_what_leaves_memory_takes_rows_out_of_a_retired_snapshot_along(
    retiring: mkv.Store,
) -> None:
    table = retiring.table("t")
    for start in range(0, len(IDS), 100):
        table.pull(IDS[start : start + 100])
    table.upsert(IDS[:1000], rows_of(IDS[:1000], 0.0))
    assert (parts_of(retiring), deleted_snapshots(retiring)) == ([], [])
    check(retiring)


def test_dropping_the_table_lets_the_snapshot_go(retiring: mkv.Store) -> None:
    retiring.drop_table("t")
    assert deleted_snapshots(retiring) == []


def test_closing_lets_the_snapshot_go(retiring: mkv.Store) -> None:
    retiring.close()
    assert deleted_snapshots(retiring) == []


def test_nothing_is_moved_out_of_a_snapshot_that_is_kept(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options) as store:
        store.snapshot()
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        table = store.table("t")
        for start in range(0, len(IDS), 100):
            table.pull(IDS[start : start + 100])
        tier_of(store).shrink()
        tier = tier_of(store)
        assert tier.dead_bytes <= 0.23 * tier.bytes + 16 * 200
        check(store)


def test_a_reader_keeps_what_the_writer_retires(folder: Path, options: dict[str, Any]) -> None:
    options = {**options, "snapshots_kept": 1}
    with fill(folder / "s", options) as store:
        store.snapshot()
        with mkv.open(folder / "s", mode="r", memory_limit=LIMIT, clock=options["clock"]) as reader:
            assert parts_of(reader)
            store.table("t").upsert(IDS, rows_of(IDS, 1.0))
            store.seal()
            store.snapshot()
            check(reader)
            assert reader.refresh()
            check(reader, value=1.0)


def test_more_cold_rows_than_the_limit_allows_are_refused(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", {**options}, overflow_limit=None) as store:
        store.table("t").upsert(u64(range(20_000)), rows_of(u64(range(20_000)), 0.0))
        store.seal()
        store.snapshot()
    with pytest.raises(mkv.StoreFullError, match="raise overflow_limit"):
        mkv.open(folder / "s", memory_limit=LIMIT, overflow_limit="1MiB", **options)
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        check(store, u64(range(20_000)))
