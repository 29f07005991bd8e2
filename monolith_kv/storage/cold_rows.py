"""Cold rows in a snapshot: in places, as in a row file, so that a tier can read them there.

A COLD record holds the places; the COLD_IDS record behind it says whose they are, when they were
used last, and what digest they have together. Who has an overflow tier reads only the second one:
it is verified, and proves by the chain of checksums that the first is where it was written. Each
place has a checksum of its own, for the day when it is read.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monolith_kv._checksum import crc32c_each
from monolith_kv.storage.format import (
    HEADER_BYTES,
    PLACE_SUM_BYTES,
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    RecordKind,
    padded,
    unpack_header,
)
from monolith_kv.storage.framing import Record, corruption
from monolith_kv.storage.record_file import RecordWriter
from monolith_kv.storage.stream import File

DIGEST = struct.Struct("<QQ")
TIME_BYTES = 8  # Behind the id in a row's record; and as many for each in COLD_IDS.
SKIPPED = frozenset({RecordKind.COLD})


class ColdRows(NamedTuple):
    """Rows that a snapshot has in places."""

    table: int
    fids: NDArray[np.uint64]
    times: NDArray[np.int64]
    digest: tuple[int, int]
    offset: int  # Byte of the first place in the file.
    size: int  # Bytes of the places, but for less than ALIGNMENT more.


Adopt = Callable[[ColdRows], None]


def append_cold(
    writer: RecordWriter, table: int, places: Sequence[NDArray[np.uint8]], digest: tuple[int, int]
) -> int:
    """Append the two records of cold rows; return how many.

    Parameters
    ----------
    writer : RecordWriter
        Of a snapshot.
    table : int
        Table id.
    places : sequence of ndarray of uint8, shape (n, place_bytes), C-contiguous
        Row records, each with its checksum behind it, which starts from the writer's seed; at most
        16 MiB.
    digest : tuple of int
        Of these rows: two words.
    """
    if sum(part.nbytes for part in places) > RECORD_BYTES_MAX:
        raise ValueError("places of a record must have 16 MiB at most")
    heads = np.concatenate([part[:, :16] for part in places]).view("<u8")
    count = len(heads)
    fids, times = (np.ascontiguousarray(heads[:, column]) for column in (0, 1))
    writer.append(RecordKind.COLD, [part.reshape(-1) for part in places], table, count)
    writer.append(RecordKind.COLD_IDS, [DIGEST.pack(*digest), fids, times], table, count)
    return count


def as_rows(record: Record, path: str, seed: int | None) -> Record:
    """Return the ROWS record that a COLD record stands for; CorruptionError if it is none.

    With a seed the checksum of each place is compared, too.
    """
    places = _places(record, path)
    size = places.shape[1] - PLACE_SUM_BYTES
    if seed is not None:
        sums = np.ascontiguousarray(places[:, size:]).view("<u4").reshape(-1)
        bad = np.flatnonzero(crc32c_each(places, size, seed) != sums)
        if len(bad):
            raise corruption(path, record.offset, f"the checksum of place {bad[0]} does not agree")
    rows = np.ascontiguousarray(places[:, :size]).reshape(-1)
    return record._replace(kind=RecordKind.ROWS, payload=rows.data.toreadonly())


def good_places(path: str, ids: Record, place_bytes: int) -> Record:
    """Return as ROWS those places before a COLD_IDS record that are good, each by itself.

    Parameters
    ----------
    ids : Record
        Verified; the record before it is damaged.
    place_bytes : int
        Of this table.
    """
    size = ids.count * place_bytes
    with File(path) as file:
        data = file.view(ids.offset - padded(size), size)
        seed = unpack_header(bytes(file.view(0, HEADER_BYTES)), path).seed
    places = np.frombuffer(data, np.uint8).reshape(-1, place_bytes)
    end = place_bytes - PLACE_SUM_BYTES
    sums = np.ascontiguousarray(places[:, end:]).view("<u4").reshape(-1)
    heads = np.ascontiguousarray(places[:, :8]).view("<u8").reshape(-1)
    fids = np.frombuffer(ids.payload, "<u8", ids.count, DIGEST.size)
    is_good = (crc32c_each(places, end, seed) == sums) & (heads == fids)
    rows = np.ascontiguousarray(places[is_good, :end])
    return Record(RecordKind.ROWS, ids.table, len(rows), rows.reshape(-1).data, ids.offset)


def joined(
    records: Iterable[Record], path: str, seed: int, *, is_read: bool
) -> Iterator[Record | ColdRows]:
    """Yield a snapshot's records, a pair of those of cold rows as one.

    Parameters
    ----------
    records : iterable of Record
    path, seed
        Of the file, for errors and checksums.
    is_read : bool
        The pair becomes ROWS; otherwise ColdRows: then the payload of COLD may be empty, and the
        record not verified.
    """
    cold: Record | None = None
    for record in records:
        if cold is None:
            if record.kind == RecordKind.COLD_IDS:
                raise corruption(path, record.offset, "ids of cold rows without the rows")
            if record.kind == RecordKind.COLD:
                cold = record
            else:
                yield record
            continue
        found = _pair(cold, record, path)
        if not is_read:
            yield found
        else:
            rows = as_rows(cold, path, seed)
            _refuse_others(found, _places(cold, path), path, record.offset)
            yield rows
        cold = None
    if cold is not None:
        raise corruption(path, cold.offset, "cold rows without their ids")


def _pair(cold: Record, ids: Record, path: str) -> ColdRows:
    if ids.kind != RecordKind.COLD_IDS or (ids.table, ids.count) != (cold.table, cold.count):
        raise corruption(path, ids.offset, "it is not of the cold rows before it")
    head, count = DIGEST.size, ids.count
    if not count or len(ids.payload) != head + count * (8 + TIME_BYTES):
        raise corruption(path, ids.offset, "count and length do not agree")
    fids = np.frombuffer(ids.payload, "<u8", count, head).astype(np.uint64, copy=False)
    times = np.frombuffer(ids.payload, "<i8", count, head + 8 * count).astype(np.int64, copy=False)
    low, high = DIGEST.unpack_from(ids.payload)
    offset = cold.offset + RECORD_HEADER_BYTES
    return ColdRows(ids.table, fids, times, (low, high), offset, ids.offset - offset)


def has_places(found: ColdRows, place_bytes: int) -> bool:
    """Whether the places have this size."""
    return found.size == padded(len(found.fids) * place_bytes)


def _places(record: Record, path: str) -> NDArray[np.uint8]:
    size = len(record.payload)
    if not record.count or size % record.count or size < record.count * (16 + PLACE_SUM_BYTES):
        raise corruption(path, record.offset, "count and length do not agree")
    return np.frombuffer(record.payload, np.uint8).reshape(record.count, -1)


def _refuse_others(found: ColdRows, places: NDArray[np.uint8], path: str, offset: int) -> None:
    heads = np.ascontiguousarray(places[:, :16]).view("<u8")
    if not (
        np.array_equal(heads[:, 0], found.fids)
        and np.array_equal(heads[:, 1].view("<i8"), found.times)
    ):
        raise corruption(path, offset, "it names other ids or times than the rows before it")
