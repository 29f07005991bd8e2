"""A record file that grows: appended to by one writer, synced in groups.

What must hold: a record is in the file wholly or it is cut off again; a failed fsync gives the file
up for good; `LogWriter.sync` returns only when everything before the offset asked for is on stable
storage. How it is read after a crash: log_reader.py.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

from monolith_kv.errors import ClosedError, Error
from monolith_kv.storage import files
from monolith_kv.storage.files import Buffer
from monolith_kv.storage.format import (
    HEADER_BYTES,
    FileIdentity,
    FileType,
    RecordKind,
    pack_header,
    unpack_header,
)
from monolith_kv.storage.framing import (
    Frame,
    encode_json,
    frame_payload,
    split_payload,
)

GROUP_CALLS = 6  # Calls that a flush waits for while others are on their way to append.
GROUP_GAP_S = 0.02  # But no longer than this in all: they may be held up elsewhere.
INTERRUPTED_S = 1.0  # After which to look oneself: who was to tell may have been interrupted.
ALONE_BYTES = 256 << 10  # From here on memory has so much to do that a thread helps with it.


PIECE_BYTES = 1 << 20  # At least: the disk begins with one while the next one is written.


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
    is_flushed_soon : bool
        Whether a flush follows each call, so that the disk should begin early.

    Raises
    ------
    FileExistsError
        There is such a file, and not `replace`.
    StoreFullError
        There is no room; also from `append`, which leaves the log as it was.
    """

    def __init__(
        self, path: str, file_type: FileType, identity: FileIdentity, *, replace: bool = False,
        is_flushed_soon: bool = False,
    ) -> None:  # fmt: skip
        self.path = path
        self.records = 0
        self._is_flushed_soon = is_flushed_soon
        self._pid = os.getpid()
        self._turn = threading.Condition()
        # All below is guarded by _turn.
        self._flushing = False
        self._coming: set[int] = set()  # Threads on their way to append.
        self._gathered = 0  # Appended since the last flush began.
        self._is_shared = False  # Whether the last flush was for several.
        self._is_cut = False  # Whether bytes were cut off that a power cut may bring back.
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
    def is_closed(self) -> bool:
        """Whether nothing can be appended any more."""
        return self._fd < 0

    @property
    def is_failed(self) -> bool:
        """Whether the log was given up: a flush failed, or a failed write could not be cut off."""
        return self._failure is not None

    def append(
        self,
        kind: int,
        payload: Buffer | Sequence[Buffer],
        table: int = 0,
        count: int = 0,
        settle: Callable[[], None] | None = None,
    ) -> int:
        """Hand one record to the operating system; return the offset to `sync` for it.

        Parameters
        ----------
        kind, payload, table, count
            As in `RecordWriter.append`.
        settle : callable, optional
            Called once before anything is written, to be done meanwhile in another thread.

        Raises
        ------
        StoreFullError, OSError
            Nothing was appended; the next call may succeed. So it is with what `settle` raises.
        Error
            The log was given up.
        """
        with self._turn:
            self._check()
            end = self._append(kind, payload, table, count, settle)
            self._gathered += 1
            return end

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Tell those who are about to flush that it is worth to wait for this caller's append."""
        # Not a number: Ctrl-C may keep a caller from leaving, who does so the next time.
        thread = threading.get_ident()
        with self._turn:
            self._coming.add(thread)
        try:
            yield
        finally:
            with self._turn:
                self._coming.discard(thread)
                self._turn.notify_all()

    def flush_alone(self) -> None:
        """Flush what was appended, for a caller who has others work for it meanwhile.

        Notes
        -----
        Not for one of several threads: they have each other to wait for, and share a later flush.
        Whoever calls `sync` is told what went wrong.
        """
        with self._turn:
            is_worth_it = self._end - self._durable >= ALONE_BYTES
            if self._flushing or len(self._coming) > 1 or self._is_shared or not is_worth_it:
                return
            with contextlib.suppress(Error):
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
                self._turn.wait(INTERRUPTED_S)
            self._check()
            if offset != self._end:
                raise Error(f"{self.path} ends at {self._end}, not at {offset}")
            self._cut_last()

    def sync(self, offset: int | None = None, *, is_patient: bool = True) -> None:
        """Return when everything below `offset` is on stable storage; threads share flushes.

        Parameters
        ----------
        offset : int, optional
            As returned by `append`; by default all that was appended so far.
        is_patient : bool
            Whether to wait a moment for other callers: not for one whom they wait for.

        Raises
        ------
        Error
            A flush failed, now or before: the log is given up, nothing of it is retried.
        """
        with self._turn:
            self._coming.discard(threading.get_ident())
            target = self._end if offset is None else offset
            while self._durable < min(target, self._end):  # The last record may be taken back.
                self._check()
                if self._flushing:
                    self._turn.wait(INTERRUPTED_S)
                elif is_patient and self._is_group_coming():
                    self._turn.wait_for(
                        lambda: self._flushing or not self._is_group_coming(), GROUP_GAP_S
                    )
                    is_patient = False
                else:
                    self._flush()

    def _is_group_coming(self) -> bool:
        return bool(self._coming) and self._gathered < GROUP_CALLS

    def close(self, clean: bool = True) -> None:
        """Close the log, with everything in it durable and an END record; again: nothing.

        Parameters
        ----------
        clean : bool
            False leaves it as it is, as a crash would; a forked child does only that.
        """
        if os.getpid() != self._pid:
            if self._fd >= 0:
                self._shut()
            return
        with self._turn:
            self._close(clean)

    def _close(self, clean: bool) -> None:
        while self._flushing:
            self._turn.wait(INTERRUPTED_S)
        if self._fd < 0:
            return
        before = self._end
        try:
            if clean:
                self._finish()
        except BaseException:
            # As after `append`, it stays open, to be closed again: without its END record no log
            # may have a successor, and with it no other record.
            if self._failure is not None:
                self._shut()
            elif self._end > before:
                self._cut_last()
            raise
        self._shut()

    def _shut(self) -> None:
        fd, self._fd = self._fd, -1  # Before Ctrl-C can raise behind the call.
        os.close(fd)

    def _finish(self) -> None:
        self._check()
        if self._durable < self._end:
            self._flush()
        # The END record says that all before it is durable: from now on damage there is rot.
        self._append(RecordKind.END, encode_json({"records": self.records}), 0, self.records)
        self._flush()

    def _append(
        self,
        kind: int,
        payload: Buffer | Sequence[Buffer],
        table: int,
        count: int,
        settle: Callable[[], None] | None = None,
    ) -> int:
        if self._is_cut:
            self._settle_cut()
        end, previous, records = self._end, self._previous, self.records
        frames = list(
            frame_payload(payload, self._seed, previous, kind, table, count, self._durable, False)
        )
        if settle is not None:
            settle()
        try:
            for frame in frames:
                with files.disk_errors(self.path):
                    self._write(frame, end)
                end, previous, records = end + frame.size, frame.crc, records + 1
        except BaseException:
            self._cut_back()
            raise
        self._before = self._end, self._previous, self.records
        self._end, self._previous, self.records = end, previous, records
        return end

    def _write(self, frame: Frame, offset: int) -> None:
        pieces: Sequence[Sequence[Buffer]] = [frame.buffers]
        if self._is_flushed_soon and frame.size >= 2 * PIECE_BYTES:
            pieces = split_payload(frame.buffers, -(-frame.size // (frame.size // PIECE_BYTES)))
        for piece in pieces:
            written = files.write_all(self._fd, piece)
            if piece is not pieces[-1]:  # With the last one the flush itself begins.
                files.begin_flush(self._fd, offset, written)
            offset += written

    def _cut_last(self) -> None:
        self._end, self._previous, self.records = self._before
        self._durable = min(self._durable, self._end)
        self._cut_back()

    def _cut_back(self) -> None:
        try:
            files.truncate_file(self._fd, self._end)
        except OSError as error:
            # What comes behind half a record would be lost with it.
            self._failure = error
        self._is_cut = True

    def _settle_cut(self) -> None:
        """Make a cut durable before anything is written in its place.

        After a power cut one sector may be there as it was: it has to read as never written, or a
        good record behind it would make it rot.
        """
        try:
            files.sync_file(self._fd)
        except OSError as error:
            self._failure = error
        self._check()
        self._is_cut = False

    def _flush(self) -> None:
        """Flush once, with the turn released meanwhile so that others can append and wait."""
        target = self._end
        is_released = False
        try:
            self._is_shared = self._gathered > 1
            self._flushing, self._gathered = True, 0
            self._turn.notify_all()
            is_released = True
            self._turn.release()
            files.sync_file(self._fd)
            self._durable = max(self._durable, target)
        except OSError as error:
            self._failure = error  # Before another flush: the system tells once.
        finally:
            # First of all: at any call from here on Ctrl-C may raise.
            self._flushing = False
            if is_released:
                self._turn.acquire()
            self._turn.notify_all()
        self._check()

    def _check(self) -> None:
        files.refuse_fork(self._pid, self.path)
        if self._failure is not None:
            raise Error(
                f"{self.path} was given up after {self._failure}; what was acknowledged before is "
                "safe, close the store and check the disk"
            ) from self._failure
        if self._fd < 0:
            raise ClosedError(f"the log {self.path} is closed")
