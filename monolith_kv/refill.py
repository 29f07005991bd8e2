"""Rows whose record in the overflow tier is damaged, taken from snapshot and deltas again."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv.errors import Error
from monolith_kv.fids import without
from monolith_kv.state import NO_RECORDS, StoreState, TableEntry
from monolith_kv.storage.delta_log import DeltaReader
from monolith_kv.storage.delta_log import path_of as delta_path
from monolith_kv.storage.format import RecordKind
from monolith_kv.storage.snapshot import SnapshotReader
from monolith_kv.storage.snapshot import path_of as snapshot_path


def refill(state: StoreState, entry: TableEntry, fids: NDArray[np.uint64]) -> NDArray[Any]:
    """Return the records of those ids whose last state is in the files, sorted by fid.

    Parameters
    ----------
    state : StoreState
        Of the store; under its mutex, so that no row changes meanwhile.
    entry : TableEntry
        The table.
    fids : ndarray of uint64
        Cold ids. Those touched since the last seal are passed over: no file has their last state.
    """
    wanted = without(fids, entry.core.touched_fids())
    latest: dict[int, NDArray[Any]] = {}
    if len(wanted):
        for open_file in _openers(state):
            try:
                _collect(entry, open_file(), wanted, latest)
            except (Error, OSError):
                latest.clear()  # It may have had later states of rows that were found so far.
    if not latest:
        return entry.rows_of(NO_RECORDS)
    return np.concatenate([latest[fid] for fid in sorted(latest)])


def _openers(state: StoreState) -> Iterator[Callable[[], SnapshotReader | DeltaReader]]:
    """Yield what opens the newest snapshot and the deltas after it, in order."""
    found, sequence = state.manifest, 0
    if found.snapshots:
        newest = found.snapshots[-1]
        sequence = newest["sequence"]
        yield partial(SnapshotReader, snapshot_path(state.path, newest["name"]))
    for entry in found.deltas:
        if entry["sequence"] > sequence:
            yield partial(DeltaReader, delta_path(state.path, entry["name"]))


def _collect(
    entry: TableEntry,
    reader: SnapshotReader | DeltaReader,
    wanted: NDArray[np.uint64],
    latest: dict[int, NDArray[Any]],
) -> None:
    for record in reader.records():
        if record.kind != RecordKind.ROWS or record.table != entry.id:
            continue
        rows = entry.rows_of(np.frombuffer(record.payload, np.uint8))
        for place in np.flatnonzero(np.isin(rows["fid"], wanted)):
            latest[int(rows["fid"][place])] = rows[place : place + 1].copy()
