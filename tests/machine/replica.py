"""The state machine, part three: a replica that is fed deltas in and out of order, and promoted."""

import os
import shutil
from typing import Any

import numpy as np
from checks import u64
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from machine.history import SKIP_LOCKS, HistoryMachine, Sent
from machine.writer import FIDS, picks
from model import Snapshot, StoreModel

import monolith_kv as mkv


class ReplicaMachine(HistoryMachine):
    """A writer, what it published, and one replica."""

    def __init__(self) -> None:
        super().__init__()
        self.replica: Any = None
        self.held = StoreModel.empty_replica()

    def begun(self) -> None:
        super().begun()
        self.open_empty_replica()
        self.catch_up()

    def teardown(self) -> None:
        if self.replica is not None:
            self.check(self.replica, self.held)
            assert self.replica.verify() == []
            self.replica.close()
        super().teardown()

    def replace_replica(self, store: Any, held: StoreModel) -> None:
        if self.replica is not None:
            self.replica.close()
        self.replica, self.held = store, held
        self.check(store, held)

    @rule()
    def open_empty_replica(self) -> None:
        store = mkv.open(self.new_path(), mode="replica", **self.options)
        self.replace_replica(store, StoreModel.empty_replica())

    @precondition(lambda self: self.snapshots)
    @rule(pick=picks)
    def restore_replica(self, pick: int) -> None:
        snapshot = self.snapshots[pick % len(self.snapshots)]
        store = mkv.restore(snapshot.path, self.new_path(), mode="replica", **self.options)
        self.replace_replica(store, snapshot.content.restored("replica"))
        assert store.epoch == self.held.epoch

    @precondition(lambda self: self.replica is not None and self.sent)
    @rule(pick=picks, by_path=st.booleans())
    def apply_any(self, pick: int, by_path: bool) -> None:
        self.apply(self.sent[pick % len(self.sent)], by_path)

    @precondition(lambda self: self.replica is not None and self.sent)
    @rule()
    def catch_up(self) -> None:
        """All that was ever published, in order: what fits is applied, the rest changes nothing."""
        for sent in self.sent:
            self.apply(sent, by_path=True)

    def apply(self, sent: Sent, by_path: bool) -> None:
        expected = self.held.judge(sent.model)
        given = sent.path if by_path or not os.path.exists(sent.delta.path) else sent.delta
        try:
            answer = "apply" if self.replica.apply(given) else "again"
        except mkv.GapError:
            answer = "gap"
        except mkv.FencedError:
            answer = "fenced"
        assert answer in expected
        if answer == "apply":
            self.held = self.held.applied(sent.model)
            assert self.replica.epoch == self.held.epoch
        self.check(self.replica, self.held)

    @precondition(lambda self: self.replica is not None)
    @rule(crash=st.booleans())
    def reopen_replica(self, crash: bool) -> None:
        """Position and rows are durable together, and a replica's restart forks no history."""
        path, copy = self.replica.path, self.new_path()
        if crash:
            shutil.copytree(path, copy, ignore=SKIP_LOCKS)
        self.replica.close()
        self.replica = mkv.open(copy if crash else path, mode="replica", **self.options)
        if self.held.identity:
            assert self.replica.epoch == self.held.epoch
        self.check(self.replica, self.held)

    @precondition(lambda self: self.replica is not None and self.held.identity)
    @rule()
    def snapshot_of_replica(self) -> None:
        """A checkpoint elsewhere changes no replica, and is as good as the writer's."""
        path = self.new_path().with_suffix(".snapshot")
        snapshot = self.replica.snapshot(path)
        assert (snapshot.sequence, snapshot.bytes) == (self.held.sequence, path.stat().st_size)
        self.snapshots.append(Snapshot(str(path), self.held.copy()))
        self.check(self.replica, self.held)

    @precondition(lambda self: self.replica is not None)
    @rule()
    def replica_refuses_changes(self) -> None:
        refuse = [
            lambda: self.replica.create_table("new", 1),
            lambda: self.replica.seal(),
            lambda: self.replica.dense.publish({"w": np.zeros(1)}),
        ]
        for name, model in self.held.tables.items():
            table = self.replica.table(name)
            rows = np.zeros((1, model.dim), np.float32)
            refuse += [
                lambda t=table: t.pull(u64([1])),
                lambda t=table, r=rows: t.push(u64([1]), r),
                lambda t=table, r=rows: t.upsert(u64([1]), r),
                lambda t=table: t.remove(u64(FIDS)),
                lambda t=table: t.configure(ttl=1),
                lambda n=name: self.replica.drop_table(n),
            ]
        for call in refuse:
            self.refused(mkv.ReadOnlyError, call)
        self.check(self.replica, self.held)

    @precondition(lambda self: self.replica is not None and self.held.identity)
    @rule()
    def promote(self) -> None:
        """The writer is lost; the replica goes on from where it is."""
        self.close_reader()
        self.primary.close()
        store, model = self.replica, self.held
        self.replica, self.held = None, StoreModel.empty_replica()
        model.begin_epoch()
        model.doubt_sightings()
        model.exact = False
        store.promote()
        assert (store.mode, store.epoch) == ("rw", model.epoch)
        self.adopt(store, model)
