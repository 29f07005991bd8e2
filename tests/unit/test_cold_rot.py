"""Damaged cold rows of a snapshot that a store is opened from, and files that make no sense."""

import gc
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import open_files_in, spoil_rows
from cold_store import DIM, IDS, LIMIT, check, fill, flip, rows_of, tier_of, write_anew
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import salvaging
from monolith_kv.storage.format import RecordKind
from monolith_kv.storage.record_file import RecordReader
from monolith_kv.storage.snapshot import SnapshotReader
from monolith_kv.units import parse_size


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock, "durability": "batch"}


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
    gc.disable()
    try:
        with mkv.open(folder / "s", memory_limit=LIMIT, **options) as store:
            check(store, value=1.0)
            assert any(newest.name in problem for problem in store.verify())
        assert open_files_in(folder) == []  # The errors on the way keep no file open.
    finally:
        gc.enable()


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


def test_a_replica_fills_a_rotted_row_as_it_was_before_the_delta_under_way(
    folder: Path, options: dict[str, Any]
) -> None:
    with fill(folder / "s", options) as store:
        path = store.snapshot(folder / "a").path
        with mkv.restore(
            path, folder / "r", mode="replica", memory_limit=LIMIT, clock=options["clock"]
        ) as replica:
            core = replica._state.tables["t"].core
            cold = core.cold(IDS)[:1]
            replica.apply(change(store, cold, 1.0).path)
            for value in (2.0, 3.0):
                evict(replica, cold)
                spoil_rows(tier_of(replica), core, cold)
                replica.apply(change(store, cold, value).path)
                assert replica.digest() == store.digest()
            check(replica, cold, 3.0)


def change(store: mkv.Store, ids: Any, value: float) -> mkv.Delta:
    """Seal a delta that has new rows of these ids."""
    store.table("t").upsert(ids, rows_of(ids, value))
    delta = store.seal()
    assert delta is not None
    return delta


def evict(store: mkv.Store, ids: Any) -> None:
    """Let rows of these ids leave memory."""
    core, tier = store._state.tables["t"].core, tier_of(store)
    records = core.pack(ids)[0]
    places = tier.write(1, core, records.reshape(len(ids), -1))
    core.evict(records, places)
    tier.settle(1, places)
    assert np.array_equal(core.cold(ids), ids)


def test_what_a_first_attempt_noted_is_noted_once(folder: Path, options: dict[str, Any]) -> None:
    with fill(folder / "s", options) as store:
        newest = Path(store.snapshot().path)
        store.snapshot(folder / "elsewhere")
        cold = store._state.tables["t"].core.cold(IDS)[:1]
        store.table("t").upsert(cold, rows_of(cold, 1.0))  # A logged call on a row that rots.
        shutil.copytree(folder / "s", folder / "k")
    flip(folder / "k" / "snapshots" / newest.name, place_of(newest, int(cold[0])) + 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        store = mkv.open(folder / "k", memory_limit=LIMIT, **options)
    check(store, cold, 1.0)
    check(store, np.delete(IDS, np.flatnonzero(cold[0] == IDS)))
    assert len(store._state.instants) == len(set(store._state.instants))
    assert len(store._state.damaged) == 1
    store.close()


@pytest.mark.parametrize("memory", ["64KiB", "1GiB"])
def test_salvage_saves_all_cold_rows_but_the_damaged_one(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    monkeypatch.setattr(salvaging, "MEMORY_BYTES", parse_size(memory, "memory"))
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
