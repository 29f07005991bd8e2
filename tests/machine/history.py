"""The state machine, part two: seal, snapshot, restore, close, crash, read beside the writer.

A crash is a copy of the store's folder at an instant between two calls: what the operating system
holds is just what SIGKILL leaves behind. (tests/crash kills in the middle of calls.)
"""

import os
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from checks import assert_store, same_rows
from formulas import mix
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from machine.writer import CURSORS, FIDS, RETENTION, WriterMachine, picks, quarters, seeds
from model import Delta, Sealing, Snapshot, StoreModel, TableModel

import monolith_kv as mkv

SNAPSHOTS_KEPT = 2
# LMDB's lock file is not to be opened beside a living environment.
SKIP_LOCKS = shutil.ignore_patterns("lock.mdb")


class Sent(NamedTuple):
    """A delta that was published: what replicas are offered."""

    path: Path  # a copy that retention does not touch
    delta: Any
    model: Delta


class HistoryMachine(WriterMachine):
    """What is published from the writer, and what becomes of it after that."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []
        self.listed: list[Sent] = []  # of the present writer's own folder
        self.snapshots: list[Snapshot] = []
        self.own_snapshots: list[tuple[int, int]] = []
        self.reader: Any = None

    def adopt(self, store: Any, model: StoreModel) -> None:
        super().adopt(store, model)
        self.listed = []
        # A restored store may count the snapshot that it was made of as its first.
        self.own_snapshots = [(s.sequence, s.rows) for s in store.snapshots()]

    def begun(self) -> None:
        self.seal(None)

    def teardown(self) -> None:
        self.close_reader()
        super().teardown()

    # --- sealing

    @rule(cursor=st.sampled_from([None, *CURSORS]))
    def seal(self, cursor: Any) -> None:
        expected = self.model.sealing(cursor)
        delta = self.primary.seal() if cursor is None else self.primary.seal(cursor=cursor)
        self.observe_seal(expected, delta, cursor)

    def observe_seal(self, expected: Sealing, delta: Any, cursor: Any = None) -> None:
        assert expected.may if delta is not None else not expected.must
        if delta is not None:
            sealed = self.model.seal(cursor)
            assert (delta.sequence, delta.epoch) == (self.model.sequence, self.model.epoch)
            assert delta.sealed_at == self.clock.now
            assert delta.bytes == os.path.getsize(delta.path)
            assert delta.rows >= expected.rows
            assert delta.removals >= expected.removals
            if expected.exact:
                assert (delta.rows, delta.removals) == (expected.rows, expected.removals)
            self.keep(delta, sealed)
        self.all_durable()
        self.changes += 1

    def keep(self, delta: Any, sealed: Delta) -> None:
        copy = self.new_path().with_suffix(".d")
        copy.mkdir()
        sent = Sent(copy / Path(delta.path).name, delta, sealed)
        shutil.copy(delta.path, sent.path)
        self.sent.append(sent)
        self.listed.append(sent)

    @rule(pick=picks)
    def list_deltas(self, pick: int) -> None:
        after = pick % (self.model.sequence + 1)
        wanted = [s.delta for s in self.listed if s.delta.sequence > after]
        complete = len(wanted) == self.model.sequence - after
        try:
            deltas = list(self.primary.deltas(after))
        except mkv.GapError:
            old = any(d.sealed_at + RETENTION <= self.clock.high for d in wanted)
            assert old or not complete, "a delta is gone before its time"
            return
        assert [d.sequence for d in deltas] == list(range(after + 1, self.model.sequence + 1))
        if complete:
            assert [(d.epoch, d.rows, d.removals, d.bytes, d.sealed_at) for d in deltas] == [
                (d.epoch, d.rows, d.removals, d.bytes, d.sealed_at) for d in wanted
            ]

    @rule(seed=seeds, empty=st.booleans())
    def publish_dense(self, seed: int, empty: bool) -> None:
        arrays = {"w": quarters(seed, (2, 3)), "steps": np.array([seed], np.int64)}
        if empty:
            arrays = {}
        version = self.primary.dense.publish(arrays)
        assert version == self.primary.dense.version > self.model.dense_version
        # Durable when it returns, whatever else a crash may take.
        for model in (self.model, *self.prefixes):
            model.publish_dense(arrays, version)
        self.changes += 1

    # --- checkpoints

    @rule()
    def snapshot_inside(self) -> None:
        snapshot = self.primary.snapshot()
        copy = self.new_path().with_suffix(".snapshot")
        shutil.copy(snapshot.path, copy)
        self.observe_snapshot(snapshot, copy)
        self.own_snapshots.append((snapshot.sequence, snapshot.rows))
        kept = [(s.sequence, s.rows) for s in self.primary.snapshots()]
        assert kept == self.own_snapshots[-SNAPSHOTS_KEPT:]
        self.all_durable()

    @rule()
    def snapshot_elsewhere(self) -> None:
        path = self.new_path().with_suffix(".snapshot")
        snapshot = self.primary.snapshot(path)
        assert Path(snapshot.path) == path
        self.observe_snapshot(snapshot, path)
        self.refused(FileExistsError, lambda: self.primary.snapshot(path))

    def observe_snapshot(self, snapshot: Any, path: Path) -> None:
        assert snapshot.sequence == self.model.sequence
        assert snapshot.rows == _rows(self.model)
        assert snapshot.created_at == self.clock.now
        assert snapshot.bytes == path.stat().st_size
        self.changes += 1
        self.snapshots.append(Snapshot(str(path), self.model.copy()))

    @precondition(lambda self: self.snapshots)
    @rule(pick=picks)
    def restore_as_writer(self, pick: int) -> None:
        """The writer is lost; an older checkpoint becomes the new one: history forks."""
        held = self.snapshots[pick % len(self.snapshots)]
        self.close_reader()
        self.primary.close()
        model = held.content.restored("rw")
        self.adopt(mkv.restore(held.path, self.new_path(), **self.options), model)
        assert self.primary.epoch == model.epoch

    @precondition(lambda self: self.snapshots)
    @rule(pick=picks, shards=st.integers(1, 3))
    def restore_spread_and_joined(self, pick: int, shards: int) -> None:
        held = self.snapshots[pick % len(self.snapshots)]
        parts: list[Path] = []
        for shard in range(shards):
            mask = _belongs_to(shard, shards)
            part = self.new_path()
            with mkv.restore(held.path, part, keep=mask, **self.options) as store:
                self.check(store, _cut(held.content.restored("rw"), mask))
                parts.append(part.with_suffix(".snapshot"))
                store.snapshot(parts[-1])
        if shards > 1 and any(t.rows for t in held.content.tables.values()):
            twice = self.new_path()
            self.refused(ValueError, lambda: mkv.restore([held.path, held.path], twice))
            assert not twice.exists() or not any(twice.iterdir())
            whole = StoreModel.merged([held.content])
            whole.dense_version = 0  # of the first of several; its number is free
            with mkv.restore(parts, self.new_path(), **self.options) as store:
                assert store.epoch >= 1
                self.check(store, whole)

    # --- closing and crashing

    @rule()
    def reopen(self) -> None:
        """A clean close loses nothing, sightings included, and begins no epoch."""
        self.close_reader()
        expected, path = self.model.sealing(), self.primary.path
        self.primary.close()
        self.primary.close()
        self.refused(mkv.ClosedError, lambda: self.primary.seal())
        self.primary = mkv.open(path, **self.options)
        if self.primary.sequence > self.model.sequence:
            (delta,) = self.primary.deltas(self.model.sequence)
            self.observe_seal(expected, delta)
        else:
            assert not expected.must
        assert self.primary.epoch == self.model.epoch
        self.all_durable()
        self.changes += 1

    @rule()
    def crash(self) -> None:
        self.close_reader()
        path = self.new_path()
        shutil.copytree(self.primary.path, path, ignore=SKIP_LOCKS)
        self.primary.close()
        shutil.rmtree(self.primary.path)
        with warnings.catch_warnings(record=True) as losses:
            warnings.simplefilter("always")
            self.primary = mkv.open(path, **self.options)
        assert self.volatile or not losses
        self.recovered(self.prefixes if self.volatile else [self.model])

    def recovered(self, prefixes: list[StoreModel]) -> None:
        matching = [m for m in prefixes if same_rows(self.primary, m, FIDS)]
        assert matching, "what was recovered is no prefix of the calls"
        sealed = self.prefixes[0]
        self.model = matching[0].crashed()
        for name, table in self.model.tables.items():
            _doubt_since(table, sealed.tables.get(name))
        assert self.primary.epoch == self.model.epoch
        self.settle_settings(matching)
        self.all_durable()
        self.changes += 1

    def settle_settings(self, matching: list[StoreModel]) -> None:
        """Where several prefixes have the same rows but other settings, set them anew."""
        if len({_settings(model) for model in matching}) == 1:
            return
        for name, table in self.model.tables.items():
            optimizers = {p.name: p.optimizer.make(mkv) for p in table.parts}
            self.primary.table(name).configure(
                ttl=dict(table.ttl) if isinstance(table.ttl, tuple) else table.ttl,
                admission=None if table.gate is None else table.gate.make(mkv),
                optimizer=optimizers.get("", optimizers),
            )
            table.doubt_sightings()
        self.model.settings_pending = True

    # --- a reader beside the writer

    def durable(self) -> StoreModel:
        return (self.prefixes[0] if self.volatile else self.model).copy()

    @rule()
    def open_or_refresh_reader(self) -> None:
        if self.reader is None:
            self.reader = mkv.open(self.primary.path, mode="r", **self.options)
            self.read = self.durable()
            self.read_changes = self.changes
        else:
            self.refresh_reader()
        self.check(self.reader, self.read)

    def refresh_reader(self) -> None:
        self.check(self.reader, self.read)
        moved, later = self.reader.refresh(), self.durable()
        differs = self.read.sequence != later.sequence or not same_rows(
            self.reader, self.read, FIDS
        )
        assert moved or not differs
        assert not moved or self.changes > self.read_changes
        self.read, self.read_changes = later, self.changes
        self.refused(mkv.ReadOnlyError, lambda: self.reader.seal())

    def close_reader(self) -> None:
        if self.reader is not None:
            assert_store(self.reader, self.read, FIDS)
            self.reader.close()
            self.reader = None


def _rows(model: StoreModel) -> int:
    return sum(len(table.rows) for table in model.tables.values())


def _belongs_to(shard: int, shards: int) -> Any:
    def keep(table: str, ids: np.ndarray) -> np.ndarray:
        return mix(ids) % np.uint64(shards) == shard

    return keep


def _cut(model: StoreModel, keep: Any) -> StoreModel:
    for name, table in model.tables.items():
        ids = np.array(list(table.rows), np.uint64)
        for fid in ids[~keep(name, ids)].tolist():
            del table.rows[fid]
    return model


def _settings(model: StoreModel) -> tuple[Any, ...]:
    return tuple(sorted((n, str((t.parts, t.gate, t.ttl))) for n, t in model.tables.items()))


def _doubt_since(table: TableModel, sealed: TableModel | None) -> None:
    """Sightings that no seal had made durable may be lost, or not."""
    for fid, seen in table.seen.items():
        count = len(sealed.seen.get(fid, [])) if sealed is not None else 0
        seen[count:] = [s._replace(certain=False) for s in seen[count:]]
