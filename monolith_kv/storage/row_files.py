"""Row files of a table, and parts of a snapshot that are read like them: which, and how large.

See overflow.py, which writes, empties and removes them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from monolith_kv._table import TableCore
from monolith_kv.errors import StoreFullError
from monolith_kv.storage import files
from monolith_kv.storage.format import HEADER_BYTES, PLACE_SUM_BYTES

FILES_MAX = 65_536  # ROWFILES_MAX
COLD = 1 << 31  # ROW_COLD


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
    parts: list[RowFile] = field(default_factory=list)  # Of a snapshot; nothing is written there.
    part_places: int = 0  # In all of them.
    _taken: set[int] = field(default_factory=set)  # Numbers.
    _free: int = 0  # No number below it is free.
    _turn: int = 0

    @property
    def place_bytes(self) -> int:
        """Of a record and its checksum."""
        return self.core.record_bytes + PLACE_SUM_BYTES

    def every(self) -> Iterator[RowFile]:
        """Yield all files and parts."""
        yield from self.own
        yield from self.parts

    def add(self, file: RowFile) -> RowFile:
        """Make a file known, whose number is free."""
        disk = file.disk
        self.core.add_row_file(file.number, disk.fd, disk.seed, file.base, file.places)
        disk.users += 1
        self._taken.add(file.number)
        (self.own if disk.is_own else self.parts).append(file)
        self.part_places += 0 if disk.is_own else file.places
        return file

    def drop(self, file: RowFile) -> None:
        """Take a file away in which no row lies."""
        self.core.remove_row_file(file.number)
        self._taken.remove(file.number)
        self._free = min(self._free, file.number)
        (self.own if file.disk.is_own else self.parts).remove(file)
        self.part_places -= 0 if file.disk.is_own else file.places
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
        """Bytes of disk: of a snapshot that has a name, the rows that lie in it."""
        return sum(map(self.bytes_of, self.own)) + self._places_taken() * self.place_bytes

    @property
    def dead_bytes(self) -> int:
        """Bytes of these whose row is not there any more, but for files that cannot be emptied."""
        own = sum(self.dead_bytes_of(file) for file in self.own if not file.is_stuck)
        return own + (self._places_taken() - self._rows_in_parts()) * self.place_bytes

    def _places_taken(self) -> int:
        is_kept = bool(self.parts) and self.parts[0].disk.has_name
        return self._rows_in_parts() if is_kept else self.part_places

    def _rows_in_parts(self) -> int:
        if not self.parts:
            return 0
        return max(0, self.core.cold_rows - sum(map(self.live_rows, self.own)))

    def nameless_part(self) -> RowFile | None:
        """Return a part of a snapshot that nobody else keeps, if its rows can be moved."""
        for part in reversed(self.parts):
            if part.disk.has_name:
                break
            if not part.is_stuck:
                return part
        return None

    def next_part(self) -> RowFile | None:
        """Return one part after the other, time and again; there may be thousands."""
        if not self.parts:
            return None
        self._turn = (self._turn + 1) % len(self.parts)
        return self.parts[self._turn]
