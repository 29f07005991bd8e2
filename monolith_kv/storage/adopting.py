"""Take a finished file over without copying its bytes, where the file system allows it.

What must hold: what was taken over is durable under its new name; nobody but root can change it by
way of the old one. See docs/decisions/0010-restore-takes-the-file-over.md.
"""

import fcntl
import os
import stat
import sys

from monolith_kv.storage import files

_FICLONE = 0x40049409  # linux/fs.h: the new file shares the blocks of the old one until one writes.
_MAY_WRITE = 0o222


def adopt(source: str, target: str) -> None:
    """Make `target` a file with the bytes of `source`: cloned, linked or copied.

    Parameters
    ----------
    source : str
        A finished file. Where only a link will do it becomes read-only: it is one file then.
    target : str
        Absent; its folder exists.

    Raises
    ------
    StoreFullError
        There is no room for a copy.
    """
    if not _clone(source, target) and not _link(source, target):
        files.copy_durably(source, target, replace=False)


def _clone(source: str, target: str) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    fd, temporary = files.create_temporary(target)
    try:
        reader = files.open_readable(source)
        try:
            fcntl.ioctl(fd, _FICLONE, reader)
        except OSError:
            return False  # Another file system, or one that has no clones.
        finally:
            os.close(reader)
        files.sync_file(fd)
        files.publish(temporary, target, replace=False)
        return True
    finally:
        os.close(fd)
        files.remove_quietly(temporary)


def _link(source: str, target: str) -> bool:
    fd = files.open_readable(source)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            return False  # Its owner may change it.
        try:
            files.link_file(source, target)
        except OSError:
            return False
        try:
            os.fchmod(fd, stat.S_IMODE(found.st_mode) & ~_MAY_WRITE)
        except OSError:
            files.remove_durably(target)
            return False
        files.sync_file(fd)  # Whoever wrote it may not have flushed it.
        return True
    finally:
        os.close(fd)
