"""Eight threads call everything at once: no torn row, no lost update, nothing half in a checkpoint.

Rows tell on themselves. All elements of a row are equal at any time, so a torn one shows. Pushes
are whole numbers under SGD with lr 1, so a row is minus the sum of what was pushed to it. A call
always pushes one number to a whole group of ids, so a group that differs inside a delta or a
snapshot means that a call was cut in two.
"""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import WIDE, u64
from model import ManualClock

import monolith_kv as mkv

pytestmark = pytest.mark.timeout(900)

SECONDS = 60 if WIDE else 2.5
PATIENCE = 120
DIM, GROUP, GROUPS = 12, 32, 40
TTL = 100


class Storm:
    """One store, eight workers, and the ledger of what they pushed."""

    def __init__(self, folder: Path, clock: ManualClock, **options: Any) -> None:
        self.folder, self.clock = folder, clock
        self.options = {"delta_interval": None, "clock": clock, **options}
        self.store = mkv.open(folder / "store", **self.options)
        plain = {"optimizer": mkv.SGD(lr=1.0), "initializer": mkv.Zeros()}
        self.counted = self.store.create_table("counted", DIM, **plain)
        self.churned = self.store.create_table("churned", DIM, ttl=TTL, **plain)
        self.flickering = self.store.create_table("flickering", DIM, **plain)
        self.replica = mkv.open(folder / "replica", mode="replica", **self.options)
        self.ledger = np.zeros(4_000, np.int64)  # by group; the workers' parts are disjoint
        self.fresh_groups = GROUPS
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.calls = itertools.count()

    def group_ids(self, group: int) -> np.ndarray:
        # Spread over all shards; 0 is among them.
        start = group * GROUP
        return np.arange(start, start + GROUP, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)

    def run(self) -> None:
        workers = [
            lambda: self.push(0),
            lambda: self.push(1),
            lambda: self.look(self.counted),
            lambda: self.look(self.churned),
            self.insert,
            self.churn,
            self.seal,
            self.checkpoint,
        ]
        threads = [threading.Thread(target=self.guarded, args=(work,)) for work in workers]
        for thread in threads:
            thread.start()
        end = time.monotonic() + SECONDS
        # On a busy machine, or under a sanitizer, until all that is asserted can have happened.
        while not self.failures and time.monotonic() < end + PATIENCE:
            if time.monotonic() > end and self.ledger[:GROUPS].all():
                break
            self.stop.wait(0.05)
        self.stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a call never came back"
        if self.failures:
            raise self.failures[0]

    def guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:
            self.failures.append(failure)

    # --- the workers

    def push(self, worker: int) -> None:
        random = np.random.default_rng(worker)
        while not self.stop.is_set():
            group = 2 * int(random.integers(GROUPS // 2)) + worker
            ids, amount = self.group_ids(group), int(random.integers(1, 4))
            self.counted.pull(ids)
            order = random.permutation(GROUP)
            self.counted.push(ids[order], np.full((GROUP, DIM), amount, np.float32))
            self.ledger[group] += amount

    def insert(self) -> None:
        while not self.stop.is_set() and self.fresh_groups < len(self.ledger):
            group = self.fresh_groups
            ids = self.group_ids(group)
            assert not self.counted.pull(ids).any()
            self.counted.push(np.tile(ids, 2), np.ones((2 * GROUP, DIM), np.float32))
            self.ledger[group] += 2
            self.fresh_groups += 1

    def look(self, table: mkv.Table) -> None:
        random = np.random.default_rng(7)
        last = np.zeros(len(self.ledger) * GROUP, np.float32)
        out, found = np.empty((512, DIM), np.float32), np.empty(512, bool)
        while not self.stop.is_set():
            top = self.fresh_groups * GROUP
            places = random.integers(0, top, 512, np.uint64)
            ids = places * np.uint64(0x9E3779B97F4A7C15)
            rows = table.lookup(ids, out=out, found=found)
            assert_whole(rows)
            if table is self.counted:
                # Sums only grow, so a row that is read again is never an older one.
                assert (rows[:, 0] <= last[places]).all(), "a row went back in time"
                last[places] = rows[:, 0]
            assert not rows[~found].any()
            bags = table.lookup_pooled(ids, np.arange(0, 512, 8))
            # Sums of equal elements in one order: as equal as the rows were.
            assert_whole(bags)
            assert len(table.state(ids)) == 0
            for _, rows in table.scan(1_000):
                assert_whole(rows)

    def churn(self) -> None:
        random = np.random.default_rng(3)
        while not self.stop.is_set():
            ids = self.group_ids(int(random.integers(GROUPS)))
            amount = np.full((GROUP, DIM), float(random.integers(1, 9)), np.float32)
            self.churned.upsert(ids, amount)
            self.churned.push(ids, amount)
            if random.random() < 0.3:
                self.churned.remove(ids[:5])
            # A group is there wholly or not at all.
            if self.flickering.remove(ids) == 0:
                self.flickering.upsert(ids, amount)
            self.clock.advance(1)
            if random.random() < 0.1:
                self.store.compact(force=True)

    def seal(self) -> None:
        with mkv.open(self.store.path, mode="r", **self.options) as reader:
            for number in itertools.count(1):
                if self.stop.is_set():
                    return
                delta = self.store.seal(cursor={"seal": number})
                assert self.replica.apply(delta)
                assert dict(self.replica.cursor) == {"seal": number}
                assert_groups_agree(self.replica, self)
                assert reader.refresh()
                assert reader.sequence == delta.sequence
                assert_groups_agree(reader, self)

    def checkpoint(self) -> None:
        for number in itertools.count(1):
            if self.stop.is_set():
                return
            self.store.dense.publish({"number": np.full(1_000, number)})
            path = self.folder / f"{number}.snapshot"
            self.store.snapshot(path)
            self.store.snapshot()
            with mkv.restore(path, self.folder / f"restored-{number}", clock=self.clock) as copy:
                assert_groups_agree(copy, self)
                assert (copy.dense["number"] == number).all()
                for _, rows in copy.table("churned").scan():
                    assert_whole(rows)


def assert_whole(rows: np.ndarray) -> None:
    assert (rows == rows[:, :1]).all(), "a row is torn"


def assert_groups_agree(store: mkv.Store, storm: Storm) -> None:
    groups = range(storm.fresh_groups)
    ids = np.concatenate([storm.group_ids(group) for group in groups])
    rows = store.table("counted").lookup(ids)
    assert_whole(rows)
    by_group = rows[:, 0].reshape(len(groups), GROUP)
    assert (by_group == by_group[:, :1]).all(), "a call is in it by half"
    is_there = store.table("flickering").contains(ids).reshape(len(groups), GROUP)
    assert (is_there == is_there[:, :1]).all(), "a removal or an upsert is in it by half"


def assert_equals_ledger(store: mkv.Store, storm: Storm) -> None:
    table = store.table("counted")
    touched = np.flatnonzero(storm.ledger)
    ids = np.concatenate([storm.group_ids(group) for group in touched])
    expected = np.repeat(-storm.ledger[touched], GROUP).astype(np.float32)
    assert table.contains(ids).all()
    np.testing.assert_array_equal(table.lookup(ids), np.tile(expected[:, None], (1, DIM)))
    assert len(table) == len(ids)


@pytest.mark.parametrize(("durability", "memory_limit"), [("interval", None), ("batch", "1MiB")])
def test_eight_threads_lose_and_tear_nothing(
    folder: Path, clock: ManualClock, durability: str, memory_limit: str | None
) -> None:
    storm = Storm(folder, clock, durability=durability, memory_limit=memory_limit)
    storm.run()
    assert storm.ledger[:GROUPS].all(), "too short to have pushed to every group"
    assert_equals_ledger(storm.store, storm)
    last = storm.store.seal(cursor={})
    storm.replica.apply(last)
    assert storm.replica.digest() == storm.store.digest()
    assert_equals_ledger(storm.replica, storm)
    assert storm.store.verify() == []
    assert storm.replica.verify() == []
    digest = storm.store.digest()
    storm.replica.close()
    storm.store.close()
    with mkv.open(folder / "store", **storm.options) as store:
        assert store.digest() == digest
        assert_equals_ledger(store, storm)


def test_tables_come_and_go_while_others_are_used(folder: Path) -> None:
    with mkv.open(folder / "store", delta_interval=None) as store:
        steady = store.create_table("steady", 4, optimizer=mkv.SGD(lr=1.0), initializer=mkv.Zeros())
        ids = u64(range(100))
        steady.pull(ids)
        stop, failures = threading.Event(), []

        def work() -> None:
            try:
                while not stop.is_set():
                    steady.push(ids, np.ones((100, 4), np.float32))
                    store.seal()
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=work)
        thread.start()
        for number in range(60):
            table = store.create_table(f"t{number % 3}", 8)
            table.pull(ids)
            assert len(table) == 100
            store.drop_table(table.name)
        stop.set()
        thread.join(60)
        assert not failures
        assert set(store.tables) == {"steady"}
        rows = steady.lookup(ids)
        assert (rows == rows[0, 0]).all()
