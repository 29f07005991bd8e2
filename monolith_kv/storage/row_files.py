"""Row files of a table, and parts of a snapshot that are read like them: which, and how large.

See overflow.py, which writes, empties and removes them.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from monolith_kv._table import TableCore
from monolith_kv.errors import StoreFullError
from monolith_kv.storage import files
from monolith_kv.storage.cold_rows import ColdRows
from monolith_kv.storage.format import HEADER_BYTES, PLACE_SUM_BYTES

FILES_MAX = 65_536  # ROWFILES_MAX
COLD = 1 << 31  # ROW_COLD
LAST_BYTES_MIN = 1 << 20  # The file that is written to is emptied, too, if it has as much.


@dataclass
class DiskFile:
    """A file that places are in: one of the tier's own, or a snapshot that its tables share."""

    path: str
    fd: int
    seed: int
    is_own: bool = True
    users: int = 0  # Row files that are in it.
    has_name: bool = True

    def look(self) -> None:
        """See whether somebody else keeps it: then it takes no room of this tier's."""
        self.has_name = os.fstat(self.fd).st_nlink > 0

    def leave(self) -> None:
        """Count one user less; the last one closes it, and removes the tier's own."""
        self.users -= 1
        if not self.users:
            os.close(self.fd)
            self.fd = -1
            if self.is_own:
                files.remove_quietly(self.path)


@dataclass
class RowFile:
    """One row file, or one part of a snapshot: what is written, how far it has been emptied."""

    disk: DiskFile
    number: int
    base: int = HEADER_BYTES  # Byte of the first place.
    places: int = 0  # written
    emptied: int = 0
    awaited: int = 0  # Writes whose rows may not have come yet.
    is_stuck: bool = False  # A record that cannot be read keeps it.


@dataclass
class TableFiles:
    """The row files of one table; the last of `own` is the one being written."""

    core: TableCore
    place_bits: int
    own: list[RowFile] = field(default_factory=list)
    # Of a snapshot, by number; nothing is written there.
    parts: dict[int, RowFile] = field(default_factory=dict)
    part_places: int = 0  # In all of them.
    _taken: set[int] = field(default_factory=set)  # Numbers.
    _free: int = 0  # No number below it is free.

    @property
    def place_bytes(self) -> int:
        """Of a record and its checksum."""
        return self.core.record_bytes + PLACE_SUM_BYTES

    def every(self) -> Iterator[RowFile]:
        """Yield all files and parts."""
        yield from self.own
        yield from self.parts.values()

    def add(self, file: RowFile) -> RowFile:
        """Make a file known, whose number is free."""
        disk = file.disk
        self.core.add_row_file(file.number, disk.fd, disk.seed, file.base, file.places)
        disk.users += 1
        self._taken.add(file.number)
        if disk.is_own:
            self.own.append(file)
        else:
            self.parts[file.number] = file
            self.part_places += file.places
        return file

    def enter(self, part: RowFile, rows: ColdRows) -> None:
        """Let the table know the rows of a part that nobody knows yet."""
        first = part.number << self.place_bits
        self.core.enter_cold(rows.fids, rows.times, first, *rows.digest)
        part.awaited = 0

    def drop(self, file: RowFile) -> None:
        """Take a file away in which no row lies."""
        self.core.remove_row_file(file.number)
        self._taken.remove(file.number)
        self._free = min(self._free, file.number)
        if file.disk.is_own:
            self.own.remove(file)
        else:
            del self.parts[file.number]
            self.part_places -= file.places
        file.disk.leave()

    def close(self) -> None:
        """Close all, with the rows in them."""
        for file in self.every():
            self.core.close_row_file(file.number)
            file.disk.leave()

    def free_number(self, spare: int) -> int:
        """Return the number of a new file; so many stay free.

        Raises
        ------
        StoreFullError
            There is none: more places could not be told apart.
        """
        most = min(FILES_MAX, COLD >> self.place_bits) - spare
        while self._free in self._taken:
            self._free += 1
        if self._free >= most:
            raise StoreFullError(
                f"a table has {most} files of rows in overflow and can have no more; raise "
                "memory_limit, or remove or expire rows"
            )
        return self._free

    # --- how much --------------------------------------------------------------------------

    def live_rows(self, file: RowFile) -> int:
        """Rows that lie in a file."""
        return self.core.live_rows(file.number)

    def bytes_of(self, file: RowFile) -> int:
        """Bytes of disk that an own file takes."""
        return file.base + file.places * self.place_bytes

    def dead_bytes_of(self, file: RowFile) -> int:
        """Bytes of places whose row is not there any more."""
        return (file.places - self.live_rows(file)) * self.place_bytes

    @property
    def bytes(self) -> int:
        """Bytes of disk: own files, and the rows that lie in a snapshot."""
        in_parts = max(0, self.core.cold_rows - sum(map(self.live_rows, self.own)))
        size = sum(map(self.bytes_of, self.own))
        return size + in_parts * self.place_bytes if self.parts else size

    @property
    def dead_bytes(self) -> int:
        """Bytes of own files whose row is not there any more, but for those that are stuck."""
        return sum(self.dead_bytes_of(file) for file in self.own if not file.is_stuck)

    # --- parts of a snapshot ---------------------------------------------------------------

    def nameless_part(self) -> RowFile | None:
        """Return a part of a snapshot that nobody else keeps, if its rows can be moved."""
        for part in self.parts.values():
            if part.disk.has_name:
                break
            if not part.is_stuck and not part.awaited:
                return part
        return None

    def some(self) -> list[RowFile]:
        """Return all own files, and each time another part: of these there may be thousands."""
        if not self.parts:
            return list(self.own)
        number = next(iter(self.parts))
        part = self.parts[number] = self.parts.pop(number)  # The last one now.
        return [*self.own, part]


# --- which to empty ------------------------------------------------------------------------

Chosen = tuple[TableFiles, RowFile] | None


def nameless(tables: Iterable[TableFiles]) -> Chosen:
    """Return a part of a snapshot that only the tier keeps."""
    for found in tables:
        if (part := found.nameless_part()) is not None:
            return found, part
    return None


def emptiest(tables: Iterable[TableFiles], *, is_pressed: bool) -> Chosen:
    """Return the own file to empty: the one begun, or the one with most dead bytes.

    Small ones that are written to are left alone, unless every byte counts.
    """
    best: Chosen = None
    most = 0
    for found in tables:
        for file in found.own:
            is_last = file is found.own[-1] and not is_pressed
            is_small = is_last and found.bytes_of(file) < LAST_BYTES_MIN
            if file.is_stuck or file.awaited or is_small:
                continue
            if file.emptied:
                return found, file
            dead = found.dead_bytes_of(file)
            if dead > most:
                most, best = dead, (found, file)
    return best
