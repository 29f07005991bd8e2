"""Replace one folder by another so that a crash at any point leaves one of them, whole.

A replica `name` has a work folder `.name.follow` beside it, which holds the follower's lock and, in
the course of a resync, `staging` (being built), `ready` (verified, about to take the place) and
`old` (what it replaces). Where the system can exchange two names in one step there is never a
moment without a replica; elsewhere `recover` finishes or undoes the two renames after a crash.
"""

import ctypes
import errno
import os
import shutil
import sys

from monolith_kv.storage import files

STAGING, READY, OLD = "staging", "ready", "old"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # sys/stdio.h of macOS
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP})


class WorkFolder:
    """The folder beside a replica in which its follower works; one follower at a time.

    Parameters
    ----------
    replica : str
        Path of the replica's folder, there or not.

    Raises
    ------
    StoreLockedError
        Another follower has it.
    """

    def __init__(self, replica: str) -> None:
        self.replica = os.path.realpath(replica)  # A link stays; what it names is replaced.
        parent, name = os.path.split(self.replica)
        self.path = os.path.join(parent, f".{name}.follow")
        files.make_folder(self.path)
        self._lock = files.FolderLock(self.path)

    def release(self) -> None:
        """Let another follower have it."""
        self._lock.release()

    def recover(self) -> None:
        """Finish or undo what a crash has left half done.

        Notes
        -----
        With a replica in its place, all else is either not yet or no longer needed: a new one that
        was ready is built again from the source, which costs time only. Without one, the crash fell
        between the two renames.
        """
        ready, old = self._path(READY), self._path(OLD)
        if not os.path.lexists(self.replica):
            if os.path.lexists(ready):
                _move(ready, self.replica)
            elif os.path.lexists(old):
                _move(old, self.replica)
        self.clear()

    def clear(self) -> None:
        """Remove everything that is being built or was replaced."""
        for name in (STAGING, READY, OLD):
            _remove(self._path(name))

    def stage(self) -> str:
        """Return the path of a folder to build a replica in; what was there is gone."""
        _remove(self._path(STAGING))
        return self._path(STAGING)

    def switch(self) -> None:
        """Put the staged folder, closed and whole, in the place of the replica.

        Notes
        -----
        The replaced one stays in the work folder until `clear` or `recover`; `undo` puts it back.
        """
        staging, ready, old = (self._path(name) for name in (STAGING, READY, OLD))
        _remove(old)
        _remove(ready)
        _move(staging, ready)
        if not os.path.lexists(self.replica):
            _move(ready, self.replica)
        elif _exchange(ready, self.replica):
            self._sync()
        else:
            _move(self.replica, old)
            _move(ready, self.replica)

    def undo(self) -> None:
        """Put back what the last `switch` has replaced, if there was anything."""
        for replaced in (self._path(READY), self._path(OLD)):
            if os.path.lexists(replaced):
                if not _exchange(replaced, self.replica):
                    _move(self.replica, self._path(STAGING))
                    _move(replaced, self.replica)
                self._sync()
                return

    def _sync(self) -> None:
        files.fsync_folder(self.path)
        files.fsync_folder(os.path.dirname(self.replica))

    def _path(self, name: str) -> str:
        return os.path.join(self.path, name)


def _move(source: str, target: str) -> None:
    os.rename(source, target)
    # The new name first: a power cut in between may leave both names, never none.
    files.fsync_folder(os.path.dirname(target))
    files.fsync_folder(os.path.dirname(source))


def _exchange(first: str, second: str) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(names[0], names[1], _RENAME_SWAP)
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), first, None, second)


def _remove(path: str) -> None:
    if os.path.lexists(path):
        shutil.rmtree(path)
