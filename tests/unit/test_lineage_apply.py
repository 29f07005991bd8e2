"""A replica takes the next delta of its own history, wholly or not at all, whatever fails."""

import contextlib
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from faulty import Killed, broken_disk, faults, no_space
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import applying, delta_loading
from monolith_kv.delta_loading import Loading
from monolith_kv.storage import contents


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock}


def ones(count: int) -> np.ndarray:
    return np.ones((count, 2), np.float32)


@pytest.fixture
def deltas(folder: Path, options: dict[str, Any]) -> list[mkv.Delta]:
    with mkv.open(folder / "primary", **options) as store:
        table = store.create_table("t", 2)
        table.upsert(u64([1, 2, 3]), ones(3))
        store.seal()
        table.remove(u64([2]))
        table.push(u64([3]), ones(1))
        store.create_table("u", 2).upsert(u64([9]), ones(1))
        store.dense.publish({"w": np.arange(2)})
        store.seal(cursor={"offset": 5})
        return list(store.deltas())


def state(store: mkv.Store) -> Any:
    return (
        store.sequence,
        store.digest(),
        dict(store.cursor),
        store.dense.version,
        set(store.tables),
    )


@pytest.mark.parametrize("error", [no_space, broken_disk, Killed])
def test_a_delta_is_applied_wholly_or_not_at_all(
    folder: Path, options: dict[str, Any], deltas: list[mkv.Delta], error: Any
) -> None:
    first, second = deltas
    whole = mkv.open(folder / "whole", mode="replica", **options)
    whole.apply(first)
    before = state(whole)
    with faults() as counted:
        whole.apply(second)
    after = state(whole)
    whole.close()
    for at in range(counted.count):
        replica = mkv.open(folder / f"r{at}", mode="replica", **options)
        replica.apply(first)
        with faults(at, error):
            with contextlib.suppress(mkv.Error, OSError, Killed):
                replica.apply(second)
        if error is not Killed:
            assert state(replica) in (before, after)
        shutil.copytree(replica.path, folder / f"c{at}")
        with mkv.open(folder / f"c{at}", mode="replica", **options) as again:
            assert state(again) in (before, after)
            is_there = state(again) == after
            assert again.apply(second) is not is_there
            assert state(again) == after
            assert again.verify() == []
        with contextlib.suppress(mkv.Error, OSError):  # What is left to tell is told.
            replica.close()


def test_a_replica_takes_the_identity_of_its_first_delta(
    folder: Path, options: dict[str, Any], deltas: list[mkv.Delta]
) -> None:
    with mkv.open(folder / "r", mode="replica", **options) as replica:
        with pytest.raises(mkv.GapError):
            replica.apply(deltas[1])
        with pytest.raises(mkv.ReadOnlyError):
            replica.promote()
        assert replica.apply(deltas[0])
        assert not replica.apply(deltas[0])
        uuid = replica.stats()["uuid"]
    with mkv.open(folder / "primary", mode="r") as primary:
        assert primary.stats()["uuid"] == uuid


def crashed(store: mkv.Store, path: Path, options: dict[str, Any]) -> mkv.Store:
    shutil.copytree(store.path, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return mkv.open(path, **options)


def test_a_snapshot_ahead_of_a_crash_is_fenced_only_where_rows_were_lost(
    folder: Path, options: dict[str, Any]
) -> None:
    for durability in ("interval", "batch"):
        home = folder / durability
        settings = {**options, "durability": durability}
        store = mkv.open(home / "s", **settings)
        table = store.create_table("t", 2)
        table.upsert(u64([1]), ones(1))
        store.seal()
        table.upsert(u64([2]), ones(1))
        snapshot = store.snapshot(home / "ahead.snapshot")
        replica = mkv.restore(snapshot.path, home / "r", mode="replica", **options)
        with crashed(store, home / "k", settings) as again:
            again.table("t").upsert(u64([3]), ones(1))
            delta = again.seal()
            if durability == "interval":
                with pytest.raises(mkv.FencedError, match="restore a later snapshot"):
                    replica.apply(delta)
                assert replica.sequence == 1
            else:
                assert replica.apply(delta)
                assert replica.digest() == again.digest()
        replica.close()
        store.close()


def test_a_snapshot_that_a_crash_fell_back_to_goes_on(
    folder: Path, options: dict[str, Any]
) -> None:
    store = mkv.open(folder / "s", **options)
    table = store.create_table("t", 2)
    table.upsert(u64([1]), ones(1))
    store.seal()
    table.upsert(u64([2]), ones(1))
    snapshot = store.snapshot()
    replica = mkv.restore(snapshot.path, folder / "r", mode="replica", **options)
    table.upsert(u64([4]), ones(1))  # Lost; the replica never had it.
    with crashed(store, folder / "k", options) as again:
        again.table("t").remove(u64([2]))
        assert replica.apply(again.seal())
        assert replica.digest() == again.digest()
    replica.close()
    store.close()


def test_a_replica_stands_at_a_delta_only_when_it_has_its_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, dict[str, Any], int]] = []
    finish = Loading.finish

    def watch(loading: Loading) -> None:
        seen.append((replica.sequence, dict(replica.cursor), len(replica.tables)))
        finish(loading)
        seen.append((replica.sequence, dict(replica.cursor), len(replica.table("t"))))

    monkeypatch.setattr(Loading, "finish", watch)
    with (
        mkv.open(folder / "primary", delta_interval=None) as primary,
        mkv.open(folder / "replica", mode="replica", delta_interval=None) as replica,
    ):
        primary.create_table("t", 1).upsert(u64([1]), ones(1)[:, :1].copy())
        assert replica.apply(primary.seal(cursor={"offset": 1}))
        assert seen == [(0, {}, 1), (0, {}, 1)]
        assert (replica.sequence, dict(replica.cursor), len(replica.table("t"))) == (
            1,
            {"offset": 1},
            1,
        )


@pytest.mark.parametrize("limit", [None, "1KiB"])
@pytest.mark.parametrize("record", range(4))
def test_memory_that_ends_while_rows_are_loaded_leaves_the_replica_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: Any, record: int
) -> None:
    options = {"delta_interval": None, "memory_limit": limit}
    with mkv.open(folder / "primary", **options) as store:
        for name in ("a", "b"):
            store.create_table(name, 2).upsert(u64(range(500)), ones(500))
        first = store.seal()
        for name in ("a", "b"):
            store.table(name).upsert(u64(range(300, 800)), 2 * ones(500))
            store.table(name).remove(u64(range(100)))
        store.create_table("c", 2).upsert(u64([1]), ones(1))
        store.table("a").configure(ttl="1d")
        store.drop_table("b")
        second, digest = store.seal(), store.digest()
    with mkv.open(folder / "replica", mode="replica", **options) as replica:
        replica.apply(first)
        before, calls = replica.digest(), iter(range(10))

        def load_rows(*arguments: Any) -> None:
            load(*arguments)
            if next(calls) == record:
                raise MemoryError

        load = delta_loading.load_rows
        with monkeypatch.context() as patch:
            patch.setattr(delta_loading, "load_rows", load_rows)
            if record < 2:
                with pytest.raises(MemoryError):
                    replica.apply(second)
            else:  # After the last rows: the disk is full when the delta is named.
                patch.setattr(
                    applying, "commit", lambda *_, **__: (_ for _ in ()).throw(no_space())
                )
                with pytest.raises(OSError):
                    replica.apply(second)
        assert (replica.digest(), replica.sequence, set(replica.tables)) == (before, 1, {"a", "b"})
        assert replica.verify() == []
        assert replica.apply(second)
        assert replica.digest() == digest
        assert replica.verify() == []


def test_removals_in_several_records_leave_a_snapshot_under_way_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = u64(range(100_000))
    with mkv.open(folder / "primary", delta_interval=None) as store:
        table = store.create_table("t", 2)
        table.upsert(ids, ones(len(ids)))
        first, digest = store.seal(), store.digest()
        table.remove(ids)
        monkeypatch.setattr(contents, "RECORD_BYTES_MAX", len(ids))
        second = store.seal()
    with mkv.open(folder / "replica", mode="replica", delta_interval=None) as replica:
        replica.apply(first)
        applied: list[bool] = []

        def apply(done: int, total: int) -> None:
            if not applied:
                applied.append(replica.apply(second))

        taken = replica.snapshot(folder / "snapshot", progress=apply)
        assert (applied, taken.rows, len(replica.table("t"))) == ([True], len(ids), 0)
    with mkv.restore(taken.path, folder / "restored") as store:
        assert store.digest() == digest


def test_a_reader_whose_memory_ends_stands_at_a_delta_and_goes_on_from_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mkv.open(folder / "s", delta_interval=None) as store:
        table = store.create_table("t", 2)
        store.seal()
        with mkv.open(folder / "s", mode="r") as reader:
            digests = []
            for offset in range(3):
                table.upsert(u64([offset]), ones(1))
                store.seal(cursor={"offset": offset})
                digests.append(store.digest())
            prepare, calls = Loading.prepare, iter(range(10))

            def second_fails(loading: Loading) -> None:
                if next(calls) == 1:
                    raise MemoryError
                prepare(loading)

            monkeypatch.setattr(Loading, "prepare", second_fails)
            with pytest.raises(MemoryError):
                reader.refresh()
            assert (reader.sequence, reader.cursor["offset"]) == (2, 0)
            assert reader.digest() == digests[0]
            assert reader.refresh()
            assert (reader.sequence, reader.digest()) == (4, digests[2])
