"""Snapshot: write all that the store holds at one instant while calls go on.

What must hold: callers wait for the instant, which copies nothing, and for steps of microseconds;
the file is complete and durable before it has its name; it tells which call log goes on from it, so
that no call is made twice; what no delta holds yet (touched ids, sightings, schemas, dense
parameters) is marked in it, so that the next delta after a recovery has it.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv._table import in_hand_block
from monolith_kv.budget import block_bytes, give_back, read_cold
from monolith_kv.calls import flush_ahead
from monolith_kv.catalog import commit, retire, snapshot_of
from monolith_kv.errors import CorruptionError, Error
from monolith_kv.fids import distinct
from monolith_kv.published import Snapshot
from monolith_kv.schema import TableSchema
from monolith_kv.state import StoreState, Summed, TableEntry, store_digest
from monolith_kv.storage import format, marks
from monolith_kv.storage.call_log import CallLogWriter
from monolith_kv.storage.snapshot import SnapshotWriter

Progress = Callable[[int, int], None]
TOUCHED_IDS = 1 << 17  # of a part
READ_BYTES = 1 << 20  # Of cold rows, at once.
ROWS_BYTES = 2 << 20  # Of rows in memory in a record, but for the last.
COLD_BYTES = 4 << 20  # Of cold rows in a record, at least.
COLD_BYTES_MAX = 12 << 20
COLD_RECORDS = 8192  # Each takes a number of a file: larger ones where there are as many.


@dataclass
class View:
    """What a snapshot found at its instant."""

    meta: dict[str, Any]
    epoch: int
    rows: int
    dense: bytes
    entries: list[TableEntry]
    schemas: dict[int, TableSchema]
    mark: int = 0
    is_logged: bool = False  # Deltas and call logs lead to it, too.
    marked: tuple[CallLogWriter, int] | None = None  # A log with a mark of it, up to here.
    sums: list[Summed] = field(default_factory=list)  # Of the tables that were written.
    pieces: dict[int, list[bytes]] = field(default_factory=dict)
    touched: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    flipped: list[TableEntry] = field(default_factory=list)


def write_snapshot(
    state: StoreState, path: str | None, progress: Progress | None, **changes: Any
) -> Snapshot:
    """Write a snapshot under the store, or at `path`.

    Parameters
    ----------
    state : StoreState
        Open "rw" or "replica"; "r" only with a path.
    path : str or None
        Absolute; None: under the store, which then retires what it covers.
    progress : callable or None
        Called with (rows written, rows in all).
    **changes
        Of the manifest, made in the same step as a snapshot under the store is named.

    Raises
    ------
    FileExistsError
        `path` is taken.
    StoreFullError
        There is no room; nothing changed.
    """
    views: list[View] = []
    with state.snapshotting, contextlib.ExitStack() as steps:
        steps.callback(_end, views)
        if path is None:
            flush_ahead(state)
        with state.files:
            found = state.manifest
            names = {entry["name"] for entry in found.snapshots}
            number = 0
            while _name(found.sequence, found.lineage.epoch, number) in names:
                number += 1
            writer = SnapshotWriter(
                state.path, found.uuid, found.sequence, found.lineage.epoch, path, number
            )
            try:
                _flip(state, views, is_inside=path is None)
            except BaseException:
                writer.discard()
                raise
        view = views[0]
        with writer:
            try:
                _write(state, writer, view, progress)
            finally:
                _end(views)
            made_path, size = writer.publish({"digest": store_digest(view.sums)})
        give_back(state)
        named = {
            "name": writer.name,
            "sequence": view.meta["sequence"],
            "epoch": view.epoch,
            "rows": writer.rows_written,
            "bytes": size,
            "created_at": view.meta["created_at"],
            "lineage": view.meta["lineage"],
            "logged": view.is_logged,
        }
        if path is not None:
            return Snapshot(made_path, named["sequence"], named["rows"], size, named["created_at"])
        with state.files:
            # A seal may have gone on meanwhile: the list is the present one's.
            commit(state, snapshots=[*state.manifest.snapshots, named], **changes)
            state.overdue = None
            if state.is_manifest_durable:
                marks.remove(state.path, view.mark)
            retire(state)
            return snapshot_of(state, named)


def _name(sequence: int, epoch: int, number: int) -> str:
    return format.snapshot_name(sequence, epoch, number)


def _flip(state: StoreState, views: list[View], *, is_inside: bool) -> None:
    """Take the instant, and what only files keeps in place. Under files: no seal is under way.

    Notes
    -----
    What was begun is in `views`, not returned: Ctrl-C may raise between a return and its use.
    """
    with state.mutex:
        # Callers wait: what is done here does not depend on how many rows there are.
        calls_from = state.roll_log() if is_inside else state.next_log
        log = None if is_inside else state.open_log()
        with state.barrier:
            view = _look(state, calls_from)
            views.append(view)
            for entry in view.entries:
                view.flipped.append(entry)  # Before it is: to end what was not begun does no harm.
                entry.core.snapshot_flip()
                entry.flip_sightings()
            _mark_instant(state, view, log, is_inside=is_inside)
    for entry in view.entries:
        view.pieces[entry.id] = entry.pieces()
        view.touched[entry.id] = entry.core.snapshot_touched()
    if view.marked is not None:
        log, offset = view.marked
        with _giving_up(state, log):
            log.sync(offset, is_patient=False)


def _look(state: StoreState, calls_from: int) -> View:
    """Note what the store is, but for its rows."""
    found = state.manifest
    entries = sorted(state.tables.values(), key=lambda entry: entry.id)
    return View(
        meta={
            "uuid": found.uuid,
            "lineage": found.lineage.to_json(),
            "sequence": found.sequence,
            "cursor": found.cursor,
            "tables": state.tables_json(),
            "created_at": float(state.clock()),
            "dense_version": state.dense.version,
            "calls_from": calls_from,
            "includes": list(state.instants),
            "instant": os.urandom(16).hex(),
            "unsealed": {"schema": state.schema_changed, "dense": state.dense.is_pending},
        },
        epoch=found.lineage.epoch,
        rows=sum(entry.core.rows for entry in entries),
        dense=state.dense.data,
        entries=entries,
        schemas={entry.id: entry.schema for entry in entries},
    )


def _mark_instant(
    state: StoreState, view: View, log: CallLogWriter | None, *, is_inside: bool
) -> None:
    """Note that a snapshot is taken here. Under mutex and barrier.

    Notes
    -----
    What is made of the snapshot may go on with the next delta of this history only if that delta
    covers all that the snapshot holds; after a crash that is so if recovery came as far as here.
    A snapshot under the store tells that by itself, for one elsewhere the call log has to. Its mark
    is flushed before the snapshot appears.
    """
    if log is not None:
        with _giving_up(state, log):
            view.marked = log, log.mark({"snapshot": view.meta["instant"]})
    state.instants.append(view.meta["instant"])
    has_touched = any(entry.core.touched() for entry in view.entries)
    view.is_logged = state.settings.is_logged and state.is_log_whole
    if not (state.schema_changed or has_touched):
        view.is_logged = True  # It holds what the last delta led to.
    view.mark = state.next_mark() if is_inside else 0


@contextlib.contextmanager
def _giving_up(state: StoreState, log: CallLogWriter) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        state.note_failure(log, error)
        raise


def _end(views: list[View]) -> None:
    """End the views of tables that were not written to their end."""
    for view in views:
        while view.flipped:
            view.flipped.pop().core.snapshot_end()


def _write(
    state: StoreState, writer: SnapshotWriter, view: View, progress: Progress | None
) -> None:
    writer.meta(view.meta)
    for entry in view.entries:  # Before all rows: counts that change have to be copied until then.
        writer.gate(entry.id, entry.core.snapshot_gate())
    # Rows in memory come here, and are written from here: to clear memory anew takes longer.
    block = in_hand_block(max(map(partial(_room, state), view.entries), default=0))
    for entry in view.entries:
        core, cursor = entry.core, 0
        rows = RowWriter(writer, entry, block)
        while cursor >= 0:
            cursor = _read(state, entry, cursor, rows)
            rows.write_saved()
            rows.write_cold()
            if progress is not None:
                progress(writer.rows_written, view.rows)
        rows.write_cold(is_end=True)
        view.flipped.remove(entry)
        # Rows that changed after the instant before they were read, as they were then.
        for saved in core.snapshot_end():
            rows.write(saved)
        rows.end(core.snapshot_digest())
        view.sums.append(Summed(view.schemas[entry.id], core.snapshot_digest()))
        for piece in view.pieces[entry.id]:
            writer.sightings(entry.id, piece)
        _write_touched(writer, entry, view.touched.pop(entry.id))
    if view.dense:
        writer.dense(view.meta["dense_version"], view.dense)
    if progress is not None:
        progress(writer.rows_written, view.rows)


def _room(state: StoreState, entry: TableEntry) -> int:
    """Return the bytes that the rows of a table want in hand."""
    size = entry.core.record_bytes
    return max(min(block_bytes(state, ROWS_BYTES), entry.core.rows * size), size)


def _write_touched(writer: SnapshotWriter, entry: TableEntry, fids: NDArray[np.uint64]) -> None:
    fids.sort()  # In place, and written in parts: there may be as many as the table has rows.
    for start in range(0, len(fids), TOUCHED_IDS):
        writer.touched(entry.id, distinct(fids[start : start + TOUCHED_IDS]))


def _read(state: StoreState, entry: TableEntry, cursor: int, rows: "RowWriter") -> int:
    """Read rows of one part of the index, as many as there is room for; return where to go on."""
    core = entry.core
    # No row may move between the tiers meanwhile.
    with state.mutex if state.overflow is not None else contextlib.nullcontext():
        records, fids, cursor = core.snapshot_read(cursor, rows.room())
        rows.fill(len(records))
        step = max(1, READ_BYTES // core.record_bytes)
        for start in range(0, len(fids), step):
            found = read_cold(state, entry, fids[start : start + step])
            rows.keep_cold(core.snapshot_claim(found.reshape(-1)))
    return cursor


class RowWriter:
    """Writes the rows of one table, those that are cold so that they can stay where they are.

    Notes
    -----
    Rows of some segments of the index come together: who loads them has fewer parts to begin, and
    who skips cold ones the less to skip.
    """

    def __init__(self, writer: SnapshotWriter, entry: TableEntry, block: NDArray[np.uint8]) -> None:
        self._writer, self._entry = writer, entry
        self._sum = (0, 0)
        self._block, self._used = block, 0  # Has room for a record, at least.
        size = entry.core.cold_rows * entry.core.record_bytes // COLD_RECORDS
        self._least = min(max(size, COLD_BYTES), COLD_BYTES_MAX)
        self._cold: deque[tuple[NDArray[np.uint8], tuple[int, int]]] = deque()

    def room(self) -> NDArray[np.uint8]:
        """Return memory for rows to come, for one at least; `fill` says how many bytes came."""
        if len(self._block) - self._used < self._entry.core.record_bytes:
            self._write_block()
        return self._block[self._used :]

    def fill(self, size: int) -> None:
        """Take note that the next bytes of the room are rows."""
        self._used += size

    def write_saved(self) -> None:
        """Write what changed until now: time and again, or memory would hold all that does."""
        core = self._entry.core
        while True:
            room = self.room()
            self.fill(size := len(core.saved(False, room)))
            if len(room) - size >= core.record_bytes:
                return

    def write(self, records: NDArray[np.uint8]) -> None:
        """Write rows that lie elsewhere: with the others, for they may be few."""
        record_bytes = self._entry.core.record_bytes
        while len(records):
            room = self.room()
            size = min(len(records), len(room) // record_bytes * record_bytes)
            room[:size] = records[:size]
            self.fill(size)
            records = records[size:]

    def _write_block(self) -> None:
        records, self._used = self._block[: self._used], 0
        if len(records):
            core = self._entry.core
            self._sum = _add(self._sum, core.digest_of(records))
            self._writer.rows(self._entry.id, records, len(records) // core.record_bytes)

    def keep_cold(self, records: NDArray[np.uint8]) -> None:
        """Keep cold rows for `write_cold`."""
        core = self._entry.core
        if len(records):
            places = core.checksummed(records, self._writer.seed)
            self._cold.append((places, core.digest_of(records)))

    def write_cold(self, *, is_end: bool = False) -> None:
        """Write what makes whole records; at the end what is left, too."""
        size = sum(places.nbytes for places, _ in self._cold)
        while size >= self._least or (is_end and self._cold):
            chosen: list[NDArray[np.uint8]] = []
            total = (0, 0)
            while self._cold and sum(places.nbytes for places in chosen) < self._least:
                places, digest = self._cold.popleft()
                chosen.append(places)
                size -= places.nbytes
                total = _add(total, digest)
            self._writer.cold(self._entry.id, chosen, total)
            self._sum = _add(self._sum, total)

    def end(self, digest: tuple[int, int]) -> None:
        """Write what is left; raise CorruptionError unless all that was written has this digest.

        A snapshot that does not can never be opened, and must not stand in for those that can.
        """
        self._write_block()
        if self._sum != digest:
            raise CorruptionError(
                f"table {self._entry.schema.name}: the rows have another digest than is kept of "
                "them, so no snapshot was made; close the store and open it again",
                self._writer.path,
            )


def _add(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return (first[0] + second[0]) % 2**64, (first[1] + second[1]) % 2**64


def rescue(state: StoreState) -> None:
    """Go on after the call log was given up: a snapshot of memory, and a new epoch after it.

    Notes
    -----
    What the kernel made of the log is unknown, so nothing is read or retried of it. Whatever goes
    wrong here leaves the store read-only, as it was; the next call tries again.
    """
    with state.snapshotting, state.files, state.mutex:
        if state.failure is None:
            return
        log, state.log = state.log, None
        if log is not None:
            with contextlib.suppress(OSError):
                log.close(clean=False)
        first = state.next_log
        state.is_log_whole = False
        with contextlib.suppress(Error, OSError):
            lineage = state.manifest.lineage
            commit(state, lineage=lineage.begin(after=state.manifest.sequence))
            write_snapshot(state, None, None, first_call_log=first)
            state.check_durable()
            state.failure = None
