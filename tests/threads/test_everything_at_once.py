"""One table's core, everything that it does at once: what a thread sanitizer has to have seen.

The storm goes through a store, whose locks keep much apart; here nothing does but the core's own.
"""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from checks import WIDE

from monolith_kv._table import Barrier, Helper, PreparedChange, TableCore

DIM, STATE, RECORD = 3, 3, 8 + 8 + 4 * (3 + 3)
ROUNDS = 3_000 if WIDE else 300
SHARED = np.arange(4_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
MOVED = np.arange(1 << 40, (1 << 40) + 500, dtype=np.uint64)  # rows that only one thread changes
GATE = (2, {}, 10_000, 0.01, 60)


def floats(count: int, dim: int = DIM) -> Any:
    return np.ones((count, dim), np.float32)


class Everything:
    """A gated table, and a thread for each kind of call; `ROUNDS` of one of them decide."""

    def __init__(self) -> None:
        self.barrier = Barrier()
        self.core = TableCore(self.barrier, [(DIM, 2, (0.1, 0.1, 0.0), 1, 2.0, 0.0, 5)], 1)
        assert (self.core.record_bytes, self.core.state_floats) == (RECORD, STATE)
        self.core.set_gate(GATE)
        self.core.set_ttl(50, {})
        self.core.upsert(MOVED, floats(len(MOVED)), 1e9)
        self.core.begin_overflow(10)
        self.core.add_row_file(0, -1, 0, 64)
        self.helper = Helper()
        self.now = itertools.count()
        self.is_over = threading.Event()
        self.failures: list[BaseException] = []

    def run(self) -> None:
        works = [self.change, self.change, self.read, self.seal, self.snapshot, self.move]
        works += [self.expire, self.settle, self.look, self.step]
        threads = [threading.Thread(target=self.repeated, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        threads[3].join(timeout=250)
        self.is_over.set()
        for thread in threads:
            thread.join(timeout=250)
            assert not thread.is_alive(), "a call never came back"
        if self.failures:
            raise self.failures[0]

    def repeated(self, work: Callable[[int], None]) -> None:
        try:
            for number in itertools.count():
                if self.is_over.is_set() or (work == self.seal and number == ROUNDS):
                    return
                work(number)
        except BaseException as failure:
            self.failures.append(failure)
            self.is_over.set()

    # --- the works

    def change(self, number: int) -> None:
        ids = SHARED[number % 7 :: 5].copy()
        now = float(next(self.now))
        self.core.pull(ids, floats(len(ids)), now, True)
        self.core.push(ids, floats(len(ids)), now)
        self.core.upsert(ids[:50], floats(50), now)
        self.core.remove(ids[:20])
        self.core.apply(np.empty(0, np.uint8), ids[20:30])

    def step(self, number: int) -> None:
        ids = SHARED[: 2_500 + number % 1_500]
        is_upsert = number % 3 == 0
        with PreparedChange(self.core, ids, floats(len(ids)), is_upsert, self.helper) as change:
            if number % 5:
                change.settle()
            if number % 7:
                change.start(float(next(self.now)))

    def read(self, number: int) -> None:
        ids = np.concatenate([SHARED[number % 3 :: 4], MOVED])
        self.core.lookup(ids, floats(len(ids)), np.empty(len(ids), np.uint8))
        self.core.state(ids, floats(len(ids), STATE))
        self.core.contains(ids, np.empty(len(ids), np.uint8))
        self.core.timestamps(ids, np.empty(len(ids), np.int64))
        bags = np.arange(0, len(ids), 8, dtype=np.int64)
        self.core.lookup_pooled(ids, bags, 0, None, floats(len(bags) - 1))
        self.core.pack(ids)
        cursor = 0
        while cursor >= 0:
            _, cursor = self.core.walk(cursor)

    def seal(self, number: int) -> None:
        with self.barrier:
            self.core.sightings(True)
            self.core.seal_flip()
        fids, block = self.core.seal_fids(), np.empty(50 * RECORD, np.uint8)
        for start in range(0, len(fids), 50):
            self.core.seal_read(fids[start : start + 50], block)
            self.core.saved(True, block)
        if number % 3 == 2:
            self.core.seal_abort()
            return
        while len(self.core.saved(True, block)):
            pass
        self.core.seal_end(kept_bytes=number % 3 << 20)
        self.core.touch(SHARED[:9])

    def snapshot(self, number: int) -> None:
        with self.barrier:
            self.core.snapshot_flip()
            self.core.take_sightings()
        self.core.snapshot_touched()
        if number % 3:
            assert len(list(self.core.snapshot_gate())) in (0, 8)
        self.core.gate_state()
        self.core.touched_fids()
        cursor, block = 0, np.empty(50 * RECORD, np.uint8)
        while cursor >= 0:
            _, _, cursor = self.core.snapshot_read(cursor, block)
            self.core.saved(False, block)
        self.core.snapshot_end()
        self.core.snapshot_digest()

    def move(self, number: int) -> None:
        """Out of memory and back; in a store the mutex keeps all changes of these rows away."""
        records, cold = self.core.pack(MOVED)
        assert (len(records), len(cold)) == (RECORD * len(MOVED), 0)
        self.core.evict(records, np.arange(len(MOVED), dtype=np.uint32))
        cold = self.core.cold(MOVED)
        assert set(cold) <= set(MOVED)
        rows = records.reshape(-1, RECORD)
        fids = np.ascontiguousarray(rows[:, :8]).view(np.uint64).reshape(-1)
        self.core.promote(rows[np.isin(fids, cold)].reshape(-1))
        self.core.coldest(100, False)

    def expire(self, number: int) -> None:
        cursor, now = 0, float(next(self.now))
        while cursor >= 0:
            fids, _, cursor = self.core.expired(cursor, now)
            self.core.expire(fids, now)
        cursor = 0
        while cursor >= 0:
            _, cursor = self.core.shrink(cursor)

    def settle(self, number: int) -> None:
        self.core.set_ttl(50 + number % 3, {1: 7} if number % 2 else {})
        self.core.set_optimizers([(0.1 / (1 + number % 4), 0.1, 0.0)])
        self.core.set_initializers([(1, float(number % 5), 0.0, 5)])
        self.core.set_gate((2 + number % 2, {3: 4}, *GATE[2:]) if number % 4 else GATE)

    def look(self, number: int) -> None:
        core = self.core
        assert 0 <= core.cold_rows <= len(MOVED)
        assert core.rows >= len(MOVED)
        assert core.touched() >= 0
        assert core.memory()["rows"] > 0
        assert core.counters()["inserted"] >= len(MOVED)
        assert core.gate_stats()["error_estimate"] >= 0
        core.digest()
        if number % 10 == 0:
            assert core.check() == []


def test_a_table_stays_whole_while_everything_happens_at_once() -> None:
    everything = Everything()
    everything.run()
    assert everything.core.check() == []
    assert everything.core.cold_rows == 0
    found = np.empty(len(MOVED), np.uint8)
    rows = floats(len(MOVED))
    everything.core.lookup(MOVED, rows, found)
    assert found.all()
    assert (rows == 1).all()
