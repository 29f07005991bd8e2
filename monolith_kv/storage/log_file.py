"""A record file that grows: appended to by one writer, synced in groups, read after a crash.

What must hold: a record is in the file wholly or it is cut off again; a failed fsync gives the file
up for good; `LogWriter.sync` returns only when everything before the offset asked for is on stable
storage. A reader cuts off a tail that was being written, and nothing else: damage in front of a
record that is good, or below what is known durable, is rot.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from monolith_kv.errors import ClosedError, Error
from monolith_kv.storage import files
from monolith_kv.storage.files import Buffer
from monolith_kv.storage.format import (
    ALIGNMENT,
    FLAGS_KNOWN,
    HEADER_BYTES,
    RECORD_BYTES_MAX,
    RECORD_HEADER_BYTES,
    FileIdentity,
    FileType,
    Header,
    RecordKind,
    pack_header,
    unpack_header,
)
from monolith_kv.storage.framing import (
    Assembler,
    Damage,
    Part,
    Record,
    corruption,
    decode_json,
    encode_json,
    frame_payload,
    read_part,
)
from monolith_kv.storage.stream import File, Stream

SECTOR_BYTES = 512  # The smallest unit a disk writes: what was not written reads as zeros.
SCAN_BYTES = 8 << 20
GROUP_CALLS = 6  # Calls that a flush waits for while others are on their way to append.
GROUP_GAP_S = 0.1  # But no longer than this for each of them: they may be held up elsewhere.
BESIDE_BYTES = 256 << 10  # From here on memory has enough to do to wake a thread for the flush.


class Torn(NamedTuple):
    """A tail that was being written when the writer died: where, bytes, records (at least)."""

    offset: int
    bytes: int
    records: int


class LogWriter:
    """Appends records to a new log; any number of threads.

    Parameters
    ----------
    path : str
        Name of the log; its folder exists. It is durable, with its header, when this returns.
    file_type : FileType
        What the log is.
    identity : FileIdentity
        Where it belongs.
    replace : bool
        Whether a file of this name is one that the caller could not finish making, to be replaced.

    Raises
    ------
    FileExistsError
        There is such a file, and not `replace`.
    StoreFullError
        There is no room; also from `append`, which leaves the log as it was.
    """

    def __init__(
        self, path: str, file_type: FileType, identity: FileIdentity, *, replace: bool = False
    ) -> None:
        self.path = path
        self.records = 0
        self._pid = os.getpid()
        self._turn = threading.Condition()
        # All below is guarded by _turn.
        self._flushing = False
        self._coming = 0  # Callers on their way to append.
        self._gathered = 0  # Appended since the last flush began.
        self._is_shared = False  # Whether the last flush was for several.
        self._beside: threading.Thread | None = None  # Flushes beside callers; ends with the log.
        self._is_begun = False  # Whether it has something to do.
        self._failure: OSError | None = None
        self._fd, temporary = files.create_temporary(path)
        try:
            header = pack_header(file_type, identity)
            parsed = unpack_header(header, path)
            self._seed, self._previous = parsed.seed, parsed.crc
            with files.disk_errors(path):
                files.write_all(self._fd, [header])
                files.sync_file(self._fd)
            files.publish(temporary, path, replace=replace)
        except BaseException:
            os.close(self._fd)
            files.remove_quietly(temporary)
            raise
        self._end = self._durable = HEADER_BYTES
        self._before = self._end, self._previous, 0  # The last record.

    @property
    def end(self) -> int:
        """Bytes in the log: where the next record goes."""
        return self._end

    @property
    def durable(self) -> int:
        """Offset up to which everything is known to be on stable storage."""
        return self._durable

    @property
    def is_failed(self) -> bool:
        """Whether the log was given up: a flush failed, or a failed write could not be cut off."""
        return self._failure is not None

    def append(
        self, kind: int, payload: Buffer | Sequence[Buffer], table: int = 0, count: int = 0
    ) -> int:
        """Hand one record to the operating system; return the offset to `sync` for it.

        Parameters
        ----------
        kind, payload, table, count
            As in `RecordWriter.append`.

        Raises
        ------
        StoreFullError, OSError
            Nothing was appended; the next call may succeed.
        Error
            The log was given up.
        """
        with self._turn:
            self._check()
            end = self._append(kind, payload, table, count)
            self._gathered += 1
            return end

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Tell those who are about to flush that it is worth to wait for this caller's append."""
        with self._turn:
            self._coming += 1
        try:
            yield
        finally:
            with self._turn:
                self._coming -= 1
                self._turn.notify_all()

    def begin_sync(self) -> None:
        """Begin to flush what was appended; `sync` waits for it.

        Notes
        -----
        For a caller who has work to do meanwhile, and is alone: many have each other to wait for.
        """
        with self._turn:
            is_worth_it = self._end - self._durable >= BESIDE_BYTES
            if self._flushing or self._coming > 1 or self._is_shared or not is_worth_it:
                return
            self._is_begun = True
            self._turn.notify_all()
            if self._beside is None:
                beside = threading.Thread(
                    target=self._work_beside, name="monolith-kv-flush", daemon=True
                )
                beside.start()
                self._beside = beside

    def _work_beside(self) -> None:
        with self._turn:
            while self._fd >= 0:
                if self._is_begun:
                    self._flush_begun()
                else:
                    self._turn.wait()

    def _flush_begun(self) -> None:
        self._is_begun = False
        if self._fd >= 0 and not self._flushing and self._durable < self._end:
            with contextlib.suppress(Error):  # Noted: whoever waits for it is told.
                self._flush()

    def take_back(self, offset: int) -> None:
        """Cut off the record for which `append` returned `offset`, the last one.

        Notes
        -----
        For a call that could not be made after all, and was not acknowledged. A log that cannot be
        cut is given up.
        """
        with self._turn:
            while self._flushing:  # What it makes durable would be taken for the next record.
                self._turn.wait()
            self._check()
            if offset != self._end:
                raise Error(f"{self.path} ends at {self._end}, not at {offset}")
            self._end, self._previous, self.records = self._before
            self._durable = min(self._durable, self._end)
            self._cut_back()

    def sync(self, offset: int | None = None) -> None:
        """Return when everything below `offset` is on stable storage; threads share flushes.

        Parameters
        ----------
        offset : int, optional
            As returned by `append`; by default all that was appended so far.

        Raises
        ------
        Error
            A flush failed, now or before: the log is given up, nothing of it is retried.
        """
        with self._turn:
            target = self._end if offset is None else offset
            while self._durable < min(target, self._end):  # The last record may be taken back.
                self._check()
                if self._flushing:
                    self._turn.wait()
                elif self._coming and self._gathered < GROUP_CALLS:
                    if not self._turn.wait(GROUP_GAP_S):
                        self._flush()
                else:
                    self._flush()

    def close(self, clean: bool = True) -> None:
        """Close the log, with everything in it durable and an END record; again: nothing.

        Parameters
        ----------
        clean : bool
            False leaves it as it is, as a crash would; a forked child does only that.
        """
        if os.getpid() != self._pid:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            return
        try:
            with self._turn:
                self._close(clean)
        finally:
            if self._fd < 0 and self._beside is not None:
                self._beside.join()

    def _close(self, clean: bool) -> None:
        while self._flushing:
            self._turn.wait()
        if self._fd < 0:
            return
        try:
            if clean:
                self._finish()
        except BaseException:
            # As after `append`, it stays open, to be closed again: without its END record no log
            # may have a successor.
            if self._failure is not None:
                self._shut()
            raise
        self._shut()

    def _shut(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._turn.notify_all()

    def _finish(self) -> None:
        self._check()
        if self._durable < self._end:
            self._flush()
        # The END record says that all before it is durable: from now on damage there is rot.
        self._append(RecordKind.END, encode_json({"records": self.records}), 0, self.records)
        self._flush()

    def _append(self, kind: int, payload: Buffer | Sequence[Buffer], table: int, count: int) -> int:
        end, previous, records = self._end, self._previous, self.records
        try:
            frames = frame_payload(
                payload, self._seed, previous, kind, table, count, self._durable, False
            )
            for frame in frames:
                with files.disk_errors(self.path):
                    files.write_all(self._fd, frame.buffers)
                end, previous, records = end + frame.size, frame.crc, records + 1
        except BaseException:
            self._cut_back()
            raise
        self._before = self._end, self._previous, self.records
        self._end, self._previous, self.records = end, previous, records
        return end

    def _cut_back(self) -> None:
        try:
            files.truncate_file(self._fd, self._end)
        except OSError as error:
            # What comes behind half a record would be lost with it.
            self._failure = error

    def _flush(self) -> None:
        """Flush once, with the turn released meanwhile so that others can append and wait."""
        target = self._end
        self._is_shared = self._gathered > 1
        self._flushing, self._gathered = True, 0
        self._turn.release()
        failure: OSError | None = None
        try:
            files.sync_file(self._fd)
        except OSError as error:
            failure = error
        finally:
            self._turn.acquire()
            self._flushing = False
            self._turn.notify_all()
        if failure is not None:
            self._failure = failure
        self._check()
        self._durable = max(self._durable, target)

    def _check(self) -> None:
        files.refuse_fork(self._pid, self.path)
        if self._failure is not None:
            raise Error(
                f"{self.path} was given up after {self._failure}; what was acknowledged before is "
                "safe, close the store and check the disk"
            ) from self._failure
        if self._fd < 0:
            raise ClosedError(f"the log {self.path} is closed")


# --- reading -------------------------------------------------------------------------------


class LogReader:
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
        head = bytes(self._file.view(0, HEADER_BYTES))
        self.header: Header = unpack_header(head, path, file_type)
        self._source = Stream(self._file)
        self.meta: dict[str, Any] | None = None

    def close(self) -> None:
        """Close the file; payloads handed out stay valid."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
