"""A store that is opened from a snapshot with cold rows: they stay there, and all is as before."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import spoil_rows, u64
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import checkpoint
from monolith_kv._checksum import crc32c_each
from monolith_kv._table import in_hand_bytes
from monolith_kv.budget import Budget
from monolith_kv.loading import PENDING_BYTES_MAX
from monolith_kv.storage import recovery
from monolith_kv.storage.format import FileType, RecordKind
from monolith_kv.storage.record_file import RecordReader, RecordWriter
from monolith_kv.storage.snapshot import SnapshotReader

DIM = 16
IDS = u64(range(4_000))
LIMIT = "256KiB"  # Of some 600 KiB of rows.


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock, "durability": "batch"}


def fill(path: Path, options: dict[str, Any], **more: Any) -> mkv.Store:
    """Make a store with all ids, sealed."""
    store = mkv.open(path, memory_limit=LIMIT, **{**options, **more})
    table = store.create_table("t", DIM, optimizer=mkv.Adagrad(), ttl="10d")
    table.upsert(IDS, rows_of(IDS, 0.0))
    store.seal()
    return store


def rows_of(ids: Any, value: float) -> Any:
    return ids.astype(np.float32)[:, None] + np.linspace(0, 1, DIM, dtype=np.float32) + value


def tier_of(store: mkv.Store) -> Any:
    return store._state.overflow


def parts_of(store: mkv.Store) -> list[Any]:
    return [part for found in tier_of(store)._tables.values() for part in found.parts.values()]


def check(store: mkv.Store, ids: Any = IDS, value: float = 0.0) -> None:
    np.testing.assert_array_equal(store.table("t").lookup(ids), rows_of(ids, value))
    assert store._state.tables["t"].core.check() == []


def sizes_of_cold_rows(path: str) -> list[int]:
    return [len(r.payload) for r in RecordReader(path) if r.kind == RecordKind.COLD]


def write_anew(path: Path, change: Any, **end: Any) -> None:
    """Write a snapshot again, with checksums that are good, of places that are not, or END."""
    reader = RecordReader(str(path))
    with RecordWriter(str(path), FileType.SNAPSHOT, reader.header.identity, replace=True) as writer:
        for record in reader:
            payload: Any = record.payload
            if record.kind == RecordKind.COLD:
                places = np.frombuffer(payload, np.uint8).reshape(record.count, -1)
                rows = np.ascontiguousarray(change(places[:, :-4]))
                sums = crc32c_each(rows, rows.shape[1], writer.seed)
                payload = np.hstack([rows, sums.view(np.uint8).reshape(len(rows), 4)])
            writer.append(record.kind, payload, record.table, record.count)
        writer.publish({**reader.meta, **end})


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


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
        sizes = sizes_of_cold_rows(path)
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


def test_rows_that_change_while_a_snapshot_is_written_are_in_it_once(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options) as store:
        digest, table = store.digest(), store.table("t")

        def change(done: int, rows: int) -> None:
            for start in range(0, len(IDS), 500):
                table.pull(IDS[start : start + 500])
                table.push(IDS[start : start + 500], np.ones((500, DIM), np.float32))

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


def deleted_snapshots() -> list[str]:
    """Files that this process keeps though they have no name any more."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue
    return [path for path in found if ".snapshot (deleted)" in path]


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
    assert len(deleted_snapshots()) == 1
    check(retiring)
    cold = retiring.stats()["overflow"]["rows"]
    tier_of(retiring).shrink()
    assert (parts_of(retiring), deleted_snapshots()) == ([], [])
    assert retiring.stats()["overflow"]["rows"] == cold
    check(retiring)


def test_what_leaves_memory_takes_rows_out_of_a_retired_snapshot_along(
    retiring: mkv.Store,
) -> None:
    table = retiring.table("t")
    for start in range(0, len(IDS), 100):
        table.pull(IDS[start : start + 100])
    table.upsert(IDS[:1000], rows_of(IDS[:1000], 0.0))
    assert (parts_of(retiring), deleted_snapshots()) == ([], [])
    check(retiring)


def test_dropping_the_table_lets_the_snapshot_go(retiring: mkv.Store) -> None:
    retiring.drop_table("t")
    assert deleted_snapshots() == []


def test_closing_lets_the_snapshot_go(retiring: mkv.Store) -> None:
    retiring.close()
    assert deleted_snapshots() == []


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


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta_retention", ["0s", "1d"])
def test_a_row_that_rotted_in_the_snapshot_comes_from_the_one_before(
    folder: Path, options: dict[str, Any], delta_retention: str
) -> None:
    with fill(folder / "s", options, delta_retention=delta_retention) as store:
        other = store.create_table("u", DIM, optimizer=mkv.Adagrad())
        other.upsert(IDS, rows_of(IDS, 7.0))
        store.snapshot()
        store.table("t").upsert(IDS[:200], rows_of(IDS[:200], 1.0))
        store.seal()
        newest = store.snapshot()
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        core = store._state.tables["t"].core
        spoil_rows(tier_of(store), core, core.cold(IDS)[::50].copy())
        check(store, IDS[200:])
        check(store, IDS[:200], 1.0)
        assert store.stats()["overflow"]["corrupt"] > 0
        assert any(newest.path in problem for problem in store.verify())
        for table in store.tables.values():
            table.remove(IDS)
        tier_of(store).shrink()
        assert tier_of(store).bytes == 0


def test_rows_whose_only_good_copy_rotted_are_refused(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options, snapshots_kept=1, delta_retention="0s") as store:
        store.snapshot()
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        core = store._state.tables["t"].core
        cold = core.cold(IDS)
        spoil_rows(tier_of(store), core, cold[:3])
        with pytest.raises(mkv.CorruptionError, match="no good file has their last state"):
            store.table("t").lookup(cold[:3])
        check(store, cold[3:])


def test_a_snapshot_that_is_damaged_where_it_is_read_is_passed_over(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options) as store:
        store.snapshot()
        store.table("t").upsert(IDS, rows_of(IDS, 1.0))
        store.seal()
        newest = Path(store.snapshot().path)
    records = [r for r in RecordReader(str(newest)) if r.kind == RecordKind.COLD_IDS]
    flip(newest, records[-1].offset + 50)  # Others were taken before it is found.
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        check(store, value=1.0)
        assert any(newest.name in problem for problem in store.verify())


def test_a_row_that_rotted_is_not_taken_from_files_that_memory_has_not_come_up_to(
    folder: Path, options: dict[str, Any]
) -> None:
    store = fill(folder / "s", options, snapshots_kept=2)
    store.snapshot()
    cold = store._state.tables["t"].core.cold(IDS)[:1]
    for value in (1.0, 2.0):  # Deltas that touch it: recovery comes by its state of each.
        store.table("t").remove(cold)
        store.table("t").upsert(cold, rows_of(cold, value))
        store.seal()
    store.close()
    (newest,) = (folder / "s" / "snapshots").iterdir()
    flip(newest, place_of(newest, int(cold[0])) + 40)
    with mkv.open(folder / "s", **options) as plain:
        digest = plain.digest()
    with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
        assert store.digest() == digest
        check(store, cold, 2.0)


def place_of(path: Path, fid: int) -> int:
    """The byte at which a cold row lies in a snapshot."""
    found: list[Any] = []
    for _ in SnapshotReader(str(path)).records(found.append):
        pass
    for rows in found:
        for number in np.flatnonzero(rows.fids == fid):
            return int(rows.offset + number * (16 + 8 * DIM + 4))
    raise AssertionError(fid)


def test_rot_in_rows_that_no_delta_has_is_found_at_once_and_passed_over(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options) as store:
        store.snapshot()
        store.table("t").upsert(IDS, rows_of(IDS, 1.0))
        cold = int(store._state.tables["t"].core.cold(IDS)[0])
        newest = Path(store.snapshot().path)
        shutil.copytree(folder / "s", folder / "k")
    flip(folder / "k" / "snapshots" / newest.name, place_of(newest, cold) + 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        store = mkv.open(folder / "k", memory_limit=LIMIT, **options)
    check(store, value=1.0)
    store.seal()
    store.close()


def test_salvage_saves_all_cold_rows_but_the_damaged_one(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options, snapshots_kept=1, delta_retention="0s") as store:
        store.snapshot()
        cold = store._state.tables["t"].core.cold(IDS)
    (newest,) = (folder / "s" / "snapshots").iterdir()
    flip(newest, place_of(newest, int(cold[7])) + 40)
    assert any(newest.name in problem for problem in mkv.salvage(folder / "s", folder / "out"))
    with mkv.open(folder / "out", **options) as saved:
        assert len(saved.table("t")) == len(IDS) - 1
        check(saved, np.delete(IDS, np.flatnonzero(cold[7] == IDS)))


def test_what_fits_into_a_larger_memory_is_in_memory(folder: Path, options: dict[str, Any]) -> None:
    with fill(folder / "s", options) as store:
        store.snapshot()
    with mkv.open(folder / "s", memory_limit="64MiB", **options) as store:
        assert store.stats()["overflow"]["rows"] == 0
        check(store)


def test_places_of_another_size_are_refused(folder: Path, options: dict[str, Any]) -> None:
    with fill(folder / "s", options, snapshots_kept=1, delta_retention="0s") as store:
        path = Path(store.snapshot().path)
    write_anew(path, lambda rows: np.pad(rows, ((0, 0), (0, 8))))
    with pytest.raises(mkv.CorruptionError, match="table t has"):
        mkv.open(folder / "s", memory_limit=LIMIT, **options)


@pytest.mark.parametrize(
    "counts", [[2**70, 2**70], [-5, -(2**70)], [1e3, 1], ["a"], [], [0], [1, 2, 3], "x", None, True]
)
def test_what_an_end_says_of_tables_is_no_more_than_a_hint(
    folder: Path, options: dict[str, Any], counts: Any
) -> None:
    with fill(folder / "s", options) as store:
        path = Path(store.snapshot().path)
    write_anew(path, lambda rows: rows, by_table={"1": counts})
    for limit in (LIMIT, None):
        with mkv.open(folder / "s", memory_limit=limit, **options) as store:
            check(store)
            assert store._state.damaged == []
            assert store.stats()["memory"]["kinds"]["index"] < 16 << 20
