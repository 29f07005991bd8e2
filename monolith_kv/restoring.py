"""Restore: make a new store from one snapshot, or from those of several shards.

What must hold: the new store appears under its name wholly or not at all: it is built in a folder
beside it, which gets the name last; by then every byte was verified. One whole snapshot is read
once: its file becomes the new store's, its rows go into the memory of the store to be opened. From
several, or from a part, a new one is written; memory is then one block of rows, and for several
snapshots the ids that were seen.
"""

import contextlib
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv._table import Barrier, TableCore
from monolith_kv.errors import CorruptionError, DataLossWarning, Error, SchemaError
from monolith_kv.fids import distinct
from monolith_kv.lineage import Lineage
from monolith_kv.schema import TableSchema
from monolith_kv.state import Settings, StoreState, Summed, store_digest
from monolith_kv.storage import files, format, manifest, snapshot
from monolith_kv.storage.adopting import adopt
from monolith_kv.storage.format import RecordKind
from monolith_kv.storage.framing import Record
from monolith_kv.storage.manifest import Manifest
from monolith_kv.storage.recovery import Base, load_snapshot
from monolith_kv.storage.snapshot import SnapshotReader, SnapshotWriter
from monolith_kv.storage.tables import read_schemas

Keep = Callable[[str, NDArray[np.uint64]], NDArray[np.bool_]]
Progress = Callable[[int, int], None]
FID = np.dtype("<u8")


def restore_files(
    sources: Sequence[str],
    state: StoreState,
    progress: Progress | None,
    keep: Keep | None,
) -> Base | None:
    """Make the store at `state.path` from snapshot files; see `monolith_kv.restore`.

    Parameters
    ----------
    state : StoreState
        Empty; of the store that will be opened.

    Returns
    -------
    Base or None
        What the state has been filled with; None where it is still empty.
    """
    refuse_taken(state.path)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(SnapshotReader(source)) for source in sources]
        if len(readers) == 1 and keep is None:
            return _restore_whole(readers[0], state, progress)
        for reader in readers:
            reader.verify()
        build(state.path, lambda folder: _write(folder, readers, state, progress, keep))
        return None


def _restore_whole(
    source: SnapshotReader, state: StoreState, progress: Progress | None
) -> Base | None:
    taken: list[Base] = []
    before = os.stat(source.path)
    try:
        build(state.path, lambda folder: taken.extend(_take(folder, source, state, progress)))
    except BaseException:
        with contextlib.suppress(OSError):  # It may have become read-only for nothing.
            if before.st_nlink == os.stat(source.path).st_nlink:  # Nobody else has taken it over.
                os.chmod(source.path, stat.S_IMODE(before.st_mode))
        raise
    return taken[0] if taken else None


def refuse_taken(path: str) -> None:
    """Raise FileExistsError unless `path` is absent or an empty folder."""
    if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
        raise FileExistsError(f"{path} is not empty; choose a new folder")


def build(path: str, write: Callable[[str], None]) -> None:
    """Call `write` with a new folder, which gets the name `path` when it returns.

    Notes
    -----
    What killed builders of the same name have left is removed first.
    """
    files.make_folder(os.path.dirname(path))
    remove_abandoned(path)
    folder = temporary_folder(path)
    try:
        with files.FolderLock(folder):
            write(folder)
            files.publish(folder, path, replace=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def temporary_folder(path: str) -> str:
    """Make a folder beside `path`, for `remove_abandoned` to find; whoever uses it locks it."""
    parent, name = os.path.split(path)
    folder = os.path.join(parent, f".{name}.{os.urandom(8).hex()}{files.TEMPORARY_SUFFIX}")
    files.make_folder(folder)
    return folder


def remove_abandoned(path: str) -> None:
    """Remove folders beside `path` in which processes that have gone were building it."""
    parent, name = os.path.split(path)
    is_built = re.compile(
        rf"\.{re.escape(name)}\.[0-9a-f]{{16}}{re.escape(files.TEMPORARY_SUFFIX)}"
    )
    for found in os.listdir(parent):
        folder = os.path.join(parent, found)
        # Without a lock it is about to be taken, or holds nothing.
        if is_built.fullmatch(found) and os.path.lexists(os.path.join(folder, files.LOCK_NAME)):
            with contextlib.suppress(Error, OSError), files.FolderLock(folder):
                shutil.rmtree(folder)


# --- one whole snapshot --------------------------------------------------------------------


def _take(
    folder: str, source: SnapshotReader, state: StoreState, progress: Progress | None
) -> list[Base]:
    """Take the snapshot's file over, and its rows into the state unless that has a limit."""
    identity = source.header.identity
    path = snapshot.path_of(folder, format.snapshot_name(identity.number, identity.epoch))
    files.make_folder(os.path.dirname(path))
    adopt(source.path, path)
    loaded = []
    try:
        with SnapshotReader(path) as reader:
            if reader.header != source.header or reader.end != source.end:
                raise CorruptionError(f"{path} changed while it was restored", path, 0)
            if state.settings.memory_limit is None:
                loaded.append(load_snapshot(state, reader, progress))
            else:  # The overflow tier is part of the store: rows go there when it is opened.
                _verify(reader, progress)
    except CorruptionError as error:  # The file that its user knows has the damage, too.
        text = str(error).replace(path, source.path)
        raise CorruptionError(text, source.path, error.offset) from error
    meta = reader.meta
    # When its rows were as they are is what counts, for retention as for how far a replica lags.
    named = _named(
        reader.lineage, meta["sequence"], reader.end["rows"], reader.size, meta["created_at"]
    )
    lineage = reader.lineage
    if state.mode == "rw":
        lineage = lineage.begin(after=meta["sequence"])
    # Logs are numbered on from where the snapshot says: that is where recovery looks for them.
    _store_manifest(folder, state, meta, lineage, named, meta.get("calls_from", 0))
    return loaded


def _verify(reader: SnapshotReader, progress: Progress | None) -> None:
    rows = 0
    for record in reader.records():
        if record.kind == RecordKind.ROWS and progress is not None:
            rows += record.count
            progress(rows, reader.end["rows"])


def _named(
    lineage: Lineage, sequence: int, rows: int, size: int, created_at: float
) -> dict[str, Any]:
    """Return the entry of the only snapshot of the new store."""
    return {
        "name": format.snapshot_name(sequence, lineage.epoch),
        "sequence": sequence,
        "epoch": lineage.epoch,
        "rows": rows,
        "bytes": size,
        "created_at": created_at,
        "lineage": lineage.to_json(),
        "logged": False,
    }


def _store_manifest(
    folder: str,
    state: StoreState,
    meta: dict[str, Any],
    lineage: Lineage,
    named: dict[str, Any],
    calls_from: int,
) -> None:
    tables = meta["tables"]
    state.manifest = Manifest(
        uuid=meta["uuid"],
        lineage=lineage,
        sequence=meta["sequence"],
        mode=state.mode,
        cursor=meta["cursor"],
        tables=tables,
        next_table_id=1 + max((table["id"] for table in tables), default=0),
        snapshots=[named],
        first_call_log=max(1, calls_from),
        clock_high=max(named["created_at"], float(state.clock())),
    )
    manifest.store(folder, state.manifest)


# --- several, or a part --------------------------------------------------------------------


def _write(
    folder: str,
    readers: list[SnapshotReader],
    state: StoreState,
    progress: Progress | None,
    keep: Keep | None,
) -> None:
    first = readers[0]
    if len(readers) > 1:
        identity, lineage, sequence = os.urandom(16).hex(), Lineage().begin(after=0), 0
        cursor: dict[str, Any] = {}
    else:
        identity, lineage = first.meta["uuid"], first.lineage
        sequence, cursor = first.meta["sequence"], first.meta["cursor"]
    merge = Merge(readers, keep, progress)
    meta: dict[str, Any] = {
        "uuid": identity,
        "lineage": lineage.to_json(),
        "sequence": sequence,
        "cursor": cursor,
        "tables": merge.tables_json(),
        "created_at": float(state.clock()),
        "dense_version": first.meta["dense_version"],
        "calls_from": 0,
        "unsealed": _unsealed(readers),
    }
    with SnapshotWriter(folder, identity, sequence, lineage.epoch) as writer:
        writer.meta(meta)
        merge.write(writer)
        _, size = writer.publish({"digest": merge.digest()})
        named = _named(lineage, sequence, writer.rows_written, size, meta["created_at"])
    if state.mode == "rw" and len(readers) == 1:
        lineage = lineage.begin(after=sequence)
    _store_manifest(folder, state, meta, lineage, named, 0)


def _unsealed(readers: list[SnapshotReader]) -> dict[str, bool]:
    if len(readers) > 1:  # A new history: its first delta has everything.
        return {"schema": True, "dense": bool(readers[0].meta["dense_version"])}
    found = readers[0].meta.get("unsealed", {})
    return {key: bool(found.get(key)) for key in ("schema", "dense")}


class Merge:
    """Reads snapshots as one: tables by name, rows that are kept, gates added up.

    Parameters
    ----------
    readers : list of SnapshotReader
        Verified.
    keep : callable, optional
        keep(table name, ids) -> mask.
    progress : callable, optional
        Called with (records read, records in all).
    """

    def __init__(
        self, readers: list[SnapshotReader], keep: Keep | None, progress: Progress | None
    ) -> None:
        self._readers = readers
        self._keep = keep
        self._progress = progress
        self._is_one = len(readers) == 1
        self._done = 0
        self._total = sum(reader.end["rows"] for reader in readers)
        self._schemas = [read_schemas(reader.meta["tables"], reader.path) for reader in readers]
        self._ids: dict[str, int] = {}
        self._merged: dict[str, TableSchema] = {}
        for reader, schemas in zip(readers, self._schemas, strict=True):
            for table_id, schema in schemas.items():
                known = self._merged.setdefault(schema.name, schema)
                if not known.same_kind(schema):
                    raise SchemaError(
                        f"{reader.path}: table {schema.name} has other slices than in "
                        f"{readers[0].path}; their rows cannot be joined"
                    )
                next_id = table_id if self._is_one else len(self._ids) + 1
                self._ids.setdefault(schema.name, next_id)
        self._state = StoreState("", "r", Settings(), lambda: 0.0, lambda: 0.0)
        self._entries = {
            name: self._state.make_entry(self._ids[name], schema)
            for name, schema in self._merged.items()
        }
        self._digests: dict[str, list[int]] = {name: [0, 0] for name in self._merged}
        self._seen: dict[str, list[NDArray[np.uint64]]] = {name: [] for name in self._merged}
        self._touched: dict[str, list[NDArray[np.uint64]]] = {name: [] for name in self._merged}

    def tables_json(self) -> list[dict[str, Any]]:
        """Return the schemas of the tables, with their ids."""
        return [entry.to_json() for entry in self._entries.values()]

    def write(self, writer: SnapshotWriter) -> None:
        """Write what is kept behind META."""
        for number, reader in enumerate(self._readers):
            schemas = self._schemas[number]
            for record in reader.records():
                if record.kind == RecordKind.DENSE:
                    if number == 0:
                        writer.dense(record.count, record.payload)
                    continue
                if record.table not in schemas:
                    raise CorruptionError(
                        f"{reader.path} at byte {record.offset}: no table {record.table}",
                        reader.path,
                        record.offset,
                    )
                self._take(writer, schemas[record.table].name, record, reader.path)
            self._refuse_twice(reader)
        for name, entry in self._entries.items():
            gate = entry.core.gate_state()
            if gate:
                writer.gate(entry.id, [gate])
            touched = self._touched[name] if self._is_one else self._seen[name]
            if touched:
                writer.touched(entry.id, distinct(np.concatenate(touched)))

    def digest(self) -> str:
        """Return the digest of what was written."""
        known = [
            Summed(entry.schema, (low, high))
            for entry, (low, high) in zip(
                self._entries.values(), self._digests.values(), strict=True
            )
        ]
        return store_digest(known)

    def _take(self, writer: SnapshotWriter, name: str, record: Record, path: str) -> None:
        entry = self._entries[name]
        if record.kind == RecordKind.ROWS:
            self._take_rows(writer, name, record)
        elif record.kind == RecordKind.GATE:
            try:
                entry.core.gate_load(bytes(record.payload), True)
            except ValueError:  # Gates of other geometry cannot be added up.
                warnings.warn(
                    f"the gate of table {name} in {path} has another capacity, error or window "
                    f"than in {self._readers[0].path}: what it has counted is lost, ids that wait "
                    "there for admission begin anew",
                    DataLossWarning,
                    stacklevel=8,
                )
        elif record.kind == RecordKind.SIGHTINGS and self._is_one:
            writer.sightings(entry.id, record.payload)
        elif record.kind == RecordKind.TOUCHED and self._is_one:
            self._touched[name].append(np.frombuffer(record.payload, FID).astype(np.uint64))

    def _take_rows(self, writer: SnapshotWriter, name: str, record: Record) -> None:
        entry = self._entries[name]
        records = np.frombuffer(record.payload, np.uint8)
        rows = entry.rows_of(records)
        fids = rows["fid"].astype(np.uint64)
        mask = self._mask(name, fids)
        if not mask.all():
            if self._is_one:
                # The history goes on, so a replica of the whole may follow: the next delta tells
                # it what went.
                self._touched[name].append(fids[~mask])
            rows, fids = rows[mask], fids[mask]
        if not self._is_one:
            self._seen[name].append(fids)
        if len(rows):
            packed = np.ascontiguousarray(rows).view(np.uint8)
            writer.rows(entry.id, packed, len(rows))
            self._add_digest(entry.schema, name, packed)
        self._done += record.count
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _mask(self, name: str, fids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        if self._keep is None:
            return np.ones(len(fids), np.bool_)
        mask = np.asarray(self._keep(name, fids.copy()))
        if mask.dtype != np.bool_ or mask.shape != fids.shape:
            raise TypeError(
                f"keep must return bool of shape {fids.shape}, got {mask.dtype} {mask.shape}"
            )
        return mask

    def _add_digest(self, schema: TableSchema, name: str, packed: NDArray[np.uint8]) -> None:
        # The data plane knows how a row is hashed: a table that holds just these tells it.
        core = TableCore(Barrier(), schema.core_slices(), 0)
        core.apply(packed, np.empty(0, np.uint64))
        total = self._digests[name]
        for index, part in enumerate(core.digest()):
            total[index] = (total[index] + part) % 2**64

    def _refuse_twice(self, reader: SnapshotReader) -> None:
        if self._is_one:
            return
        for name, parts in self._seen.items():
            fids = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)
            twice = fids[1:][fids[1:] == fids[:-1]]
            if len(twice):
                raise ValueError(
                    f"{reader.path}: {len(twice)} ids of table {name}, id {twice[0]} for one, are "
                    "in two of the snapshots; give each shard once, or let keep() select them"
                )
