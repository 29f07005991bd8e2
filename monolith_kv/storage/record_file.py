"""A finished record file: written under a temporary name, published whole, read front to end.

What must hold: a file that is complete ends with an END record, to the byte, which counts the
records before it; anything else is damage. What a reader hands out was verified before.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np

from monolith_kv.errors import Error
from monolith_kv.storage import files
from monolith_kv.storage.files import Buffer
from monolith_kv.storage.format import (
    ALIGNMENT,
    HEADER_BYTES,
    RECORD,
    RECORD_HEADER_BYTES,
    FileIdentity,
    FileType,
    Header,
    RecordHeader,
    RecordKind,
    pack_header,
    padded,
    unpack_header,
)
from monolith_kv.storage.framing import (
    Assembler,
    Damage,
    Part,
    Record,
    Source,
    corruption,
    decode_json,
    encode_json,
    frame_payload,
    peek_part,
    read_part,
)
from monolith_kv.storage.stream import Closing, File, Stream

FLUSH_BYTES = 8 << 20
SKIPPING_WINDOW_BYTES = 256 << 10  # What lies behind a window may be skipped.
TAIL_BYTES = 4096  # More than the END record of a large file takes.


class RecordWriter:
    """Writes a record file under a temporary name; `publish` makes it appear, whole.

    Parameters
    ----------
    path : str
        Final name; its folder exists.
    file_type : FileType
        What the file is.
    identity : FileIdentity
        Where it belongs.
    replace : bool
        Whether publishing replaces a file that has the name; otherwise that is FileExistsError.

    Raises
    ------
    StoreFullError
        No room; from any method. Discard the writer then.

    Attributes
    ----------
    seed : int
        From which all checksums in the file start.

    Notes
    -----
    Not thread-safe. As a context manager it discards what was not published.
    """

    def __init__(
        self, path: str, file_type: FileType, identity: FileIdentity, *, replace: bool = False
    ) -> None:
        self.path = path
        self.size = 0  # Bytes written so far.
        self.records = 0
        self._begun = 0  # Up to here the disk has been told to write.
        self._replace = replace
        self._pid = os.getpid()
        self._fd, self._temporary = files.create_temporary(path)
        try:
            header = pack_header(file_type, identity)
            parsed = unpack_header(header, path)
            self.seed, self._previous = parsed.seed, parsed.crc
            self._write([header])
        except BaseException:
            self.discard()
            raise

    def append(
        self,
        kind: int,
        payload: Buffer | Sequence[Buffer],
        table: int = 0,
        count: int = 0,
        compress: bool = False,
        is_begun: bool = False,
    ) -> None:
        """Write one record; a payload past 16 MiB is cut into parts that the reader joins.

        Parameters
        ----------
        kind : int
            A RecordKind.
        payload : buffer or sequence of buffers
            C-contiguous; not copied, and free for reuse when the call returns.
        table : int
            Table id, 0 where it means nothing.
        count : int
            Of rows, ids or whatever the kind counts.
        compress : bool
            Try zstd; kept only where it is smaller.
        is_begun : bool
            The next call, of the same kind, table and count, goes on with the payload.
        """
        frames = frame_payload(
            payload, self.seed, self._previous, kind, table, count, 0, compress, is_begun
        )
        for frame in frames:
            self._write(frame.buffers)
            self._previous = frame.crc
            self.records += 1

    def publish(self, meta: Mapping[str, Any]) -> int:
        """Write the END record, make all of it durable, give it its name; return its bytes.

        Parameters
        ----------
        meta : mapping
            JSON object for `RecordReader.meta`.
        """
        self.append(RecordKind.END, encode_json(meta), count=self.records)
        with files.disk_errors(self.path):
            files.sync_file(self._fd)
        files.publish(self._temporary, self.path, replace=self._replace)
        self._close()
        return self.size

    def discard(self) -> None:
        """Remove what was written, unless it was published; again, or in a fork: nothing."""
        if self._fd >= 0:
            self._close()
            if os.getpid() == self._pid:
                files.remove_quietly(self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _write(self, buffers: Sequence[Buffer]) -> None:
        files.refuse_fork(self._pid, self.path)
        if self._fd < 0:
            raise Error(f"{self.path} was published or discarded; begin a new file")
        with files.disk_errors(self.path):
            self.size += files.write_all(self._fd, buffers)
        if self.size - self._begun >= FLUSH_BYTES:
            files.begin_flush(self._fd, self._begun, self.size - self._begun)
            self._begun = self.size

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)


class RecordReader(Closing):
    """Reads a finished record file; every byte of it is verified before it is handed out.

    Parameters
    ----------
    path : str
        The file; not followed if it is a symbolic link.
    file_type : FileType, optional
        What it has to be.

    Raises
    ------
    CorruptionError
        Any damage, here or while iterating; with path and offset.
    FormatVersionError
        A version, feature or record kind that this version cannot read.

    Notes
    -----
    Payloads are views of what was read and stay valid after the reader is gone. Memory is a window
    of the file, or one record (a payload in parts is joined). Any number of threads may iterate at
    once.
    """

    def __init__(self, path: str, file_type: FileType | None = None) -> None:
        self.path = path
        self._file = File(path)
        try:
            self.size = self._file.size
            head = bytes(self._file.view(0, HEADER_BYTES))
            self.header: Header = unpack_header(head, path, file_type)
            self.end_offset, self._end = self._find_end()
            self.meta: dict[str, Any] = decode_json(self._end.payload, path, self.end_offset)
        except BaseException:
            self.close()  # Now: the error's traceback may keep this object.
            raise

    def close(self) -> None:
        """Close the file; payloads handed out stay valid. Again: nothing."""
        self._file.close()

    def __iter__(self) -> Iterator[Record]:
        """Yield all records but END, in order, each verified; END's count of them is, too."""
        return self._records(Stream(self._file))

    def skipping(self, kinds: frozenset[RecordKind]) -> Iterator[Record]:
        """Yield all records but END; those of some kinds without a payload, which is not read.

        Notes
        -----
        That such a record is where it was written is proved by the next one, which names its
        checksum; what its other fields say is not.
        """
        self._file.keep_cached()
        return self._records(Stream(self._file, SKIPPING_WINDOW_BYTES, 0), kinds)

    def first(self) -> Record | None:
        """Return the first record, None if there is none but END; nothing else is read."""
        return next(self._records(self._file), None)

    def _records(
        self, source: Source, skipped: frozenset[RecordKind] = frozenset()
    ) -> Iterator[Record]:
        assembler = Assembler(self.path)
        offset, previous, parts = HEADER_BYTES, self.header.crc, 0
        while offset < self.end_offset:
            part = self._skip(source, offset, previous) if skipped else None
            if part is None or part.header.kind not in skipped:
                part = self._part(source, offset, previous)
            if part.header.kind == RecordKind.END:
                self._corrupt(part.end, Damage(f"{self.size - part.end} bytes lie behind the end"))
            try:
                record = assembler.add(part)
            except Damage as damage:
                self._corrupt(offset, damage)
            if record is not None:
                yield record
            offset, previous, parts = part.end, part.header.crc, parts + 1
        if assembler.start is not None:
            self._corrupt(assembler.start, Damage("the record goes on, but the file has ended"))
        end = self._part(source, offset, previous)
        if end.header.count != parts:
            self._corrupt(
                offset, Damage(f"the end counts {end.header.count} records, found {parts}")
            )

    def duplicate(self) -> int:
        """Return another descriptor of the file, which the caller closes."""
        return self._file.duplicate()

    def verify(self) -> None:
        """Read and check every byte of the file."""
        for _ in self:
            pass

    def _part(self, source: Source, offset: int, previous: int | None) -> Part:
        try:
            return read_part(source, offset, self.size, self.header.seed, previous)
        except Damage as damage:
            self._corrupt(offset, damage)

    def _skip(self, source: Source, offset: int, previous: int) -> Part | None:
        """Return a record without its payload, unverified; None: it is not one by itself."""
        try:
            header = peek_part(source, offset, self.size)
        except Damage as damage:
            self._corrupt(offset, damage)
        if header.previous != previous or header.flags:
            return None
        end = offset + RECORD_HEADER_BYTES + padded(header.length)
        return Part(header, memoryview(b""), offset, end)

    def _find_end(self) -> tuple[int, Part]:
        # From the back: hopping there from header to header reads all over the file.
        offset = self._last_record()
        if offset is None:
            offset = self._hop_to_end()
        part = self._part(self._file, offset, None)
        if part.header.flags or part.header.table or part.header.durable:
            self._corrupt(offset, Damage("the end record has fields that must be zero"))
        if part.end != self.size:
            self._corrupt(part.end, Damage(f"{self.size - part.end} bytes lie behind the end"))
        return offset, part

    def _last_record(self) -> int | None:
        """Return where an END record that goes to the last byte and verifies begins."""
        if self.size % ALIGNMENT:
            return None
        start = max(HEADER_BYTES, self.size - TAIL_BYTES)
        tail = self._file.view(start, self.size - start)
        # Where a record may begin, from the front, and the bytes from behind its header to the end.
        lengths = np.frombuffer(tail, "<u8")[1 : -(RECORD_HEADER_BYTES // ALIGNMENT) + 2]
        rest = np.arange(len(lengths) - 1, -1, -1, dtype=np.uint64) * ALIGNMENT
        for place in np.flatnonzero(rest - lengths < ALIGNMENT)[::-1]:
            at = int(place) * ALIGNMENT
            header = RecordHeader(*RECORD.unpack_from(tail, at))
            if (header.kind, header.flags) == (RecordKind.END, 0):
                with contextlib.suppress(Damage):
                    read_part(self._file, start + at, self.size, self.header.seed, None)
                    return start + at
        return None

    def _hop_to_end(self) -> int:
        """Return where END begins; or say where the file stops making sense on the way there."""
        offset = HEADER_BYTES
        while True:
            try:
                header = peek_part(self._file, offset, self.size)
            except Damage as damage:
                self._corrupt(offset, damage)
            if header.kind == RecordKind.END:
                return offset
            offset += RECORD_HEADER_BYTES + padded(header.length)

    def _corrupt(self, offset: int, damage: Damage) -> NoReturn:
        raise corruption(self.path, offset, damage)
