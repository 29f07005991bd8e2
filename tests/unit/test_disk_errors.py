"""One call on a file fails, once: what the engine may make of it, each in the smallest case."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from faulty import broken_disk, no_space

import monolith_kv as mkv
from monolith_kv.replication import Follower, Publisher
from monolith_kv.storage import files, overflow

IDS = u64(range(10))
MANY = u64(range(3_000))


@pytest.fixture
def options(clock: Any) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock}


@contextlib.contextmanager
def failing(
    owner: Any, name: str, when: Callable[..., bool] = lambda *_: True, error: Any = broken_disk
) -> Iterator[list[Any]]:
    """Let the first call of a function for which `when` holds fail; yields those that did."""
    call, failed = getattr(owner, name), []

    def instead(*arguments: Any, **options: Any) -> Any:
        if not failed and when(*arguments):
            failed.append(arguments)
            raise error()
        return call(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, instead)
        yield failed
    assert failed, f"{name} was not called"


def fill(store: mkv.Store, value: float = 1.0) -> mkv.Table:
    table = store.create_table("t", 4, exist_ok=True, ttl=100)
    table.upsert(IDS, np.full((10, 4), value, np.float32))
    return table


def filled(store: mkv.Store) -> tuple[mkv.Table, Any]:
    """More rows than fit into memory, most of them in the overflow tier."""
    table = store.create_table("t", 64, ttl=100)
    table.upsert(MANY, np.arange(3_000 * 64, dtype=np.float32).reshape(3_000, 64))
    table.remove(u64([0]))  # A call that moves what is over the limit.
    assert store.stats()["overflow"]["rows"] > 1_000
    return table, table.lookup(MANY)


# --- logs and locks ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["unlink", "fsync_folder"])
def test_a_call_log_that_could_not_be_finished_is_begun_again(
    folder: Path, options: dict[str, Any], step: str
) -> None:
    with mkv.open(folder / "s", durability="batch", **options) as store:
        owner = os if step == "unlink" else files
        with failing(owner, step, lambda path: "calls" in path), pytest.raises(OSError):
            fill(store)
        digest_of = fill(store).lookup(IDS)
        store.seal()
    with mkv.open(folder / "s", **options) as store:
        np.testing.assert_array_equal(store.table("t").lookup(IDS), digest_of)


def test_a_log_whose_end_could_not_be_written_takes_calls_again(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", durability="batch", **options) as store:
        fill(store)
        with failing(os, "writev"), pytest.raises(OSError):
            store.seal()
        fill(store, 2.0)
        assert store.seal().rows == 10


def test_a_lock_that_cannot_be_given_back_is_let_go_of(
    folder: Path, options: dict[str, Any]
) -> None:
    store = mkv.open(folder / "s", **options)
    with failing(fcntl, "flock"), pytest.raises(OSError):
        store.close()
    mkv.open(folder / "s", **options).close()


def test_a_manifest_that_cannot_be_written_at_the_end_leaves_no_lock(
    folder: Path, options: dict[str, Any]
) -> None:
    store = mkv.open(folder / "s", durability="batch", **options)
    fill(store)
    with failing(os, "replace", lambda source, target: "MANIFEST" in target):
        with pytest.raises(OSError):
            store.close()
    with mkv.open(folder / "s", **options) as store:
        assert len(store.table("t")) == 10


def test_a_follower_whose_replica_cannot_be_closed_lets_others_follow(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", **options) as store:
        fill(store)
    Publisher(folder / "s", folder / "t").run_once()
    follower = Follower(folder / "t", folder / "r", **options)
    with failing(os, "replace", lambda source, target: "MANIFEST" in target):
        with pytest.raises(OSError):
            follower.close()
    with Follower(folder / "t", folder / "r", **options) as follower:
        assert follower.run_once().in_step


def test_a_header_that_comes_in_pieces_is_read_whole(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mkv.open(folder / "s", durability="batch", **options) as store:
        fill(store)
        store.snapshot()
    preadv = os.preadv

    def half(fd: int, views: list[memoryview], at: int) -> int:
        return preadv(fd, [views[0][: max(1, len(views[0]) // 2)]], at)

    monkeypatch.setattr(os, "preadv", half)
    with mkv.open(folder / "s", **options) as store:
        assert len(store.table("t")) == 10


# --- a log that is given up --------------------------------------------------------------------


def expire(store: mkv.Store, path: Path, clock: Any) -> None:
    clock.advance(1_000)
    store.compact()


def snapshot(store: mkv.Store, path: Path, clock: Any) -> None:
    store.snapshot(path / "elsewhere.snapshot")


@pytest.mark.parametrize("call", [expire, snapshot])
def test_a_call_log_given_up_by_any_call_is_rescued_by_the_next(
    folder: Path, options: dict[str, Any], call: Callable[[mkv.Store, Path, Any], None]
) -> None:
    with mkv.open(folder / "s", durability="sync", **options) as store:
        fill(store)
        with failing(files, "sync_file"), pytest.raises(mkv.Error, match="given up"):
            call(store, folder, options["clock"])
        fill(store, 3.0)
        assert store.epoch == 2
    with mkv.open(folder / "s", **options) as store:
        assert store.table("t").lookup(IDS)[0, 0] == 3.0


# --- the overflow tier -------------------------------------------------------------------------


def test_rows_are_read_although_the_tier_was_full_a_moment_ago(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", memory_limit="64KiB", **options) as store:
        table, expected = filled(store)
        store._state.budget.is_full = True
        np.testing.assert_array_equal(table.pull(MANY[500:600]), expected[500:600])
        store._state.budget.is_full = True
        table.upsert(MANY[500:600], expected[600:700])
        np.testing.assert_array_equal(table.lookup(MANY[500:600]), expected[600:700])
        assert store.verify() == []


def test_a_call_that_was_made_does_not_fail_because_rows_cannot_move(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", memory_limit="64KiB", **options) as store:
        table, expected = filled(store)
        new = u64(range(5_000, 5_200))
        with failing(store._state.overflow, "write"):
            table.upsert(new, expected[:200])
        assert store.stats()["memory"]["is_full"]
        np.testing.assert_array_equal(table.lookup(new), expected[:200])
        table.upsert(new, expected[200:400])
        assert not store.stats()["memory"]["is_full"]


@pytest.mark.parametrize("error", [no_space, broken_disk])
def test_rows_stay_when_the_tier_cannot_shrink(
    folder: Path, options: dict[str, Any], error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overflow, "FILE_BYTES_MAX", 128 << 10)
    with mkv.open(folder / "s", memory_limit="64KiB", **options) as store:
        table, expected = filled(store)
        kept = MANY[2_700:]
        options["clock"].advance(90)
        table.push(kept, np.zeros((len(kept), 64), np.float32))
        expected = table.lookup(kept)
        options["clock"].advance(20)
        tier = store._state.overflow
        with failing(tier, "_append", error=error):
            with contextlib.suppress(mkv.StoreFullError, OSError):
                store.compact(force=True)
        np.testing.assert_array_equal(table.lookup(kept), expected)
        assert store.verify() == []


def test_a_table_is_dropped_although_its_records_cannot_be_removed(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", memory_limit="64KiB", **options) as store:
        filled(store)
        store.seal()
        with failing(store._state.overflow, "forget_table"):
            store.drop_table("t")
        assert store.seal() is not None
    with mkv.open(folder / "s", **options) as store:
        assert not store.tables
