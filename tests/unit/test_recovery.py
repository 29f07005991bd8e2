"""What opening a store makes of its files: fallback, refusal, and what it leaves behind."""

import dataclasses
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
from monolith_kv import checkpoint
from monolith_kv.storage import files, manifest, pending

IDS = u64(range(50))


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock}


def fill(store: mkv.Store, value: float) -> None:
    table = store.create_table("t", 4, optimizer=mkv.SGD(lr=1.0), exist_ok=True)
    table.upsert(IDS, np.full((len(IDS), 4), value, np.float32))


def flip(path: Path, position: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def killed(store: mkv.Store, path: Path, options: dict[str, Any]) -> mkv.Store:
    shutil.copytree(store.path, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return mkv.open(path, **options)


def test_a_damaged_snapshot_is_passed_over_where_the_log_leads_on(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", durability="batch", **options) as store:
        for value in (1.0, 2.0, 3.0):
            fill(store, value)
            store.seal()
            store.snapshot()
        fill(store, 4.0)
        store.snapshot()
        store.table("t").push(IDS[:1], np.ones((1, 4), np.float32))
        digest = store.digest()
        newest = Path(store.snapshots()[-1].path)
        copy = folder / "k"
        shutil.copytree(store.path, copy)
    flip(copy / "snapshots" / newest.name)
    with mkv.open(copy, durability="batch", **options) as again:
        assert again.digest() == digest
        assert again.stats()["damaged"]
        assert any(newest.name in problem for problem in again.verify())


def test_a_damaged_snapshot_without_another_way_is_refused_by_name(
    folder: Path, options: dict[str, Any], clock: ManualClock
) -> None:
    with mkv.open(folder / "s", snapshots_kept=1, delta_retention=0, **options) as store:
        fill(store, 1.0)
        store.seal()
        path = Path(store.snapshot().path)
    flip(path)
    with pytest.raises(mkv.CorruptionError, match=path.name):
        mkv.open(folder / "s", **options)


def test_a_call_log_that_is_missing_between_others_is_refused(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", durability="batch", **options) as store:
        fill(store, 1.0)
        store.snapshot()
        fill(store, 2.0)
        store.snapshot()
        fill(store, 3.0)
        shutil.copytree(store.path, folder / "k")
    logs = sorted((folder / "k" / "calls").iterdir())
    assert len(logs) == 3
    logs[1].unlink()
    shutil.rmtree(folder / "k" / "snapshots")
    with pytest.raises(mkv.CorruptionError):
        mkv.open(folder / "k", durability="batch", **options)


def test_files_that_no_manifest_names_are_not_used_and_go(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", **options) as store:
        fill(store, 1.0)
        delta = Path(store.seal().path)
        digest = store.digest()
    stray = delta.with_name(delta.name.replace("0001-", "0002-"))
    shutil.copy(delta, stray)
    (folder / "s" / "deltas" / ".x.0123.tmp").touch()
    with mkv.open(folder / "s", **options) as store:
        assert store.digest() == digest
        assert sorted(p.name for p in delta.parent.iterdir()) == [delta.name]


def test_a_delta_of_another_store_is_refused(folder: Path, options: dict[str, Any]) -> None:
    paths = []
    for name in ("a", "b"):
        with mkv.open(folder / name, **options) as store:
            fill(store, 1.0)
            paths.append(Path(store.seal().path))
    shutil.copy(paths[1], paths[0])
    with pytest.raises(mkv.CorruptionError, match=paths[0].name):
        mkv.open(folder / "a", **options)


def test_a_manifest_of_the_other_mode_is_refused(folder: Path, options: dict[str, Any]) -> None:
    mkv.open(folder / "s", **options).close()
    mkv.open(folder / "r", mode="replica", **options).close()
    with pytest.raises(mkv.Error, match="no replica"):
        mkv.open(folder / "s", mode="replica", **options)
    with pytest.raises(mkv.Error, match="promote"):
        mkv.open(folder / "r", **options)


@pytest.mark.parametrize("data", [bytes(8), bytes(1 << 20), b"\1", b"\2" + bytes(7) + b"a"])
def test_what_is_no_list_of_sightings_is_damage(data: bytes) -> None:
    with pytest.raises(mkv.CorruptionError, match="a piece of sightings has"):
        pending.split_pieces(data)


def test_after_a_failed_flush_the_store_goes_on_in_a_new_epoch(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = mkv.open(folder / "s", durability="sync", **options)
    fill(store, 1.0)
    row = np.ones((1, 4), np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_file", lambda fd: (_ for _ in ()).throw(broken_disk()))
        with pytest.raises(mkv.Error, match="given up"):
            store.table("t").push(IDS[:1], row)
        with pytest.raises(mkv.ReadOnlyError):
            store.table("t").push(IDS[:1], row)
        assert store.table("t").contains(IDS).all()
    store.table("t").push(IDS[1:2], row)
    assert store.epoch >= 2
    digest = store.digest()
    with killed(store, folder / "k", {**options, "durability": "sync"}) as again:
        assert again.digest() == digest
        assert again.verify() == []
    store.close()
    with mkv.open(folder / "s", durability="sync", **options) as again:
        assert again.digest() == digest


def no_room(*_: Any) -> Any:
    raise mkv.StoreFullError("no room")


def test_damaged_records_of_the_overflow_tier_are_filled_again_from_the_log(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mkv.open(folder / "s", memory_limit="64KiB", **options) as store:
        table = store.create_table("t", 64)
        many = u64(range(3_000))
        table.upsert(many, np.arange(3_000 * 64, dtype=np.float32).reshape(3_000, 64))
        store.seal()
        table.remove(u64([0]))  # A call that moves what is over the limit.
        expected = table.lookup(many)
        overflow = store._state.overflow
        assert overflow is not None
        assert overflow.rows > 2_000
        lost = many[1_000:1_100]
        spoil_rows(overflow, store._state.tables["t"].core, lost)
        assert store.verify() != []
        with monkeypatch.context() as patch:
            # A full disk keeps nobody from reading.
            patch.setattr(overflow, "write", no_room)
            np.testing.assert_array_equal(table.lookup(many), expected)
        np.testing.assert_array_equal(table.lookup(many), expected)
        np.testing.assert_array_equal(table.pull(lost), expected[1_000:1_100])
        assert store.verify() == []


def test_what_a_snapshot_has_beyond_its_sequence_is_in_the_next_delta(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "TOUCHED_IDS", 7)
    with mkv.open(folder / "s", durability="batch", **options) as store:
        fill(store, 1.0)
        store.seal()
        fill(store, 2.0)
        store.table("t").remove(IDS[:9])
        store.snapshot()
        with killed(store, folder / "k", options) as again:
            delta = again.seal()
            assert delta is not None
            assert (delta.rows, delta.removals) == (len(IDS) - 9, 9)


def test_a_snapshot_from_which_not_all_deltas_lead_on_is_not_opened(
    folder: Path, options: dict[str, Any]
) -> None:
    with mkv.open(folder / "s", **options) as store:
        for value in (1.0, 2.0, 3.0):
            fill(store, value)
            store.seal()
            if value == 1.0:
                store.snapshot()
    found = manifest.load(str(folder / "s"))
    assert found is not None
    deltas = [entry for entry in found.deltas if entry["sequence"] != 2]
    manifest.store(str(folder / "s"), dataclasses.replace(found, deltas=deltas))
    with pytest.raises(mkv.CorruptionError, match="deltas 2 to 3 are not all there"):
        mkv.open(folder / "s", **options)
