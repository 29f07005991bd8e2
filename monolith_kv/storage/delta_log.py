"""Deltas: sealed, immutable files of changed rows and removed ids, one a sequence number.

A delta is META, then ROWS, REMOVED, SIGHTINGS and DENSE records in any number, then END. Rows are
whole rows, so that applying one twice is harmless; each id is in a delta once.
"""

import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from monolith_kv.storage import files, format
from monolith_kv.storage.contents import (
    Keys,
    append_fids,
    append_rows,
    body,
    check_fids,
    check_keys,
    check_name,
    check_rows,
    read_meta,
)
from monolith_kv.storage.files import Buffer
from monolith_kv.storage.format import (
    DELTA_FOLDER,
    DELTA_PATTERN,
    FileIdentity,
    FileType,
    Header,
    RecordKind,
)
from monolith_kv.storage.framing import Record, corruption, encode_json
from monolith_kv.storage.record_file import RecordReader, RecordWriter

META_KEYS: Keys = {
    "sequence": int,
    "lineage": list,
    "cursor": (dict, type(None)),
    "tables": list,
    "dropped": list,
    "sealed_at": (int, float),
    "calls_from": int,
}
META_OPTIONAL: Keys = {"includes": list}
END_KEYS: Keys = {"rows": int, "removals": int, "digest": str}
KINDS = frozenset({RecordKind.ROWS, RecordKind.REMOVED, RecordKind.SIGHTINGS, RecordKind.DENSE})


def path_of(root: str, name: str) -> str:
    """Return the path of the delta `name` of the store at `root`; refuse any other name."""
    return format.join_checked(root, DELTA_FOLDER, name, DELTA_PATTERN)


def names(root: str) -> list[str]:
    """Return the names of all delta files of the store, sorted by sequence, then epoch."""
    found = files.list_names(os.path.join(root, DELTA_FOLDER))
    return [name for name in found if DELTA_PATTERN.fullmatch(name)]


class DeltaWriter:
    """Writes the delta `sequence`; it appears, whole, when published.

    Parameters
    ----------
    root : str
        Folder of the store.
    uuid : str
        Of the store.
    sequence, epoch : int
        Of the delta.

    Raises
    ------
    StoreFullError
        From any method: there is no room. Discard the delta then.

    Notes
    -----
    Not thread-safe. Call `meta` first. Publishing replaces a file of the same name: one that no
    manifest names, since the same sequence is sealed again only after that failed.
    """

    def __init__(self, root: str, uuid: str, sequence: int, epoch: int) -> None:
        self.name = format.delta_name(sequence, epoch)
        self.rows_written = 0
        self.removals_written = 0
        files.make_folder(os.path.join(root, DELTA_FOLDER))
        identity = FileIdentity(uuid, epoch, sequence)
        path = path_of(root, self.name)
        self._writer = RecordWriter(path, FileType.DELTA, identity, replace=True)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._writer.size

    def meta(self, meta: Mapping[str, Any]) -> None:
        """Write the META record, the first one; its keys: `META_KEYS`, `META_OPTIONAL`."""
        if self._writer.records:
            raise ValueError("meta must be the first record of a delta")
        self._writer.append(RecordKind.META, encode_json(meta))

    def rows(self, table: int, records: NDArray[np.uint8], count: int) -> None:
        """Write packed rows of one table, cut into file records of 16 MiB at most.

        Parameters
        ----------
        table : int
            Table id.
        records : ndarray of uint8, C-contiguous
            `count` row records of equal size; not copied.
        count : int
            How many.
        """
        append_rows(self._writer, table, records, count)
        self.rows_written += count

    def removed(self, table: int, fids: NDArray[np.uint64]) -> None:
        """Write ids that are no longer in one table: uint64, C-contiguous, not copied."""
        append_fids(self._writer, RecordKind.REMOVED, table, fids)
        self.removals_written += len(fids)

    def sightings(self, table: int, data: Buffer) -> None:
        """Write what the gate of one table has counted since the last seal, compressed."""
        self._writer.append(RecordKind.SIGHTINGS, data, table, compress=True)

    def dense(self, version: int, data: Buffer) -> None:
        """Write the dense parameters, as safetensors bytes; the version goes into the count."""
        self._writer.append(RecordKind.DENSE, data, count=version)

    def publish(self, end_meta: Mapping[str, Any]) -> tuple[str, int]:
        """Finish the delta and make it appear; return its file name and its bytes.

        Parameters
        ----------
        end_meta : mapping
            Goes into END, with "rows" and "removals" as written; needs "digest".
        """
        counts = {"rows": self.rows_written, "removals": self.removals_written}
        return self.name, self._writer.publish({**end_meta, **counts})

    def discard(self) -> None:
        """Remove what was written, unless it was published; again: nothing."""
        self._writer.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()


class DeltaReader:
    """Reads a delta; what it hands out is verified.

    Parameters
    ----------
    path : str
        A delta file; under its own name or another one.

    Attributes
    ----------
    header : Header
        identity.uuid, .epoch and .number, which is the sequence.
    meta, end : dict
        META and END.
    lineage : Lineage
        Of the store when it was sealed.

    Raises
    ------
    CorruptionError, FormatVersionError
        As `RecordReader`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._reader = RecordReader(path, FileType.DELTA)
        self.header: Header = self._reader.header
        self.size = self._reader.size
        check_name(path, DELTA_PATTERN, self.header)
        self.end = check_keys(self._reader.meta, END_KEYS, path, self._reader.end_offset)
        self.meta, self.lineage = read_meta(self._reader, META_KEYS, META_OPTIONAL)

    def records(self) -> Iterator[Record]:
        """Yield ROWS, REMOVED, SIGHTINGS and DENSE records: (kind, table, count, payload, offset).

        Notes
        -----
        After the last one END's counts are compared. Payloads are views of the mapped file.
        """
        rows = removals = 0
        for record in body(self._reader, KINDS):
            if record.kind == RecordKind.ROWS:
                check_rows(self.path, record)
                rows += record.count
            elif record.kind == RecordKind.REMOVED:
                check_fids(self.path, record)
                removals += record.count
            yield record
        if (rows, removals) != (self.end["rows"], self.end["removals"]):
            raise corruption(
                self.path,
                self._reader.end_offset,
                f"the end counts {self.end['rows']} rows and {self.end['removals']} removals, "
                f"found {rows} and {removals}",
            )

    def verify(self) -> None:
        """Read and check every byte."""
        for _ in self.records():
            pass
