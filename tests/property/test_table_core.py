"""TableCore against a dict, in the ways that the public API cannot aim at: overflow and views.

A tier stands in for the disk: records that were packed and evicted. Every view (seal, snapshot) is
compared with a copy of the dict that was made at its flip, however rows change, leave memory and
come back while it is read.
"""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from monolith_kv._table import Barrier, TableCore
from monolith_kv._testing import digest_rows, digest_total

DIM = 3
IDS = np.array([*range(24), 2**64 - 1, 2**63, 1 << 48], np.uint64)
some_ids = st.lists(st.sampled_from(range(len(IDS))), max_size=12).map(
    lambda places: IDS[np.array(places, np.int64)]
)


def zeros_and_sgd() -> list[tuple[int, int, tuple[float, ...], int, float, float, int]]:
    # Two slices with state: SGD and Adagrad over constants.
    return [(1, 0, (1.0,), 1, 2.0, 0.0, 5), (2, 2, (1.0, 0.25, 0.0), 1, 3.0, 0.0, 6)]


class CoreMachine(RuleBasedStateMachine):
    """Embedding and state of each id, by the simplest means."""

    @initialize(seed=st.integers(0, 2**32), is_eager=st.booleans())
    def make(self, seed: int, is_eager: bool) -> None:
        # A check sums up all digests that changes left behind: not always after each step.
        self.is_eager = is_eager
        self.barrier = Barrier()
        self.core = TableCore(self.barrier, zeros_and_sgd(), seed)
        self.core.set_ttl(100, {1: 10})
        self.core.begin_overflow(16)
        self.core.add_row_file(0, -1, 0, 64)  # Nothing is read there: `tier` has the records.
        self.places = 0
        self.rows: dict[int, tuple[int, bytes]] = {}
        self.touched: set[int] = set()
        self.tier: dict[int, np.ndarray] = {}
        self.seal: tuple[dict[int, tuple[int, bytes]], set[int], np.ndarray] | None = None
        self.sealed: dict[int, tuple[int, bytes]] = {}
        self.absent: set[int] = set()
        self.snapshot: dict[int, tuple[int, bytes]] | None = None
        self.shot: dict[int, tuple[int, bytes]] = {}
        self.shot_touched: set[int] | None = None
        self.cursor = 0
        self.now = 1000

    # --- helpers ---

    def block(self, rows: int) -> np.ndarray:
        return np.empty(rows * self.core.record_bytes, np.uint8)

    def split(self, records: np.ndarray) -> dict[int, tuple[int, bytes]]:
        block = np.asarray(records).reshape(-1, self.core.record_bytes)
        found = {}
        for record in block:
            fid = int(record[:8].view(np.uint64)[0])
            assert fid not in found, "an id twice in one view"
            found[fid] = (int(record[8:16].view(np.int64)[0]), record[16:].tobytes())
        return found

    def promote(self, ids: np.ndarray) -> None:
        cold = self.core.cold(ids)
        if len(cold):
            self.core.promote(np.concatenate([self.tier[int(fid)] for fid in cold]))
        assert len(self.core.cold(ids)) == 0

    def refresh(self, ids: np.ndarray) -> None:
        """Take over what the engine made of rows; their values are other tests' concern."""
        records, cold = self.core.pack(np.unique(ids))
        assert len(cold) == 0
        self.rows.update(self.split(records))

    def digest_of(self, rows: dict[int, tuple[int, bytes]]) -> tuple[int, int]:
        """That of a table which has just these rows."""
        core = TableCore(Barrier(), zeros_and_sgd(), 0)
        packed = b"".join(
            np.uint64(fid).tobytes() + np.int64(time).tobytes() + row
            for fid, (time, row) in rows.items()
        )
        core.apply(np.frombuffer(packed, np.uint8), np.empty(0, np.uint64))
        return core.digest()

    # --- changes ---

    @rule(ids=some_ids)
    def pull(self, ids: np.ndarray) -> None:
        self.promote(ids)
        out = np.empty((len(ids), DIM), np.float32)
        inserted = self.core.pull(ids, out, float(self.now), True)
        expected = {int(fid) for fid in ids} - set(self.rows)
        assert {int(fid) for fid in inserted} == expected
        self.touched |= expected
        self.refresh(ids)
        for fid, row in zip(ids, out, strict=True):
            assert self.rows[int(fid)][1][: DIM * 4] == row.tobytes()

    @rule(ids=some_ids)
    def push(self, ids: np.ndarray) -> None:
        self.promote(ids)
        self.core.push(ids, np.ones((len(ids), DIM), np.float32), float(self.now))
        here = np.array([fid for fid in ids if int(fid) in self.rows], np.uint64)
        self.touched |= {int(fid) for fid in here}
        self.refresh(here)

    @rule(ids=some_ids, value=st.integers(-3, 3))
    def upsert(self, ids: np.ndarray, value: int) -> None:
        self.promote(ids)
        self.core.upsert(ids, np.full((len(ids), DIM), value, np.float32), float(self.now))
        self.touched |= {int(fid) for fid in ids}
        self.refresh(ids)

    @rule(ids=some_ids)
    def remove(self, ids: np.ndarray) -> None:
        self.promote(ids)
        gone = {int(fid) for fid in ids} & set(self.rows)
        assert self.core.remove(ids) == len(gone)
        self.touched |= gone
        for fid in gone:
            del self.rows[fid]

    @rule(seconds=st.integers(0, 60))
    def expire(self, seconds: int) -> None:
        self.now += seconds
        due = {
            fid
            for fid, (time, _) in self.rows.items()
            if self.now - time >= (10 if fid >> 48 == 1 else 100)
        }
        cursor, seen = 0, set()
        while cursor != -1:
            fids, cold, cursor = self.core.expired(cursor, float(self.now))
            self.promote(cold)
            removed = self.core.expire(np.concatenate([fids, cold]), float(self.now))
            seen |= {int(fid) for fid in removed}
        assert seen == due
        self.touched |= due
        for fid in due:
            del self.rows[fid]

    # --- memory ---

    @rule(count=st.integers(1, 40), dirty=st.booleans())
    def evict(self, count: int, dirty: bool) -> None:
        fids = self.core.coldest(count, dirty)
        if not dirty:
            assert not {int(fid) for fid in fids} & self.touched
        records, cold = self.core.pack(fids)
        assert len(cold) == 0
        for record in np.asarray(records).reshape(-1, self.core.record_bytes):
            self.tier[int(record[:8].view(np.uint64)[0])] = record.copy()
        places = np.arange(self.places, self.places + len(fids), dtype=np.uint32)
        self.core.evict(records, places)
        self.places += len(fids)
        assert len(self.core.cold(fids)) == len(fids)

    @precondition(lambda self: self.seal is None and self.snapshot is None)
    @rule(ids=some_ids, seconds=st.integers(0, 60), value=st.integers(-3, 3))
    def enter_cold(self, ids: np.ndarray, seconds: int, value: int) -> None:
        """As rows do that stay in the snapshot from which a store is opened."""
        known = set(self.rows) | self.touched
        fids = np.array(sorted({int(fid) for fid in ids} - known), np.uint64)
        times = self.now - seconds - np.arange(len(fids))
        heads = np.stack([fids, times.astype(np.uint64)], axis=1).view(np.uint8)
        width = (self.core.record_bytes - 16) // 4
        rows = np.full((len(fids), width), value, np.float32).view(np.uint8)
        records = np.hstack([heads.reshape(-1, 16), rows.reshape(-1, 4 * width)])
        digest = self.core.digest_of(records.reshape(-1))
        self.core.enter_cold(fids, times, self.places, *digest)
        self.places += len(fids)
        self.tier.update(zip(fids.tolist(), records, strict=True))
        self.rows.update(self.split(records))
        assert len(self.core.cold(fids)) == len(fids)

    @rule()
    def shrink(self) -> None:
        cursor = 0
        while cursor != -1:
            _, cursor = self.core.shrink(cursor)

    # --- views ---

    @precondition(lambda self: self.seal is None)
    @rule()
    def seal_flip(self) -> None:
        with self.barrier:
            self.core.seal_flip()
        self.seal = (dict(self.rows), self.touched, self.core.seal_fids())
        assert {int(fid) for fid in self.seal[2]} == self.touched
        self.touched, self.sealed, self.absent = set(), {}, set()
        self.shot_touched = None

    @precondition(lambda self: self.seal is not None and len(self.seal[2]))
    @rule(share=st.integers(1, 12))
    def seal_read(self, share: int) -> None:
        assert self.seal is not None
        rows, touched, left = self.seal
        records, absent, cold = self.core.seal_read(left[:share], self.block(share))
        self.sealed.update(self.split(records))
        self.absent |= {int(fid) for fid in absent}
        if len(cold):
            late = np.concatenate([self.tier[int(fid)] for fid in cold])
            self.sealed.update(self.split(self.core.seal_claim(late)))
        self.seal = (rows, touched, left[share:])

    @precondition(lambda self: self.seal is not None)
    @rule(room=st.integers(1, 12))
    def take_saved_by_seal(self, room: int) -> None:
        saved = self.split(self.core.saved(True, self.block(room)))
        assert not set(saved) & set(self.sealed)
        self.sealed.update(saved)

    def take_all_saved(self) -> None:
        """What was saved by a seal that has read all."""
        while len(records := self.core.saved(True, self.block(8))):
            saved = self.split(records)
            assert not set(saved) & set(self.sealed)
            self.sealed.update(saved)

    @precondition(lambda self: self.snapshot is not None)
    @rule(room=st.integers(1, 12))
    def take_saved_by_snapshot(self, room: int) -> None:
        saved = self.split(self.core.saved(False, self.block(room)))
        assert not set(saved) & set(self.shot)
        self.shot.update(saved)

    @precondition(lambda self: self.seal is not None)
    @rule(kept_bytes=st.sampled_from([0, 1 << 20]))
    def seal_end(self, kept_bytes: int) -> None:
        assert self.seal is not None
        while len(self.seal[2]):
            self.seal_read(8)
        rows, touched, _ = self.seal
        assert self.core.seal_digest() == self.digest_of(rows)
        self.take_all_saved()
        self.core.seal_end(kept_bytes)
        assert self.sealed == {fid: rows[fid] for fid in touched if fid in rows}
        assert self.absent - set(self.sealed) == {fid for fid in touched if fid not in rows}
        self.seal = None

    @precondition(lambda self: self.seal is not None)
    @rule(
        really=st.sampled_from([True, False, False]),  # Most seals are to end well.
        is_interrupted=st.booleans(),
    )
    def seal_abort(self, really: bool, is_interrupted: bool) -> None:
        if not really:
            return
        assert self.seal is not None
        if not len(self.seal[2]):
            self.take_all_saved()  # What came of it could not be written.
        self.touched |= self.seal[1]
        self.seal = None
        if is_interrupted:  # Ctrl-C came before: the next flip is to do it.
            assert self.core.touched() >= len(self.touched)
            self.seal_flip()
        else:
            self.core.seal_abort()

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def snapshot_flip(self) -> None:
        with self.barrier:
            self.core.snapshot_flip()
        self.snapshot, self.shot, self.cursor = dict(self.rows), {}, 0
        self.shot_touched = set(self.touched)

    @precondition(lambda self: self.snapshot is not None and self.cursor != -1)
    @rule(segments=st.integers(1, 9), room=st.integers(1, 12))
    def snapshot_read(self, segments: int, room: int) -> None:
        for _ in range(segments):
            if self.cursor == -1:
                return
            records, cold, self.cursor = self.core.snapshot_read(self.cursor, self.block(room))
            self.shot.update(self.split(records))
            if len(cold):
                late = np.concatenate([self.tier[int(fid)] for fid in cold])
                self.shot.update(self.split(self.core.snapshot_claim(late)))

    @precondition(lambda self: self.snapshot is not None)
    @rule(is_given_up=st.sampled_from([True, False, False]))
    def snapshot_end(self, is_given_up: bool) -> None:
        if not is_given_up:
            self.snapshot_read(1_000, 1_000)
        saved = self.split(np.concatenate(self.core.snapshot_end()))
        if self.cursor == -1:
            assert not set(saved) & set(self.shot)
            assert self.shot | saved == self.snapshot
            assert self.core.snapshot_digest() == self.digest_of(self.snapshot)
        self.snapshot = None

    @precondition(lambda self: self.snapshot is not None and self.shot_touched is not None)
    @rule()
    def snapshot_touched(self) -> None:
        """As it was at the flip, until a seal begins: a store's snapshots ask before that."""
        assert set(map(int, self.core.snapshot_touched())) == self.shot_touched

    # --- what holds at all times ---

    @invariant()
    def counts_and_checks_agree(self) -> None:
        if hasattr(self, "core"):
            assert self.core.rows == len(self.rows)
            if self.is_eager:
                assert self.core.check() == []

    @rule()
    def digest(self) -> None:
        """Of rows in overflow too."""
        fids = np.array(list(self.rows), np.uint64)
        embeddings = [row[: DIM * 4] for _, row in self.rows.values()]
        rows = np.frombuffer(b"".join(embeddings), np.float32).reshape(-1, DIM)
        nothing = np.empty((0, 2), np.uint64)
        assert self.core.digest() == digest_total(digest_rows(fids, rows), nothing)

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.digest()
            assert self.core.check() == []

    @invariant()
    def walk_meets_every_id_once(self) -> None:
        if hasattr(self, "core"):
            cursor, met = 0, []
            while cursor != -1:
                fids, cursor = self.core.walk(cursor)
                met.extend(int(fid) for fid in fids)
            assert sorted(met) == sorted(self.rows)


CoreMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=80, deadline=None, derandomize=True
)
TestTableCore = CoreMachine.TestCase
