"""Bytes of a file: at any place, or from front to end, some of them ahead of the reader."""

import errno
import os
import sys
import threading
import weakref

import numpy as np
from numpy.typing import NDArray

from monolith_kv.storage import files

WINDOW_BYTES = 4 << 20
ROOM_BYTES = WINDOW_BYTES  # For a record that begins in one window and ends in the next.
# Of a file this large the system keeps nothing: as much memory would be needed again, beside what
# the file becomes here, and what others read would be driven out. What it has already, it keeps.
UNCACHED_BYTES_MIN = 64 << 20
UNCACHED = 0x80 if sys.platform == "linux" else 0  # linux/fs.h: RWF_DONTCACHE, since 6.14.


class File:
    """An open file to read from at any place; closed when nobody holds it any more.

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

    def close(self) -> None:
        """Close it; what was read stays valid. Again: nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class Ahead:
    """A window that a thread reads while the one before it is worked on.

    Parameters
    ----------
    file : File
        To read from.
    offset : int
        Of its first byte.
    memory : ndarray of uint8
        To read into, in front of it room for what the window before has left over.
    """

    def __init__(self, file: File, offset: int, memory: NDArray[np.uint8]) -> None:
        self.offset = offset
        self.memory = memory
        self._file = file
        self._count = 0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="monolith-kv-read", daemon=True)
        self._thread.start()

    def join(self) -> int:
        """Return how many bytes there are behind the room, or raise what reading failed at."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._count

    def _read(self) -> None:
        try:
            self._count = len(self._file.read_into(self.memory[ROOM_BYTES:], self.offset))
        except BaseException as error:
            self._error = error


class Stream:
    """The bytes of a file from front to end, in windows; the next one is read meanwhile.

    Notes
    -----
    A window stays as it is while there is a view of it; then its memory serves another one, which
    spares the system to clear as much again. A stream that is left has a thread for as long as one
    window takes.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._start = 0
        self._data = memoryview(b"")
        self._ahead: Ahead | None = None
        self._spare: list[NDArray[np.uint8]] = []

    def view(self, offset: int, size: int) -> memoryview:
        """Return `size` bytes from `offset` on, fewer at the end of the file."""
        start = offset - self._start
        if start < 0 or start + size > len(self._data):
            self._data = self._turn(offset, size)
            self._start, start = offset, 0
            self._look_ahead(offset + len(self._data))
        return self._data[start : start + size]

    def _turn(self, offset: int, size: int) -> memoryview:
        """Return the window from `offset` on, whose beginning the one before may have."""
        start = offset - self._start
        left, self._data = self._data[start:] if start >= 0 else memoryview(b""), memoryview(b"")
        size = max(0, min(size, self._file.size - offset))
        begun = [left]
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.offset == offset + len(left):
            end = ROOM_BYTES + ahead.join()
            start = ROOM_BYTES - len(left)
            if start >= 0 and end - start >= size:
                window = ahead.memory.data[start:end]
                window[: len(left)] = left
                return window.toreadonly()
            begun.append(ahead.memory.data[ROOM_BYTES:end])
        memory, done = self._memory(max(size, min(WINDOW_BYTES, self._file.size - offset))), 0
        for part in begun:
            count = min(len(part), len(memory) - done)
            memory.data[done : done + count] = part[:count]
            done += count
        done += len(self._file.read_into(memory[done:], offset + done))
        return memory.data[:done].toreadonly()

    def _look_ahead(self, offset: int) -> None:
        size = min(WINDOW_BYTES, self._file.size - offset)
        if size > 0:
            self._ahead = Ahead(self._file, offset, self._memory(ROOM_BYTES + size))

    def _memory(self, size: int) -> NDArray[np.uint8]:
        memory = self._spare.pop() if self._spare else np.empty(0, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        window = memory[:size]
        # Views of its memoryview keep this object, no other does: when they are gone, it goes.
        weakref.finalize(window, self._spare.append, memory).atexit = False
        return window
