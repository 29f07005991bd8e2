"""What every contender does, and how it says that it cannot."""

import abc
import ctypes
import os
from pathlib import Path

from monolith_kv_tools.bench.compare.work import Ids, Rows, Scope


class Unsupported(Exception):  # Not a failure: the reason goes into the table.
    """The system has no such operation; the message says why."""


class Contender(abc.ABC):
    """A table of one system, filled and used as its own documentation recommends for batches.

    A lookup takes an array of ids to an array of rows: whatever the system needs in between
    (tensors, keys as bytes) is a part of the work.

    Attributes
    ----------
    wants_positions : bool
        The system has no index: in place of ids it is handed the positions 0..rows.
    """

    wants_positions = False

    @abc.abstractmethod
    def version(self) -> str:
        """Name the libraries with their versions."""

    @abc.abstractmethod
    def create(self, folder: Path, scope: Scope) -> None:
        """Make an empty table; files go into `folder`, which is there."""

    @abc.abstractmethod
    def insert(self, ids: Ids, rows: Rows) -> None:
        """Put in new rows, with Adagrad's state for each."""

    def settle(self) -> None:  # noqa: B027 - most have nothing to do
        """Come to rest after many inserts: flush, seal."""

    @abc.abstractmethod
    def lookup(self, ids: Ids) -> Rows:
        """Return the rows, (n, dim); the array may be reused by the next call."""

    @abc.abstractmethod
    def upsert(self, ids: Ids, rows: Rows) -> None:
        """Set the rows of distinct ids that are there."""

    @abc.abstractmethod
    def step(self, ids: Ids, gradients: Rows) -> Rows:
        """Return the rows as in `lookup`, then one step of Adagrad for each distinct id."""

    def grow(self, ids: Ids, rows: Rows) -> None:
        """Put in new rows of a training run, in small batches."""
        self.insert(ids, rows)

    @abc.abstractmethod
    def save(self, folder: Path) -> Path:
        """Write the whole table with Adagrad's state; the file or folder that holds it.

        It goes into `folder`, which is there, unless the system has a place of its own for it.
        """

    @abc.abstractmethod
    def load(self, path: Path) -> None:
        """Come back, after `close`, from what `save` has returned."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give everything back; again: nothing."""

    def resident_bytes(self) -> int:
        """Return the memory of whoever holds the rows."""
        return resident_bytes(os.getpid())


def resident_bytes(process: int) -> int:
    """Return the resident set of a process; of this one, without what malloc keeps."""
    if process == os.getpid():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Of glibc alone.
        if trim is not None:
            trim(0)
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def size_bytes(path: Path) -> int:
    """Return the bytes that a file, or all files of a folder, take on disk."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    # Blocks, not lengths: a file that is mapped may be long and mostly holes.
    return sum(file.stat().st_blocks * 512 for file in files)
