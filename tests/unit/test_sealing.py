"""Whatever fails as a store publishes, wherever it is killed, nothing acknowledged is lost."""

import contextlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from faulty import Killed, broken_disk, faults, no_space, steps_of
from model import ManualClock

import monolith_kv as mkv
from monolith_kv import sealing

DURABILITIES = ["interval", "batch", "sync"]
IDS = u64([*range(20), 2**64 - 1])


def rows(value: float) -> Any:
    return np.full((len(IDS), 3), value, np.float32)


class Stage:
    """Makes equal stores with sealed, unsealed, removed and dense content, one after the other."""

    def __init__(self, folder: Path, clock: ManualClock, durability: str) -> None:
        self.folder, self.count = folder, 0
        self.options: dict[str, Any] = {
            "delta_interval": None,
            "durability": durability,
            "clock": clock,
        }

    def path(self) -> Path:
        self.count += 1
        return self.folder / f"{self.count}"

    def make(self) -> mkv.Store:
        store = mkv.open(self.path(), **self.options)
        gate = mkv.FrequencyGate(2, capacity=1_000)
        table = store.create_table("t", 3, optimizer=mkv.SGD(lr=1.0), admission=gate)
        table.upsert(IDS, rows(1))
        store.dense.publish({"w": np.arange(3)})
        store.seal(cursor={"offset": 1})
        table.push(IDS[:5], rows(1)[:5])
        table.remove(IDS[5:7])
        table.pull(u64([100, 101]))
        store.create_table("late", 2).upsert(u64([7]), np.ones((1, 2), np.float32))
        store.dense.publish({"w": np.arange(4)})
        return store

    def reopen(self, store: mkv.Store) -> mkv.Store:
        """What a kill at this instant leaves, opened again."""
        path = self.path()
        shutil.copytree(store.path, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mkv.DataLossWarning)
            return mkv.open(path, **self.options)


@pytest.fixture(params=DURABILITIES)
def stage(folder: Path, clock: ManualClock, request: pytest.FixtureRequest) -> Stage:
    return Stage(folder, clock, request.param)


def seal(store: mkv.Store) -> None:
    store.seal(cursor={"offset": 2})


def snapshot(store: mkv.Store) -> None:
    store.snapshot()


def publish_dense(store: mkv.Store) -> None:
    store.dense.publish({"w": np.arange(5)})


SCENARIOS = {"seal": seal, "snapshot": snapshot, "dense": publish_dense}


@pytest.mark.parametrize("error", [no_space, broken_disk])
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_an_error_at_any_step_loses_nothing(
    stage: Stage, scenario: Callable[[Any], None], error: Callable[[], OSError]
) -> None:
    for at in range(steps_of(scenario, stage.make)):
        store = stage.make()
        digest = store.digest()
        with faults(at, error):
            try:
                scenario(store)
            except (mkv.Error, OSError):
                assert store.digest() == digest
        assert store.digest() == digest
        for _ in range(3):  # What an error left for the next call to raise is raised.
            try:
                scenario(store)
                break
            except (mkv.Error, OSError):
                continue
        assert store.verify() == []
        assert_published_whole(stage, store)
        store.close()


def assert_published_whole(stage: Stage, store: mkv.Store) -> None:
    """A replica of all deltas ends with the same rows, and so does a recovery."""
    store.seal()
    with mkv.open(stage.path(), mode="replica", **stage.options) as replica:
        for delta in store.deltas():
            assert replica.apply(delta)
        assert replica.digest() == store.digest()
        np.testing.assert_array_equal(replica.dense["w"], store.dense["w"])
    with stage.reopen(store) as again:
        assert again.digest() == store.digest()
        np.testing.assert_array_equal(again.dense["w"], store.dense["w"])


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_kill_at_any_step_leaves_a_state_before_or_after(
    stage: Stage, scenario: Callable[[Any], None]
) -> None:
    for at in range(steps_of(scenario, stage.make)):
        store = stage.make()
        digest = store.digest()
        with stage.reopen(store) as before:
            before_digest = before.digest()
        with faults(at), pytest.raises(Killed):
            scenario(store)
        with stage.reopen(store) as again:
            is_logged = stage.options["durability"] != "interval"
            assert again.digest() in ((digest,) if is_logged else (digest, before_digest))
            assert again.epoch == 2
            assert again.verify() == []
            assert_published_whole(stage, again)
        store.close()


def test_a_kill_at_any_step_of_a_recovery_leaves_it_to_the_next(stage: Stage) -> None:
    store = stage.make()
    left = stage.path()
    shutil.copytree(store.path, left)
    with stage.reopen(store) as again:
        digest = again.digest()
    at, is_done = 0, False
    while not is_done:
        path = stage.path()
        shutil.copytree(left, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mkv.DataLossWarning)
            with faults(at) as made:
                with contextlib.suppress(Killed):
                    mkv.open(path, **stage.options)
            is_done = not made.is_dead
            copied = stage.path()
            shutil.copytree(path, copied)
            with mkv.open(copied, **stage.options) as again:
                assert again.digest() == digest
                assert again.verify() == []
        at += 1
    assert at > 5
    store.close()


def test_a_kill_at_any_step_of_closing_loses_what_the_mode_says(stage: Stage) -> None:
    def close(store: mkv.Store) -> None:
        store.close()

    for at in range(steps_of(close, stage.make)):
        store = stage.make()
        digest = store.digest()
        with stage.reopen(store) as before:
            before_digest = before.digest()
        with faults(at), pytest.raises(Killed):
            store.close()
        with stage.reopen(store) as again:
            assert again.digest() in (digest, before_digest)
            assert again.verify() == []


def test_a_seal_that_failed_counts_in_the_next(stage: Stage) -> None:
    store = stage.make()
    with faults(6, no_space), pytest.raises(mkv.StoreFullError):
        store.seal()
    delta = store.seal()
    assert delta is not None
    assert (delta.sequence, delta.rows, delta.removals) == (2, 6, 2)
    store.close()


def test_sightings_survive_a_failed_seal_and_a_crash_after_the_next(stage: Stage) -> None:
    store = stage.make()
    with faults(6, no_space), pytest.raises(mkv.StoreFullError):
        store.seal()
    store.seal()
    with stage.reopen(store) as again:
        again.table("t").pull(u64([100]))
        assert 100 in again.table("t")
        assert 101 not in again.table("t")
    store.close()


@pytest.mark.parametrize("block_bytes", [1, 100])
def test_a_seal_in_many_blocks_has_every_row_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(sealing, "BLOCK_BYTES", block_bytes)
    store = stage.make()
    table = store.table("t")
    table.push(IDS, rows(2))
    delta = store.seal()
    assert delta is not None
    assert delta.rows == len(table) + 1  # And that of the late table.
    table.push(IDS, rows(4))  # In no delta: gone after a crash.
    expected = {"interval": 2.0}.get(stage.options["durability"], 6.0)
    with stage.reopen(store) as opened:
        last = opened.table("t").lookup(IDS[-1:])
        np.testing.assert_array_equal(last, np.full((1, 3), 1.0 - expected, np.float32))
    store.close()


def test_a_seal_that_was_interrupted_while_it_was_given_up_is_in_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abort = sealing._abort

    def fail(*_: Any) -> None:
        raise OSError("no disk")

    def first_only(entries: Any) -> Any:
        yield entries[0]
        raise KeyboardInterrupt

    def abort_first(state: Any, plan: sealing.Plan) -> None:
        abort(state, replace(plan, entries=first_only(plan.entries)))

    with mkv.open(folder / "s", delta_interval=None) as store:
        first, second = store.create_table("a", 3), store.create_table("b", 3)
        first.upsert(IDS, rows(1))
        second.upsert(IDS, rows(1))
        with monkeypatch.context() as broken:
            broken.setattr(sealing, "_publish", fail)
            broken.setattr(sealing, "_abort", abort_first)
            with pytest.raises(KeyboardInterrupt):
                store.seal()
        second.upsert(IDS[:3], rows(2)[:3])
        delta = store.seal()
        assert delta is not None
        assert delta.rows == 2 * len(IDS)
        with mkv.open(folder / "r", mode="replica") as copy:
            copy.apply(delta.path)
            np.testing.assert_array_equal(copy.table("b").lookup(IDS), second.lookup(IDS))


@pytest.mark.parametrize(
    ("options", "limit", "is_kept"),
    [
        ({"delta_interval": "10s"}, sealing.KEPT_BYTES, True),
        ({"delta_interval": "10s"}, 4_000 * 64 * 2, False),
        ({"delta_interval": "11s"}, sealing.KEPT_BYTES, False),
        ({"delta_interval": None}, sealing.KEPT_BYTES, False),
        # Rows may need that memory.
        ({"delta_interval": "10s", "memory_limit": "1GiB"}, sealing.KEPT_BYTES, False),
    ],
)
def test_room_for_rows_that_change_during_a_seal_stays_where_the_next_one_is_due_soon(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    limit: int,
    is_kept: bool,
) -> None:
    monkeypatch.setattr(sealing, "KEPT_BYTES", limit)
    ids, values = np.arange(4_000, dtype=np.uint64), np.ones((4_000, 64), np.float32)
    monkeypatch.setattr(sealing, "BLOCK_BYTES", 100 * 4 * 64)
    with mkv.open(folder / "s", **options) as store, mkv.open(folder / "r", mode="replica") as copy:
        table = store.create_table("t", 64)
        table.upsert(ids, values)
        read = sealing._read

        def seal_while_all_change(value: float) -> mkv.Delta:
            def change_first(*arguments: Any) -> Any:
                if len(calls) == 1:
                    table.upsert(ids, value * values)
                calls.append(arguments)
                return read(*arguments)

            calls: list[Any] = []
            monkeypatch.setattr(sealing, "_read", change_first)
            delta = store.seal()
            assert delta is not None
            assert delta.rows == len(ids)
            return delta

        for number in range(1, 4):
            copy.apply(seal_while_all_change(number + 1).path)
            np.testing.assert_array_equal(copy.table("t").lookup(ids), number * values)
            kept = store.stats()["memory"]["kinds"]["touched"] - 8 * len(ids)
            assert (kept > 0.9 * len(ids) * 4 * 64) is is_kept
