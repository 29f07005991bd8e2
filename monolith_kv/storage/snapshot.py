"""Snapshots: one self-contained file with all that a store held at one instant.

A snapshot is META, then ROWS, COLD with COLD_IDS, GATE, SIGHTINGS, TOUCHED and DENSE records in any
number, then END.
It appears under its name only when it is complete and durable. SIGHTINGS and TOUCHED are what no
delta holds yet: sightings that are in GATE, too, and ids touched or removed since the last one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv.storage import files, format
from monolith_kv.storage.cold_rows import SKIPPED, Adopt, ColdRows, append_cold, joined
from monolith_kv.storage.contents import (
    ContentsReader,
    ContentsWriter,
    Keys,
    Shape,
    append_fids,
    body,
    check_fids,
    check_rows,
)
from monolith_kv.storage.files import Buffer
from monolith_kv.storage.format import (
    SNAPSHOT_FOLDER,
    SNAPSHOT_PATTERN,
    FileIdentity,
    FileType,
    RecordKind,
)
from monolith_kv.storage.framing import Record, corruption
from monolith_kv.storage.record_file import RecordWriter

META_KEYS: Keys = {
    "uuid": str,
    "lineage": list,
    "sequence": int,
    "cursor": dict,
    "tables": list,
    "created_at": (int, float),
    "dense_version": int,
}
META_OPTIONAL: Keys = {"calls_from": int, "includes": list, "instant": str, "unsealed": dict}
END_KEYS: Keys = {"rows": int, "digest": str}
END_OPTIONAL: Keys = {"by_table": dict}
KINDS = frozenset(
    {
        RecordKind.ROWS,
        RecordKind.GATE,
        RecordKind.SIGHTINGS,
        RecordKind.TOUCHED,
        RecordKind.DENSE,
        RecordKind.COLD,
        RecordKind.COLD_IDS,
    }
)
SHAPE = Shape(FileType.SNAPSHOT, SNAPSHOT_PATTERN, META_KEYS, META_OPTIONAL, END_KEYS, END_OPTIONAL)


def path_of(root: str, name: str) -> str:
    """Return the path of the snapshot `name` of the store at `root`; refuse any other name."""
    return format.join_checked(root, SNAPSHOT_FOLDER, name, SNAPSHOT_PATTERN)


def names(root: str) -> list[str]:
    """Return the names of all snapshot files under the store, oldest first."""
    found = files.list_names(os.path.join(root, SNAPSHOT_FOLDER))
    matches = filter(None, map(SNAPSHOT_PATTERN.fullmatch, found))
    return [
        m[0] for m in sorted(matches, key=lambda m: tuple(int(part or 0) for part in m.groups()))
    ]


class SnapshotWriter(ContentsWriter):
    """Writes a snapshot; it appears, whole, when published.

    Parameters
    ----------
    root : str
        Folder of the store.
    uuid : str
        Of the store.
    sequence, epoch : int
        That it includes.
    path : str, optional
        Final name elsewhere, in an existing folder; by default it is under the store.
    number : int
        Of several snapshots at one sequence under the store, from 0.

    Raises
    ------
    FileExistsError
        `path` is taken. (One under the store is replaced: no manifest names it.)
    StoreFullError
        From any method: there is no room. Discard the snapshot then.

    Notes
    -----
    Not thread-safe. Call `meta` first.
    """

    def __init__(
        self,
        root: str,
        uuid: str,
        sequence: int,
        epoch: int,
        path: str | None = None,
        number: int = 0,
    ) -> None:
        if path is None:
            files.make_folder(os.path.join(root, SNAPSHOT_FOLDER))
            self.path = path_of(root, format.snapshot_name(sequence, epoch, number))
        elif os.path.lexists(path):  # Sooner than after an hour of writing.
            raise files.name_taken(path)
        else:
            self.path = path
        self.name = os.path.basename(self.path)
        self._by_table: dict[str, list[int]] = {}  # Rows in ROWS, and cold ones.
        identity = FileIdentity(uuid, epoch, sequence)
        super().__init__(RecordWriter(self.path, FileType.SNAPSHOT, identity, replace=path is None))

    @property
    def seed(self) -> int:
        """Where the checksums of places start."""
        return self._writer.seed

    def rows(self, table: int, records: NDArray[np.uint8], count: int) -> None:
        """Write packed rows of one table; see `ContentsWriter.rows`."""
        super().rows(table, records, count)
        self._count(table, 0, count)

    def cold(
        self, table: int, places: Sequence[NDArray[np.uint8]], digest: tuple[int, int]
    ) -> None:
        """Write rows of one table that lie in overflow; see `cold_rows.append_cold`."""
        count = append_cold(self._writer, table, places, digest)
        self.rows_written += count
        self._count(table, 1, count)

    def _count(self, table: int, tier: int, rows: int) -> None:
        self._by_table.setdefault(str(table), [0, 0])[tier] += rows

    def gate(self, table: int, pieces: Iterable[Buffer]) -> None:
        """Write the whole state of one table's gate, compressed, in pieces; none: nothing."""
        before: Buffer | None = None
        for piece in pieces:
            if before is not None:
                self._writer.append(RecordKind.GATE, before, table, compress=True, is_begun=True)
            before = piece
        if before is not None:
            self._writer.append(RecordKind.GATE, before, table, compress=True)

    def touched(self, table: int, fids: NDArray[np.uint64]) -> None:
        """Write ids of one table that were touched or removed since the last delta."""
        append_fids(self._writer, RecordKind.TOUCHED, table, fids)

    def publish(self, end_meta: Mapping[str, Any]) -> tuple[str, int]:
        """Finish the snapshot and make it appear; return its path and its bytes.

        Parameters
        ----------
        end_meta : mapping
            Goes into END, with "rows" and "by_table" as written; needs "digest".
        """
        counted = {"rows": self.rows_written, "by_table": self._by_table}
        return self.path, self._writer.publish({**end_meta, **counted})


class SnapshotReader(ContentsReader):
    """Reads a snapshot; what it hands out is verified, but for cold rows that are adopted.

    Parameters
    ----------
    path : str
        A snapshot file; under its own name or another one.

    Attributes
    ----------
    header : Header
        identity.uuid, .epoch and .number, which is the sequence.
    meta, end : dict
        META and END.
    lineage : Lineage
        Of the store at that instant.

    Raises
    ------
    CorruptionError, FormatVersionError
        As `RecordReader`.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, SHAPE)
        if self.meta["uuid"] != self.header.identity.uuid:
            self.close()
            raise corruption(path, 0, f"META is of store {self.meta['uuid']}, the header is not")

    def duplicate(self) -> int:
        """Return a descriptor of the file, which the caller closes."""
        return self._reader.duplicate()

    def records(self, adopt: Adopt | None = None) -> Iterator[Record]:
        """Yield the records behind META: (kind, table, count, payload, offset).

        Parameters
        ----------
        adopt : callable, optional
            Takes cold rows, which are then not read; by default they come as ROWS.

        Notes
        -----
        After the last one END's count is compared. Payloads are views of what was read.
        """
        rows = 0
        is_read = adopt is None
        records = body(self._reader, KINDS, frozenset() if is_read else SKIPPED)
        for record in joined(records, self.path, self.header.seed, is_read=is_read):
            if isinstance(record, ColdRows):
                assert adopt is not None
                adopt(record)
                rows += len(record.fids)
                continue
            if record.kind == RecordKind.ROWS:
                check_rows(self.path, record)
                rows += record.count
            elif record.kind == RecordKind.TOUCHED:
                check_fids(self.path, record)
            yield record
        if rows != self.end["rows"]:
            raise corruption(
                self.path,
                self._reader.end_offset,
                f"the end counts {self.end['rows']} rows, found {rows}",
            )
