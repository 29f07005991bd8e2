"""From files to tables: manifest -> snapshot -> deltas -> sightings -> call logs -> ready.

What must hold: the state is a prefix of the acknowledged calls; no file is trusted that the
manifest does not name; damage refuses, but for a torn tail of the last call log, which is cut, and
for a damaged snapshot where the one before and the deltas since lead to the same state. Recovery
changes no file but for that tail, so that it may itself be killed at any point.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv.budget import promote
from monolith_kv.errors import CorruptionError
from monolith_kv.loading import Loader
from monolith_kv.state import (
    NO_FIDS,
    NO_RECORDS,
    DenseState,
    StoreState,
    TableEntry,
    store_digest,
)
from monolith_kv.storage import call_log, delta_log, dense, sightings, snapshot
from monolith_kv.storage.adopter import Adopter
from monolith_kv.storage.format import HEADER_BYTES, Header, RecordKind
from monolith_kv.storage.framing import Record
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.overflow import OverflowTier
from monolith_kv.storage.pending import await_sightings, load_pending, load_sightings
from monolith_kv.storage.replay import replay
from monolith_kv.storage.tables import entry_of, sync_tables

Progress = Callable[[int, int], None]
INDEX_BYTES = 24  # A row in the index.
FITS_SHARE = 0.9  # Of a memory limit.


def recover(
    state: StoreState, manifest: Manifest, base: "Base | None" = None, *, may_adopt: bool = True
) -> None:
    """Fill an empty state from the files that `manifest` names.

    Parameters
    ----------
    state : StoreState
        Without tables; with its overflow tier, if it has one.
    manifest : Manifest
        Of the folder `state.path`.
    base : Base, optional
        Its newest snapshot, loaded into the state already.
    may_adopt : bool
        Whether cold rows of a snapshot may stay there, unread.

    Raises
    ------
    CorruptionError, FormatVersionError
        The files do not lead to the state that the manifest names.
    """
    may_adopt = may_adopt and base is None and state.overflow is not None
    state.is_recovering = True
    try:
        if may_adopt:
            try:
                _recover(state, manifest, None, may_adopt=True)
                return
            except (CorruptionError, OSError):
                # It may be a cold row that is needed now, and is in an older snapshot, too: once
                # more, and every byte is verified on the way.
                _begin_anew(state, manifest)
        _recover(state, manifest, base, may_adopt=False)
    finally:
        state.is_recovering = False


def _begin_anew(state: StoreState, manifest: Manifest) -> None:
    """Forget all that a recovery has made of the files so far."""
    _forget(state, manifest)
    state.instants, state.lost, state.damaged = [], [], []
    state.partial, state.schema_changed, state.is_log_whole = None, False, True
    state.calls_replayed, state.next_log = 0, 1


def _recover(
    state: StoreState, manifest: Manifest, base: "Base | None", *, may_adopt: bool
) -> None:
    state.manifest = manifest
    state.next_table_id = manifest.next_table_id
    base = base or _load_base(state, manifest, may_adopt=may_adopt)
    sequence = base.sequence if base else 0
    for entry in manifest.deltas:
        if entry["sequence"] > sequence:
            _load_delta(state, manifest, entry)
    is_newest = base is not None and sequence == manifest.sequence
    if base is not None and is_newest:
        _load_unsealed(state, base)
    load_dense(state, manifest)
    if manifest.sightings is not None:
        load_pending(state, sightings.load(state.path, manifest.sightings))
    first = manifest.first_call_log
    if base is not None and is_newest:
        first = max(first, base.calls_from)
    replay(state, first, must_be_closed=manifest.clean)
    state.next_table_id = max([state.next_table_id, *(e.id + 1 for e in state.tables.values())])


# --- the base ------------------------------------------------------------------------------


class Base:
    """A snapshot that was loaded: what of it goes beyond its sequence."""

    def __init__(self, reader: snapshot.SnapshotReader) -> None:
        self.path = reader.path
        self.sequence: int = reader.meta["sequence"]
        unsealed = reader.meta.get("unsealed", {})
        self.calls_from: int = reader.meta.get("calls_from", 0)
        self.is_schema_changed = bool(unsealed.get("schema"))
        self.is_dense_pending = bool(unsealed.get("dense"))
        self.digest: str = reader.end["digest"]
        # Snapshots of 0.1 before it had an id were known by their digest.
        self.instant: str = reader.meta.get("instant", self.digest)
        self.includes: list[str] = list(reader.meta.get("includes", []))
        self.touched: list[tuple[int, Any]] = []
        self.is_logged = True  # Deltas and call logs lead to it, too; the manifest knows.


def _load_base(state: StoreState, manifest: Manifest, *, may_adopt: bool) -> Base | None:
    """Load the newest snapshot that is good and from which deltas lead on."""
    first_error: Exception | None = None
    for named in reversed(manifest.snapshots):
        path = snapshot.path_of(state.path, named["name"])
        try:
            _refuse_gap(state, manifest, named["sequence"])
            with snapshot.SnapshotReader(path) as reader:
                check_identity(path, reader, manifest)
                _refuse_to_write(state, reader.header, path)
                base = load_snapshot(state, reader, may_adopt=may_adopt)
            base.is_logged = named.get("logged", True)
            return base
        except FileNotFoundError as error:
            first_error = first_error or missing(path, error)
        except CorruptionError as error:
            first_error = first_error or error
        _forget(state, manifest)
        if named["sequence"] == manifest.sequence and not named.get("logged", True):
            raise first_error  # Deltas and logs lead elsewhere: to a state without its rows.
        state.damaged.append(f"{path}: passed over, as it is damaged or gone")
    if first_error is not None and not _reaches(manifest, 0):
        raise first_error
    _refuse_gap(state, manifest, 0)
    return None


def _reaches(manifest: Manifest, sequence: int) -> bool:
    have = {entry["sequence"] for entry in manifest.deltas}
    return all(number in have for number in range(sequence + 1, manifest.sequence + 1))


def _refuse_gap(state: StoreState, manifest: Manifest, sequence: int) -> None:
    if not _reaches(manifest, sequence):
        raise CorruptionError(
            f"{state.path}: deltas {sequence + 1} to {manifest.sequence} are not all there and "
            "no snapshot stands in for them; restore a snapshot, or salvage",
            state.path,
        )


def _forget(state: StoreState, manifest: Manifest) -> None:
    """Drop what was loaded of a snapshot before its damage was found."""
    for entry in list(state.tables.values()):
        state.drop_entry(entry)
    if state.overflow is not None:
        state.overflow.begin_anew()  # What comes instead has tables of the same ids.
    state.dense = DenseState()
    state.next_table_id = manifest.next_table_id


def load_snapshot(
    state: StoreState,
    reader: snapshot.SnapshotReader,
    progress: Progress | None = None,
    *,
    may_adopt: bool = False,
) -> Base:
    """Load a snapshot into an empty state; each record that is read is verified right before that.

    Cold rows that memory has no room for may be adopted: they stay where they are, unread.

    Raises
    ------
    CorruptionError
        It is damaged; the state has some of it by then, and is of no use.
    """
    base = Base(reader)
    sync_tables(state, reader.meta["tables"], reader.path)
    overflow = state.overflow if may_adopt and not _fits(state, reader) else None
    for entry in state.tables.values():
        _expect(state, entry, reader, is_adopted=overflow is not None)
    with Loader() as loader:
        _load_records(state, reader, base, loader, overflow, progress)
    if state.budget is not None:
        with state.mutex:
            state.budget.settle()  # Rows of the last record are more than there may be.
    state.dense.version = reader.meta["dense_version"]
    found = store_digest(list(state.tables.values()))
    if found != base.digest:
        raise CorruptionError(
            f"{reader.path}: its rows have digest {found}, its end states {base.digest}; run mkv "
            "verify",
            reader.path,
        )
    return base


def _announced(entry: TableEntry, reader: snapshot.SnapshotReader) -> tuple[int, int]:
    """Return how many rows, and cold rows, END announces, as far as the file can have them."""
    counts = reader.end.get("by_table", {}).get(str(entry.id))
    if not (isinstance(counts, list) and len(counts) == 2 and {*map(type, counts)} == {int}):
        return 0, 0
    most = reader.size // entry.core.record_bytes
    return min(max(0, counts[0]), most), min(max(0, counts[1]), most)


def _fits(state: StoreState, reader: snapshot.SnapshotReader) -> bool:
    """Whether memory has room for all rows: then none need stay in the file."""
    if state.settings.memory_limit is None:
        return True
    size = 0
    for entry in state.tables.values():
        size += sum(_announced(entry, reader)) * (entry.core.place_bytes + INDEX_BYTES)
    return 0 < size < FITS_SHARE * state.settings.memory_limit


def _expect(
    state: StoreState, entry: TableEntry, reader: snapshot.SnapshotReader, *, is_adopted: bool
) -> None:
    """Make a table ready for the rows that END announces."""
    rows, cold = _announced(entry, reader)
    if not is_adopted:
        rows, cold = rows + cold, 0
    if state.settings.memory_limit is not None:
        rows = min(rows, state.settings.memory_limit // entry.core.place_bytes)
    entry.core.expect(rows, cold)


def _load_records(
    state: StoreState,
    reader: snapshot.SnapshotReader,
    base: Base,
    loader: Loader,
    overflow: OverflowTier | None,
    progress: Progress | None,
) -> None:
    by_id = {entry.id: entry for entry in state.tables.values()}
    rows = 0

    def count(more: int) -> None:
        nonlocal rows
        rows += more
        if progress is not None:
            progress(rows, reader.end["rows"])

    with contextlib.ExitStack() as stack:
        adopter = None
        if overflow is not None:
            adopter = Adopter(state, overflow, by_id, reader, loader, count)
            stack.callback(adopter.close)
        for record in reader.records(adopter):
            _load_record(state, reader.path, by_id, record, base, loader)
            if record.kind == RecordKind.ROWS:
                count(record.count)


def _load_record(
    state: StoreState,
    path: str,
    by_id: Mapping[int, TableEntry],
    record: Record,
    base: Base,
    loader: Loader,
) -> None:
    if record.kind == RecordKind.DENSE:
        set_dense(state, record, path)
        return
    entry = entry_of(by_id, record, path)
    if record.kind == RecordKind.ROWS:
        if state.budget is not None:  # What waits to be loaded is part of what stays free.
            with state.mutex:
                state.budget.settle(len(record.payload))
        loader.add(*_rows_in(by_id, record, path))
    elif record.kind == RecordKind.GATE:
        load_gate(entry, record, path)
    elif record.kind == RecordKind.TOUCHED:
        base.touched.append((entry.id, np.frombuffer(record.payload, "<u8").copy()))
    elif record.kind == RecordKind.SIGHTINGS:
        # GATE counts them, too: they wait for the delta that has them.
        entry.pending_sightings.append(bytes(record.payload))


def load_gate(entry: TableEntry, record: Record, path: str) -> None:
    """Give a table's gate the state in a GATE record; CorruptionError if it is of another gate."""
    try:
        entry.core.gate_load(bytes(record.payload), False)
    except ValueError as error:
        raise CorruptionError(
            f"{path} at byte {record.offset}: the gate of table {entry.schema.name}: {error}; run "
            "mkv verify",
            path,
            record.offset,
        ) from error


def _load_unsealed(state: StoreState, base: Base) -> None:
    """Mark what the snapshot holds beyond its sequence: no delta has it, the next one must."""
    by_id = {entry.id: entry for entry in state.tables.values()}
    for table_id, fids in base.touched:
        core = by_id[table_id].core
        cold = core.cold(fids)
        if state.overflow is not None and len(cold) > len(state.overflow.read(core, cold)[1]):
            # Of others there is a later chance: the deltas since an older snapshot have them.
            raise CorruptionError(f"{base.path}: damaged rows that no delta has", base.path)
        core.touch(fids)
    state.schema_changed = base.is_schema_changed
    state.dense.is_pending = base.is_dense_pending
    state.instants = [*base.includes, base.instant]
    state.is_log_whole = base.is_logged
    if base.touched or base.is_schema_changed or base.is_dense_pending:
        state.partial = base.instant


def load_dense(state: StoreState, manifest: Manifest) -> None:
    """Take the dense parameters from their own file where that is newer than any delta."""
    entry = manifest.dense
    if entry.get("name") is not None and entry["version"] > state.dense.version:
        data = dense.load(state.path, entry)
        state.dense.arrays = dense.unpack(data, dense.path_of(state.path, entry["name"]))
        state.dense.data, state.dense.version = data, entry["version"]
        state.dense.is_pending = True
    state.dense.entry = dict(entry)


# --- deltas --------------------------------------------------------------------------------


def _load_delta(state: StoreState, manifest: Manifest, named: Mapping[str, Any]) -> None:
    path = delta_log.path_of(state.path, named["name"])
    try:
        reader = delta_log.DeltaReader(path)
    except FileNotFoundError as error:
        raise missing(path, error) from error
    with reader:
        check_identity(path, reader, manifest)
        _refuse_to_write(state, reader.header, path)
        load_delta(state, reader)


def load_delta(state: StoreState, reader: delta_log.DeltaReader) -> None:
    """Apply a delta's records to a state that nobody sees yet; after an error it is of no use."""
    sync_tables(state, reader.meta["tables"], reader.path)
    by_id = {entry.id: entry for entry in state.tables.values()}
    awaited = await_sightings(state)
    for record in reader.records():
        if record.kind == RecordKind.ROWS:
            load_rows(state, by_id, record, reader.path)
        elif record.kind == RecordKind.REMOVED:
            entry = entry_of(by_id, record, reader.path)
            fids = np.frombuffer(record.payload, "<u8")
            with state.mutex:
                promote(state, entry, fids)
                entry.core.apply(NO_RECORDS, fids)
        elif record.kind == RecordKind.SIGHTINGS:
            entry = entry_of(by_id, record, reader.path)
            load_sightings(entry, bytes(record.payload), reader.path, awaited)
        elif record.kind == RecordKind.DENSE:
            set_dense(state, record, reader.path)


def load_rows(
    state: StoreState, by_id: Mapping[int, TableEntry], record: Record, path: str
) -> None:
    """Load the rows of one ROWS record."""
    entry, records = _rows_in(by_id, record, path)
    with state.mutex:
        if state.overflow is not None:
            promote(state, entry, entry.rows_of(records)["fid"].astype(np.uint64))
        entry.core.apply(records, NO_FIDS)
        if state.budget is not None:
            state.budget.settle()


def _rows_in(
    by_id: Mapping[int, TableEntry], record: Record, path: str
) -> tuple[TableEntry, NDArray[np.uint8]]:
    entry = entry_of(by_id, record, path)
    if len(record.payload) != record.count * entry.core.record_bytes:
        raise CorruptionError(
            f"{path} at byte {record.offset}: rows of {len(record.payload) // record.count} "
            f"bytes, table {entry.schema.name} has {entry.core.record_bytes}; run mkv verify",
            path,
            record.offset,
        )
    return entry, np.frombuffer(record.payload, np.uint8)


def set_dense(state: StoreState, record: Record, path: str) -> None:
    """Take the dense parameters in a DENSE record."""
    data = bytes(record.payload)
    state.dense.arrays = dense.unpack(data, path)
    state.dense.data = data
    state.dense.version = record.count
    state.dense.is_pending = False


# --- checks --------------------------------------------------------------------------------


def check_identity(
    path: str, reader: delta_log.DeltaReader | snapshot.SnapshotReader, manifest: Manifest
) -> None:
    """Refuse a file of another store, or of another history of this one."""
    identity = reader.header.identity
    if identity.uuid != manifest.uuid:
        raise CorruptionError(f"{path} belongs to store {identity.uuid}, not {manifest.uuid}", path)
    if not manifest.lineage.covers(reader.lineage, identity.number):
        raise CorruptionError(f"{path} belongs to another history of the store", path, 0)


def _refuse_to_write(state: StoreState, header: Header, path: str) -> None:
    """Refuse a file with features that this version may read but not keep up, unless to read."""
    if state.mode != "r":
        header.refuse_to_write(path)


def missing(path: str, error: OSError) -> CorruptionError:
    """Return the error for a file that the manifest names and that is not there."""
    lost = CorruptionError(
        f"{path} is missing, the manifest names it; restore a snapshot, or salvage", path
    )
    lost.__cause__ = error
    return lost


def position(path: str, manifest: Manifest) -> tuple[Any, ...]:
    """Return what tells a reader whether there is a later durable state."""
    newest = manifest.snapshots[-1] if manifest.snapshots else None
    logs = []
    for number in call_log.numbers(path):
        if number >= manifest.first_call_log:
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(call_log.path_of(path, number)).st_size
                if size > HEADER_BYTES:
                    logs.append((number, size))
    return (
        manifest.uuid,
        manifest.lineage,
        manifest.sequence,
        newest["name"] if newest and newest["sequence"] == manifest.sequence else None,
        manifest.dense.get("version"),
        tuple(logs),
    )
