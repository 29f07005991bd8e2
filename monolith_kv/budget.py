"""Two tiers: rows that leave memory for the overflow tier, and come back or are read there.

What must hold: a row is cold only while its record is in the tier; records go there before their
rows become cold. All but reads is done under the mutex.
"""

import contextlib
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv._table import give_back_freed, in_hand_bytes
from monolith_kv.errors import ClosedError, CorruptionError, StoreFullError
from monolith_kv.fids import distinct, without
from monolith_kv.refill import refill
from monolith_kv.state import NO_RECORDS, StoreState, TableEntry
from monolith_kv.storage.overflow import OverflowTier

Fids = NDArray[np.uint64]
Places = NDArray[np.uint32]
BLOCK_BYTES = 2 << 20  # Of records on their way: several copies of a block are under way at once.
SLACK = 32  # One part in 32 of the limit is kept free, so that not every call evicts.
IN_HAND, IN_HAND_MIN = 64, 64 << 10  # One part in 64 of the limit, and what is worth a call.
STEP_BYTES = 1 << 20  # Of rows that leave in one step: a call may have to wait for it.
ROWS_SHARE_MIN = 8
KEPT_BYTES_MIN = 4 << 20  # Of slabs: one for each shard, and the free ones of _pages.pyx.
GIVE_SEGMENTS = 16  # Of the index, some thousand rows each, in one step.
ATTEMPTS = 8


class Budget:
    """Keeps what the store has in memory within `memory_limit`, and some of it free.

    Parameters
    ----------
    state : StoreState
        Of a store with an overflow tier.
    limit : int
        Bytes of all that `memory_by_kind` counts.

    Attributes
    ----------
    is_full : bool
        Memory is over its limit and the overflow tier takes no more: no new ids.
    is_held : bool
        No row may leave memory now; whoever sets it settles afterwards.
    wake : callable or None
        Called when `step` has something to do; None: nobody calls `step`.

    Notes
    -----
    Rows are counted where they leave (the places that they take) and where they lie (slabs as
    mapped): places that became free are used again, so that slabs stay as they are while rows come
    and go. Only where all else takes more of the limit than before are slabs given back.
    """

    def __init__(self, state: StoreState, limit: int) -> None:
        self._state = state
        self.limit = limit
        self.is_full = False
        self.is_held = False
        self.wake: Callable[[], None] | None = None
        self._stepping = threading.Lock()  # Held by who steps; taken before the mutex.
        self._moving: list[Move] = []  # Rows whose records are written just now.
        self._giving: Giving | None = None
        self._least = 0  # Bytes of slabs of which none could be given back.

    def used(self) -> int:
        """Bytes in memory, of every kind."""
        return sum(memory_by_kind(self._state).values())

    def settle(self, need: int = 0) -> None:
        """Evict what is over the limit, and as much as leaves room for `need` bytes of rows more.

        Notes
        -----
        Of rows that are about as cold, those that are in a delta or a snapshot go before those
        whose last state is nowhere else on disk but in the call log, if there is one. Where there
        is no room for them, that is noted.
        """
        if self.is_held:
            return
        room, excess = self._room()
        spare = self.limit // SLACK
        if room < need:
            # Some more, so that not every call has to.
            self._send_out(need - room + (spare if self.wake is None else min(spare, STEP_BYTES)))
        else:
            self.is_full = False
        if self.wake is not None and (room - need < spare // 2 or excess > 0):
            self.wake()
        if excess > (0 if self.wake is None else spare // 2):
            self._give_back(excess)

    def step(self) -> bool:
        """Do a bounded part of what is due, so that calls need not; whether there is more.

        Notes
        -----
        Not under the mutex: records are written without it. Their rows stay in memory meanwhile,
        nobody else evicts them, and those that have changed by then remain.
        """
        with self._stepping:
            return self._step()

    def make_room(self, need: int) -> None:
        """Step until rows of so many bytes have room, if steps can do it. Not under the mutex."""
        while self._room()[0] < need and self.step():
            pass

    def _step(self) -> bool:
        state = self._state
        with state.mutex:
            if self.is_held or state.closed:
                return False
            room, excess = self._room()
            short = self.limit // SLACK - room
            if short <= 0:
                return (self._giving is not None or excess > 0) and self._give_back(excess)
            moves = self._moving = self._choose(min(short, STEP_BYTES))
        try:
            for move in moves:
                move.put()
        except (StoreFullError, OSError, MemoryError, ClosedError):
            pass  # As a call fails that evicts: the next one has to, and notes it.
        with state.mutex, contextlib.ExitStack() as steps:
            self._moving = []
            for move in moves:
                steps.callback(move.finish)
        return any(move.is_written for move in moves) and short > STEP_BYTES

    def _room(self) -> tuple[int, int]:
        """Bytes that rows may take beyond those they take, and bytes of slabs that are too many."""
        kinds = memory_by_kind(self._state)
        mapped = kinds["rows"]
        # What is too small for all else has some rows in memory nevertheless: slow, but not stuck.
        allowed = max(self.limit - sum(kinds.values()) + mapped, self.limit // ROWS_SHARE_MIN)
        taken = sum(resident_bytes(entry) for entry in self._state.tables.values())
        # A part of the slabs is free places, some in each shard; some slabs are kept for the next.
        kept = max(KEPT_BYTES_MIN, mapped // 64)
        excess = min(mapped - allowed, mapped - taken - kept)
        return allowed - self.limit // SLACK - taken, excess if mapped != self._least else 0

    def _send_out(self, todo: int) -> None:
        """Evict so many bytes of rows at once."""
        try:
            while todo > 0:
                moves = self._choose(min(todo, BLOCK_BYTES))
                if not moves:
                    break
                for move in moves:
                    move.put()
                    move.finish()
                    todo -= len(move.fids) * move.entry.core.place_bytes
            self.is_full = False
        except (StoreFullError, OSError, MemoryError):
            # The call that came here was made: it must not fail because rows cannot move. A tier
            # that cannot be written is as good as full.
            self.is_full = True

    def _choose(self, todo: int) -> "list[Move]":
        """Choose the coldest rows of all tables, by their share of memory, of so many bytes."""
        overflow = self._state.overflow
        assert overflow is not None
        sizes = {entry: resident_bytes(entry) for entry in self._state.tables.values()}
        total, moves = sum(sizes.values()), []
        for entry, size in sizes.items():
            if not size:
                continue
            core = entry.core
            part = min(-(-todo * size // total), size)
            fids = core.coldest(-(-part // core.place_bytes), True)
            for move in self._moving:
                if move.entry is entry:
                    fids = without(fids, move.fids)
            if len(fids):
                moves.append(Move(overflow, entry, fids))
        return moves

    def _give_back(self, excess: int) -> bool:
        """Empty slabs into the free places of others, along a part of a table's index.

        Returns whether it is worth going on.
        """
        if self._giving is None:
            entry = max(self._state.tables.values(), key=free_bytes)
            self._giving = Giving(entry, min(excess, free_bytes(entry)))
        giving = self._giving
        for _ in range(GIVE_SEGMENTS):
            if giving.cursor >= 0 and not giving.entry.dropped:
                with contextlib.suppress(MemoryError):
                    freed, giving.cursor = giving.entry.core.shrink(giving.cursor, giving.excess)
                    giving.freed += freed
        if giving.cursor >= 0 and not giving.entry.dropped:
            return True
        self._giving = None
        # In vain: not again before something is different.
        self._least = 0 if giving.freed else memory_by_kind(self._state)["rows"]
        return giving.freed > 0


@dataclass
class Giving:
    """A walk along a table's index that gives slabs back."""

    entry: TableEntry
    excess: int
    cursor: int = 0
    freed: int = 0


class Move:
    """Rows of a table on their way to the overflow tier."""

    def __init__(self, overflow: OverflowTier, entry: TableEntry, fids: Fids) -> None:
        self.entry, self.fids, self._core = entry, fids, entry.core
        self._overflow = overflow
        self._records = NO_RECORDS
        self._places: Places | None = None

    def put(self) -> None:
        """Write the records of those that are in memory still."""
        # A copy: a buffer in hand counts, and calls would make room for rows that are about to go.
        self._records = self._core.pack(self.fids)[0].copy()
        records = self._records.reshape(-1, self._core.record_bytes)
        self._places = self._overflow.write(self.entry.id, self._core, records)

    @property
    def is_written(self) -> bool:
        """Whether `finish` has something to do."""
        return self._places is not None

    def finish(self) -> None:
        """Take those out of memory that are what was written. Under the mutex."""
        if self._places is None:
            return
        try:
            if not self.entry.dropped and self.entry.core is self._core:
                self._core.evict(self._records, self._places)
        finally:
            self._overflow.settle(self.entry.id, self._places)


def resident_bytes(entry: TableEntry) -> int:
    """Bytes of the places that a table's rows take in memory."""
    return (entry.core.rows - entry.core.cold_rows) * entry.core.place_bytes


def free_bytes(entry: TableEntry) -> int:
    """Bytes of a table's slabs that no row takes."""
    return entry.core.memory()["rows"] - resident_bytes(entry)


def memory_by_kind(state: StoreState) -> dict[str, int]:
    """Return the bytes that the store has in memory: those of its tables, and its own.

    Notes
    -----
    "in_hand" are records between tables and files: what a seal or a snapshot has kept of rows that
    changed meanwhile, blocks on their way to disk; of all stores of the process. Not counted is
    what a caller hands over and gets.
    """
    kinds = {"rows": 0, "index": 0, "sketch": 0, "touched": 0, "sightings": 0}
    for entry in state.tables.values():
        for kind, size in entry.core.memory().items():
            kinds[kind] += size
        kinds["sightings"] += sum(map(len, entry.pending_sightings))
    kinds["in_hand"] = in_hand_bytes()
    kinds["dense"] = len(state.dense.data)
    return kinds


def give_back(state: StoreState) -> None:
    """Let the system have what was freed, where the store has a limit: it would count, too."""
    if state.budget is not None:
        give_back_freed()


def block_bytes(state: StoreState, most: int) -> int:
    """Bytes of rows to have in hand at once: `most`, and little of a memory limit, as they count.

    What is in hand for a moment would have as many rows leave memory.
    """
    limit = state.settings.memory_limit
    return most if limit is None else min(most, max(limit // IN_HAND, IN_HAND_MIN))


def promote(state: StoreState, entry: TableEntry, fids: Fids) -> None:
    """Bring the cold ones among these ids back to memory. Under the mutex."""
    if state.overflow is None or not entry.core.cold_rows:
        return
    cold = entry.core.cold(fids)
    if len(cold) and state.budget is not None:
        state.budget.settle(len(cold) * entry.core.place_bytes)
        cold = entry.core.cold(fids)  # Others of them may have had to go.
    if len(cold):
        records = read_cold(state, entry, cold)
        entry.core.promote(records.reshape(-1))


def promote_ahead(state: StoreState, entry: TableEntry, fids: Fids) -> None:
    """Bring the cold ones among these ids back to memory, holding the mutex for the last part.

    Notes
    -----
    Records are read, and room is made, without the mutex. Only rows that still lie where they were
    read come back: a place is not used again while its file is there.
    """
    overflow, core = state.overflow, entry.core
    if overflow is None or state.budget is None or not core.cold_rows:
        return
    dropped = overflow.dropped_files  # Before anything is looked for.
    cold = core.cold(fids)
    rows = core.cold_rows_at(cold)
    records, positions = overflow.read(core, cold)
    need = len(positions) * core.place_bytes
    state.budget.make_room(need)
    with state.mutex:
        if state.closed or entry.dropped or entry.core is not core:
            return
        state.budget.settle(need)
        if overflow.dropped_files == dropped and len(positions):
            core.promote(records.reshape(-1), rows[positions])
        state.budget.settle()


def read_cold(state: StoreState, entry: TableEntry, cold: Fids) -> NDArray[np.uint8]:
    """Return the records of cold ids, as uint8 of shape (n, record_bytes). Under the mutex.

    Notes
    -----
    A record that is damaged is taken from snapshot and deltas where its row has not changed since.

    Raises
    ------
    CorruptionError
        It has changed since: nothing is made up for it.
    OSError
        It could not even be read.
    """
    overflow = state.overflow
    assert overflow is not None
    failed = overflow.unreadable
    records, positions = overflow.read(entry.core, cold)
    if len(positions) == len(cold):
        return records
    missing = np.delete(cold, positions)
    rows = refill(state, entry, distinct(missing))
    fids = rows["fid"].astype(np.uint64)
    if len(without(missing, fids)):
        if overflow.unreadable > failed:
            raise OSError(errno.EIO, "records of cold rows cannot be read", overflow.folder)
        raise CorruptionError(
            f"{overflow.folder}: {len(missing)} records of table {entry.schema.name} are damaged "
            "or gone, and no good file has their last state; close the store and open it again, "
            "it recovers from snapshot and log; if they are damaged still, restore a snapshot, or "
            "salvage",
            overflow.folder,
        )
    packed = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    with contextlib.suppress(StoreFullError, OSError, ClosedError):
        places = overflow.write(entry.id, entry.core, packed)
        try:
            entry.core.relocate(fids, entry.core.cold_rows_at(fids), places)
        finally:
            overflow.settle(entry.id, places)
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
    found: list[NDArray[Any]] = []
    todo = distinct(fids)
    for attempt in range(ATTEMPTS):
        if not len(todo):
            break
        overflow = state.overflow  # Anew: a reader that reloads has another one.
        if overflow is None or entry.dropped:
            state.check()
            raise ClosedError(f"table {entry.schema.name} was dropped, or its store closed")
        try:
            records, positions = overflow.read(entry.core, todo)
        except ClosedError:
            state.check()
            continue
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


def fill_cold(
    state: StoreState,
    entry: TableEntry,
    fids: Fids,
    places: NDArray[np.int64],
    out: NDArray[np.float32],
    found: NDArray[np.bool_] | None = None,
    *,
    is_state: bool = False,
) -> None:
    """Read embeddings, or states, of the cold ones among ids into those rows of `out`."""
    left, dim = places, entry.core.dim
    with contextlib.suppress(ClosedError):  # Another one may be in its place by now.
        if (overflow := state.overflow) is not None:
            left = overflow.fill(entry.core, fids[places], places, out, is_state=is_state)
    if len(left):  # They came back or went meanwhile, or are damaged.
        rows = read_records(state, entry, fids[left])
        there, where = match(rows, fids[left])
        part = slice(dim, None) if is_state else slice(0, dim)
        out[left[there]] = rows["row"][where[there], part]
        if found is not None:
            found[left] = there


def match(rows: NDArray[Any], fids: Fids) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which of the ids have a record among `rows` (sorted by fid), and where."""
    if not len(rows):
        return np.zeros(len(fids), np.bool_), np.zeros(len(fids), np.int64)
    places = np.searchsorted(rows["fid"], fids)
    places[places == len(rows)] = 0
    return rows["fid"][places] == fids, places.astype(np.int64)
