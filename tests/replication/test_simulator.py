"""A small simulator: a primary, a target and a replica in virtual time, with crashes of each.

Every seed is one history of writes, seals, snapshots, retention, pushes and follows; any of them
may die before any file operation, publications are repeated, lost and shown late, and primaries are
replaced. What must hold: the replica only ever has rows that the store had at one of its seals or
snapshots, never goes back by itself, and is in step in the end.
"""

import contextlib
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from checks import WIDE
from model import ManualClock
from replication.faults import Crash, Faults
from replication.world import DIM, World, delta_files

import monolith_kv as mkv

SEEDS = 1000 if WIDE else 40
EVENTS = 50
IDS = 400
RETENTION_S = 600


class Simulation:
    """One seed's world."""

    def __init__(self, world: World, faults: Faults, seed: int) -> None:
        self.world = world
        self.faults = faults
        self.random = random.Random(seed)
        self.digests: dict[int, set[str]] = {0: set()}
        self.last = (0, 0)
        self.stores = 0
        self.dead: list[mkv.Store] = []  # Kept, so that no finalizer runs after a crash.
        world.options.update(delta_retention=RETENTION_S, snapshots_kept=1)
        self.store = world.open()
        self.old: Path | None = None
        self.note()

    def run(self) -> None:
        actions = [
            (self.write, 30),
            (self.seal, 20),
            (self.snapshot, 6),
            (self.advance, 8),
            (self.crash_primary, 3),
            (self.reopen, 2),
            (self.push, 15),
            (self.follow, 15),
            (self.lose_file, 2),
            (self.show_late, 2),
            (self.fail_over, 2),
        ]
        names, weights = zip(*actions, strict=True)
        for action in self.random.choices(names, weights, k=EVENTS):
            action()
        self.end()

    # --- the primary -------------------------------------------------------------------------

    def note(self) -> None:
        """Remember what the store holds: a snapshot or a seal may show it to the replica."""
        self.digests.setdefault(self.store.sequence, set()).add(self.store.digest())

    def write(self) -> None:
        table = self.store.create_table("item", dim=DIM, exist_ok=True)
        ids = np.array(self.random.sample(range(IDS), self.random.randint(1, 30)), np.uint64)
        rows = np.full((len(ids), DIM), self.random.random(), np.float32)
        kind = self.random.random()
        if kind < 0.6:
            table.upsert(ids, rows)
        elif kind < 0.85:
            table.pull(ids)
            table.push(ids, rows)
        else:
            table.remove(ids)

    def seal(self) -> None:
        if self.store.seal() is not None:
            self.note()

    def snapshot(self) -> None:
        self.note()
        self.store.snapshot()

    def advance(self) -> None:
        self.world.clock.advance(self.random.choice([1, 60, RETENTION_S + 1]))

    def crash_primary(self) -> None:
        """Die in the middle of a seal or a snapshot; what was sealed comes back."""
        step = self.random.randint(1, 12)
        self.write()
        before = self.store.digest()
        sequence = self.store.sequence
        with contextlib.suppress(Crash), self.faults.crashing(step, everything=True):
            self.store.seal()
            self.store.snapshot()
            raise Crash
        # The seal may have become durable before it was acknowledged.
        self.digests.setdefault(sequence, set()).add(before)
        self.digests.setdefault(sequence + 1, set()).add(before)
        self.dead.append(self.store)
        self.store = self.world.open()
        self.note()

    def reopen(self) -> None:
        self.store.close()
        self.store = self.world.open()
        self.note()

    # --- publishing and following -------------------------------------------------------------

    def push(self) -> None:
        with contextlib.suppress(Crash), self.faults.crashing(self.step()):
            self.world.push()
        if self.random.random() < 0.2:
            self.world.push()

    def follow(self) -> None:
        # A lost delta with no snapshot behind it is a gap until the next push.
        expected = (Crash, FileNotFoundError, mkv.GapError)
        with contextlib.suppress(*expected), self.faults.crashing(self.step()):
            self.world.follow()
        self.check_replica()

    def step(self) -> int:
        return self.random.randint(1, 60) if self.random.random() < 0.4 else 10**9

    def check_replica(self) -> None:
        if not self.world.replica.exists():
            return
        try:
            replica = self.world.open(self.world.replica, "r")
        except FileNotFoundError:
            return  # Created, but killed before it was a replica.
        with replica:
            position = (replica.epoch, replica.sequence)
            assert position >= self.last, "a replica never goes back"
            self.last = position
            if replica.sequence or len(replica.tables):
                assert replica.digest() in self.digests[replica.sequence]

    def lose_file(self) -> None:
        """Lose a published delta at the target; the next push brings it back."""
        found = delta_files(self.world.target)
        if found:
            self.random.choice(found).unlink()

    def show_late(self) -> None:
        """Let the replica see an old state of the target after a newer one."""
        world = self.world
        if not world.target.exists():
            return
        late = world.folder / "late"
        shutil.copytree(world.target, late)
        self.seal()
        self.push()
        self.follow()
        with contextlib.suppress(mkv.FencedError, mkv.GapError, FileNotFoundError):
            world.follow(late)
        self.check_replica()
        shutil.rmtree(late)

    def fail_over(self) -> None:
        """Promote a replica that is in step; the old primary must be fenced for good."""
        world = self.world
        self.seal()
        world.push()
        is_in_step = world.follow().in_step
        # A replica hears of an epoch by its first delta; one that has none cannot take over.
        if not self.store.sequence or self.epoch_of(world.replica) != self.store.epoch:
            return
        assert is_in_step
        self.store.close()
        self.stores += 1
        old, world.store = world.store, world.folder / f"store-{self.stores}"
        os.rename(world.replica, world.store)
        with world.open(world.store, "replica") as replica:
            replica.promote()
        world.push()
        self.store = world.open()
        self.note()
        self.last = (0, 0)
        with world.open(old) as stale:
            stale.create_table(f"stale-{self.stores}", dim=1)
        with pytest.raises(mkv.FencedError):
            world.push(old)
        shutil.rmtree(old)

    def epoch_of(self, path: Path) -> int:
        with self.world.open(path, "r") as store:
            return store.epoch

    def end(self) -> None:
        self.seal()
        self.world.push()
        assert self.world.follow().in_step
        self.check_replica()
        assert self.world.digest() == self.store.digest()
        self.store.close()
        with self.world.open(self.world.store, "r") as store:
            assert store.verify() == []
        with self.world.open(self.world.replica, "r") as replica:
            assert replica.verify() == []


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::monolith_kv.DataLossWarning")
def test_every_history_ends_in_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(monkeypatch)
    for seed in range(SEEDS):
        path = folder / str(seed)
        path.mkdir()
        try:
            Simulation(World(path, ManualClock()), faults, seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        shutil.rmtree(path)
