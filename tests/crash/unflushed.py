"""A disk that keeps nothing but what was flushed: the harshest power cut, in process.

`Disk.watch()` notes what each file held when it was last synced, and which names each folder had
when it was last synced; `Disk.leave(path)` writes just that: a file never synced is empty, a name
whose folder was not synced afterwards is not there, or still is. `on_flush` is called after each
flush, the only instants at which such a disk changes. Python's doors are watched
(`files.sync_file`, `files.fsync_folder`), so that LMDB's own files are not seen.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from monolith_kv.storage import files


class Disk:
    """What a power cut would leave below one folder."""

    def __init__(self, root: Path, on_flush: Callable[[], None] = lambda: None) -> None:
        self.root = root
        self.on_flush = on_flush
        self.names: dict[str, dict[str, int]] = {}  # By folder: inodes.
        self.contents: dict[int, bytes] = {}
        self.held: list[int] = []  # Open, so that no inode is given out a second time.

    @contextlib.contextmanager
    def watch(self) -> Iterator["Disk"]:
        """Note all flushes until the block is left."""
        sync_file, fsync_folder = files.sync_file, files.fsync_folder

        def sync(fd: int) -> None:
            sync_file(fd)
            self.held.append(os.dup(fd))
            size = os.fstat(fd).st_size
            self.contents[os.fstat(fd).st_ino] = os.pread(fd, size, 0)
            self.on_flush()

        def sync_folder(path: str) -> None:
            fsync_folder(path)
            self.names[os.path.abspath(path)] = {e.name: e.inode() for e in os.scandir(path)}
            self.on_flush()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "sync_file", sync)
            patch.setattr(files, "fsync_folder", sync_folder)
            try:
                yield self
            finally:
                for fd in self.held:
                    os.close(fd)
                self.held.clear()

    def leave(self, to: Path) -> Path:
        """Write what a power cut would leave now to a new folder, and return that."""
        self._leave(str(self.root), to)
        return to

    def _leave(self, folder: str, to: Path) -> None:
        to.mkdir()
        for name, inode in self.names.get(os.path.abspath(folder), {}).items():
            path = os.path.join(folder, name)
            if path in self.names or os.path.isdir(path):
                self._leave(path, to / name)
            else:
                (to / name).write_bytes(self.contents.get(inode, b""))
