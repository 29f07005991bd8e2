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

Opener = Callable[[], SnapshotReader | DeltaReader]


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
    if state.is_recovering:  # The files have later states of rows than memory.
        return entry.rows_of(NO_RECORDS)
    missing = without(fids, entry.core.touched_fids())
    found: list[NDArray[Any]] = []
    for chain in _chains(state):
        if not len(missing):
            break
        latest: dict[int, NDArray[Any]] = {}
        for open_file in chain:
            try:
                with open_file() as reader:
                    _collect(entry, reader, missing, latest)
            except (Error, OSError):
                latest.clear()  # It may have had later states of rows that were found so far.
        found += latest.values()
        missing = without(missing, np.fromiter(latest, np.uint64, len(latest)))
    if not found:
        return entry.rows_of(NO_RECORDS)
    rows = np.concatenate(found)
    return rows[np.argsort(rows["fid"])]


def _chains(state: StoreState) -> Iterator[list[Opener]]:
    """Yield what leads to the last durable rows, in order: each snapshot with the deltas after it.

    Notes
    -----
    A cold row is read from the newest snapshot itself, if the store was opened from that: where it
    is damaged there, the snapshot before has it, too, as long as no delta since is missing.
    """
    found = state.visible
    by_number = {entry["sequence"]: entry["name"] for entry in found.deltas}
    for named in [*reversed(found.snapshots), None]:
        sequence, chain = 0, list[Opener]()
        if named is not None:
            sequence = named["sequence"]
            chain.append(partial(SnapshotReader, snapshot_path(state.path, named["name"])))
        numbers = range(sequence + 1, found.sequence + 1)
        if all(number in by_number for number in numbers):
            chain += [
                partial(DeltaReader, delta_path(state.path, by_number[number]))
                for number in numbers
            ]
            yield chain


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
