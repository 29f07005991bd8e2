"""Deltas: sealed, immutable files of changed rows and removed ids, one a sequence number.

A delta is META, then ROWS, REMOVED, SIGHTINGS and DENSE records in any number, then END. Rows are
whole rows, so that applying one twice is harmless; each id is in a delta once.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv.storage import files, format
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
from monolith_kv.storage.format import (
    DELTA_FOLDER,
    DELTA_PATTERN,
    FileIdentity,
    FileType,
    RecordKind,
)
from monolith_kv.storage.framing import Record, corruption
from monolith_kv.storage.record_file import RecordWriter

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
SHAPE = Shape(FileType.DELTA, DELTA_PATTERN, META_KEYS, META_OPTIONAL, END_KEYS, {})


def path_of(root: str, name: str) -> str:
    """Return the path of the delta `name` of the store at `root`; refuse any other name."""
    return format.join_checked(root, DELTA_FOLDER, name, DELTA_PATTERN)


def names(root: str) -> list[str]:
    """Return the names of all delta files of the store, sorted by sequence, then epoch."""
    found = files.list_names(os.path.join(root, DELTA_FOLDER))
    return [name for name in found if DELTA_PATTERN.fullmatch(name)]


class DeltaWriter(ContentsWriter):
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
        self.removals_written = 0
        files.make_folder(os.path.join(root, DELTA_FOLDER))
        identity = FileIdentity(uuid, epoch, sequence)
        path = path_of(root, self.name)
        super().__init__(RecordWriter(path, FileType.DELTA, identity, replace=True))

    def removed(self, table: int, fids: NDArray[np.uint64]) -> None:
        """Write ids that are no longer in one table: uint64, C-contiguous, not copied."""
        append_fids(self._writer, RecordKind.REMOVED, table, fids)
        self.removals_written += len(fids)

    def publish(self, end_meta: Mapping[str, Any]) -> tuple[str, int]:
        """Finish the delta and make it appear; return its file name and its bytes.

        Parameters
        ----------
        end_meta : mapping
            Goes into END, with "rows" and "removals" as written; needs "digest".
        """
        counts = {"rows": self.rows_written, "removals": self.removals_written}
        return self.name, self._writer.publish({**end_meta, **counts})


class DeltaReader(ContentsReader):
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
        super().__init__(path, SHAPE)

    def records(self) -> Iterator[Record]:
        """Yield ROWS, REMOVED, SIGHTINGS and DENSE records: (kind, table, count, payload, offset).

        Notes
        -----
        After the last one END's counts are compared. Payloads are views of what was read.
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
