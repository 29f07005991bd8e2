"""Bytes of a file: at any place, or from front to end with the disk reading ahead."""

import errno
import os
import sys
import weakref
from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from numpy.typing import NDArray

from monolith_kv.storage import files

WINDOW_BYTES = 8 << 20  # Smaller reads have the disk wait between them.
AHEAD_BYTES = 2 * WINDOW_BYTES  # Asked of the disk while a window is worked on.
# Of a file this large the system keeps nothing: as much memory would be needed again, beside what
# the file becomes here, and what others read would be driven out. What it has already, it keeps.
UNCACHED_BYTES_MIN = 64 << 20
UNCACHED = 0x80 if sys.platform == "linux" else 0  # linux/fs.h: RWF_DONTCACHE, since 6.14.


class Closing(ABC):
    """Is closed at the end of its block."""

    @abstractmethod
    def close(self) -> None:
        """Close it. Again: nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class File(Closing):
    """An open file to read from at any place; closed at the latest when nobody holds it any more.

    Notes
    -----
    Not by mmap: an error of the disk, or a writer that cuts its log, would be a signal there, and
    what was read would count as this process's memory.
    """

    def __init__(self, path: str) -> None:
        self._fd = files.open_readable(path)
        self.size = os.fstat(self._fd).st_size
        self._flags = UNCACHED if self.size >= UNCACHED_BYTES_MIN else 0

    def view(self, offset: int, size: int) -> memoryview:
        """Return `size` bytes from `offset` on, fewer at the end of the file."""
        return self.read_into(np.empty(max(0, min(size, self.size - offset)), np.uint8), offset)

    def read_into(self, memory: NDArray[np.uint8], offset: int) -> memoryview:
        """Fill `memory` with the bytes from `offset` on; return a view of those that are there."""
        view, done = memory.data, 0
        while done < len(view) and (count := self._read(view[done:], offset + done)):
            done += count
        return view[:done].toreadonly()

    def _read(self, view: memoryview, offset: int) -> int:
        if self._flags:
            try:
                return os.preadv(self._fd, [view], offset, self._flags)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self._flags = 0  # An older system, or a file system that cannot.
        return os.preadv(self._fd, [view], offset)

    def expect(self, offset: int, size: int) -> None:
        """Let the disk begin to read, unless the system keeps nothing: then it does by itself."""
        if size > 0 and not self._flags and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_WILLNEED)

    def duplicate(self) -> int:
        """Return another descriptor of it, which the caller closes."""
        return os.dup(self._fd)

    def keep_cached(self) -> None:
        """Let the system keep what is read from now on: it will be read again."""
        self._flags = 0

    def close(self) -> None:
        """Close it; what was read stays valid. Again: nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class Stream:
    """The bytes of a file from front to end, in windows; the disk reads ahead of them.

    Parameters
    ----------
    file : File
        To read from.
    window_bytes, ahead_bytes : int, optional
        Read at once, and asked of the disk for later.

    Notes
    -----
    A window stays as it is while there is a view of it; then its memory serves a later one, which
    spares the system to clear as much again. What one has left over is copied, not read again.
    """

    def __init__(
        self, file: File, window_bytes: int | None = None, ahead_bytes: int | None = None
    ) -> None:
        self._file = file
        self._window_bytes = WINDOW_BYTES if window_bytes is None else window_bytes
        self._ahead_bytes = AHEAD_BYTES if ahead_bytes is None else ahead_bytes
        self._start = 0
        self._data = memoryview(b"")
        self._spare: list[NDArray[np.uint8]] = []

    def view(self, offset: int, size: int) -> memoryview:
        """Return `size` bytes from `offset` on, fewer at the end of the file."""
        start = offset - self._start
        if start < 0 or start + size > len(self._data):
            left = self._data[start:] if start >= 0 else memoryview(b"")
            self._data = self._read(offset, max(size, self._window_bytes), left)
            self._start, start = offset, 0
            end = offset + len(self._data)
            self._file.expect(end, min(self._ahead_bytes, self._file.size - end))
        return self._data[start : start + size]

    def _read(self, offset: int, size: int, left: memoryview) -> memoryview:
        """Return a window; the one before has left over what it begins with."""
        size = max(0, min(size, self._file.size - offset))
        memory = self._spare.pop() if self._spare else np.empty(0, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        window = memory[:size]
        # Views of its memoryview keep this object, no other does: when they are gone, it goes.
        weakref.finalize(window, self._spare.append, memory).atexit = False
        done = len(left)
        window.data[:done] = left
        done += len(self._file.read_into(window[done:], offset + done))
        return window.data[:done].toreadonly()
