"""Rot, line by line as promised: fall back where another way leads to the same state, else refuse.

A crash is a copy of the folder of a store that is open; rot is one flipped bit in the copy.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import spoil_rows, u64
from faulty import broken_disk
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import salvaging
from monolith_kv.storage import files
from monolith_kv.storage.overflow import OverflowTier

IDS = u64(range(50))
MODES = ["none", "interval", "batch", "sync"]
LOGGED = ["batch", "sync"]


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "delta_retention": 0, "clock": clock}


def fill(store: mkv.Store, value: float) -> None:
    table = store.create_table("t", 4, optimizer=mkv.SGD(lr=1.0), exist_ok=True)
    table.upsert(IDS, np.full((len(IDS), 4), value, np.float32))


def rot(path: Path) -> None:
    """Flip one bit in the middle of the rows."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def crashed(store: mkv.Store, path: Path) -> Path:
    """What a crash leaves of an open store."""
    shutil.copytree(store.path, path)
    return path


def opened(path: Path, **options: Any) -> mkv.Store:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return mkv.open(path, **options)


def newest(path: Path) -> Path:
    """Of several at one sequence the later ones have a number, and so a longer name."""
    return max((path / "snapshots").iterdir(), key=lambda p: (p.name[:20], len(p.name), p.name))


# --- where there is another way ----------------------------------------------------------------


@pytest.mark.parametrize("durability", MODES)
def test_a_damaged_newest_snapshot_falls_back_to_the_one_before_and_the_deltas_since(
    folder: Path, options: dict[str, Any], durability: Any
) -> None:
    options["durability"] = durability
    with mkv.open(folder / "s", **options) as store:
        for value in (1.0, 2.0, 3.0):
            fill(store, value)
            store.seal()
            store.snapshot()
        digest = store.digest()
        copy = crashed(store, folder / "k")
    rot(newest(copy))
    with opened(copy, **options) as again:
        assert again.digest() == digest
        assert newest(copy).name in again.stats()["damaged"][0]


@pytest.mark.parametrize("durability", LOGGED)
def test_the_call_log_stays_as_long_as_the_older_snapshot_needs_it(
    folder: Path, options: dict[str, Any], durability: Any
) -> None:
    options["durability"] = durability
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        store.snapshot()
        fill(store, 2.0)
        store.snapshot()
        fill(store, 3.0)
        digest = store.digest()
        copy = crashed(store, folder / "k")
    rot(newest(copy))
    with opened(copy, **options) as again:
        assert again.digest() == digest


def test_rows_of_a_damaged_snapshot_that_a_later_delta_has_are_not_missed(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        store.snapshot()
        fill(store, 2.0)
        store.snapshot()  # Ahead of delta 0 by both calls.
        store.seal()
        digest = store.digest()
        copy = crashed(store, folder / "k")
    rot(newest(copy))
    with opened(copy, **options) as again:
        assert again.digest() == digest


# --- where there is none -----------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["none", "interval"])
def test_a_damaged_snapshot_ahead_of_all_deltas_is_refused_where_calls_are_not_logged(
    folder: Path, options: dict[str, Any], durability: Any
) -> None:
    options["durability"] = durability
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        store.seal()
        store.snapshot()
        fill(store, 2.0)
        store.snapshot()  # Nothing else has these rows.
        copy = crashed(store, folder / "k")
    rot(newest(copy))
    for mode in ("rw", "r"):
        with pytest.raises(mkv.CorruptionError, match=newest(copy).name):
            opened(copy, mode=mode, **options)


def test_a_damaged_snapshot_that_holds_one_ahead_of_all_deltas_is_refused(
    folder: Path, options: dict[str, Any]
) -> None:
    options["snapshots_kept"] = 1
    with mkv.open(folder / "s", durability="none", **options) as store:
        fill(store, 1.0)
        store.snapshot()
        copy = crashed(store, folder / "k")
    with opened(copy, durability="batch", **options) as store:
        fill(store, 2.0)
        store.snapshot()  # The log has the second call, not the first.
        again = crashed(store, folder / "again")
    rot(newest(again))
    with pytest.raises(mkv.CorruptionError, match=newest(again).name):
        opened(again, durability="batch", **options)


def test_a_damaged_snapshot_in_place_of_a_log_that_was_given_up_is_refused(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options["durability"] = "sync"
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        store.snapshot()
        fill(store, 2.0)
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_file", lambda fd: (_ for _ in ()).throw(broken_disk()))
            with pytest.raises(mkv.Error, match="given up"):
                fill(store, 3.0)
        store.table("t").remove(IDS[:1])  # First writes what memory holds as a snapshot.
        copy = crashed(store, folder / "k")
    rot(newest(copy))
    with pytest.raises(mkv.CorruptionError, match=newest(copy).name):
        opened(copy, **options)


@pytest.mark.parametrize("durability", MODES)
def test_a_store_whose_only_snapshot_is_damaged_does_not_start_empty(
    folder: Path, options: dict[str, Any], durability: Any
) -> None:
    options["durability"] = durability
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        digest = store.digest()
        path = store.snapshot(folder / "elsewhere").path
    with mkv.restore(path, folder / "restored", **options) as store:
        assert store.sequence == 0
        copy = crashed(store, folder / "k")
    rot(newest(copy))
    with pytest.raises(mkv.CorruptionError, match=newest(copy).name):
        opened(copy, **options)
    newest(copy).unlink()
    with pytest.raises(mkv.CorruptionError, match="snapshot is missing"):
        opened(copy, **options)
    with opened(folder / "restored", **options) as store:
        assert store.digest() == digest


def test_a_salvaged_store_whose_snapshot_is_damaged_does_not_start_empty(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        store.snapshot()
        copy = crashed(store, folder / "k")
    (copy / "MANIFEST").unlink()
    assert mkv.salvage(copy, folder / "saved") != []
    with mkv.open(folder / "saved", **options) as store:
        assert len(store.table("t")) == len(IDS)
        store.table("t").remove(IDS[:1])
    rot(newest(folder / "saved"))
    with pytest.raises(mkv.CorruptionError):
        opened(folder / "saved", **options)


@pytest.mark.parametrize("lost", ["MANIFEST", "deltas"])
def test_salvage_begins_with_the_later_of_two_snapshots_of_one_sequence(
    folder: Path, options: dict[str, Any], lost: str
) -> None:
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        store.seal()
        store.snapshot()
        fill(store, 2.0)
        store.snapshot()
        expected = store.table("t").lookup(IDS)
        fill(store, 3.0)
        store.seal()
        copy = crashed(store, folder / "k")
    for path in [copy / lost] if lost == "MANIFEST" else (copy / lost).iterdir():
        path.unlink()
    assert mkv.salvage(copy, folder / "saved") != []
    with mkv.open(folder / "saved", **options) as store:
        if lost == "deltas":
            np.testing.assert_array_equal(store.table("t").lookup(IDS), expected)
        else:
            assert (store.table("t").lookup(IDS) == 3.0).all()


@pytest.mark.parametrize("is_damaged", [False, True])
def test_salvage_works_within_its_memory_and_leaves_nothing_else_behind(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    monkeypatch.setattr(salvaging, "MEMORY_BYTES", 64 * 1024)
    evicted: list[int] = []
    write = OverflowTier.write

    def watched(tier: OverflowTier, table: int, core: Any, records: Any) -> Any:
        evicted.append(len(records))
        return write(tier, table, core, records)

    monkeypatch.setattr(OverflowTier, "write", watched)
    many = u64(range(3_000))
    rows = np.arange(3_000 * 64, dtype=np.float32).reshape(3_000, 64)
    with mkv.open(folder / "s", **options) as store:
        table = store.create_table("t", 64)
        table.upsert(many, rows)
        store.seal()
        store.snapshot()
        table.remove(many[:500])
        store.seal()
        table.upsert(many[:1], rows[:1])
        last = Path(store.seal().path)
        copy = crashed(store, folder / "k")
    if is_damaged:
        rot(copy / "deltas" / last.name)
    left = folder / ".saved.0123456789abcdef.tmp"  # By one that was killed.
    left.mkdir()
    (left / "LOCK").touch()
    assert bool(mkv.salvage(copy, folder / "saved")) == is_damaged
    assert sum(evicted) > 2_000
    assert sorted(p.name for p in folder.iterdir()) == ["k", "s", "saved"]
    with mkv.open(folder / "saved", **options) as store:
        table = store.table("t")
        assert len(table) == 2_500 + (not is_damaged)
        np.testing.assert_array_equal(table.lookup(many[500:]), rows[500:])


@pytest.mark.parametrize("published", ["dense", "sightings"])
def test_a_store_that_lost_its_manifest_is_not_taken_for_a_new_one(
    folder: Path, options: dict[str, Any], published: str
) -> None:
    with mkv.open(folder / "s", durability="none", **options) as store:
        if published == "dense":
            store.dense.publish({"w": np.ones(3)})
        else:
            fill(store, 1.0)
            store.seal()
            store.create_table("g", 4, admission=mkv.FrequencyGate(3, capacity=100))
            store.seal()
            store.table("g").pull(IDS)
            store.seal()
        copy = crashed(store, folder / "k")
    assert list((copy / published).iterdir())
    (copy / "MANIFEST").unlink()
    shutil.rmtree(copy / "deltas", ignore_errors=True)
    with pytest.raises(mkv.CorruptionError, match="MANIFEST is missing"):
        opened(copy, **options)


# --- the overflow tier -------------------------------------------------------------------------


def rot_overflow(store: mkv.Store, count: int) -> list[int]:
    """Flip a bit in some records of the tier; return their fids."""
    tier, entry = store._state.overflow, store._state.tables["t"]
    assert tier is not None
    cold = entry.core.cold(u64(range(1_000)))[:count]
    spoil_rows(tier, entry.core, cold)
    return cold.tolist()


def overflowing(path: Path, **options: Any) -> tuple[mkv.Store, mkv.Table]:
    store = mkv.open(path, memory_limit="64KiB", **options)
    table = store.create_table("t", 64, optimizer=mkv.SGD(lr=1.0))
    table.upsert(u64(range(1_000)), np.arange(64_000, dtype=np.float32).reshape(1_000, 64))
    return store, table


def test_rot_in_the_overflow_tier_is_counted_and_filled_again(
    folder: Path, options: dict[str, Any]
) -> None:
    store, table = overflowing(folder / "s", **options)
    with store:
        store.seal()
        table.remove(u64([999]))  # A call that moves what is over the limit.
        expected = table.lookup(u64(range(1_000)))
        rotten = rot_overflow(store, 7)
        assert len(rotten) == 7
        assert "7 damaged records" in store.verify()[0]
        before = store.stats()["overflow"]["corrupt"]
        np.testing.assert_array_equal(table.lookup(u64(range(1_000))), expected)
        assert store.stats()["overflow"]["corrupt"] >= before + 7
        assert store.verify() == []


def test_rot_of_a_row_that_only_the_call_log_has_is_refused_and_mended_by_opening_again(
    folder: Path, options: dict[str, Any]
) -> None:
    store, table = overflowing(folder / "s", durability="batch", **options)
    with store:
        expected = table.lookup(u64(range(1_000)))
        rotten = u64(rot_overflow(store, 7))
        with pytest.raises(mkv.CorruptionError, match="open it again"):
            table.lookup(rotten)
        with pytest.raises(mkv.CorruptionError, match="open it again"):
            table.push(rotten, np.ones((7, 64), np.float32))
        copy = crashed(store, folder / "k")
        with pytest.raises(mkv.CorruptionError):
            store.close()
    with opened(copy, memory_limit="64KiB", durability="batch", **options) as store:
        np.testing.assert_array_equal(store.table("t").lookup(u64(range(1_000))), expected)
        assert store.verify() == []
