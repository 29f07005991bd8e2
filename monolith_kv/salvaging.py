"""Salvage: from a damaged store all that is provably good, into a new one.

Only what passes its checksum is used. A sound store is copied. Of a damaged one the base is the
newest snapshot that is whole, or else the good part of the newest; then come the good parts of the
deltas after it; then the logged calls, if all before them was good. What could not be saved is told
in words. The new store has an identity of its own: replicas of the old one start from a snapshot.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from monolith_kv.budget import promote
from monolith_kv.checkpoint import write_snapshot
from monolith_kv.errors import CorruptionError, Error
from monolith_kv.lineage import Lineage
from monolith_kv.opening import open_overflow, release
from monolith_kv.restoring import build, refuse_taken, temporary_folder
from monolith_kv.state import NO_RECORDS, Settings, StoreState
from monolith_kv.storage import call_log, delta_log, files, manifest, snapshot
from monolith_kv.storage.cold_rows import as_rows, good_places
from monolith_kv.storage.format import (
    HEADER_BYTES,
    OVERFLOW_FOLDER,
    PLACE_SUM_BYTES,
    FileType,
    RecordKind,
)
from monolith_kv.storage.framing import Record, decode_json
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.pending import load_sightings
from monolith_kv.storage.recovery import (
    load_dense,
    load_rows,
    recover,
    set_dense,
)
from monolith_kv.storage.scan import good_records
from monolith_kv.storage.tables import entry_of, sync_tables
from monolith_kv.verifying import verify_files

MEMORY_BYTES = 1 << 30  # Of rows and index; past that, rows go to disk on the way.


def salvage_files(path: str, to: str, clock: Callable[[], float]) -> list[str]:
    """Save a damaged store; see `monolith_kv.salvage`."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"there is no store at {path}")
    refuse_taken(to)
    problems: list[str] = []
    files.make_folder(os.path.dirname(to))
    state = _empty(path, to, clock)
    try:
        try:
            found = manifest.load(path)
            if found is None:
                raise FileNotFoundError(f"there is no store at {path}")
            recover(state, found, may_adopt=False)  # What is not verified is not saved.
        except (Error, OSError) as error:
            problems.append(str(error))
            # Calls are loaded last: those before a damaged one are made by now.
            if not str(getattr(error, "path", "")).endswith(".calls"):
                release(state)
                state = _empty(path, to, clock)
                _gather(state, problems)
        else:
            problems += [f"{loss['path']}: {loss['what']}" for loss in state.lost]
            problems += verify_files(state, found)
        if not state.tables and not state.dense.version and problems:
            raise CorruptionError(f"nothing of {path} could be saved: {'; '.join(problems)}", path)
        build(to, lambda folder: _write(state, folder))
    finally:
        release(state)
    return list(dict.fromkeys(problems))


def _empty(path: str, to: str, clock: Callable[[], float]) -> StoreState:
    """Return a state without tables, whose rows past MEMORY_BYTES go to disk beside `to`."""
    settings = Settings(durability="none", snapshots_kept=1, memory_limit=MEMORY_BYTES)
    state = StoreState(path, "r", settings, clock, clock)
    folder = temporary_folder(to)
    state.lock = files.FolderLock(folder)
    open_overflow(state, os.path.join(folder, OVERFLOW_FOLDER))
    return state


def _write(state: StoreState, folder: str) -> None:
    """Write what was gathered as the only snapshot of a new store."""
    found = state.manifest
    state.path = folder
    state.manifest = Manifest(
        uuid=os.urandom(16).hex(),
        lineage=Lineage().begin(after=0),
        sequence=max(found.sequence, 1),  # No deltas lead here from an empty store.
        cursor=found.cursor,
        tables=state.tables_json(),
        next_table_id=state.next_table_id,
    )
    state.next_log = 1
    state.is_log_whole = False
    write_snapshot(state, None, None)


# --- a damaged store -----------------------------------------------------------------------


def _gather(state: StoreState, problems: list[str]) -> None:
    """Fill the state with what is good; its manifest becomes what is known of the store."""
    root = state.path
    try:
        found = manifest.load(root)
    except (Error, OSError) as error:
        problems.append(str(error))
        found = None
    if found is None:
        snapshots, deltas = snapshot.names(root), delta_log.names(root)
        found = Manifest()
        is_known = False
    else:
        snapshots = [entry["name"] for entry in found.snapshots]
        deltas = [entry["name"] for entry in found.deltas]
        is_known = True
    state.manifest = found
    sequence = _gather_base(state, [snapshot.path_of(root, name) for name in snapshots], problems)
    for path in _newest_epochs(delta_log.path_of(root, name) for name in deltas):
        number = int(os.path.basename(path)[:20])
        if number <= sequence:
            continue
        if number > sequence + 1:
            problems.append(f"{root}: deltas {sequence + 1} to {number - 1} are missing")
        _gather_file(state, path, FileType.DELTA, problems)
        sequence = number
    if is_known and found.sequence > sequence:
        problems.append(f"{root}: deltas {sequence + 1} to {found.sequence} are missing")
    found.sequence = max(found.sequence, sequence)
    if is_known:
        _gather_rest(state, problems)


def _newest_epochs(paths: Iterable[str]) -> list[str]:
    """Return one path for each sequence, that of its latest epoch, in order."""
    latest = {os.path.basename(path)[:20]: path for path in sorted(paths)}
    return [latest[number] for number in sorted(latest)]


def _gather_base(state: StoreState, paths: list[str], problems: list[str]) -> int:
    """Load the newest snapshot that is whole, or what is good of the newest; its sequence.

    Parameters
    ----------
    paths : list of str
        Oldest first. Names do not tell the order of several at one sequence.
    """
    chosen = ""
    for path in reversed(paths):
        chosen = chosen or path
        try:
            with snapshot.SnapshotReader(path) as reader:
                reader.verify()
        except (Error, OSError) as error:
            problems.append(str(error))
            continue
        chosen = path
        break
    if not chosen:
        return 0
    _gather_file(state, chosen, FileType.SNAPSHOT, problems)
    return int(os.path.basename(chosen)[:20])


def _gather_file(state: StoreState, path: str, file_type: FileType, problems: list[str]) -> None:
    """Load the good records of a snapshot or a delta."""
    before, last = len(problems), 0
    try:
        for record in good_records(path, file_type, problems):
            try:
                if record.kind == RecordKind.COLD_IDS and last != RecordKind.COLD:
                    record = _good_places(state, record, path)
                last = record.kind
                _gather_record(state, record, path)
            except (Error, ValueError) as error:
                problems.append(f"{path} at byte {record.offset}: {error}")
    except (Error, OSError) as error:
        problems.append(str(error))
    if len(problems) > before:
        problems.append(f"{path}: what it says of other rows than those saved is lost")


def _good_places(state: StoreState, ids: Record, path: str) -> Record:
    """Return as ROWS what is good of damaged cold rows: each has a checksum of its own."""
    entry = entry_of({entry.id: entry for entry in state.tables.values()}, ids, path)
    return good_places(path, ids, entry.core.record_bytes + PLACE_SUM_BYTES)


def _gather_record(state: StoreState, record: Record, path: str) -> None:
    by_id = {entry.id: entry for entry in state.tables.values()}
    if record.kind == RecordKind.META:
        meta: dict[str, Any] = decode_json(record.payload, path, record.offset)
        sync_tables(state, meta["tables"], path)
        if meta.get("cursor") is not None:
            state.manifest.cursor = meta["cursor"]
        return
    if not by_id and state.manifest.tables:  # META was lost; the manifest knows the tables, too.
        sync_tables(state, state.manifest.tables, state.path)
        by_id = {entry.id: entry for entry in state.tables.values()}
    if record.kind == RecordKind.COLD:
        record = as_rows(record, path, None)
    if record.kind == RecordKind.ROWS and record.count:
        load_rows(state, by_id, record, path)
    elif record.kind == RecordKind.REMOVED:
        fids = np.frombuffer(record.payload, "<u8")
        entry = entry_of(by_id, record, path)
        promote(state, entry, fids)
        entry.core.apply(NO_RECORDS, fids)
    elif record.kind == RecordKind.GATE:
        entry_of(by_id, record, path).core.gate_load(bytes(record.payload), False)
    elif record.kind == RecordKind.SIGHTINGS:
        entry, data = entry_of(by_id, record, path), bytes(record.payload)
        if path.endswith(".snapshot"):  # Its GATE counts them.
            entry.pending_sightings.append(data)
        else:
            load_sightings(entry, data, path, {entry.id: entry.pending_sightings})
    elif record.kind == RecordKind.DENSE:
        set_dense(state, record, path)


def _gather_rest(state: StoreState, problems: list[str]) -> None:
    """Load the dense file. Calls are of no use on rows that are not those they were made on."""
    found = state.manifest
    try:
        load_dense(state, found)
    except (Error, OSError) as error:
        problems.append(str(error))
    numbers = [n for n in call_log.numbers(state.path) if n >= found.first_call_log]
    for path in (call_log.path_of(state.path, number) for number in numbers):
        with contextlib.suppress(OSError):
            if os.path.getsize(path) > HEADER_BYTES:
                problems.append(f"{path}: its calls cannot be made on damaged rows, they are lost")
