"""Crash at the n-th file operation: the operations are counted, the n-th raises instead."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from monolith_kv.storage import files

FILE_STEPS = (
    "create_temporary",
    "write_all",
    "sync_file",
    "publish",
    "fsync_folder",
    "remove_durably",
    "remove_quietly",
    "move_folder",
    "exchange_folders",
)


class Crash(BaseException):
    """The process is gone; no handler for errors may see it as one."""


class Faults:
    """Counts file operations, and raises Crash before the one that was chosen."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.crash_at: int | None = None
        for name in FILE_STEPS:
            self._wrap(patch, files, name)
        self._wrap(patch, shutil, "rmtree")
        self._locks: list[files.FolderLock] = []
        self._remember_locks(patch)

    def _wrap(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        real = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            # After the crash nothing of this process reaches the disk, clean-up included.
            self.count += 1
            if self.crash_at is not None and self.count >= self.crash_at:
                raise Crash(f"before {name}, step {self.count}")
            return real(*args, **kwargs)

        patch.setattr(module, name, counted)

    def _remember_locks(self, patch: pytest.MonkeyPatch) -> None:
        real, locks = files.FolderLock.__init__, self._locks

        def remembered(lock: files.FolderLock, folder: str) -> None:
            real(lock, folder)
            locks.append(lock)

        patch.setattr(files.FolderLock, "__init__", remembered)

    def drop_locks(self, since: int = 0) -> None:
        """Do what the kernel does when a process dies."""
        while len(self._locks) > since:
            self._locks.pop().release()

    @contextlib.contextmanager
    def crashing(self, at: int, *, everything: bool = False) -> Iterator[None]:
        """Crash at the `at`-th operation of the block, if it has that many.

        What dies with it are the locks taken in the block, or all of them.
        """
        self.count, self.crash_at = 0, at
        locks = 0 if everything else len(self._locks)
        try:
            yield
        except Crash:
            self.drop_locks(locks)
            raise
        finally:
            self.crash_at = None
