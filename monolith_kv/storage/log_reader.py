"""A log that is read after a crash: up to its end, or to the tail that was being written.

What must hold: a tail that was being written is cut off, and nothing else: damage in front of a
record that is good, or below what is known durable, is rot.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from monolith_kv.storage.format import (
    ALIGNMENT,
    FLAGS_KNOWN,
    HEADER_BYTES,
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    FileType,
    Header,
    RecordKind,
    unpack_header,
)
from monolith_kv.storage.framing import (
    Assembler,
    Damage,
    Part,
    Record,
    corruption,
    decode_json,
    read_part,
)
from monolith_kv.storage.stream import Closing, File, Stream

SECTOR_BYTES = 512  # The smallest unit a disk writes: what was not written reads as zeros.
SCAN_BYTES = 8 << 20


class Torn(NamedTuple):
    """A tail that was being written when the writer died: where, bytes, records (at least)."""

    offset: int
    bytes: int
    records: int


class LogReader(Closing):
    """Reads a log up to its end or to its torn tail.

    Parameters
    ----------
    path : str
        The log.
    file_type : FileType
        What it has to be.
    must_be_closed : bool
        Refuse a torn tail and a missing END record: for a log that is known to have been closed.

    Attributes
    ----------
    torn : Torn or None
        Known once the iteration has ended.
    is_closed : bool
        Whether the END record was found; known once the iteration has ended.

    Raises
    ------
    CorruptionError
        Any damage that is not a torn tail.

    Notes
    -----
    A tail is torn where a record does not verify, does not lie below what a good record states as
    durable, and no good record comes behind it -- or where one does, but a sector in between was
    never written, or not since the record began in it: after a power cut later blocks may have
    reached the disk before earlier ones.
    One reader serves one iteration at a time. Reads what was there when it was opened.
    """

    def __init__(self, path: str, file_type: FileType, *, must_be_closed: bool = False) -> None:
        self.path = path
        self.torn: Torn | None = None
        self.is_closed = False
        self._must_be_closed = must_be_closed
        self._file = File(path)
        self.size = self._file.size
        try:
            head = bytes(self._file.view(0, HEADER_BYTES))
            self.header: Header = unpack_header(head, path, file_type)
        except BaseException:
            self.close()
            raise
        self._source = Stream(self._file)
        self.meta: dict[str, Any] | None = None

    def close(self) -> None:
        """Close the file; payloads handed out stay valid."""
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        """Yield the records in order, each verified; then `torn` and `is_closed` are known."""
        self.torn, self.is_closed, self.meta = None, False, None
        assembler = Assembler(self.path)
        offset, previous, records = HEADER_BYTES, self.header.crc, 0
        while offset < self.size:
            try:
                part = read_part(self._source, offset, self.size, self.header.seed, previous)
            except Damage as damage:
                self._judge(offset, assembler.start, damage)
                return
            if part.header.kind == RecordKind.END:
                self._finish(part, records, assembler.start)
                return
            try:
                record = assembler.add(part)
            except Damage as damage:
                raise corruption(self.path, offset, damage) from None
            offset, previous = part.end, part.header.crc
            records += 1
            if record is not None:
                yield record
        if assembler.start is not None:
            self._tear(assembler.start, 1, Damage("the last call is not complete"))
        elif self._must_be_closed:
            self._refuse(offset, Damage("there is no end record"))

    def _finish(self, part: Part, records: int, unfinished: int | None) -> None:
        if part.end != self.size:
            damage = f"{self.size - part.end} bytes lie behind the end of the log"
            raise corruption(self.path, part.end, damage)
        if part.header.count != records or unfinished is not None:
            damage = f"the end counts {part.header.count} records, found {records}"
            raise corruption(self.path, part.offset, damage)
        self.meta = decode_json(part.payload, self.path, part.offset)
        self.is_closed = True

    def _judge(self, offset: int, start: int | None, damage: Damage) -> None:
        """Tell rot from a tail that was being written."""
        later = self._later_records(offset + ALIGNMENT)
        if later:
            # Records before the damage cannot state anything about it: only later ones do.
            durable = max(part.header.durable for part in later)
            if offset < durable or not self._has_hole(offset, later[0].offset):
                raise corruption(
                    self.path, offset, f"{damage}, and a good record follows at byte {later[0][2]}"
                )
        self._tear(offset if start is None else start, 1 + len(later), damage)

    def _tear(self, offset: int, records: int, damage: Damage) -> None:
        if self._must_be_closed:
            self._refuse(offset, damage)
        self.torn = Torn(offset, self.size - offset, records)

    def _refuse(self, offset: int, damage: Damage) -> NoReturn:
        raise corruption(self.path, offset, f"{damage}, though the log was closed cleanly")

    def _later_records(self, offset: int) -> list[Part]:
        """Return the good records from `offset` on, whatever lies between them."""
        found: list[Part] = []
        while (start := self.next_record(offset)) is not None:
            # Mostly the next record starts where this one ends: then nothing is searched.
            while start < self.size:
                try:
                    part = read_part(self._source, start, self.size, self.header.seed, None)
                except Damage:
                    break
                found.append(part._replace(payload=memoryview(b"")))
                start = part.end
            offset = start
        return found

    def next_record(self, offset: int) -> int | None:
        """Return where the first good record at or behind `offset` starts."""
        while offset + RECORD_HEADER_BYTES <= self.size:
            window = self._file.view(offset, SCAN_BYTES)
            for start in _candidates(window, offset):
                try:
                    read_part(self._source, start, self.size, self.header.seed, None)
                except Damage:
                    continue
                return start
            # The next window overlaps by a header less one word: none falls between the two.
            offset += (len(window) - RECORD_HEADER_BYTES) // ALIGNMENT * ALIGNMENT + ALIGNMENT
        return None

    def _has_hole(self, start: int, end: int) -> bool:
        """Tell whether zeros run from `start` to the end of its sector, or fill a later one."""
        rest = self._file.view(start, SECTOR_BYTES - start % SECTOR_BYTES)
        if not any(rest):  # The sector is from before this record; its header is never all zeros.
            return True
        first, last = start // SECTOR_BYTES, -(-end // SECTOR_BYTES)
        for offset in range(first * SECTOR_BYTES, last * SECTOR_BYTES, SCAN_BYTES):
            data = self._file.view(offset, min(SCAN_BYTES, last * SECTOR_BYTES - offset))
            whole = len(data) // SECTOR_BYTES * SECTOR_BYTES
            sectors = np.frombuffer(data, np.uint8, whole).reshape(-1, SECTOR_BYTES)
            if not sectors.any(axis=1).all():
                return True
        return False


def _candidates(window: memoryview, offset: int) -> list[int]:
    """Return where in the window a record header could be, as offsets in the file."""
    words: NDArray[np.uint64] = np.frombuffer(window, "<u8", len(window) // ALIGNMENT)
    places = len(words) - RECORD_HEADER_BYTES // ALIGNMENT + 1
    if places <= 0:
        return []
    kinds = (words[2:] & np.uint64(0xFFFF))[:places]
    flags = ((words[2:] >> np.uint64(16)) & np.uint64(0xFFFF))[:places]
    likely = (words[1 : places + 1] <= RECORD_BYTES_MAX) & (flags <= FLAGS_KNOWN)
    likely &= np.isin(kinds, np.array([int(kind) for kind in RecordKind], np.uint64))
    return [offset + int(place) * ALIGNMENT for place in np.flatnonzero(likely)]
