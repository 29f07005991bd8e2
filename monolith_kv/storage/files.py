"""Durable steps on files: the only place that calls fsync, fdatasync, rename or link.

What must hold: a name appears only when its bytes are on stable storage, and a name that was
reported as gone or as there survives a power cut. A short write is continued, a full disk is a
StoreFullError, a failed fsync is never tried again on the same file. Names are opened with
O_NOFOLLOW; folders are private (0700), files too (0600).
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from monolith_kv.errors import ForkedError, StoreFullError, StoreLockedError

Buffer = bytes | bytearray | memoryview | np.ndarray[Any, Any]

LOCK_NAME = "LOCK"
TEMPORARY_SUFFIX = ".tmp"
TORN_SUFFIX = ".torn"
FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
BUFFERS_PER_WRITE = 64  # Far below IOV_MAX (1024); a record has three.
COPY_BYTES = 8 << 20
_AT_FDCWD = -100  # fcntl.h of Linux
_RENAME_EXCHANGE = 2  # linux/fs.h; RENAME_SWAP of macOS has the same value
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


@contextlib.contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Turn "no room" in all its forms into StoreFullError.

    Parameters
    ----------
    path : str
        The file being written; the message names it.

    Raises
    ------
    StoreFullError
        The disk, the quota or the file size limit is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_ERRNOS:
            raise
        raise StoreFullError(
            f"no room to write {path}: {os.strerror(error.errno or 0)}; free disk space or raise "
            "the quota, then call again; what was acknowledged before is intact"
        ) from error


# --- one file ------------------------------------------------------------------------------


def open_readable(path: str) -> int:
    """Open an existing regular file for reading and return its descriptor."""
    # O_NONBLOCK: a pipe under a file's name must not hang the reader. Files ignore it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN_FLAGS)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file", path)
    return fd


def create_file(path: str) -> int:
    """Create a file whose name is free, to read and write, and return its descriptor.

    Notes
    -----
    The name is not durable.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN_FLAGS, 0o600)


def create_temporary(path: str) -> tuple[int, str]:
    """Create an empty file beside `path` and return its descriptor and temporary name.

    Notes
    -----
    The name starts with a dot and ends with `TEMPORARY_SUFFIX`: no listing takes it for data, and
    `remove_litter` finds it after a crash.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.urandom(8).hex()}{TEMPORARY_SUFFIX}")
    with disk_errors(path):
        fd = create_file(temporary)
    return fd, temporary


def as_buffers(data: Buffer | Sequence[Buffer]) -> Sequence[Buffer]:
    """Return one or several buffers as a sequence of them."""
    return [data] if isinstance(data, (bytes, bytearray, memoryview, np.ndarray)) else data


def byte_view(data: Buffer) -> memoryview:
    """Return the bytes of a C-contiguous buffer, not copied."""
    view = data.data if isinstance(data, np.ndarray) else memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def write_all(fd: int, buffers: Sequence[Buffer]) -> int:
    """Write the buffers one after the other at the file's position; return the bytes written.

    Notes
    -----
    Nothing is copied. A short write is continued where it ended.
    """
    todo = [view for view in map(byte_view, buffers) if len(view)]
    total = 0
    while todo:
        written = os.writev(fd, todo[:BUFFERS_PER_WRITE])
        total += written
        while todo and written >= len(todo[0]):
            written -= len(todo.pop(0))
        if written:
            todo[0] = todo[0][written:]
    return total


def sync_file(fd: int) -> None:
    """Put what was written to the file on stable storage.

    Notes
    -----
    After an error the kernel may have dropped the dirty pages and marked them clean: the caller
    gives the file up and never calls this for it again.
    """
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def begin_flush(fd: int, offset: int, size_bytes: int) -> None:
    """Let the disk begin to write what lies there; `sync_file` later finds less to do."""
    # Linux writes pages out when it is advised to drop them, and keeps those that are not written.
    if sys.platform.startswith("linux"):
        os.posix_fadvise(fd, offset, size_bytes, os.POSIX_FADV_DONTNEED)


def truncate_file(fd: int, size_bytes: int) -> None:
    """Cut the file back to `size_bytes` and go on writing there."""
    os.ftruncate(fd, size_bytes)
    os.lseek(fd, size_bytes, os.SEEK_SET)


def publish(temporary: str, path: str, *, replace: bool) -> None:
    """Give a finished, synced file its final name, durably.

    Parameters
    ----------
    temporary, path : str
        Names in the same folder.
    replace : bool
        Whether a file that has the name already is replaced, in one step.

    Raises
    ------
    FileExistsError
        The name is taken and `replace` is False. The temporary file is left to the caller.
    """
    with disk_errors(path):
        if replace:
            os.replace(temporary, path)
        else:
            _rename_new(temporary, path)
        fsync_folder(os.path.dirname(path))


def name_taken(path: str) -> FileExistsError:
    """Return the error for a final name that is in use."""
    return FileExistsError(errno.EEXIST, "the name is taken; choose another or remove it", path)


def _rename_new(temporary: str, path: str) -> None:
    # link() refuses a taken name atomically, which rename() cannot.
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise name_taken(path) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: check, then rename. Two writers could race here.
        if os.path.lexists(path):
            raise name_taken(path) from None
        os.replace(temporary, path)
        return
    os.unlink(temporary)


def link_file(source: str, target: str) -> None:
    """Give a file a second name, durably; OSError where that cannot be had."""
    os.link(source, target, follow_symlinks=False)
    fsync_folder(os.path.dirname(target))


def write_durably(path: str, data: Buffer | Sequence[Buffer], *, replace: bool = True) -> None:
    """Write a whole file so that it is there after a power cut, all of it or the old one.

    Parameters
    ----------
    path : str
        Final name; its folder exists.
    data : buffer or sequence of buffers
        The content.
    replace : bool
        Whether an existing file is replaced.

    Raises
    ------
    StoreFullError
        There is no room. The old file, if any, is untouched.
    FileExistsError
        The name is taken and `replace` is False.
    """
    fd, temporary = create_temporary(path)
    try:
        try:
            with disk_errors(path):
                write_all(fd, as_buffers(data))
                sync_file(fd)
        finally:
            os.close(fd)
        publish(temporary, path, replace=replace)
    except BaseException:
        remove_quietly(temporary)
        raise


def write_loosely(path: str, data: bytes) -> None:
    """Replace a whole file in one step, unflushed. By one thread, in a folder that is wiped."""
    temporary = path + TEMPORARY_SUFFIX
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OPEN_FLAGS, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def copy_durably(source: str, target: str, *, replace: bool = True) -> int:
    """Copy a file so that the copy is there after a power cut; return its size in bytes.

    Parameters
    ----------
    source : str
        An existing regular file.
    target : str
        Final name of the copy; its folder exists.
    replace : bool
        Whether an existing file is replaced.
    """
    fd, temporary = create_temporary(target)
    try:
        total = 0
        try:
            with open(open_readable(source), "rb", buffering=0) as reader, disk_errors(target):
                while block := reader.read(COPY_BYTES):
                    total += write_all(fd, [block])
                sync_file(fd)
        finally:
            os.close(fd)
        publish(temporary, target, replace=replace)
    except BaseException:
        remove_quietly(temporary)
        raise
    return total


def remove_durably(path: str) -> None:
    """Remove a file, for good; nothing if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        fsync_folder(os.path.dirname(path))


def remove_quietly(path: str) -> None:
    """Remove a temporary file on the way out of an error, which is the one worth reporting."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def cut_tail(path: str, offset: int) -> str:
    """Keep the bytes from `offset` on aside as `path`.torn, then cut them off; both durable.

    Parameters
    ----------
    path : str
        A log whose writer is gone.
    offset : int
        Where the torn tail begins.

    Returns
    -------
    str
        Path of the file that keeps the tail.
    """
    fd = os.open(path, os.O_RDWR | _OPEN_FLAGS)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        tail = bytearray()
        while block := os.read(fd, COPY_BYTES):
            tail += block
        # The tail is safe before it is cut: a crash in between finds the same torn tail again.
        write_durably(path + TORN_SUFFIX, tail)
        truncate_file(fd, offset)
        sync_file(fd)
    finally:
        os.close(fd)
    return path + TORN_SUFFIX


# --- folders -------------------------------------------------------------------------------


def fsync_folder(path: str) -> None:
    """Put the names in the folder on stable storage."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Create a private folder, and those above it, durably; nothing if it is there."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_folder(parent)
    with disk_errors(path), contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fsync_folder(parent)


def list_names(path: str) -> list[str]:
    """Return the names in a folder, sorted, [] if there is none; never temporary ones."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not name.endswith(TEMPORARY_SUFFIX))


def remove_litter(path: str) -> int:
    """Remove temporary files that a crash left in the folder; return how many.

    Notes
    -----
    Only for the holder of the store's lock: another writer's files look the same.
    """
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return 0
    litter = [n for n in names if n.startswith(".") and n.endswith(TEMPORARY_SUFFIX)]
    for name in litter:
        remove_quietly(os.path.join(path, name))
    return len(litter)


def move_folder(source: str, target: str) -> None:
    """Give a folder another name on the same file system, durably, or leave it its own."""
    os.rename(source, target)
    try:
        # The new name first: a power cut in between may leave both names, never none.
        fsync_folder(os.path.dirname(target))
        fsync_folder(os.path.dirname(source))
    except OSError:
        os.rename(target, source)
        raise


def exchange_folders(first: str, second: str) -> bool:
    """Exchange two names in one step, durably; False, and nothing done, where it cannot be had.

    After an error both are as they were: whoever has a store open under one of them relies on it.

    Notes
    -----
    Python has no door to renameat2 (Linux, most file systems) and renamex_np (macOS).
    """
    if not _exchange(first, second):
        return False
    try:
        fsync_folder(os.path.dirname(second))
        fsync_folder(os.path.dirname(first))
    except OSError:
        _exchange(first, second)
        raise
    return True


def _exchange(first: str, second: str) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, _RENAME_EXCHANGE)
    else:
        return False
    if failed:
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP):
            return False
        raise OSError(number, os.strerror(number), first, None, second)
    return True


class FolderLock:
    """The right to write in a folder: one process, one handle; the kernel drops it on death.

    Parameters
    ----------
    folder : str
        An existing folder; the lock is on its file LOCK, which tells who holds it.

    Raises
    ------
    StoreLockedError
        Someone else has it; the message names process and host.
    """

    def __init__(self, folder: str) -> None:
        self._pid = os.getpid()
        self._fd = -1
        path = os.path.join(folder, LOCK_NAME)
        with disk_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN_FLAGS, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(fd, 256, 0).decode("utf-8", "replace").strip()
                raise StoreLockedError(
                    f"{folder} is open for writing by {holder or 'another process'}; close it "
                    'there, or open this one with mode "r"'
                ) from None
            with disk_errors(path):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"pid {self._pid} on {os.uname().nodename}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        _held.add(self)

    def release(self) -> None:
        """Give the lock back; again, or in a forked child: nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            # Closing unlocks only with the last copy of the descriptor, so that a forked child
            # that comes here first does not take the parent's lock away; LOCK_UN would.
            try:
                if os.getpid() == self._pid:
                    fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _close_inherited() -> None:
    # A child that outlives its parent would hold the locks of a process that is gone.
    for lock in list(_held):
        lock.release()


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_close_inherited)


def refuse_fork(pid: int, what: str) -> None:
    """Raise ForkedError unless this is still the process `pid` that opened `what`."""
    if os.getpid() != pid:
        raise ForkedError(
            f"{what} was opened by process {pid} and this is its fork {os.getpid()}; "
            "open the store again here"
        )
