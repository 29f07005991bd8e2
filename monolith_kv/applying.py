"""A replica moves forward by deltas; a reader by what the writer has made durable since.

What must hold: a delta is verified as a whole before anything changes; what is durable are whole
deltas, the position and the rows in one step, by the manifest that names the replica's own copy.
Memory comes along: wholly, or not at all where that fails.
"""

import contextlib
import os
from dataclasses import replace
from typing import Any

from monolith_kv.catalog import commit, drop_file
from monolith_kv.delta_loading import Loading
from monolith_kv.errors import CorruptionError, Error, FencedError, GapError, ReadOnlyError
from monolith_kv.lineage import Lineage
from monolith_kv.opening import read_state, release
from monolith_kv.state import StoreState
from monolith_kv.storage import delta_log, files, format, manifest
from monolith_kv.storage.delta_log import DeltaReader
from monolith_kv.storage.format import DELTA_FOLDER
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.recovery import position
from monolith_kv.storage.tables import check_schemas, read_schemas


def apply_delta(state: StoreState, path: str) -> bool:
    """Apply the delta in a file to a replica; False if the replica has it."""
    with state.files, DeltaReader(path) as reader:
        found = state.manifest
        if not _is_next(found, reader):
            return False
        _refuse_other_part(state, reader)
        _verify(state, reader)
        identity = reader.header.identity
        name = format.delta_name(identity.number, identity.epoch)
        own = delta_log.path_of(state.path, name)
        files.make_folder(os.path.join(state.path, DELTA_FOLDER))
        files.copy_durably(path, own)
        state.manifest_before = found
        try:
            with DeltaReader(own) as copy:
                if copy.header != reader.header or copy.end != reader.end:
                    raise CorruptionError(f"{path} changed while it was applied", path, 0)
                _verify(state, copy)
                loading = Loading(state, copy)
                loading.prepare()
                try:
                    _name_delta(state, copy, name, own)
                except BaseException:
                    loading.undo()
                    raise
                loading.finish()
        except BaseException:
            if state.manifest is found:
                drop_file(state, own)
            raise
        finally:
            state.manifest_before = None
        state.partial = None
        state.is_log_whole = True
        state.instants.clear()
        state.check_durable()
        return True


def _is_next(found: Manifest, reader: DeltaReader) -> bool:
    """Tell whether a delta follows; False if it was applied, or raise why it must not be."""
    identity, lineage = reader.header.identity, reader.lineage
    path = reader.path
    if found.uuid and identity.uuid != found.uuid:
        raise FencedError(
            f"{path} belongs to store {identity.uuid}, this replica follows {found.uuid}; restore "
            "a snapshot of that store elsewhere"
        )
    sequence, applied = identity.number, found.sequence
    if found.uuid and sequence <= applied:
        if found.lineage.at(sequence) == lineage.at(sequence):
            return False
        raise FencedError(
            f"{path} is delta {sequence} of another history than the replica's, which has applied "
            f"delta {applied}; restore a snapshot of the history to follow"
        )
    if found.uuid and not lineage.extends(found.lineage, applied):
        raise FencedError(
            f"{path} is of epoch {lineage.epoch}, whose history parted from the replica's (epoch "
            f"{found.lineage.epoch}) before delta {applied}; restore a snapshot of it"
        )
    if sequence != applied + 1:
        raise GapError(
            f"{path} is delta {sequence}, expected delta {applied + 1}; apply those between, or "
            "restore a snapshot",
            expected=applied + 1,
            found=sequence,
        )
    return True


def _refuse_other_part(state: StoreState, reader: DeltaReader) -> None:
    """Fence a delta that may not cover what the replica's snapshot held beyond its sequence."""
    sequence = reader.header.identity.number
    if (
        state.partial is not None
        and reader.lineage.at(sequence) != state.manifest.lineage.at(sequence)
        and state.partial not in reader.meta.get("includes", [])
    ):
        raise FencedError(
            f"{reader.path} is of epoch {reader.lineage.epoch}, begun after a crash that may have "
            "lost rows which the replica has from its snapshot; restore a later snapshot"
        )


def _verify(state: StoreState, reader: DeltaReader) -> None:
    """Read every byte, once, and compare what it says with the tables."""
    schemas = read_schemas(reader.meta["tables"], reader.path)
    check_schemas(state, schemas, reader.path)
    sizes = {i: 16 + 4 * (s.dim + s.state_floats) for i, s in schemas.items()}
    for record in reader.records():
        if record.kind in (format.RecordKind.ROWS, format.RecordKind.REMOVED):
            size = sizes.get(record.table)
            is_rows = record.kind == format.RecordKind.ROWS
            if size is None or (is_rows and len(record.payload) != size * record.count):
                raise CorruptionError(
                    f"{reader.path} at byte {record.offset}: rows do not fit table "
                    f"{record.table}; run mkv verify",
                    reader.path,
                    record.offset,
                )


def _name_delta(state: StoreState, reader: DeltaReader, name: str, path: str) -> None:
    found, meta = state.manifest, reader.meta
    identity = reader.header.identity
    named = {
        "name": name,
        "sequence": identity.number,
        "epoch": identity.epoch,
        "rows": reader.end["rows"],
        "removals": reader.end["removals"],
        "bytes": os.path.getsize(path),
        "sealed_at": meta["sealed_at"],
    }
    commit(
        state,
        uuid=identity.uuid,
        lineage=reader.lineage.truncated(identity.number),
        sequence=identity.number,
        cursor=found.cursor if meta["cursor"] is None else meta["cursor"],
        tables=meta["tables"],
        next_table_id=max([found.next_table_id, *(t["id"] + 1 for t in meta["tables"])]),
        deltas=[*found.deltas, named],
    )


# --- promotion -----------------------------------------------------------------------------


def promote_replica(state: StoreState) -> None:
    """Make a replica the writer, in a new epoch."""
    with state.files, state.mutex:
        found = state.manifest
        if not found.uuid:
            raise ReadOnlyError(
                f"{state.path} has received nothing yet: there is no store to go on with; open a "
                'new one with mode "rw"'
            )
        lineage: Lineage = found.lineage.begin(after=found.sequence)
        commit(
            state,
            mode="rw",
            lineage=lineage,
            clean=False,
            first_call_log=max(found.first_call_log, state.next_log),
        )
        state.check_durable()
        state.mode = "rw"


# --- readers -------------------------------------------------------------------------------


def refresh_reader(state: StoreState) -> bool:
    """Move a reader to the last durable state; False if it is there."""
    with state.files:
        found = manifest.load(state.path)
        if found is None:
            raise Error(f"there is no store at {state.path} any more")
        target = position(state.path, found)
        if target == state.read_position:
            return False
        if not _advance(state, found, target):
            _reload(state)
        return True


def _advance(state: StoreState, found: Manifest, target: tuple[Any, ...]) -> bool:
    """Apply the deltas since, if they are all that is new; False where only a reload will do."""
    was = state.manifest
    later = [entry for entry in found.deltas if entry["sequence"] > was.sequence]
    is_plain = (
        was.uuid == found.uuid
        and found.lineage.extends(was.lineage, was.sequence)
        and state.calls_replayed == 0
        and not target[5]
        and target[3] is None
        and (state.read_position or (None,) * 6)[3] is None
        and found.dense.get("version") == was.dense.get("version")
        and [entry["sequence"] for entry in later]
        == list(range(was.sequence + 1, found.sequence + 1))
    )
    if not is_plain:
        return False
    with contextlib.ExitStack() as stack:
        readers = []
        try:
            for entry in later:
                path = delta_log.path_of(state.path, entry["name"])
                reader = stack.enter_context(DeltaReader(path))
                if not found.lineage.covers(reader.lineage, reader.header.identity.number):
                    return False
                _verify(state, reader)
                readers.append(reader)
        except (OSError, Error):
            return False
        for reader, entry in zip(readers, later, strict=True):
            _read_on(state, reader, entry)
    state.manifest, state.read_position = found, target
    return True


def _read_on(state: StoreState, reader: DeltaReader, entry: dict[str, Any]) -> None:
    """Apply one delta; where the next one fails the reader stands here, and goes on from here."""
    loading = Loading(state, reader)
    loading.prepare()
    loading.finish()
    known, cursor = state.manifest, reader.meta["cursor"]
    state.manifest = replace(
        known,
        lineage=reader.lineage.truncated(entry["sequence"]),
        sequence=entry["sequence"],
        cursor=known.cursor if cursor is None else cursor,
        deltas=[*known.deltas, entry],
    )


def _reload(state: StoreState) -> None:
    """Build the later state beside the present one, then move over to it."""
    fresh = read_state(state.path, state.settings, state.clock, state.monotonic)
    with state.mutex:
        old = {entry.id: entry for entry in state.tables.values()}
        tables = {}
        state.overflow, fresh.overflow = fresh.overflow, state.overflow
        for name, entry in fresh.tables.items():
            known = old.pop(entry.id, None)
            if known is not None and known.schema.same_kind(entry.schema):
                known.core, known.schema = entry.core, entry.schema
                known.pending_sightings = entry.pending_sightings
                tables[name] = known
            else:
                tables[name] = entry
        for gone in old.values():
            gone.dropped = True
        state.tables = tables
        state.dense = fresh.dense
        state.manifest = fresh.manifest
        state.lost = fresh.lost
        state.calls_replayed = fresh.calls_replayed
        state.read_position = fresh.read_position
        state.next_log, state.next_table_id = fresh.next_log, fresh.next_table_id
    release(fresh)
