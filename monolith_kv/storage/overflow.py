"""The overflow tier: records of cold rows on disk, in LMDB, in batches.

What must hold: it never has the only copy of a row that is not in snapshot and log, so that it may
be wiped at any time, and is when it is opened. Each value carries a CRC of its key and record,
since LMDB has none: a damaged record is counted and left out, never returned. An environment must
not be used, nor closed, by a forked child.
"""

import contextlib
import glob
import os
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from monolith_kv._checksum import crc32c
from monolith_kv.errors import ClosedError, CorruptionError, StoreFullError
from monolith_kv.storage import files

if TYPE_CHECKING:
    import lmdb

KEY = np.dtype([("table", ">u4"), ("fid", ">u8")])  # Big endian: key order is numeric order.
DATA_NAME = "data.mdb"  # LMDB's own name
CRC_BYTES = 4
MAP_BYTES_MIN = 1 << 20
MAP_BYTES_STEP = 1 << 30  # Address space, not disk: the file is sparse until it is used.
FORGET_ROOM_BYTES = 1 << 20  # Removing copies pages: it may pass the limit by so much at a time.
FID_MAX = 2**64 - 1

Fids = NDArray[np.uint64]
Records = NDArray[np.uint8]


class OverflowTier:
    """Records by table id and fid; any number of threads, one at a time.

    Parameters
    ----------
    folder : str
        Of the tier alone: whatever is in it is removed. The folder above it exists.
    limit_bytes : int or None
        Of disk; None: no limit. Page overhead counts; 1 MiB is the least.

    Attributes
    ----------
    corrupt : int
        Records that were found damaged, and left out, so far.

    Raises
    ------
    StoreFullError
        `put` would pass the limit, or the disk is full.
    ForkedError
        From any call but `close` in a forked child.

    Notes
    -----
    A record's size is fixed per table. Nothing returned is a view of the map.
    """

    def __init__(self, folder: str, limit_bytes: int | None) -> None:
        self.folder = folder
        self.corrupt = 0
        self._limit = None if limit_bytes is None else max(limit_bytes, MAP_BYTES_MIN)
        self._map_bytes = self._limit or MAP_BYTES_STEP
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._sizes: dict[int, int] = {}  # Record bytes by table. Guarded by _lock.
        for old in [folder, *glob.glob(f"{glob.escape(folder)}.*{files.TEMPORARY_SUFFIX}")]:
            shutil.rmtree(old, ignore_errors=True)
        self._is_closed = False
        self._env: lmdb.Environment | None = None  # Opened when it is used. Guarded by _lock.
        # LMDB does not sync its folder: the environment is made beside it and moved here.
        temporary = f"{folder}.{os.urandom(8).hex()}{files.TEMPORARY_SUFFIX}"
        try:
            with files.disk_errors(folder):
                os.mkdir(temporary, 0o700)
                self._open(temporary).close()
                files.fsync_folder(temporary)
            files.publish(temporary, folder, replace=True)
            with self._environment():
                pass
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _open(self, folder: str) -> "lmdb.Environment":
        import lmdb

        # lock=False: the store's own lock keeps others out and ours keeps transactions apart, and
        # with no lock.mdb there is none that a backup or a fork could take away. Never writemap (a
        # full disk would be a SIGBUS), never sync=False.
        return lmdb.open(
            folder,
            create=not os.path.exists(os.path.join(folder, DATA_NAME)),
            map_size=self._map_bytes,
            mode=0o600,
            lock=False,
            readahead=False,
            metasync=True,
            sync=True,
            writemap=False,
        )

    # --- batches ---------------------------------------------------------------------------

    def put(self, table: int, fids: Fids, records: Records) -> None:
        """Store records in one transaction: all of them, or none and an error.

        Parameters
        ----------
        table : int
            Table id.
        fids : ndarray of uint64, shape (n,)
            Distinct; any order.
        records : ndarray of uint8, shape (n, size)
            Of the same size in every call for this table.
        """
        if not len(fids):
            return
        order = np.argsort(fids)
        keys = _keys(table, fids[order])
        values = np.empty((len(fids), CRC_BYTES + records.shape[1]), np.uint8)
        values[:, CRC_BYTES:] = records[order]
        values[:, :CRC_BYTES] = _checksums(keys, values).view(np.uint8).reshape(-1, CRC_BYTES)
        with self._environment() as env:
            if self._sizes.setdefault(table, records.shape[1]) != records.shape[1]:
                raise ValueError(f"records of table {table} have {self._sizes[table]} bytes")
            if self._limit is not None:
                env.set_mapsize(self._limit)
            while True:
                try:
                    with self._writing(env, 2 * values.nbytes) as txn:
                        # Handed over one by one: LMDB copies each, nothing is held twice.
                        txn.cursor().putmulti(zip(_slices(keys), _rows(values), strict=True))
                    return
                except StoreFullError as error:
                    if self._limit is not None or not _is_map_full(error):
                        raise
                    self._grow(env, MAP_BYTES_STEP)

    def get(self, table: int, fids: Fids) -> tuple[Records, NDArray[np.int64]]:
        """Return the records that are there and good.

        Parameters
        ----------
        table : int
            Table id.
        fids : ndarray of uint64, shape (n,)
            Any order; duplicates are allowed.

        Returns
        -------
        records : ndarray of uint8, shape (m, size)
            New memory.
        positions : ndarray of int64, shape (m,)
            Rising; records[i] belongs to fids[positions[i]].
        """
        distinct, inverse = np.unique(fids, return_inverse=True)
        with self._environment() as env:
            size = self._sizes.get(table, 0)
            if not len(distinct) or not size:
                return np.empty((0, size), np.uint8), np.empty(0, np.int64)
            try:
                with env.begin(buffers=True) as txn:
                    pairs = txn.cursor().getmulti(list(_slices(_keys(table, distinct))))
                    found, records = self._good(pairs, table, size)
                    del pairs
            except _page_errors():
                self.corrupt += len(distinct)
                return np.empty((0, size), np.uint8), np.empty(0, np.int64)
        is_wanted = np.isin(found, distinct)
        found, records = found[is_wanted], records[is_wanted]
        where = np.full(len(distinct), -1, np.int64)
        where[np.searchsorted(distinct, found)] = np.arange(len(found))
        rows = where[inverse]
        positions = np.flatnonzero(rows >= 0)
        return records[rows[positions]], positions.astype(np.int64)

    def forget(self, table: int, fids: Fids) -> int:
        """Remove records; return how many were there. Works when the tier is full, too."""
        keys = list(_slices(_keys(table, np.sort(fids))))

        def remove(txn: Any) -> int:
            return sum(txn.delete(key) for key in keys)

        with self._environment() as env:
            return self._removing(env, remove) if keys else 0

    def forget_table(self, table: int) -> int:
        """Remove all records of a table; return how many there were."""
        first = _keys(table, np.zeros(1, np.uint64)).tobytes()
        last = _keys(table, np.full(1, FID_MAX, np.uint64)).tobytes()

        def remove(txn: Any) -> int:
            cursor, count = txn.cursor(), 0
            is_there = cursor.set_range(first)
            while is_there and cursor.key() <= last:
                is_there, count = cursor.delete() and bool(cursor.key()), count + 1
            return count

        with self._environment() as env:
            self._sizes.pop(table, None)
            return self._removing(env, remove)

    def scan(self, table: int, after_fid: int | None, limit: int) -> tuple[Fids, Records]:
        """Return up to `limit` good records with higher fids, in order.

        Parameters
        ----------
        table : int
            Table id.
        after_fid : int or None
            The last fid of the call before; None to begin.
        limit : int
            At most so many are read; fewer come back only at the end, or where some are damaged:
            go on until none comes back.

        Returns
        -------
        fids : ndarray of uint64, shape (m,)
        records : ndarray of uint8, shape (m, size)
        """
        fid = -1 if after_fid is None else after_fid
        size = self._sizes.get(table, 0)
        none = np.empty(0, np.uint64), np.empty((0, size), np.uint8)
        last = _keys(table, np.full(1, FID_MAX, np.uint64)).tobytes()
        with self._environment() as env, env.begin(buffers=True) as txn:
            cursor = txn.cursor()
            while fid < FID_MAX and size:
                first = _keys(table, np.full(1, fid + 1, np.uint64)).tobytes()
                pairs = _take(cursor, first, last, limit) if cursor.set_range(first) else []
                fids, records = self._good(pairs, table, size)
                if not pairs:
                    break
                reached = _keys_of(pairs[-1:])
                del pairs
                is_next = fids > fid if fid >= 0 else np.ones(len(fids), np.bool_)
                if is_next.any():
                    return fids[is_next], records[is_next]
                # A damaged key does not tell where it stands: go on behind the one before.
                fid = max(fid + 1, int(reached["fid"][0]) if len(reached) else 0)
        return none

    # --- size ------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Records in the tier, all tables together."""
        with self._environment() as env:
            return int(env.stat()["entries"])

    @property
    def bytes(self) -> int:
        """Bytes of disk that the tier takes."""
        with self._environment() as env:
            return int((env.info()["last_pgno"] + 1) * env.stat()["psize"])

    def shrink(self) -> int:
        """Give disk back if less than half of it is in use; return the bytes given back."""
        with self._environment() as env:
            stat, before = env.stat(), self.bytes
            pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            if before <= MAP_BYTES_MIN or 2 * pages * stat["psize"] > before:
                return 0
            temporary = f"{self.folder}.{os.urandom(8).hex()}{files.TEMPORARY_SUFFIX}"
            try:
                with files.disk_errors(self.folder):
                    os.mkdir(temporary, 0o700)
                    env.copy(temporary, compact=True)
                    os.chmod(os.path.join(temporary, DATA_NAME), 0o600)  # LMDB copies as 0666.
                    files.fsync_folder(temporary)
                self._drop()
                # In one step: rows that were touched since the last seal are nowhere else.
                names = (os.path.join(folder, DATA_NAME) for folder in (temporary, self.folder))
                files.publish(*names, replace=True)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return before - self.bytes

    def close(self) -> None:
        """Close the tier and remove it; again, or in a forked child: nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._drop()
                shutil.rmtree(self.folder, ignore_errors=True)

    # --- helpers ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _environment(self) -> Iterator["lmdb.Environment"]:
        files.refuse_fork(self._pid, f"the overflow tier {self.folder}")
        with self._lock:
            if self._is_closed:
                raise ClosedError(f"the overflow tier {self.folder} is closed")
            with files.disk_errors(self.folder), self._page_errors_told():
                if self._env is None:
                    self._env = self._open(self.folder)
                yield self._env

    @contextlib.contextmanager
    def _page_errors_told(self) -> Iterator[None]:
        try:
            yield
        except _page_errors() as error:
            raise CorruptionError(
                f"{self.folder}: LMDB cannot read its own pages: {error}; close the store and "
                "open it again, it makes the tier anew from snapshot and log",
                self.folder,
            ) from error

    def _drop_if_unusable(self, env: "lmdb.Environment") -> None:
        """Let the next call open it anew, with what was committed, where LMDB has given it up."""
        import lmdb

        try:
            env.begin().abort()
        except lmdb.Error:
            self._drop()

    def _drop(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()

    @contextlib.contextmanager
    def _writing(self, env: "lmdb.Environment", need_bytes: int) -> Iterator[Any]:
        """One write transaction; what it fails at for want of room is a StoreFullError."""
        try:
            with (
                files.disk_errors(self.folder),
                self._page_errors_told(),
                env.begin(write=True) as txn,
            ):
                yield txn
        except (StoreFullError, CorruptionError, OSError) as error:
            if _is_map_full(error):
                raise
            self._drop_if_unusable(env)
            if isinstance(error, OSError):
                # LMDB calls a write that the full disk cut short an input/output error.
                files.probe_room(self.folder, need_bytes)
            raise

    def _grow(self, env: "lmdb.Environment", more: int) -> None:
        self._map_bytes = max(self._map_bytes, int(env.info()["map_size"])) + more
        env.set_mapsize(self._map_bytes)

    def _removing(self, env: "lmdb.Environment", remove: Any) -> int:
        while True:
            try:
                with self._writing(env, FORGET_ROOM_BYTES) as txn:
                    return int(remove(txn))
            except StoreFullError as error:
                if not _is_map_full(error):
                    raise
                self._grow(env, FORGET_ROOM_BYTES)

    def _good(self, pairs: list[tuple[Any, Any]], table: int, size: int) -> tuple[Fids, Records]:
        """Copy the pairs of this table that verify out of the map; count the others."""
        width = CRC_BYTES + size
        kept = [pair for pair in pairs if len(pair[1]) == width and len(pair[0]) == KEY.itemsize]
        keys = _keys_of(kept)
        values = np.frombuffer(b"".join(value for _, value in kept), np.uint8)
        values = values.reshape(len(kept), width)
        stored = np.ascontiguousarray(values[:, :CRC_BYTES]).view("<u4").reshape(-1)
        good = (stored == _checksums(keys, values)) & (keys["table"] == table)
        self.corrupt += len(pairs) - int(good.sum())
        return keys["fid"][good].astype(np.uint64), values[good, CRC_BYTES:]


def _take(cursor: Any, first: bytes, last: bytes, limit: int) -> list[tuple[Any, Any]]:
    pairs: list[tuple[Any, Any]] = []
    for key, value in cursor.iternext(keys=True, values=True):
        if bytes(key) > last or len(pairs) == limit:
            break
        pairs.append((key, value))
    return pairs


def _is_map_full(error: BaseException) -> bool:
    return type(error.__cause__).__name__ == "MapFullError"


def _page_errors() -> tuple[type[Exception], ...]:
    """What LMDB raises where its own pages make no sense."""
    import lmdb

    return (
        lmdb.BadTxnError,
        lmdb.CorruptedError,
        lmdb.CursorFullError,
        lmdb.PageFullError,
        lmdb.PageNotFoundError,
    )


def _keys_of(pairs: list[tuple[Any, Any]]) -> NDArray[Any]:
    return np.frombuffer(b"".join(key for key, _ in pairs if len(key) == KEY.itemsize), KEY)


def _keys(table: int, fids: Fids) -> NDArray[Any]:
    keys = np.empty(len(fids), KEY)
    keys["table"], keys["fid"] = table, fids
    return keys


def _slices(keys: NDArray[Any]) -> Iterator[bytes]:
    data = keys.tobytes()
    return (data[at : at + KEY.itemsize] for at in range(0, len(data), KEY.itemsize))


def _rows(values: Records) -> Iterator[memoryview]:
    view = values.reshape(-1).data
    width = values.shape[1]
    return (view[at : at + width] for at in range(0, len(view), width))


def _checksums(keys: NDArray[Any], values: Records) -> NDArray[np.uint32]:
    """Return the CRC of each key and record, as they are stored in front of the record."""
    sums = np.empty(len(keys), "<u4")
    for index, (key, value) in enumerate(zip(_slices(keys), _rows(values), strict=True)):
        sums[index] = crc32c(value[CRC_BYTES:], crc32c(key))
    return sums
