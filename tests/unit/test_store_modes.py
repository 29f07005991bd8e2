"""Modes of opening: durability, readers and refresh, dense weights, limits of memory and disk."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import scanned, u64
from model import ManualClock

import monolith_kv as mkv

MODES = ["none", "interval", "batch", "sync"]
Opener = Callable[..., mkv.Store]


@pytest.fixture
def opened(clock: ManualClock) -> Opener:
    def open_store(path: Path, **options: Any) -> mkv.Store:
        return mkv.open(path, **{"delta_interval": None, "clock": clock, **options})

    return open_store


def ones(count: int, dim: int = 2) -> np.ndarray:
    return np.ones((count, dim), np.float32)


def killed(store: mkv.Store, to: Path) -> Path:
    """The folder as SIGKILL would leave it at this instant."""
    shutil.copytree(store.path, to, ignore=shutil.ignore_patterns("lock.mdb"))
    return to


def recovered(opened: Opener, path: Path) -> mkv.Store:
    """Open after a kill; the modes that lose calls say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        return opened(path)


# --- durability --------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["batch", "sync"])
def test_every_kind_of_call_survives_a_kill(
    folder: Path, opened: Opener, clock: ManualClock, durability: str
) -> None:
    with opened(folder / "s", durability=durability) as store:
        table = store.create_table("t", 2, ttl=100)
        table.pull(u64([1, 2, 3, 4]))
        table.push(u64([1, 2]), ones(2))
        table.upsert(u64([5]), ones(1))
        table.remove(u64([3]))
        clock.advance(60)
        table.push(u64([1, 5]), ones(2))
        clock.advance(40)
        store.compact()
        table.configure(ttl=7, optimizer=mkv.Adagrad(lr=0.5))
        store.create_table("u", 3)
        store.create_table("v", 3)
        store.drop_table("u")
        with opened(killed(store, folder / "k")) as again:
            assert set(again.tables) == {"t", "v"}
            copy = again.table("t")
            ids = u64([1, 2, 3, 4, 5])
            assert copy.contains(ids).tolist() == [True, False, False, False, True]
            np.testing.assert_array_equal(copy.lookup(ids), table.lookup(ids))
            np.testing.assert_array_equal(copy.timestamps(ids), table.timestamps(ids))
            assert again.digest() == store.digest()
            assert not again.stats()["lost"]
            for each in (table, copy):
                each.push(u64([1]), ones(1))
            np.testing.assert_array_equal(copy.lookup(ids), table.lookup(ids))
            assert (again.seal().rows, again.epoch) == (2, 2)


@pytest.mark.parametrize("durability", ["none", "interval"])
def test_a_kill_falls_back_to_the_last_seal(folder: Path, opened: Opener, durability: str) -> None:
    with opened(folder / "s", durability=durability) as store:
        table = store.create_table("t", 2)
        table.pull(u64([1, 2]))
        store.seal(cursor={"offset": 5})
        digest = store.digest()
        table.push(u64([1]), ones(1))
        table.pull(u64([3]))
        with recovered(opened, killed(store, folder / "k")) as again:
            assert again.digest() == digest
            assert (again.sequence, again.epoch, dict(again.cursor)) == (1, 2, {"offset": 5})


@pytest.mark.parametrize("durability", ["none", "interval"])
def test_a_kill_falls_back_to_a_snapshot_under_the_store(
    folder: Path, opened: Opener, durability: str
) -> None:
    with opened(folder / "s", durability=durability) as store:
        table = store.create_table("t", 2)
        table.pull(u64([1, 2]))
        store.seal()
        table.push(u64([1]), ones(1))
        store.snapshot()
        digest = store.digest()
        table.pull(u64([3]))
        with (
            recovered(opened, killed(store, folder / "k")) as again,
            opened(folder / "replica", mode="replica") as replica,
        ):
            assert again.digest() == digest
            # What the snapshot had ahead of the deltas is in the next one.
            for delta in [*again.deltas(), again.seal()]:
                replica.apply(delta)
            assert replica.digest() == digest


@pytest.mark.parametrize("durability", ["batch", "sync"])
def test_calls_that_a_snapshot_covers_are_not_made_again(
    folder: Path, opened: Opener, durability: str
) -> None:
    with opened(folder / "s", durability=durability) as store:
        table = store.create_table("t", 2, optimizer=mkv.SGD(lr=1.0), initializer=mkv.Zeros())
        table.pull(u64([1]))
        # The log begins anew here: a log from the table's creation on could be replayed twice.
        store.seal()
        table.push(u64([1]), ones(1))
        store.snapshot()
        with opened(killed(store, folder / "between")) as again:
            assert again.table("t")[1].tolist() == [-1.0, -1.0]
        table.push(u64([1]), ones(1))
        store.snapshot(folder / "elsewhere.snapshot")
        table.push(u64([1]), ones(1))
        with opened(killed(store, folder / "after")) as again:
            assert again.table("t")[1].tolist() == [-3.0, -3.0]


@pytest.mark.parametrize("cut", [1, 5, 17])
def test_a_torn_tail_is_cut_kept_aside_and_reported(folder: Path, opened: Opener, cut: int) -> None:
    with opened(folder / "s", durability="batch") as store:
        table = store.create_table("t", 2)
        table.upsert(u64([1]), ones(1))
        before = store.digest()
        table.upsert(u64([2]), ones(1))
        path = killed(store, folder / "k")
    logs = sorted((p for p in path.rglob("*.calls") if p.stat().st_size), key=lambda p: p.name)
    with open(logs[-1], "r+b") as log:
        log.truncate(logs[-1].stat().st_size - cut)
    with pytest.warns(mkv.DataLossWarning):
        again = opened(path)
    with again:
        assert again.digest() == before
        assert again.stats()["lost"]
        assert list(path.rglob("*.torn"))
        assert again.epoch == 2
    with opened(path) as clean:
        assert clean.digest() == before


@pytest.mark.parametrize("durability", MODES)
def test_a_clean_close_loses_nothing(folder: Path, opened: Opener, durability: str) -> None:
    with opened(folder / "s", durability=durability) as store:
        store.create_table("t", 2).pull(u64(range(100)))
        digest = store.digest()
    with opened(folder / "s", durability=durability) as store:
        assert (store.digest(), store.epoch) == (digest, 1)


def test_the_mode_of_durability_may_change_between_openings(folder: Path, opened: Opener) -> None:
    for number, durability in enumerate([*MODES, *reversed(MODES)]):
        with opened(folder / "s", durability=durability) as store:
            store.create_table("t", 2, exist_ok=True).pull(u64([number]))
    with opened(folder / "s") as store:
        assert store.table("t").contains(u64(range(8))).all()
        assert store.verify() == []


# --- mode "r" ----------------------------------------------------------------------------------


def test_refresh_moves_to_the_last_durable_state_and_says_so(folder: Path, opened: Opener) -> None:
    with opened(folder / "s") as store:
        table = store.create_table("t", 2)
        table.pull(u64([1]))
        store.seal()
        with opened(folder / "s", mode="r") as reader:
            copy = reader.table("t")
            assert reader.refresh() is False
            table.pull(u64([2]))
            assert reader.refresh() is False
            assert 2 not in copy
            store.seal(cursor={"offset": 1})
            assert 2 not in copy
            assert reader.refresh() is True
            assert 2 in reader.table("t")
            assert 2 in copy
            assert (reader.sequence, dict(reader.cursor)) == (2, {"offset": 1})
            assert reader.digest() == store.digest()


def test_a_reader_sees_created_and_dropped_tables_after_refresh(
    folder: Path, opened: Opener
) -> None:
    with opened(folder / "s") as store:
        store.create_table("t", 2)
        store.seal()
        with opened(folder / "s", mode="r") as reader:
            old = reader.table("t")
            store.drop_table("t")
            store.create_table("u", 3).pull(u64([1]))
            store.seal()
            assert set(reader.tables) == {"t"}
            assert reader.refresh()
            assert set(reader.tables) == {"u"}
            assert 1 in reader.table("u")
            with pytest.raises(mkv.ClosedError):
                old.lookup(u64([1]))


@pytest.mark.parametrize("durability", ["batch", "sync"])
def test_a_reader_beside_a_logging_writer_sees_acknowledged_calls(
    folder: Path, opened: Opener, durability: str
) -> None:
    with opened(folder / "s", durability=durability) as store:
        table = store.create_table("t", 2)
        with opened(folder / "s", mode="r") as reader:
            for fid in range(5):
                table.pull(u64([fid]))
                if fid == 2:
                    store.seal()
                if fid == 3:
                    store.snapshot()
                assert reader.refresh()
                assert reader.digest() == store.digest()


def test_a_reader_outlives_snapshots_and_deltas_that_are_retired(
    folder: Path, opened: Opener, clock: ManualClock
) -> None:
    with opened(folder / "s", delta_retention="1s", snapshots_kept=1) as store:
        table = store.create_table("t", 2)
        with opened(folder / "s", mode="r") as reader:
            for fid in range(6):
                table.pull(u64([fid]))
                store.seal()
                clock.advance(10)
                if fid % 2:
                    store.snapshot()
                assert reader.refresh()
                assert reader.digest() == store.digest()


# --- dense parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("durability", MODES)
def test_dense_parameters_are_durable_when_publish_returns(
    folder: Path, opened: Opener, durability: str
) -> None:
    arrays = {
        "layer.0": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([1.5], np.float16),
        "count": np.array(7, np.int64),
        "mask": np.array([True, False]),
        "none": np.empty((0, 4), np.float64),
    }
    with opened(folder / "s", durability=durability) as store:
        assert store.dense.version == 0
        version = store.dense.publish(arrays)
        assert version == store.dense.version > 0
        assert store.dense.publish(arrays) > version
        with recovered(opened, killed(store, folder / "k")) as again:
            assert again.dense.version == store.dense.version
            assert set(again.dense) == set(arrays)
            for name, values in arrays.items():
                copy = again.dense[name]
                assert (copy.dtype, copy.shape) == (values.dtype, values.shape)
                np.testing.assert_array_equal(copy, values)


def test_dense_parameters_travel_whole_in_the_next_delta(folder: Path, opened: Opener) -> None:
    with opened(folder / "s") as store, opened(folder / "r", mode="replica") as replica:
        store.dense.publish({"a": ones(1), "b": ones(2)})
        store.dense.publish({"c": ones(3)})
        assert replica.apply(store.seal())
        assert list(replica.dense) == ["c"]
        assert replica.dense.version == store.dense.version
        store.create_table("t", 1)
        assert replica.apply(store.seal())
        np.testing.assert_array_equal(replica.dense["c"], ones(3))


def test_what_was_published_does_not_change_with_the_array(folder: Path, opened: Opener) -> None:
    with opened(folder / "s") as store:
        array = ones(2)
        store.dense.publish({"w": array})
        array[:] = 9
        np.testing.assert_array_equal(store.dense["w"], ones(2))
        with pytest.raises(KeyError):
            store.dense["v"]


# --- limits ------------------------------------------------------------------------------------

WIDE_IDS = np.arange(4_000, dtype=np.uint64)


def fill(table: mkv.Table, ids: np.ndarray) -> int:
    """Upsert rows that tell their id, in batches, until the store is full; how many went in."""
    for start in range(0, len(ids), 100):
        part = ids[start : start + 100]
        try:
            table.upsert(part, np.repeat(part.astype(np.float32)[:, None], 256, axis=1))
        except mkv.StoreFullError:
            return start
    return len(ids)


def test_rows_beyond_the_memory_limit_stay_readable_and_trainable(
    folder: Path, opened: Opener
) -> None:
    with opened(folder / "s", memory_limit="1MiB") as store:
        table = store.create_table("t", 256, optimizer=mkv.SGD(lr=1.0))
        assert fill(table, WIDE_IDS) == len(WIDE_IDS)
        rows = table.lookup(WIDE_IDS)
        np.testing.assert_array_equal(rows[:, 0], WIDE_IDS.astype(np.float32))
        table.push(WIDE_IDS, np.ones((len(WIDE_IDS), 256), np.float32))
        np.testing.assert_array_equal(table.lookup(WIDE_IDS), rows - 1)
        assert len(scanned(table)) == len(table) == len(WIDE_IDS)
        assert table.remove(WIDE_IDS[::2]) == len(WIDE_IDS) // 2
        assert store.seal().rows == len(WIDE_IDS) // 2
        assert store.verify() == []
        digest = store.digest()
    with opened(folder / "s") as store:
        assert store.digest() == digest


def test_a_full_overflow_tier_refuses_new_ids_and_serves_all_others(
    folder: Path, opened: Opener
) -> None:
    limits = {"memory_limit": "1MiB", "overflow_limit": "2MiB"}
    with opened(folder / "s", **limits) as store:
        table = store.create_table("t", 256, optimizer=mkv.SGD(lr=1.0))
        count = fill(table, WIDE_IDS)
        assert 0 < count < len(WIDE_IDS)
        inside, outside = WIDE_IDS[:count], WIDE_IDS[-100:]
        # What was acknowledged is intact, and each new id is in wholly or not at all.
        here = table.contains(WIDE_IDS)
        assert here[:count].all()
        assert len(table) == here.sum()
        rows = table.lookup(WIDE_IDS)
        np.testing.assert_array_equal(rows[here, 0], WIDE_IDS[here].astype(np.float32))
        with pytest.raises(mkv.StoreFullError):
            table.pull(outside)
        # Everything else goes on.
        table.push(inside, np.ones((count, 256), np.float32))
        np.testing.assert_array_equal(table.lookup(inside), rows[:count] - 1)
        assert table.pull(inside).any()
        store.seal()
        assert table.remove(inside[: count // 2]) == count // 2
        assert fill(table, outside) == len(outside)
        assert store.verify() == []


def test_a_pull_that_finds_no_room_has_counted_no_sighting(folder: Path, opened: Opener) -> None:
    limits = {"memory_limit": "1MiB", "overflow_limit": "1MiB"}
    gate = mkv.FrequencyGate(3, capacity=10_000, error=1e-6)
    with opened(folder / "s", **limits) as store:
        table = store.create_table("t", 256)
        full = fill(table, WIDE_IDS)
        gated = store.create_table("g", 256, admission=gate, initializer=mkv.Constant(1))
        seen, new = u64([10**9]), np.arange(1, 21, dtype=np.uint64)
        for _ in range(2):
            assert not gated.pull(seen).any()
        counted = store.stats()["tables"]["g"]["gate"]
        for _ in range(4):
            with pytest.raises(mkv.StoreFullError):
                gated.pull(np.append(new, seen))
        assert store.stats()["tables"]["g"]["gate"] == counted
        table.remove(WIDE_IDS[:full])
        for _ in range(2):
            assert not gated.pull(new).any()
        assert gated.pull(new).all()
        assert gated.pull(seen).all()


def test_prefetch_changes_nothing_and_makes_a_pull_find_all(folder: Path, opened: Opener) -> None:
    with opened(folder / "s", memory_limit="1MiB") as store:
        table = store.create_table("t", 256)
        fill(table, WIDE_IDS)
        store.seal()
        digest = store.digest()
        for start in range(0, len(WIDE_IDS), 500):
            table.prefetch(WIDE_IDS[start : start + 500])
            table.pull(WIDE_IDS[start : start + 500])
        assert store.digest() == digest
        assert store.seal() is None


# --- compact, configure, create ----------------------------------------------------------------


def test_exist_ok_takes_the_settings_given_and_keeps_those_left_out(
    folder: Path, opened: Opener, clock: ManualClock
) -> None:
    with opened(folder / "s") as store:
        gate = mkv.FrequencyGate(2, capacity=1_000, error=1e-4)
        table = store.create_table("t", 2, admission=gate, ttl=50)
        store.create_table("t", 2, exist_ok=True, ttl=10)
        table.pull(u64([1]))
        assert 1 not in table
        table.upsert(u64([2]), ones(1))
        clock.advance(10)
        assert store.compact().expired == 1
        store.create_table("t", 2, exist_ok=True, admission=mkv.FrequencyGate(1))
        table.pull(u64([3]))
        clock.advance(10)
        assert (3 in table, store.compact().expired) == (True, 1)


def test_configure_takes_optimizers_by_slice(folder: Path, opened: Opener) -> None:
    with opened(folder / "s") as store:
        slices = [mkv.Slice("a", 1, mkv.SGD(lr=1.0)), mkv.Slice("b", 2, mkv.SGD(lr=1.0))]
        table = store.create_table("t", slices)
        table.upsert(u64([1]), np.zeros((1, 3), np.float32))
        table.configure(optimizer={"b": mkv.SGD(lr=0.5)})
        table.push(u64([1]), np.ones((1, 3), np.float32))
        assert table.lookup(u64([1])).tolist() == [[-1.0, -0.5, -0.5]]
        with pytest.raises(mkv.SchemaError):
            table.configure(optimizer={"a": mkv.Adam()})


def test_state_has_the_documented_names_and_shapes(folder: Path, opened: Opener) -> None:
    names = {
        "SGD": {},
        "Momentum": {"momentum": 3},
        "Adagrad": {"accumulator": 3},
        "RowWiseAdagrad": {"accumulator": 1},
        "RMSProp": {"mean_square": 3},
        "Adam": {"step": 1, "m": 3, "v": 3},
        "Ftrl": {"z": 3, "n": 3},
    }
    with opened(folder / "s") as store:
        for name, widths in names.items():
            table = store.create_table(name, 3, optimizer=getattr(mkv, name)())
            table.pull(u64([1]))
            state = table.state(u64([1, 2]))
            assert {part: values.shape for part, values in state.items()} == {
                part: (2, width) for part, width in widths.items()
            }
            assert not any(values[1].any() for values in state.values())
            assert all(values.dtype == np.float32 for values in state.values())
