"""Call logs: every mutating call as it was made, in order; replayed after a crash.

One log follows another: a seal begins the next one, so that the calls which its delta covers can be
dropped as whole files. Records hold the arguments (and the `now`) of a call, not its effects.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from monolith_kv.storage import files, format
from monolith_kv.storage.files import Buffer
from monolith_kv.storage.format import (
    CALL_FOLDER,
    CALLS_PATTERN,
    FileIdentity,
    FileType,
    Header,
    RecordKind,
)
from monolith_kv.storage.framing import Record, corruption, decode_json, encode_json
from monolith_kv.storage.log_file import LogWriter
from monolith_kv.storage.log_reader import LogReader, Torn
from monolith_kv.storage.stream import Closing

TIME = np.dtype("<f8")
FID = np.dtype("<u8")
FLOAT = np.dtype("<f4")


@dataclass(frozen=True, eq=False)
class Call:
    """One logged call on one table."""

    kind: ClassVar[RecordKind]
    table: int


@dataclass(frozen=True, eq=False)
class Insert(Call):
    """Ids that a pull inserted, at `now`."""

    kind = RecordKind.INSERT
    now: float
    fids: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Push(Call):
    """A push: uint64 (n,), float32 (n, dim)."""

    kind = RecordKind.PUSH
    now: float
    fids: NDArray[np.uint64]
    gradients: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Upsert(Call):
    """An upsert: uint64 (n,), float32 (n, dim)."""

    kind = RecordKind.UPSERT
    now: float
    fids: NDArray[np.uint64]
    rows: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Remove(Call):
    """Ids that were removed, by a call or because they had expired."""

    kind = RecordKind.REMOVE
    fids: NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Configure(Call):
    """New settings of a table."""

    kind = RecordKind.CONFIGURE
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Create(Call):
    """A new table, with its schema."""

    kind = RecordKind.CREATE
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Drop(Call):
    """A table that was dropped."""

    kind = RecordKind.DROP


@dataclass(frozen=True, eq=False)
class Mark(Call):
    """A snapshot of this instant was written elsewhere; no call at all, but it has its place."""

    kind = RecordKind.MARK
    settings: dict[str, Any]


def path_of(root: str, number: int) -> str:
    """Return the path of call log `number` of the store at `root`."""
    return os.path.join(root, CALL_FOLDER, format.calls_name(number))


def numbers(root: str) -> list[int]:
    """Return the numbers of all call logs of the store, in order."""
    found = map(CALLS_PATTERN.fullmatch, files.list_names(os.path.join(root, CALL_FOLDER)))
    return [int(match[1]) for match in found if match]


class CallLogWriter:
    """Appends calls to a new log; any number of threads.

    Parameters
    ----------
    root : str
        Folder of the store.
    uuid : str
        Of the store.
    number : int
        Of the log; one higher than the one before.
    epoch : int
        In which the calls are made.
    replace : bool
        Whether a log of this number is one that could not be finished making: no call is in it.
    is_flushed_soon : bool
        Whether each call is flushed.

    Raises
    ------
    FileExistsError
        There is a log with this number, and not `replace`.
    StoreFullError
        There is no room; the log is as it was before the call.
    Error
        A flush failed, now or before: the log is given up.

    Notes
    -----
    Each method hands one call to the operating system and returns the offset to `sync` for it.
    Close a log before the first call goes to the next one: only the last log of a store may have a
    torn tail, since what follows it could not be replayed.
    """

    def __init__(
        self, root: str, uuid: str, number: int, epoch: int, *, replace: bool = False,
        is_flushed_soon: bool = False,
    ) -> None:  # fmt: skip
        self.number = number
        self.path = path_of(root, number)
        files.make_folder(os.path.dirname(self.path))
        identity = FileIdentity(uuid, epoch, number)
        self._log = LogWriter(
            self.path, FileType.CALLS, identity, replace=replace, is_flushed_soon=is_flushed_soon
        )

    @property
    def size(self) -> int:
        """Bytes in the log."""
        return self._log.end

    @property
    def records(self) -> int:
        """Records in the log."""
        return self._log.records

    @property
    def is_closed(self) -> bool:
        """Whether no call can be appended any more."""
        return self._log.is_closed

    @property
    def is_failed(self) -> bool:
        """Whether the log was given up."""
        return self._log.is_failed

    def insert(self, table: int, now: float, fids: NDArray[np.uint64]) -> int:
        """Log the ids that a pull inserts."""
        return self._fids(RecordKind.INSERT, table, fids, [_time(now)])

    def push(
        self,
        table: int,
        now: float,
        fids: NDArray[np.uint64],
        gradients: NDArray[np.float32],
        settle: Callable[[], None] | None = None,
    ) -> int:
        """Log a push: uint64 (n,) and float32 (n, dim), C-contiguous, not copied."""
        return self._fids(RecordKind.PUSH, table, fids, [_time(now)], gradients, settle)

    def upsert(
        self,
        table: int,
        now: float,
        fids: NDArray[np.uint64],
        rows: NDArray[np.float32],
        settle: Callable[[], None] | None = None,
    ) -> int:
        """Log an upsert: uint64 (n,) and float32 (n, dim), C-contiguous, not copied."""
        return self._fids(RecordKind.UPSERT, table, fids, [_time(now)], rows, settle)

    def remove(self, table: int, fids: NDArray[np.uint64]) -> int:
        """Log the removal of ids."""
        return self._fids(RecordKind.REMOVE, table, fids, [])

    def configure(self, table: int, settings: Mapping[str, Any]) -> int:
        """Log new settings of a table, as JSON."""
        return self._log.append(RecordKind.CONFIGURE, encode_json(settings), table)

    def create(self, table: int, settings: Mapping[str, Any]) -> int:
        """Log a new table with its schema, as JSON."""
        return self._log.append(RecordKind.CREATE, encode_json(settings), table)

    def drop(self, table: int) -> int:
        """Log that a table is dropped."""
        return self._log.append(RecordKind.DROP, b"", table)

    def mark(self, settings: Mapping[str, Any]) -> int:
        """Log that a snapshot was taken here, as JSON."""
        return self._log.append(RecordKind.MARK, encode_json(settings))

    def take_back(self, offset: int) -> None:
        """Cut off the last call, for which `offset` was returned: it could not be made."""
        self._log.take_back(offset)

    def coming(self) -> AbstractContextManager[None]:
        """Tell those who are about to flush that it is worth to wait for this caller's call."""
        return self._log.coming()

    def flush_alone(self) -> None:
        """Flush, unless the caller is one of several; `sync` tells of errors."""
        self._log.flush_alone()

    def sync(self, offset: int | None = None, *, is_patient: bool = True) -> None:
        """Return when the calls below `offset` (all by default) are on stable storage."""
        self._log.sync(offset, is_patient=is_patient)

    def close(self, clean: bool = True) -> None:
        """Close the log: durable and with an END record, unless `clean` is False."""
        self._log.close(clean)

    def _fids(
        self,
        kind: RecordKind,
        table: int,
        fids: NDArray[np.uint64],
        head: list[Buffer],
        rows: NDArray[np.float32] | None = None,
        settle: Callable[[], None] | None = None,
    ) -> int:
        # On a little-endian machine, that is everywhere, these copy nothing.
        payload: list[Buffer] = [*head, np.ascontiguousarray(fids, FID)]
        if rows is not None:
            payload.append(np.ascontiguousarray(rows, FLOAT))
        return self._log.append(kind, payload, table, len(fids), settle)


class CallLogReader(Closing):
    """The calls of one log, up to its end or its torn tail; see `LogReader`.

    Attributes
    ----------
    torn : Torn or None
        Known once the iteration has ended.
    is_closed : bool
        Whether the log was closed cleanly; known once the iteration has ended.
    """

    def __init__(self, path: str, *, must_be_closed: bool = False) -> None:
        self.path = path
        self._log = LogReader(path, FileType.CALLS, must_be_closed=must_be_closed)
        self.header: Header = self._log.header
        self.size = self._log.size
        match = CALLS_PATTERN.fullmatch(os.path.basename(path))
        if match and int(match[1]) != self.header.identity.number:
            raise corruption(path, 0, f"this is call log {self.header.identity.number}")

    @property
    def torn(self) -> Torn | None:
        """The tail that has to be cut, if any."""
        return self._log.torn

    @property
    def is_closed(self) -> bool:
        """Whether END was found."""
        return self._log.is_closed

    def __iter__(self) -> Iterator[Call]:
        """Yield the calls in order; arrays are read-only views of what was read."""
        for record in self._log:
            yield unpack_call(record, self.path)

    def close(self) -> None:
        """Close the file; calls handed out stay valid."""
        self._log.close()


def read(path: str, *, must_be_closed: bool = False) -> CallLogReader:
    """Open a call log to read its calls.

    Parameters
    ----------
    path : str
        The log.
    must_be_closed : bool
        It has a successor, or the manifest says that the store was closed cleanly: then a torn
        tail is a CorruptionError.

    Raises
    ------
    CorruptionError
        Any damage that is not a torn tail; from here or from the iteration.
    """
    return CallLogReader(path, must_be_closed=must_be_closed)


def unpack_call(record: Record, path: str) -> Call:
    """Return the call in a record; CorruptionError where its sizes do not agree."""
    try:
        kind = RecordKind(record.kind)
        if kind in _WITH_SETTINGS:
            settings = decode_json(record.payload, path, record.offset)
            return _WITH_SETTINGS[kind](record.table, settings)
        if kind == RecordKind.DROP:
            _expect(record, 0)
            return Drop(record.table)
        if kind == RecordKind.REMOVE:
            fids, end = _array(record, FID, 0, record.count)
            _expect(record, end)
            return Remove(record.table, fids)
        if kind in (RecordKind.INSERT, RecordKind.PUSH, RecordKind.UPSERT):
            return _timed(record, kind)
    except ValueError as error:
        raise corruption(path, record.offset, error) from error
    raise corruption(path, record.offset, f"unexpected record kind {record.kind}")


_WITH_SETTINGS: dict[RecordKind, type[Configure] | type[Create] | type[Mark]] = {
    RecordKind.CONFIGURE: Configure,
    RecordKind.CREATE: Create,
    RecordKind.MARK: Mark,
}


def _timed(record: Record, kind: RecordKind) -> Call:
    now = float(_array(record, TIME, 0, 1)[0][0])
    fids, end = _array(record, FID, TIME.itemsize, record.count)
    if kind == RecordKind.INSERT:
        _expect(record, end)
        return Insert(record.table, now, fids)
    width, rest = divmod(len(record.payload) - end, FLOAT.itemsize * max(1, record.count))
    if rest or (width and not record.count):
        raise ValueError("the rows are not as many as the ids")
    flat, _ = _array(record, FLOAT, end, record.count * width)
    rows = flat.reshape(record.count, width)
    made = Push if kind == RecordKind.PUSH else Upsert
    return made(record.table, now, fids, rows)


def _array(
    record: Record, dtype: np.dtype[Any], offset: int, count: int
) -> tuple[NDArray[Any], int]:
    end = offset + count * dtype.itemsize
    if end > len(record.payload):
        raise ValueError(f"count {record.count} does not fit into {len(record.payload)} bytes")
    return np.frombuffer(record.payload[offset:end], dtype), end


def _expect(record: Record, size: int) -> None:
    if len(record.payload) != size:
        raise ValueError(f"the payload has {len(record.payload)} bytes, expected {size}")


def _time(now: float) -> bytes:
    return np.array(now, TIME).tobytes()


__all__ = [
    "Call", "CallLogReader", "CallLogWriter", "Configure", "Create", "Drop", "Insert", "Mark",
    "Push", "Remove", "Torn", "Upsert", "numbers", "path_of", "read",
]  # fmt: skip
