"""Snapshots: one instant, whole or not there; restore onto any number of shards; damage is seen."""

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import scanned, u64
from formulas import mix
from model import ManualClock

import monolith_kv as mkv

DAY = 86_400
IDS = np.random.default_rng(8).integers(0, 2**64, 3_000, np.uint64)


@pytest.fixture
def options(clock: ManualClock) -> dict[str, Any]:
    return {"delta_interval": None, "clock": clock}


@pytest.fixture
def store(store_dir: Path, options: dict[str, Any]) -> Iterator[mkv.Store]:
    with mkv.open(store_dir, **options) as store:
        table = store.create_table(
            "t", [mkv.Slice("bias", 1, mkv.Ftrl()), mkv.Slice("vector", 6, mkv.Adam())], ttl="9d"
        )
        table.pull(IDS)
        store.seal(cursor={"offset": 3})
        table.push(IDS[:500], np.ones((500, 7), np.float32))
        store.create_table("empty", 2)
        store.dense.publish({"w": np.arange(6.0).reshape(2, 3), "b": np.array([1], np.int8)})
        yield store


def everything(store: mkv.Store) -> Any:
    table = store.table("t")
    state = {name: values.tobytes() for name, values in table.state(IDS).items()}
    dense = {name: (w.dtype.str, w.shape, w.tobytes()) for name, w in store.dense.items()}
    return (
        sorted(store.tables),
        len(table),
        table.lookup(IDS).tobytes(),
        state,
        table.timestamps(IDS).tolist(),
        store.digest(),
        dense,
    )


def flipped(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x04
    path.write_bytes(data)


# --- taking one --------------------------------------------------------------------------------


def test_a_restored_snapshot_holds_the_same_bytes(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    snapshot = store.snapshot(folder / "s.snapshot")
    expected = everything(store)
    store.table("t").remove(IDS)
    with mkv.restore(snapshot.path, folder / "r", **options) as copy:
        assert everything(copy) == expected
        assert (copy.sequence, copy.epoch, dict(copy.cursor)) == (1, 2, {"offset": 3})
        assert copy.verify() == []
        copy.table("t").push(IDS, np.ones((len(IDS), 7), np.float32))
        assert copy.seal().sequence == 2


def test_a_snapshot_elsewhere_is_one_file_that_stands_alone(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    snapshot = store.snapshot(folder / "s.snapshot")
    expected = everything(store)
    assert store.snapshots() == []
    store.close()
    shutil.rmtree(store.path)
    moved = folder / "moved"
    Path(snapshot.path).rename(moved)
    with mkv.restore(moved, folder / "r", **options) as copy:
        assert everything(copy) == expected


def test_a_taken_name_is_refused_and_left_alone(store: mkv.Store, folder: Path) -> None:
    path = folder / "s.snapshot"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        store.snapshot(path)
    assert path.read_text() == "mine"


def test_as_many_snapshots_are_kept_as_asked_for(store_dir: Path, options: dict[str, Any]) -> None:
    with mkv.open(store_dir, snapshots_kept=3, **options) as store:
        table, taken = store.create_table("t", 1), []
        for fid in range(6):
            table.upsert(u64([fid]), np.ones((1, 1), np.float32))
            store.seal()
            taken.append(store.snapshot())
        assert store.snapshots() == taken[-3:]
        assert [Path(s.path).exists() for s in taken] == [False] * 3 + [True] * 3


def test_two_snapshots_of_one_sequence_do_not_collide(store: mkv.Store) -> None:
    first = store.snapshot()
    store.table("t").upsert(u64([5]), np.zeros((1, 7), np.float32))
    second = store.snapshot()
    assert (first.sequence, second.sequence) == (1, 1)
    assert second.rows == first.rows + 1
    assert store.snapshots()[-1] == second
    assert store.verify() == []


def test_progress_goes_up_to_the_whole(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    for call in (
        lambda note: store.snapshot(folder / "s.snapshot", progress=note),
        lambda note: mkv.restore(folder / "s.snapshot", folder / "r", progress=note).close(),
    ):
        notes: list[tuple[int, int]] = []
        call(lambda done, whole, notes=notes: notes.append((done, whole)))
        assert notes
        assert notes == sorted(notes)
        assert notes[-1][0] == notes[-1][1] > 0


def test_a_reopened_store_goes_on_from_snapshot_and_deltas(
    store: mkv.Store, options: dict[str, Any]
) -> None:
    store.snapshot()
    store.table("t").push(IDS[:10], np.ones((10, 7), np.float32))
    store.seal()
    store.table("t").remove(IDS[10:20])
    expected = everything(store)
    store.close()
    with mkv.open(store.path, **options) as again:
        assert everything(again) == expected
        assert again.epoch == 1


# --- restoring ---------------------------------------------------------------------------------


def owner(ids: np.ndarray, shards: int) -> np.ndarray:
    return mix(ids) % np.uint64(shards)


def keep_of(shard: int, shards: int) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda table, ids: owner(ids, shards) == shard


def test_keep_spreads_a_snapshot_over_shards_and_several_join_again(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    whole = store.snapshot(folder / "whole.snapshot").path
    three = []
    for shard in range(3):
        with mkv.restore(whole, folder / f"3-{shard}", keep=keep_of(shard, 3), **options) as part:
            kept = part.table("t").contains(IDS)
            np.testing.assert_array_equal(kept, owner(IDS, 3) == shard)
            three.append(part.snapshot(folder / f"3-{shard}.snapshot").path)
    # Three shards onto two, then two into one.
    two = []
    for shard in range(2):
        with mkv.restore(three, folder / f"2-{shard}", keep=keep_of(shard, 2), **options) as part:
            np.testing.assert_array_equal(part.table("t").contains(IDS), owner(IDS, 2) == shard)
            assert (part.sequence, part.epoch, dict(part.cursor)) == (0, 1, {})
            two.append(part.snapshot(folder / f"2-{shard}.snapshot").path)
    with mkv.restore(two, folder / "1", **options) as joined:
        assert everything(joined) == everything(store)


def test_keep_is_asked_by_table(store: mkv.Store, folder: Path, options: dict[str, Any]) -> None:
    store.create_table("u", 1).pull(IDS[:10])
    path = store.snapshot(folder / "s.snapshot").path

    def keep(table: str, ids: np.ndarray) -> np.ndarray:
        assert ids.dtype == np.uint64
        return np.full(len(ids), table == "u")

    with mkv.restore(path, folder / "r", keep=keep, **options) as copy:
        assert (len(copy.table("t")), len(copy.table("u"))) == (0, 10)


def test_an_id_of_two_snapshots_is_refused(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    with pytest.raises(ValueError):
        mkv.restore([path, path], folder / "r", **options)
    with mkv.restore([path], folder / "r", **options) as copy:
        assert len(copy.table("t")) == len(IDS)


def test_several_snapshots_make_a_new_store_that_old_deltas_do_not_fit(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    delta = store.seal()
    parts = []
    for shard in range(2):
        keep = keep_of(shard, 2)
        snapshot = store.snapshot(folder / f"{shard}.whole").path
        with mkv.restore(snapshot, folder / f"{shard}", keep=keep, **options) as part:
            parts.append(part.snapshot(folder / f"{shard}.snapshot").path)
    with (
        mkv.restore(parts, folder / "r", **options) as copy,
        mkv.open(folder / "replica", mode="replica", **options) as replica,
    ):
        for each in (copy.seal(cursor={}), copy.seal(cursor={})):
            replica.apply(each)
        with pytest.raises(mkv.FencedError):
            replica.apply(delta)
        assert replica.digest() == store.digest()


def test_a_replica_of_the_whole_does_not_take_a_shards_deltas_for_its_own(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    store.seal()
    path = store.snapshot(folder / "s.snapshot").path
    with (
        mkv.restore(path, folder / "replica", mode="replica", **options) as replica,
        mkv.restore(path, folder / "shard", keep=keep_of(0, 2), **options) as shard,
    ):
        delta = shard.seal(cursor={})
        # It lacks half of the rows: the replica must be fenced, or be told to remove them.
        try:
            replica.apply(delta)
        except mkv.FencedError:
            return
        assert replica.digest() == shard.digest()


def test_a_replica_is_made_of_one_snapshot_only(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    with pytest.raises(ValueError):
        mkv.restore([path, path], folder / "r", mode="replica", **options)
    with mkv.restore([path], folder / "r", mode="replica", **options) as replica:
        assert (replica.mode, replica.sequence, replica.epoch) == ("replica", 1, 1)
        assert everything(replica) == everything(store)


@pytest.mark.parametrize("occupant", ["a file", "a store"])
def test_a_path_that_is_taken_is_left_alone(
    store: mkv.Store, folder: Path, options: dict[str, Any], occupant: str
) -> None:
    path, snapshot = folder / "r", store.snapshot(folder / "s.snapshot")
    if occupant == "a store":
        mkv.open(path, **options).close()
    else:
        path.mkdir()
        (path / "notes").write_text("mine")
    before = sorted(p.name for p in path.iterdir())
    with pytest.raises(FileExistsError):
        mkv.restore(snapshot.path, path, **options)
    assert sorted(p.name for p in path.iterdir()) == before


@pytest.mark.parametrize("where", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_damaged_snapshot_restores_to_nothing(
    store: mkv.Store, folder: Path, options: dict[str, Any], where: float
) -> None:
    path = Path(store.snapshot(folder / "s.snapshot").path)
    flipped(path, int(path.stat().st_size * where))
    with pytest.raises((mkv.CorruptionError, mkv.FormatVersionError)) as caught:
        mkv.restore(path, folder / "r", **options)
    assert "s.snapshot" in str(caught.value)
    with pytest.raises(FileNotFoundError):
        mkv.open(folder / "r", mode="r")


def test_a_keep_that_fails_leaves_no_store(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    with pytest.raises(ZeroDivisionError):
        mkv.restore(path, folder / "r", keep=lambda table, ids: 1 // 0, **options)
    with pytest.raises(FileNotFoundError):
        mkv.open(folder / "r", mode="r")
    mkv.restore(path, folder / "r", **options).close()


def test_restore_works_within_a_memory_limit(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    path = store.snapshot(folder / "s.snapshot").path
    with mkv.restore(path, folder / "r", memory_limit="64KiB", **options) as copy:
        assert everything(copy) == everything(store)
        assert scanned(copy.table("t"), 100) == scanned(store.table("t"))


# --- damage ------------------------------------------------------------------------------------


def files_of(path: str, kind: str) -> list[Path]:
    found = (p for p in sorted(Path(path).rglob("*")) if p.is_file() and kind in p.name)
    return [p for p in found if p.stat().st_size and "mdb" not in p.name]


@pytest.mark.parametrize("kind", [".delta", ".snapshot"])
@pytest.mark.parametrize("where", [0.01, 0.3, 0.6, 0.99])
def test_verify_names_the_file_with_a_flipped_bit(
    store: mkv.Store, kind: str, where: float
) -> None:
    store.snapshot()
    store.seal()
    assert store.verify() == []
    for path in files_of(store.path, kind):
        data = path.read_bytes()
        flipped(path, int(len(data) * where))
        problems = store.verify()
        assert any(path.name in problem for problem in problems), problems
        path.write_bytes(data)
    assert store.verify() == []


def test_a_damaged_newest_snapshot_falls_back_to_the_one_before(
    store: mkv.Store, options: dict[str, Any]
) -> None:
    store.snapshot()
    store.table("t").remove(IDS[:5])
    store.seal()
    newest = store.snapshot()
    store.table("t").remove(IDS[5:9])
    expected = everything(store)
    store.close()
    flipped(Path(newest.path), newest.bytes // 2)
    with warnings.catch_warnings():
        # Nothing is lost, but a warning about the file is in order.
        warnings.simplefilter("ignore")
        again = mkv.open(store.path, **options)
    with again:
        assert everything(again) == expected
        assert any(Path(newest.path).name in problem for problem in again.verify())


@pytest.mark.parametrize("kind", [".delta", "MANIFEST"])
def test_a_store_with_damage_before_its_tail_does_not_open(
    store: mkv.Store, options: dict[str, Any], kind: str
) -> None:
    store.table("t").remove(IDS[:5])
    store.seal()
    store.close()
    path = files_of(store.path, kind)[0]
    flipped(path, path.stat().st_size // 2)
    with pytest.raises((mkv.CorruptionError, mkv.FormatVersionError), match=path.name):
        mkv.open(store.path, **options)
    with pytest.raises((mkv.CorruptionError, mkv.FormatVersionError), match=path.name):
        mkv.open(store.path, mode="r", **options)


def test_a_store_that_lost_its_manifest_does_not_start_empty(
    store: mkv.Store, options: dict[str, Any]
) -> None:
    store.close()
    (manifest,) = files_of(store.path, "MANIFEST")
    manifest.unlink()
    with pytest.raises(mkv.CorruptionError):
        mkv.open(store.path, **options)


class TimedBarrier:
    """A barrier that sums the CPU time of whoever holds it."""

    def __init__(self, barrier: Any) -> None:
        self._barrier = barrier
        self.held_s = 0.0

    def settle(self) -> None:
        self._barrier.settle()

    def __enter__(self) -> None:
        self._barrier.hold()
        self._begun = time.thread_time()

    def __exit__(self, *exception: object) -> None:
        self.held_s += time.thread_time() - self._begun
        self._barrier.release()


def test_callers_do_not_wait_for_what_a_snapshot_copies_and_sums(
    folder: Path, options: dict[str, Any]
) -> None:
    rows, dim = 60_000, 32
    ids = np.random.default_rng(2).integers(0, 2**64, rows, np.uint64)
    with mkv.open(folder / "store", durability="none", **options) as store:
        table = store.create_table("t", dim, admission=mkv.FrequencyGate(2, capacity=500_000))
        table.upsert(ids, np.ones((rows, dim), np.float32))
        store.create_table("u", dim).upsert(ids, np.ones((rows, dim), np.float32))
        state: Any = store._state
        state.barrier = barrier = TimedBarrier(state.barrier)
        begun = time.thread_time()
        store.snapshot()
        assert 0 < 20 * barrier.held_s < time.thread_time() - begun


def test_salvage_saves_what_is_good_and_says_what_is_not(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    store.snapshot()
    before = scanned(store.table("t"))
    gone = u64([*range(100)])
    store.table("t").upsert(gone, np.ones((100, 7), np.float32))
    store.seal()
    store.close()
    damaged = files_of(store.path, ".delta")[-1]
    flipped(damaged, damaged.stat().st_size // 2)
    with pytest.raises(mkv.CorruptionError):
        mkv.open(store.path, **options)
    problems = mkv.salvage(store.path, folder / "saved")
    assert any(damaged.name in problem for problem in problems)
    with mkv.open(folder / "saved", **options) as saved:
        rows = scanned(saved.table("t"))
        assert {fid: rows[fid] for fid in before} == before
        assert saved.verify() == []


def test_salvage_of_a_sound_store_saves_all_and_has_nothing_to_say(
    store: mkv.Store, folder: Path, options: dict[str, Any]
) -> None:
    expected = everything(store)
    store.close()
    assert mkv.salvage(store.path, folder / "saved") == []
    with mkv.open(folder / "saved", **options) as saved:
        assert everything(saved) == expected
