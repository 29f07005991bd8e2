"""Snapshot: write all that the store holds at one instant while calls go on.

What must hold: the file is complete and durable before it has its name; it tells which call log
goes on from it, so that no call is made twice; what no delta holds yet (touched ids, sightings,
schemas, dense parameters) is marked in it, so that the next delta after a recovery has it.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv.budget import read_cold
from monolith_kv.calls import flush_ahead
from monolith_kv.catalog import commit, retire, snapshot_of
from monolith_kv.errors import Error
from monolith_kv.fids import distinct
from monolith_kv.published import Snapshot
from monolith_kv.state import StoreState, TableEntry, store_digest
from monolith_kv.storage import format, marks
from monolith_kv.storage.snapshot import SnapshotWriter

Progress = Callable[[int, int], None]


@dataclass
class View:
    """What a snapshot found at its instant."""

    meta: dict[str, Any]
    epoch: int
    digest: str
    rows: int
    dense: bytes
    entries: list[TableEntry]
    mark: int = 0
    is_logged: bool = False  # Deltas and call logs lead to it, too.
    gates: dict[int, bytes] = field(default_factory=dict)
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
    with state.snapshotting:
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
                view = _flip(state, is_inside=path is None)
            except BaseException:
                writer.discard()
                raise
        with writer:
            try:
                _write(state, writer, view, progress)
            finally:
                for entry in view.flipped:
                    entry.core.snapshot_end()
            made_path, size = writer.publish({"digest": view.digest})
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


def _flip(state: StoreState, *, is_inside: bool) -> View:
    """Take the instant. Under files: no seal is under way, so all touched rows are known."""
    with state.mutex:
        found = state.manifest
        entries = sorted(state.tables.values(), key=lambda entry: entry.id)
        calls_from = state.roll_log() if is_inside else state.next_log
        with state.barrier:
            view = View(
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
                    "unsealed": {
                        "schema": state.schema_changed,
                        "dense": state.dense.is_pending,
                    },
                },
                epoch=found.lineage.epoch,
                digest=store_digest(entries),
                rows=sum(entry.core.rows for entry in entries),
                dense=state.dense.data,
                entries=entries,
            )
            view.is_logged = state.settings.is_logged and state.is_log_whole
            mark_instant(state, view.digest, is_inside=is_inside)
            for entry in entries:
                view.gates[entry.id] = entry.core.gate_state()
                view.pieces[entry.id] = entry.take_sightings()
                view.touched[entry.id] = entry.core.touched_fids()
            if not (state.schema_changed or any(map(len, view.touched.values()))):
                view.is_logged = True  # It holds what the last delta led to.
            view.mark = state.next_mark() if is_inside else 0
            for entry in entries:  # Last, since these cannot fail.
                entry.core.snapshot_flip()
                view.flipped.append(entry)
        return view


def mark_instant(state: StoreState, digest: str, *, is_inside: bool) -> None:
    """Note, durably where calls are logged, that a snapshot is taken here. Under the mutex.

    Notes
    -----
    What is made of the snapshot may go on with the next delta of this history only if that delta
    covers all that the snapshot holds; after a crash that is so if recovery came as far as here,
    which a snapshot under the store tells by itself.
    """
    if digest not in state.instants:
        state.instants.append(digest)
    log = None if is_inside else state.open_log()
    if log is not None:
        try:
            log.sync(log.mark({"snapshot": digest}), is_patient=False)
        except BaseException as error:
            state.note_failure(log, error)
            raise


def _write(
    state: StoreState, writer: SnapshotWriter, view: View, progress: Progress | None
) -> None:
    writer.meta(view.meta)
    for entry in list(view.entries):
        core, cursor = entry.core, 0
        while cursor >= 0:
            records, cursor = _read(state, entry, cursor)
            _write_rows(writer, entry, records)
            if progress is not None:
                progress(writer.rows_written, view.rows)
        view.flipped.remove(entry)
        # Rows that changed after the instant before they were read, as they were then.
        for saved in core.snapshot_end():
            _write_rows(writer, entry, saved)
        if view.gates[entry.id]:
            writer.gate(entry.id, view.gates.pop(entry.id))
        for piece in view.pieces[entry.id]:
            writer.sightings(entry.id, piece)
        writer.touched(entry.id, distinct(view.touched.pop(entry.id)))
    if view.dense:
        writer.dense(view.meta["dense_version"], view.dense)
    if progress is not None:
        progress(writer.rows_written, view.rows)


def _read(state: StoreState, entry: TableEntry, cursor: int) -> tuple[NDArray[np.uint8], int]:
    """Read rows of one part of the index, from both tiers."""
    core = entry.core
    # No row may move between the tiers meanwhile.
    with state.mutex if state.overflow is not None else contextlib.nullcontext():
        records, cold, cursor = core.snapshot_read(cursor)
        if len(cold):
            claimed = core.snapshot_claim(read_cold(state, entry, cold).reshape(-1))
            records = np.concatenate([records, claimed])
    return records, cursor


def _write_rows(writer: SnapshotWriter, entry: TableEntry, records: NDArray[np.uint8]) -> None:
    writer.rows(entry.id, records, len(records) // entry.core.record_bytes)


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
