"""What deltas and snapshots have in common: META first, rows in blocks, a name that fits."""

import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from monolith_kv.errors import CorruptionError, FormatVersionError
from monolith_kv.lineage import Lineage
from monolith_kv.storage.files import Buffer
from monolith_kv.storage.format import RECORD_BYTES_MAX, FileType, Header, RecordKind
from monolith_kv.storage.framing import Record, corruption, decode_json, encode_json
from monolith_kv.storage.record_file import RecordReader, RecordWriter
from monolith_kv.storage.stream import Closing

FID_BYTES = 8
Keys = Mapping[str, type | tuple[type, ...]]


class Shape(NamedTuple):
    """What tells the two kinds of file apart."""

    file_type: FileType
    name: re.Pattern[str]
    meta: Keys
    meta_optional: Keys
    end: Keys
    end_optional: Keys


class ContentsWriter:
    """Writes META, rows, sightings and dense parameters; the file appears when published.

    Parameters
    ----------
    writer : RecordWriter
        Of the file.
    """

    def __init__(self, writer: RecordWriter) -> None:
        self._writer = writer
        self.rows_written = 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._writer.size

    def meta(self, meta: Mapping[str, Any]) -> None:
        """Write the META record, the first one; its keys: `META_KEYS`, `META_OPTIONAL`."""
        if self._writer.records:
            raise ValueError("meta must be the first record")
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

    def sightings(self, table: int, data: Buffer) -> None:
        """Write what one table's gate has counted since the last delta, compressed."""
        self._writer.append(RecordKind.SIGHTINGS, data, table, compress=True)

    def dense(self, version: int, data: Buffer) -> None:
        """Write the dense parameters, as safetensors bytes; the version goes into the count."""
        self._writer.append(RecordKind.DENSE, data, count=version)

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


class ContentsReader(Closing):
    """Reads a delta or a snapshot; META and END are verified at once, the rest as it is read."""

    def __init__(self, path: str, shape: Shape) -> None:
        self.path = path
        self._reader = RecordReader(path, shape.file_type)
        self.header: Header = self._reader.header
        self.size = self._reader.size
        try:
            check_name(path, shape.name, self.header)
            self.end = check_keys(
                self._reader.meta, shape.end, path, self._reader.end_offset, shape.end_optional
            )
            self.meta, self.lineage = read_meta(self._reader, shape.meta, shape.meta_optional)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def records(self) -> Iterator[Record]:
        """Yield the records behind META."""

    def verify(self) -> None:
        """Read and check every byte."""
        for _ in self.records():
            pass

    def close(self) -> None:
        """Close the file; payloads handed out stay valid. Again: nothing."""
        self._reader.close()


def append_rows(writer: RecordWriter, table: int, records: NDArray[np.uint8], count: int) -> None:
    """Append `count` equal row records as ROWS, whole rows in each file record."""
    if not count:
        return
    flat = records.reshape(-1)
    size, rest = divmod(flat.nbytes, count)
    if rest or not size:
        raise ValueError(f"{flat.nbytes} bytes are not {count} equal records")
    step = max(1, RECORD_BYTES_MAX // size)
    for start in range(0, count, step):
        stop = min(start + step, count)
        writer.append(RecordKind.ROWS, flat[start * size : stop * size], table, stop - start)


def body(
    reader: RecordReader,
    kinds: frozenset[RecordKind],
    skipped: frozenset[RecordKind] = frozenset(),
) -> Iterator[Record]:
    """Yield the records behind META, refusing kinds that do not belong into such a file."""
    records = reader.skipping(skipped) if skipped else iter(reader)
    next(records)
    for record in records:
        if record.kind not in kinds:
            raise corruption(reader.path, record.offset, f"unexpected record kind {record.kind}")
        yield record


def check_rows(path: str, record: Record) -> None:
    """Refuse a ROWS record whose count does not divide its length."""
    if not record.count or len(record.payload) % record.count or not len(record.payload):
        raise corruption(path, record.offset, "count and length do not agree")


def check_fids(path: str, record: Record) -> None:
    """Refuse a record of ids whose count is not that of its length."""
    if len(record.payload) != FID_BYTES * record.count:
        raise corruption(path, record.offset, "count and length do not agree")


def append_fids(writer: RecordWriter, kind: int, table: int, fids: NDArray[np.uint64]) -> None:
    """Append ids, uint64 and C-contiguous, cut into file records of 16 MiB at most."""
    step = RECORD_BYTES_MAX // FID_BYTES
    for start in range(0, len(fids), step):
        part = np.ascontiguousarray(fids[start : start + step], "<u8")
        writer.append(kind, part, table, len(part))


def read_meta(reader: RecordReader, keys: Keys, optional: Keys) -> tuple[dict[str, Any], Lineage]:
    """Return the META record and the lineage in it, both found to fit the header."""
    record = reader.first()
    if record is None or record.kind != RecordKind.META:
        offset = reader.end_offset if record is None else record.offset
        raise corruption(reader.path, offset, "the first record is not META")
    meta = decode_json(record.payload, reader.path, record.offset)
    check_keys(meta, keys, reader.path, record.offset, optional)
    try:
        lineage = Lineage.from_json(meta["lineage"])
    except FormatVersionError as error:
        raise corruption(reader.path, record.offset, error) from error
    identity = reader.header.identity
    if (meta["sequence"], lineage.epoch) != (identity.number, identity.epoch):
        raise corruption(
            reader.path,
            record.offset,
            f"sequence {meta['sequence']} of epoch {lineage.epoch} under a header with sequence "
            f"{identity.number} of epoch {identity.epoch}",
        )
    return meta, lineage


def check_keys(
    meta: dict[str, Any], keys: Keys, path: str, offset: int, optional: Keys | None = None
) -> dict[str, Any]:
    """Refuse a JSON object that lacks a key or has one of another type; some keys may lack."""
    present = {key: wanted for key, wanted in (optional or {}).items() if key in meta}
    for key, wanted in {**keys, **present}.items():
        if key not in meta:
            raise corruption(path, offset, f"{key} is missing")
        if not isinstance(meta[key], wanted) or isinstance(meta[key], bool):
            raise corruption(path, offset, f"{key} is {meta[key]!r}")
    return meta


def check_name(path: str, pattern: re.Pattern[str], header: Header) -> None:
    """Refuse a file that stands under the name of another one; foreign names are not judged."""
    found = pattern.fullmatch(os.path.basename(path))
    if found and (int(found[1]), int(found[2])) != (header.identity.number, header.identity.epoch):
        raise CorruptionError(
            f"{path} is sequence {header.identity.number} of epoch {header.identity.epoch}, as its "
            "header says; it stands under the name of another one",
            path,
            0,
        )
