"""A follower killed before any of its file operations: the replica is whole, and goes on."""

import shutil

import pytest
from replication.faults import Crash, Faults
from replication.world import World, write_deltas


def crash_everywhere(world: World, faults: Faults, sequences: set[int], rows: set[int]) -> int:
    """Follow from copies of one replica, crashing one step later each time; return the steps."""
    with world.open(world.store, "r") as store:
        digest, sequence = store.digest(), store.sequence
    start = world.replica
    at, is_done = 0, False
    while not is_done:
        at += 1
        world.replica = world.folder / f"replica-{at}"
        if start.exists():
            shutil.copytree(start, world.replica)
        try:
            with faults.crashing(at):
                world.follow()
            is_done = True
        except Crash:
            pass
        if start.exists():  # There is one under its name at any time, for readers that come now.
            with world.open(world.replica, "r") as replica:
                assert replica.sequence in sequences
                assert len(replica.table("item")) in rows
        assert world.follow().in_step
        assert world.digest() == digest
        with world.open(world.replica, "r") as replica:
            assert replica.sequence == sequence
        shutil.rmtree(world.replica)
    return at


def test_killed_while_applying(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        world.push()
        world.follow()
        write_deltas(store, 2)
    world.push()
    steps = crash_everywhere(world, Faults(monkeypatch), {1, 2, 3}, {10, 20, 30})
    assert steps > 10


def test_killed_while_starting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.open() as store:
        write_deltas(store, 1)
        store.snapshot()
        write_deltas(store, 1)
    world.push()
    assert crash_everywhere(world, Faults(monkeypatch), {0, 2}, {20}) > 20


def test_killed_while_resyncing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.open(delta_retention="1h", snapshots_kept=1) as store:
        write_deltas(store, 1)
        world.push()
        world.follow()
        write_deltas(store, 2)
        store.snapshot()
        world.clock.advance(7200)
        write_deltas(store, 1)
        store.snapshot()
        write_deltas(store, 1)
    world.push()
    assert crash_everywhere(world, Faults(monkeypatch), {1, 5}, {10, 50}) > 20
