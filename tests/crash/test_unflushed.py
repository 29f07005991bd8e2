"""A power cut that keeps nothing unflushed, after every flush: what the mode promises is there.

Replication is tried likewise: what a replica was given is never lost by its primary, and where it
was all the same, the replica notices.
"""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import u64
from crash.unflushed import Disk
from model import ManualClock

import monolith_kv as mkv
from monolith_kv.replication import Follower, Publisher
from monolith_kv.storage import files

IDS = u64(range(12))
ONES = np.ones((12, 2), np.float32)
Step = Callable[[mkv.Store], object]


def push(store: mkv.Store) -> None:
    store.table("t").push(IDS[:5], ONES[:5])


def remove(store: mkv.Store) -> None:
    store.table("t").remove(IDS[5:7])


def upsert(store: mkv.Store) -> None:
    store.table("t").upsert(IDS, ONES)


def create(store: mkv.Store) -> None:
    store.create_table("t", 2, optimizer=mkv.SGD(lr=1.0), exist_ok=True)


def seal(store: mkv.Store) -> None:
    store.seal()


def snapshot(store: mkv.Store) -> None:
    store.snapshot()


def publish_dense(store: mkv.Store) -> None:
    store.dense.publish({"w": np.arange(store.dense.version + 1)})


PUBLISHING = (seal, snapshot)
SCENARIO: list[Step] = [
    create, upsert, seal, push, remove, snapshot, push, seal, publish_dense, upsert, publish_dense,
    push, snapshot, remove, snapshot, push, seal, upsert, snapshot, push,
]  # fmt: skip


class Course:
    """The steps made on one store, and what is allowed to be left of them at each flush."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.folder, self.options = folder, options
        self.digests: list[str] = []  # After so many steps.
        self.made = self.durable = self.states = 0
        self.dense = 0  # Versions that were acknowledged.

    def rehearse(self) -> None:
        with mkv.open(self.folder / "rehearsal", **self.options) as store:
            self.digests.append(store.digest())
            for step in SCENARIO:
                step(store)
                self.digests.append(store.digest())

    def run(self) -> None:
        disk = Disk(self.folder)
        disk.on_flush = lambda: self.check(disk)
        with disk.watch():
            store = mkv.open(self.folder / "s", **self.options)
            for step in SCENARIO:
                step(store)
                self.made += 1
                self.dense = store.dense.version
                if step in PUBLISHING or self.options["durability"] == "sync":
                    self.durable = self.made
                self.check(disk)
            disk.on_flush = lambda: None
            store.close()

    def check(self, disk: Disk) -> None:
        left = self.folder.parent / "left"
        disk.leave(left)
        disk.on_flush = lambda: None
        self.states += 1
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", mkv.DataLossWarning)
            with mkv.open(left / "s", **self.options) as store:
                allowed = self.digests[self.durable : self.made + 2]
                assert store.digest() in allowed, f"step {self.made}, flush {self.states}"
                assert store.dense.version >= self.dense
                assert store.verify() == []
                is_lost = store.digest() != self.digests[self.made]
                at = allowed.index(store.digest())
                if is_lost and at == 0 and self.options["durability"] == "interval":
                    assert told, f"silent loss: step {self.made}, flush {self.states}"
        shutil.rmtree(left)
        disk.on_flush = lambda: self.check(disk)


@pytest.mark.parametrize("durability", ["interval", "batch", "sync"])
def test_a_power_cut_at_any_flush_leaves_what_the_mode_promises(
    folder: Path, clock: ManualClock, durability: str
) -> None:
    (folder / "disk").mkdir()
    options = {
        "delta_interval": None,
        "clock": clock,
        "durability": durability,
        "delta_retention": 0,
        "snapshots_kept": 1,
    }
    course = Course(folder / "disk", options)
    course.rehearse()
    shutil.rmtree(folder / "disk" / "rehearsal")
    course.run()
    assert course.states > 80  # It is not that nothing was tried.


# --- replication ---------------------------------------------------------------------------------


class Shipped:
    """A delta was carried to a target in the instant before its manifest is flushed."""

    def __init__(self, folder: Path, clock: ManualClock) -> None:
        self.folder = folder
        self.options: dict[str, Any] = {"delta_interval": None, "clock": clock}
        (folder / "disk").mkdir()
        self.disk = Disk(folder / "disk")
        store_path = folder / "disk" / "s"
        with self.disk.watch():
            store = mkv.open(store_path, **self.options)
            create(store)
            upsert(store)
            store.seal()
            self.push(store_path)
            flush = files.fsync_folder
            push(store)

            def ship_first(path: str) -> None:
                # Another process, between the manifest's rename and the flush of its folder.
                if path == str(store_path):
                    files.fsync_folder = flush
                    self.push(store_path)
                    self.left = self.disk.leave(folder / "left")
                flush(path)

            files.fsync_folder = ship_first
            store.seal()
            files.fsync_folder = flush
            store.close()

    def push(self, store: Path) -> None:
        Publisher(store, self.folder / "target").run_once()

    def follow(self) -> mkv.Store:
        self.follower = Follower(self.folder / "target", self.folder / "replica", **self.options)
        self.follower.run_once()
        return self.follower.store


def test_what_was_shipped_is_durable_at_the_primary(folder: Path, clock: ManualClock) -> None:
    shipped = Shipped(folder, clock)
    with mkv.open(shipped.left / "s", "r") as left:
        assert shipped.follow().sequence == left.sequence == 2
        assert shipped.follower.store.digest() == left.digest()
    shipped.follower.close()


def test_a_replica_never_stays_in_step_with_rows_that_its_primary_lost(
    folder: Path, clock: ManualClock
) -> None:
    """Two guards hold here, one enough: only durable deltas are shipped, and epochs tell forks."""
    shipped = Shipped(folder, clock)
    shipped.follow()
    shipped.follower.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mkv.DataLossWarning)
        store = mkv.open(shipped.left / "s", **shipped.options)
    with store:
        remove(store)
        store.seal()
        digest, sequence = store.digest(), store.sequence
    try:
        shipped.push(shipped.left / "s")
        replica = shipped.follow()
        shipped.follower.close()
    except mkv.FencedError:
        return  # Refused: an operator decides. Rows that differ silently would be the harm.
    with mkv.open(folder / "replica", "r") as replica:
        assert (replica.sequence, replica.digest()) == (sequence, digest)
