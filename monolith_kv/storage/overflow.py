"""The overflow tier: records of cold rows in row files, which are only appended to.

What must hold: it never has the only copy of a row that is not in snapshot and log, so that it may
be wiped at any time, and is when it is opened; so nothing here is flushed. A record is written
before its row becomes cold, and its place is never used again. Each has a checksum, so that a
damaged one is counted and left out, never returned. Where a record lies the index knows
(cython_src/_rowfile.pxd). A row that comes back to memory leaves a dead place behind; files with
many of these are emptied, a part at a time.

Rows that a snapshot has in places stay there when a store is opened from it: they are only read.
When the store retires that snapshot its rows are moved out, since its room is given back only then.
"""

import contextlib
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from monolith_kv._checksum import crc32c_each
from monolith_kv._table import TableCore
from monolith_kv.errors import ClosedError, StoreFullError
from monolith_kv.storage import files
from monolith_kv.storage.cold_rows import ColdRows
from monolith_kv.storage.format import (
    HEADER_BYTES,
    NO_UUID,
    PLACE_SUM_BYTES,
    FileIdentity,
    FileType,
    pack_header,
    unpack_header,
)
from monolith_kv.storage.row_files import COLD, DiskFile, RowFile, TableFiles, emptiest, nameless

FILE_BYTES_MAX = 64 << 20
FILES_MIN = 16  # At least so many under a limit, or emptying them would take too much of it.
LIMIT_BYTES_MIN = 1 << 20
PLACE_BITS_MIN, PLACE_BITS_MAX = 4, 20
GOOD, DAMAGED, UNREADABLE = 1, 2, 3  # ROW_GOOD, ROW_DAMAGED, ROW_UNREADABLE
# Above it files are emptied: this bounds what the disk holds, and how many rows are written again
# for each that is evicted, which are those of the emptiest file.
DEAD_SHARE_MAX = 0.22
EMPTY_PER_BYTE = 4  # Bytes of files gone through for each byte that is evicted.
SHRINK_BYTES = 16 << 20  # Of a snapshot without a name, at once.
BLOCK_BYTES = 1 << 20

Fids = NDArray[np.uint64]
Records = NDArray[np.uint8]
Positions = NDArray[np.int64]
Places = NDArray[np.uint32]
Floats = NDArray[np.float32]


class OverflowTier:
    """Row files by table; any number of readers, and one at a time that changes what is there.

    Parameters
    ----------
    folder : str
        Of the tier alone: whatever is in it is removed. The folder above it exists.
    limit_bytes : int or None
        Of disk; None: no limit. Checksums and dead places count; 1 MiB is the least.

    Attributes
    ----------
    corrupt : int
        Records that were found damaged, and left out, so far.
    unreadable : int
        Times that the disk failed to read one.
    dropped_files : int
        Files that were removed, so far: while it stays the same, a place is no other's.
    evicted_bytes, written_bytes : int
        Of records that came from memory, and of all that was written to files for it.

    Raises
    ------
    StoreFullError
        From `write`: it would pass the limit, or the disk is full.
    ForkedError
        From `read` and what changes the tier, in a forked child.
    """

    def __init__(self, folder: str, limit_bytes: int | None) -> None:
        self.folder = folder
        self.corrupt = self.unreadable = self.evicted_bytes = self.written_bytes = 0
        self._limit = None if limit_bytes is None else max(limit_bytes, LIMIT_BYTES_MIN)
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._tables: dict[int, TableFiles] = {}  # By table id. Guarded by _lock.
        self._gone: set[int] = set()  # Tables that were dropped: no other gets their ids.
        self.dropped_files = self._made = 0
        self._is_closed = False
        with files.disk_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            os.mkdir(folder, 0o700)
            self._inode = os.stat(folder).st_ino

    # --- rows ------------------------------------------------------------------------------

    def write(self, table: int, core: TableCore, records: Records) -> Places:
        """Write records of rows that will lie here: all of them, or none and an error.

        Parameters
        ----------
        table : int
            Table id.
        core : TableCore
            The table.
        records : ndarray of uint8, shape (n, record_bytes)

        Returns
        -------
        ndarray of uint32, shape (n,)
            Their places, for `TableCore.evict` or `relocate`; then `settle` is called, whatever
            became of them.
        """
        with self._changing():
            found = self._files_of(table, core)
            # A tier that cannot be emptied now takes more disk: not this call's error.
            with contextlib.suppress(OSError, StoreFullError, MemoryError):
                self._empty(EMPTY_PER_BYTE * records.nbytes, DEAD_SHARE_MAX)
            self._make_room(found, records)
            places = self._append(found, records)
            self._await(found, places, 1)
            self.evicted_bytes += records.nbytes
        return places

    def settle(self, table: int, places: Places) -> None:
        """Count on these places: those in which no row lies now are dead."""
        with self._lock:
            if (found := self._tables.get(table)) is not None:
                self._await(found, places, -1)

    def read(self, core: TableCore, fids: Fids) -> tuple[Records, Positions]:
        """Return the records of those ids that are cold, and good.

        Parameters
        ----------
        core : TableCore
            The table.
        fids : ndarray of uint64, shape (n,)
            Any order; duplicates are allowed.

        Returns
        -------
        records : ndarray of uint8, shape (m, record_bytes)
            New memory.
        positions : ndarray of int64, shape (m,)
            Rising; records[i] belongs to fids[positions[i]].
        """
        self._check()
        records, outcomes = core.read_cold(fids)
        is_good = self._are_good(outcomes)
        positions = np.flatnonzero(is_good)
        return records if is_good.all() else records[positions], positions

    def fill(
        self, core: TableCore, fids: Fids, places: Positions, out: Floats, *, is_state: bool
    ) -> Positions:
        """Read embeddings, or states, of cold ids into rows of an array.

        Parameters
        ----------
        core : TableCore
            The table.
        fids : ndarray of uint64, shape (n,)
        places : ndarray of int64, shape (n,)
            Which rows of `out` are theirs.
        out : ndarray of float32, shape (m, dim) or (m, state_floats)
        is_state : bool

        Returns
        -------
        ndarray of int64
            Those places that were not filled: the id is not cold any more, or damaged.
        """
        self._check()
        is_good = self._are_good(core.fill_cold(fids, places, out, is_state))
        return places[~is_good]

    def _check(self) -> None:
        files.refuse_fork(self._pid, f"the overflow tier {self.folder}")
        if self._is_closed:
            raise ClosedError(f"the overflow tier {self.folder} is closed")

    def _are_good(self, outcomes: NDArray[np.uint8]) -> NDArray[np.bool_]:
        is_good: NDArray[np.bool_] = outcomes == GOOD
        damaged = int(np.count_nonzero(outcomes == DAMAGED))
        unreadable = int(np.count_nonzero(outcomes == UNREADABLE))
        if damaged + unreadable and not self._is_closed:
            with self._lock:
                self.corrupt += damaged
                self.unreadable += unreadable
        return is_good

    def forget_table(self, table: int) -> None:
        """Remove all files of a table that is not used any more."""
        with self._changing():
            found = self._tables.pop(table, None)
            self._gone.add(table)
            if found is not None:
                found.close()

    def begin_anew(self) -> None:
        """Remove all files of all tables, whose ids may come again."""
        with self._changing():
            for table in list(self._tables):
                self._tables.pop(table).close()
            self._gone.clear()

    # --- rows of a snapshot ----------------------------------------------------------------

    def adopt(
        self, table: int, core: TableCore, disk: DiskFile, rows: ColdRows
    ) -> list[Callable[[], None]]:
        """Take cold rows that a table does not know yet where they lie; nothing is read.

        Returns
        -------
        list of callable
            What is left to do, in any thread and order: let the table know them.

        Notes
        -----
        The rows are of places of this table's size. The file is closed when none lies in it.
        """
        jobs: list[Callable[[], None]] = []
        with self._changing():
            found = self._files_of(table, core)
            digest, places_max = rows.digest, 1 << found.place_bits
            for start in range(0, len(rows.fids), places_max):
                stop = min(start + places_max, len(rows.fids))
                base = rows.offset + start * found.place_bytes
                part = found.add(RowFile(disk, found.free_number(1), base, stop - start, awaited=1))
                few = rows._replace(
                    fids=rows.fids[start:stop], times=rows.times[start:stop], digest=digest
                )
                jobs.append(partial(found.enter, part, few))
                digest = (0, 0)
            size = sum(each.part_places * each.place_bytes for each in self._tables.values())
            if self._limit is not None and size > self._limit:
                raise self._full(size)
        return jobs

    # --- size ------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """Rows that lie here, all tables together."""
        with self._lock:
            return sum(each.core.cold_rows for each in self._tables.values())

    @property
    def bytes(self) -> int:
        """Bytes of disk that the tier takes."""
        with self._lock:
            return sum(found.bytes for found in self._tables.values())

    @property
    def dead_bytes(self) -> int:
        """Bytes of these whose rows came back to memory, or are gone."""
        with self._lock:
            return self._dead_bytes()

    def shrink(self) -> int:
        """Empty what is mostly dead, all of it; return the bytes of disk given back."""
        with self._changing():
            before = self.bytes
            self._empty(None, DEAD_SHARE_MAX)
            freed = before - self.bytes
            self._empty(SHRINK_BYTES, DEAD_SHARE_MAX)
            return max(freed, before - self.bytes)

    def close(self) -> None:
        """Close the tier and remove it; again, or in a forked child: nothing."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                for table in list(self._tables):
                    self._tables.pop(table).close()
                # A resync exchanges stores: another one's tier may lie under the name by now.
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(self.folder).st_ino == self._inode:
                        shutil.rmtree(self.folder, ignore_errors=True)

    # --- writing ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            self._check()
            with files.disk_errors(self.folder):
                for found in self._tables.values():
                    for part in found.parts.values():
                        part.disk.look()
                        break  # All of them are in one file.
                yield

    def _files_of(self, table: int, core: TableCore) -> TableFiles:
        if table in self._gone:
            raise ClosedError(f"table {table} was dropped")
        found = self._tables.get(table)
        if found is None:
            found = self._tables[table] = TableFiles(core, self._place_bits(core))
            core.begin_overflow(found.place_bits)
        return found

    def _append(self, found: TableFiles, records: Records, spare: int = 1) -> Places:
        """Write records behind those that are there; return their places.

        So many files stay `spare`: one, or no file could be emptied any more.
        """
        places = np.empty(len(records), np.uint32)
        places_max, start = 1 << found.place_bits, 0
        while start < len(records):
            if not found.own or found.own[-1].places == places_max:
                self._new_file(found, spare)
            file = found.own[-1]
            stop = min(len(records), start + places_max - file.places)
            first = (file.number << found.place_bits) | file.places
            self._write(found, file, records[start:stop])
            places[start:stop] = np.arange(first, first + stop - start)
            start = stop
        return places

    def _await(self, found: TableFiles, places: Places, change: int) -> None:
        """Keep files in which rows are about to lie, or no longer."""
        numbers = set((places >> found.place_bits).tolist())
        for file in found.own:
            file.awaited += change * (file.number in numbers)

    def _write(self, found: TableFiles, file: RowFile, records: Records) -> None:
        data = found.core.checksummed(records.reshape(-1), file.disk.seed)
        # What an earlier write left of itself, when it failed, is written over.
        os.lseek(file.disk.fd, found.bytes_of(file), os.SEEK_SET)
        self.written_bytes += files.write_all(file.disk.fd, [data])
        file.places += len(records)
        found.core.wrote_places(file.number, file.places)

    def _new_file(self, found: TableFiles, spare: int) -> None:
        open_files = sum(len(each.own) for each in self._tables.values())
        if open_files >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2:
            raise StoreFullError(
                f"{self.folder} has {open_files} files, half of what this process may have open; "
                "raise its limit of open files (ulimit -n), or memory_limit"
            )
        number = found.free_number(spare)
        self._made += 1
        path = os.path.join(self.folder, f"{self._made:010d}.rows")
        fd = files.create_file(path)
        try:
            header = pack_header(FileType.ROWS, FileIdentity(NO_UUID, 0, self._made))
            seed = unpack_header(header, path).seed
            self.written_bytes += files.write_all(fd, [header])
            found.add(RowFile(DiskFile(path, fd, seed), number))
        except BaseException:
            os.close(fd)
            files.remove_quietly(path)
            raise

    def _place_bits(self, core: TableCore) -> int:
        size = FILE_BYTES_MAX if self._limit is None else self._limit // FILES_MIN
        places = min(size, FILE_BYTES_MAX) // (core.record_bytes + PLACE_SUM_BYTES)
        return min(max(places.bit_length() - 1, PLACE_BITS_MIN), PLACE_BITS_MAX)

    def _make_room(self, found: TableFiles, records: Records) -> None:
        """Raise StoreFullError unless the records fit under the limit."""
        if self._limit is None:
            return
        more = len(records) * found.place_bytes
        # Room for the live rows of one file stays free, or none could be emptied any more.
        reserve = max(t.place_bytes << t.place_bits for t in self._tables.values())
        more += HEADER_BYTES * (1 + more // (found.place_bytes << found.place_bits)) + reserve
        if self.bytes + more > self._limit:
            self._empty(None, 0.0, until=self._limit - more)
        if self.bytes + more > self._limit:
            raise self._full(self.bytes)

    def _full(self, size: int) -> StoreFullError:
        return StoreFullError(
            f"the overflow tier {self.folder} is full: {size} of {self._limit} bytes; "
            "raise overflow_limit or memory_limit, or remove or expire rows"
        )

    def _dead_bytes(self) -> int:
        return sum(found.dead_bytes for found in self._tables.values())

    # --- emptying --------------------------------------------------------------------------

    def _empty(self, scan_bytes: int | None, dead_share: float, until: int = 0) -> None:
        """Move live rows out of files with many dead places while these are too many.

        Parameters
        ----------
        scan_bytes : int or None
            About so many bytes of files are gone through; None: as many as it takes.
        dead_share : float
            Of all bytes; where no more than this are dead it ends.
        until : int
            Or where no more than so many bytes are taken.
        """
        left = scan_bytes
        while left is None or left > 0:
            self._drop_dead()
            # These in portions alone: there may be as much as a whole snapshot.
            chosen = None if left is None else nameless(self._tables.values())
            if chosen is None:
                taken = self.bytes
                if taken <= until or self._dead_bytes() <= dead_share * taken:
                    break
                chosen = emptiest(self._tables.values(), is_pressed=until > 0)
            if chosen is None:
                break
            scanned = self._empty_part(*chosen)
            left = None if left is None else left - scanned
        self._drop_dead()

    def _empty_part(self, found: TableFiles, file: RowFile) -> int:
        """Move the live rows of the next part of a file; return the bytes gone through."""
        core, size = found.core, found.place_bytes
        if found.own and file is found.own[-1]:
            self._new_file(found, 0)  # Nothing is appended to a file that is emptied.
        count = min(file.places - file.emptied, max(1, BLOCK_BYTES // size))
        block = np.empty((count, size), np.uint8)
        try:
            got = os.preadv(file.disk.fd, [block.data], file.base + file.emptied * size)
        except OSError:
            file.is_stuck = True  # Its rows are read one by one, or taken from elsewhere.
            return int(block.nbytes)
        fids = fids_of(block[: got // size])
        first = COLD | (file.number << found.place_bits) | file.emptied
        rows = np.arange(first, first + len(fids)).astype(np.uint32)
        # A row that lies there now has its record there: places are written once.
        live = np.flatnonzero(core.cold_rows_at(fids) == rows)
        places = block[live]
        sums = np.ascontiguousarray(places[:, core.record_bytes :]).view("<u4").reshape(-1)
        is_good = crc32c_each(places, core.record_bytes, file.disk.seed) == sums
        records = np.ascontiguousarray(places[is_good, : core.record_bytes])
        good = live[is_good]
        core.relocate(fids[good], rows[good], self._append(found, records, 0))
        file.emptied += count
        # A file is emptied once: what is left in it then cannot be read.
        file.is_stuck = file.emptied == file.places
        if file.is_stuck and not file.disk.is_own and not found.live_rows(file):
            self._drop(found, file)
        return block.nbytes

    def _drop_dead(self) -> None:
        """Remove files in which no row lies, and none will."""
        for found in self._tables.values():
            for file in found.some():
                if not file.awaited and not found.live_rows(file):
                    self._drop(found, file)

    def _drop(self, found: TableFiles, file: RowFile) -> None:
        self.dropped_files += 1
        found.drop(file)


def fids_of(records: Records) -> Fids:
    """Return the ids of records, which begin with them."""
    return np.ascontiguousarray(records[:, :8]).view("<u8").reshape(-1)
