"""Promises where several rare things meet: an error and then a kill, rot after an error, a fork."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from faulty import broken_disk, no_space
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import delta_loading, opening
from monolith_kv.storage import files
from monolith_kv.storage.call_log import CallLogWriter

IDS = u64(range(20))
ONES = np.ones((len(IDS), 2), np.float32)


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock}


def make_table(store: mkv.Store) -> mkv.Table:
    return store.create_table("t", 2, optimizer=mkv.SGD(lr=1.0), exist_ok=True)


def reopened(store: mkv.Store, path: Path, options: dict[str, Any]) -> mkv.Store:
    """What a kill at this instant leaves, opened again."""
    shutil.copytree(store.path, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return mkv.open(path, **options)


# --- logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [no_space, broken_disk])
def test_a_log_whose_end_could_not_be_written_goes_on(
    folder: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], OSError],
) -> None:
    options = {**options, "durability": "batch"}
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    table.upsert(IDS, ONES)
    for _ in range(2):  # Whatever the second one makes of it, no log may follow one without END.
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_all", lambda *_: (_ for _ in ()).throw(error()))
            with pytest.raises((mkv.StoreFullError, OSError)):
                store.seal()
    table.push(IDS, ONES)
    with reopened(store, folder / "k", options) as again:
        assert again.digest() == store.digest()
        assert again.stats()["lost"] == []
    store.close()


@pytest.mark.parametrize("error", [no_space, broken_disk])
@pytest.mark.parametrize("durability", ["batch", "sync"])
def test_a_call_that_the_log_refuses_changes_nothing(
    folder: Path,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    durability: str,
    error: Callable[[], OSError],
) -> None:
    store = mkv.open(folder / "s", durability=durability, **options)
    table = make_table(store)
    table.upsert(IDS[:10], ONES[:10])
    calls: list[Callable[[], object]] = [
        lambda: table.push(IDS, ONES),
        lambda: table.pull(IDS),
        lambda: table.upsert(IDS, 2 * ONES),
        lambda: table.remove(IDS[:3]),
        lambda: store.create_table("u", 1),
        lambda: store.drop_table("t"),
    ]
    for call in calls:
        before = store.digest()
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_all", lambda *_: (_ for _ in ()).throw(error()))
            with pytest.raises((mkv.StoreFullError, OSError)):
                call()
        assert store.digest() == before
        assert set(store.tables) == {"t"}
    for call in calls:
        call()
    assert set(store.tables) == {"u"}
    store.close()


def test_a_call_whose_log_was_closed_before_its_flush_is_not_acknowledged(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mkv.open(folder / "s", durability="sync", **options)
    table = make_table(store)
    push = CallLogWriter.push

    def push_and_close(log: CallLogWriter, *args: Any) -> int:
        offset = push(log, *args)
        log.close(clean=False)
        return offset

    monkeypatch.setattr(CallLogWriter, "push", push_and_close)
    with pytest.raises(mkv.ClosedError):
        table.push(IDS, ONES)


def test_what_compact_removed_stays_removed_over_a_power_cut(
    folder: Path, options: dict[str, Any], clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushes: list[int] = []
    with mkv.open(folder / "s", durability="sync", **options) as store:
        table = store.create_table("t", 2, ttl=10)
        table.upsert(IDS, ONES)
        clock.advance(10)
        monkeypatch.setattr(files, "sync_file", flushes.append)
        assert store.compact().expired == len(IDS)
        assert len(flushes) == 1


# --- rot in a snapshot that nothing else leads to ------------------------------------------------


def flip(path: str | Path) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def killed_with_rot(store: mkv.Store, path: Path) -> Path:
    """The folder after a kill, the newest snapshot damaged."""
    shutil.copytree(store.path, path)
    flip(path / "snapshots" / Path(store.snapshots()[-1].path).name)
    return path


def test_a_store_whose_only_snapshot_is_damaged_does_not_start_empty(
    folder: Path, options: dict[str, Any]
) -> None:
    shards = []
    for shard in range(2):
        with mkv.open(folder / f"{shard}", **options) as store:
            make_table(store).upsert(IDS + np.uint64(100 * shard), ONES)
            shards.append(store.snapshot().path)
            path = killed_with_rot(store, folder / f"k{shard}")
        with pytest.raises(mkv.CorruptionError, match=Path(shards[-1]).name):
            mkv.open(path, **options)
    with mkv.restore(shards, folder / "joined", **options) as store:
        path = killed_with_rot(store, folder / "k")
    with pytest.raises(mkv.CorruptionError):
        mkv.open(path, **options)


@pytest.mark.parametrize("durability", ["interval", "batch"])
def test_rows_that_only_a_damaged_snapshot_has_are_not_left_out_silently(
    folder: Path, options: dict[str, Any], durability: str
) -> None:
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    table.upsert(IDS, ONES)
    store.seal()
    store.snapshot()
    table.push(IDS, ONES)
    store.snapshot()
    # Calls that are logged from here on would be made on rows that are too old.
    options = {**options, "durability": durability}
    again = reopened(store, folder / "k", options)
    store.close()
    make_table(again).push(IDS, ONES)
    path = killed_with_rot(again, folder / "k2")
    again.close()
    with pytest.raises(mkv.CorruptionError):
        mkv.open(path, **options)


def test_a_damaged_snapshot_of_a_rescue_is_not_passed_over(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**options, "durability": "sync"}
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    table.upsert(IDS, ONES)
    store.seal()
    table.push(IDS, ONES)
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_file", lambda _: (_ for _ in ()).throw(broken_disk()))
        with pytest.raises(mkv.Error):
            table.push(IDS, ONES)
    table.push(IDS, ONES)  # Goes on from a snapshot of memory; the log before is given up.
    path = killed_with_rot(store, folder / "k")
    store.close()
    with pytest.raises(mkv.CorruptionError):
        mkv.open(path, **options)


def test_a_snapshot_that_the_log_leads_to_is_passed_over_until_it_is_sealed_and_after(
    folder: Path, options: dict[str, Any]
) -> None:
    options = {**options, "durability": "batch"}
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    table.upsert(IDS, ONES)
    store.snapshot()
    table.push(IDS, ONES)
    for step in ("before", "after"):
        with mkv.open(killed_with_rot(store, folder / step), **options) as again:
            assert again.digest() == store.digest()
        store.seal()
        table.push(IDS, ONES)
    store.close()


# --- losses are told -----------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["none", "interval"])
@pytest.mark.parametrize("publish", ["seal", "snapshot"])
def test_calls_that_only_memory_had_are_reported_lost(
    folder: Path, options: dict[str, Any], durability: str, publish: str
) -> None:
    options = {**options, "durability": durability}
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    table.upsert(IDS, ONES)
    getattr(store, publish)()
    shutil.copytree(store.path, folder / "whole")
    mkv.open(folder / "whole", **options).close()  # Nothing was lost, and a warning is an error.
    table.push(IDS, ONES)
    shutil.copytree(store.path, folder / "lossy")
    with pytest.warns(mkv.DataLossWarning, match=f"after delta {store.sequence}, or a snapshot"):
        again = mkv.open(folder / "lossy", **options)
    assert again.stats()["lost"][0]["after_sequence"] == store.sequence
    again.close()
    store.close()


def test_the_mark_of_a_loss_is_durable_once_before_the_call_returns(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    synced: list[str] = []
    fail = [True]

    def sync(path: str) -> None:
        if fail:
            raise broken_disk()
        synced.append(Path(path).name)

    store.seal()
    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_folder", sync)
        table.upsert(IDS, ONES)
        fail.clear()
        for _ in range(3):
            table.push(IDS, ONES)
            assert synced == ["calls"]
    store.close()


def test_a_loss_is_reported_by_the_next_opening_when_one_is_killed_before_it_tells(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mkv.open(folder / "s", **options)
    make_table(store).upsert(IDS, ONES)
    shutil.copytree(store.path, folder / "k")
    store.close()

    def see(state: Any) -> None:
        shutil.copytree(state.path, folder / "killed")

    with monkeypatch.context() as patch:
        patch.setattr(opening, "report_losses", see)
        mkv.open(folder / "k", **options).close()
    with pytest.warns(mkv.DataLossWarning):
        mkv.open(folder / "killed", **options).close()


# --- other things that meet -----------------------------------------------------------------------


def test_a_delta_that_memory_had_no_room_for_can_be_applied_again(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mkv.open(folder / "s", **options)
    table = make_table(store)
    table.upsert(IDS, ONES)
    first = store.seal()
    table.push(IDS, ONES)
    second = store.seal()
    assert first is not None
    assert second is not None
    with mkv.open(folder / "r", mode="replica", **options) as replica:
        replica.apply(first)

        def fail(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(delta_loading, "load_rows", fail)
            with pytest.raises(MemoryError):
                replica.apply(second)
        assert replica.sequence == 1
        assert replica.apply(second)
        assert replica.digest() == store.digest()
    store.close()


def test_what_compact_removed_is_reported_when_a_crash_brings_it_back(
    folder: Path, options: dict[str, Any], clock: ManualClock
) -> None:
    store = mkv.open(folder / "s", **options)
    store.create_table("t", 2, ttl=10).upsert(IDS, ONES)
    store.seal()
    clock.advance(10)
    assert store.compact().expired == len(IDS)
    shutil.copytree(store.path, folder / "k")
    with pytest.warns(mkv.DataLossWarning):
        mkv.open(folder / "k", **options).close()
    store.close()
