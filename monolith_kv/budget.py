"""Two tiers: rows that leave memory for the overflow tier, and come back or are read there.

What must hold: a row is cold only while its record is in the tier; records go there before their
rows become cold, and are forgotten after they came back. All but reads is done under the mutex.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv.errors import ClosedError, CorruptionError, StoreFullError
from monolith_kv.fids import distinct, without
from monolith_kv.refill import refill
from monolith_kv.state import NO_RECORDS, StoreState, TableEntry

Fids = NDArray[np.uint64]
BLOCK_BYTES = 8 << 20
SLACK = 32  # Evict so that one part in 32 of the limit is free: not at every call.
ATTEMPTS = 8


class Budget:
    """Keeps the rows in memory within `memory_limit`.

    Parameters
    ----------
    state : StoreState
        Of a store with an overflow tier.
    limit : int
        Bytes of rows and index, over all tables.

    Attributes
    ----------
    is_full : bool
        Memory is over its limit and the overflow tier takes no more: no new ids.
    is_held : bool
        No row may leave memory now; whoever sets it settles afterwards.
    """

    def __init__(self, state: StoreState, limit: int) -> None:
        self._state = state
        self.limit = limit
        self.is_full = False
        self.is_held = False

    def used(self) -> int:
        """Bytes of rows and index in memory, over all tables."""
        total = 0
        for entry in self._state.tables.values():
            core = entry.core
            total += (core.rows - core.cold_rows) * core.record_bytes + core.memory()["index"]
        return total

    def settle(self) -> None:
        """Evict what is over the limit; where there is no room for it, note that.

        Notes
        -----
        Of rows that are about as cold, those that are in a delta or a snapshot go before those
        whose last state is nowhere else on disk but in the call log, if there is one.
        """
        if self.is_held:
            return
        used = self.used()
        if used <= self.limit:
            self.is_full = False
            return
        todo = used - self.limit + self.limit // SLACK
        try:
            for entry in self._by_size():
                if todo > 0:
                    todo -= self._evict(entry, todo)
            self.is_full = False
        except (StoreFullError, CorruptionError, OSError, MemoryError):
            # The call that came here was made: it must not fail because rows cannot move. A tier
            # that cannot be written is as good as full.
            self.is_full = True

    def _by_size(self) -> list[TableEntry]:
        def resident(entry: TableEntry) -> int:
            return (entry.core.rows - entry.core.cold_rows) * entry.core.record_bytes

        return sorted(self._state.tables.values(), key=resident, reverse=True)

    def _evict(self, entry: TableEntry, todo: int) -> int:
        """Evict up to `todo` bytes of a table's rows; return the bytes freed."""
        overflow, core = self._state.overflow, entry.core
        assert overflow is not None
        size = core.record_bytes
        freed = 0
        while freed < todo:
            resident = core.rows - core.cold_rows
            count = min(resident, -(-(todo - freed) // size), max(1, BLOCK_BYTES // size))
            fids = core.coldest(count, True) if count else np.empty(0, np.uint64)
            if not len(fids):
                break
            records, _ = core.pack(fids)
            rows = entry.rows_of(records)
            overflow.put(entry.id, rows["fid"].astype(np.uint64), records.reshape(-1, size))
            core.evict(rows["fid"].astype(np.uint64))
            freed += len(rows) * size
        return freed


def promote(state: StoreState, entry: TableEntry, fids: Fids) -> None:
    """Bring the cold ones among these ids back to memory. Under the mutex."""
    if state.overflow is None or not entry.core.cold_rows:
        return
    cold = entry.core.cold(fids)
    if len(cold):
        records = read_cold(state, entry, cold)
        entry.core.promote(records.reshape(-1))
        state.overflow.forget(entry.id, cold)


def read_cold(state: StoreState, entry: TableEntry, cold: Fids) -> NDArray[np.uint8]:
    """Return the records of cold ids, as uint8 of shape (n, record_bytes). Under the mutex.

    Notes
    -----
    A record that is damaged is taken from snapshot and deltas where its row has not changed since.

    Raises
    ------
    CorruptionError
        It has changed since: nothing is made up for it.
    """
    overflow = state.overflow
    assert overflow is not None
    records, positions = overflow.get(entry.id, cold)
    if len(positions) == len(cold):
        return records
    missing = np.delete(cold, positions)
    rows = refill(state, entry, distinct(missing))
    fids = rows["fid"].astype(np.uint64)
    if len(without(missing, fids)):
        raise CorruptionError(
            f"{overflow.folder}: {len(missing)} records of table {entry.schema.name} are damaged "
            "or gone, and no good file has their last state; close the store and open it again, "
            "it recovers from snapshot and log",
            overflow.folder,
        )
    packed = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    # What is good is returned as it was read: LMDB's own pages may be what is damaged, and then
    # nothing that is put there now need come back.
    with contextlib.suppress(CorruptionError, StoreFullError, OSError):
        overflow.put(entry.id, fids, packed)
    every = np.empty((len(cold), records.shape[1]), np.uint8)
    every[positions] = records
    is_missing = np.ones(len(cold), np.bool_)
    is_missing[positions] = False
    every[is_missing] = packed[np.searchsorted(fids, missing)]
    return every


def read_records(state: StoreState, entry: TableEntry, fids: Fids) -> NDArray[Any]:
    """Return records of ids that were cold a moment ago, sorted by fid; without the mutex.

    Notes
    -----
    Meanwhile they may come back to memory, change or go: it is asked again where nothing was
    found. What the tier holds was the row's state when it was found cold, or is a later one.
    """
    overflow = state.overflow
    found: list[NDArray[Any]] = []
    todo = distinct(fids)
    for attempt in range(ATTEMPTS):
        if overflow is None or not len(todo):
            break
        try:
            records, positions = overflow.get(entry.id, todo)
        except ClosedError:
            state.check()
            raise
        if len(positions):
            found.append(entry.rows_of(records))
            todo = np.delete(todo, positions)
        # Those not there came back to memory meanwhile, or were removed.
        records, todo = entry.core.pack(todo)
        found.append(entry.rows_of(records))
        if attempt == ATTEMPTS - 1 and len(todo):
            with state.mutex:  # A row that moves between the tiers all the time, or a damaged one.
                cold = entry.core.cold(todo)
                found.append(entry.rows_of(read_cold(state, entry, cold)))
                found.append(entry.rows_of(entry.core.pack(without(todo, cold))[0]))
    rows = np.concatenate(found) if found else entry.rows_of(NO_RECORDS)
    return rows[np.argsort(rows["fid"])]


def match(rows: NDArray[Any], fids: Fids) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which of the ids have a record among `rows` (sorted by fid), and where."""
    if not len(rows):
        return np.zeros(len(fids), np.bool_), np.zeros(len(fids), np.int64)
    places = np.searchsorted(rows["fid"], fids)
    places[places == len(rows)] = 0
    return rows["fid"][places] == fids, places.astype(np.int64)


def blocks(fids: Fids, record_bytes: int) -> Iterator[Fids]:
    """Yield parts of `fids` whose records are of a handy size together."""
    step = max(1, BLOCK_BYTES // record_bytes)
    for start in range(0, len(fids), step):
        yield fids[start : start + step]
