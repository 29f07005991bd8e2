"""Durable steps: in which order, and what is left when one of them fails."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monolith_kv as mkv
from monolith_kv.storage import files


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which durable steps are made, in order."""
    made: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            made.append(name)
            return real(*args, **options)

        monkeypatch.setattr(files.os, name, call)

    for name in ("writev", "fdatasync", "replace", "link", "fsync", "unlink", "ftruncate"):
        spy(name)
    return made


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow past 16 KiB: what a full disk looks like, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_is_synced_then_named_then_its_folder_is_synced(
    folder: Path, steps: list[str]
) -> None:
    files.write_durably(str(folder / "a"), [b"one", b"", np.arange(2, dtype=np.uint8)])
    assert steps == ["writev", "fdatasync", "replace", "fsync"]
    assert (folder / "a").read_bytes() == b"one\0\1"
    assert (folder / "a").stat().st_mode & 0o777 == 0o600


def test_a_taken_name_is_refused_and_its_file_kept(folder: Path) -> None:
    files.write_durably(str(folder / "a"), b"old", replace=False)
    with pytest.raises(FileExistsError):
        files.write_durably(str(folder / "a"), b"new", replace=False)
    assert (folder / "a").read_bytes() == b"old"
    assert os.listdir(folder) == ["a"]


def test_a_taken_name_is_refused_without_hard_links_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(files.os, "link", no_link)
    files.write_durably(str(folder / "a"), b"old", replace=False)
    with pytest.raises(FileExistsError):
        files.write_durably(str(folder / "a"), b"new", replace=False)
    assert (folder / "a").read_bytes() == b"old"


def test_short_writes_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(
        files.os, "writev", lambda fd, buffers: real(fd, [memoryview(buffers[0])[:3]])
    )
    content = [bytes([n]) * n for n in range(1, 100)]
    files.write_durably(str(folder / "a"), content)
    assert (folder / "a").read_bytes() == b"".join(content)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(folder: Path, small_files: None) -> None:
    files.write_durably(str(folder / "a"), b"old")
    with pytest.raises(mkv.StoreFullError, match="no room to write .*free disk space"):
        files.write_durably(str(folder / "a"), bytes(20000))
    assert (folder / "a").read_bytes() == b"old"
    assert os.listdir(folder) == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_in_any_form_is_store_full(code: int) -> None:
    with pytest.raises(mkv.StoreFullError, match="no room to write x"), files.disk_errors("x"):
        raise OSError(code, "full")


def test_other_errors_go_through_as_they_are() -> None:
    with pytest.raises(OSError, match="broken"), files.disk_errors("x"):
        raise OSError(errno.EIO, "broken")
    with pytest.raises(KeyError), files.disk_errors("x"):
        raise KeyError("x")


def test_a_failed_sync_leaves_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(files.os, "fdatasync", fail)
    with pytest.raises(OSError, match="broken"):
        files.write_durably(str(folder / "a"), b"x")
    assert os.listdir(folder) == []


def test_a_tail_is_safe_aside_before_it_is_cut(folder: Path, steps: list[str]) -> None:
    path = folder / "log"
    path.write_bytes(b"good" + b"torn")
    assert files.cut_tail(str(path), 4) == str(folder / "log.torn")
    assert path.read_bytes() == b"good"
    assert (folder / "log.torn").read_bytes() == b"torn"
    assert steps == ["writev", "fdatasync", "replace", "fsync", "ftruncate", "fdatasync"]


def test_a_copy_has_the_same_bytes(folder: Path) -> None:
    (folder / "a").write_bytes(bytes(range(256)) * 100)
    assert files.copy_durably(str(folder / "a"), str(folder / "b")) == 25600
    assert (folder / "b").read_bytes() == (folder / "a").read_bytes()


def test_links_are_not_followed(folder: Path) -> None:
    (folder / "real").write_bytes(b"x")
    (folder / "link").symlink_to(folder / "real")
    with pytest.raises(OSError, match="symbolic"):
        files.open_readable(str(folder / "link"))


def test_what_is_no_regular_file_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for path in (folder / "pipe", folder):
        with pytest.raises(OSError, match="no regular file"):
            files.open_readable(str(path))


def test_folders_are_private_and_those_above_them_are_synced(
    folder: Path, steps: list[str]
) -> None:
    files.make_folder(str(folder / "a" / "b"))
    assert steps == ["fsync", "fsync"]
    assert (folder / "a" / "b").stat().st_mode & 0o777 == 0o700
    files.make_folder(str(folder / "a" / "b"))
    assert steps == ["fsync", "fsync"]


def test_litter_of_a_crash_is_removed_and_never_listed(folder: Path) -> None:
    fd, temporary = files.create_temporary(str(folder / "a"))
    os.close(fd)
    (folder / "keep").write_bytes(b"")
    assert files.list_names(str(folder)) == ["keep"]
    assert files.remove_litter(str(folder)) == 1
    assert not os.path.exists(temporary)
    assert files.list_names(str(folder / "none")) == []
    assert files.remove_litter(str(folder / "none")) == 0


def test_removing_is_durable_and_may_be_repeated(folder: Path, steps: list[str]) -> None:
    (folder / "a").write_bytes(b"")
    files.remove_durably(str(folder / "a"))
    assert steps == ["unlink", "fsync"]
    files.remove_durably(str(folder / "a"))


def test_a_second_handle_is_refused_naming_process_and_host(folder: Path) -> None:
    with files.FolderLock(str(folder)):
        with pytest.raises(mkv.StoreLockedError, match=f"pid {os.getpid()} on .*mode"):
            files.FolderLock(str(folder))
        code = (
            "import sys, monolith_kv as mkv; from monolith_kv.storage import files\n"
            "try: files.FolderLock(sys.argv[1])\n"
            "except mkv.StoreLockedError: sys.exit(7)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
        assert done.returncode == 7
    files.FolderLock(str(folder)).release()


def test_a_forked_child_does_not_take_the_lock_away(folder: Path) -> None:
    lock = files.FolderLock(str(folder))
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(mkv.StoreLockedError):
        files.FolderLock(str(folder))
    lock.release()
    lock.release()
    files.FolderLock(str(folder)).release()


ORPHAN = """
import os, sys, time
from monolith_kv.storage import files
lock = files.FolderLock(sys.argv[1])
if os.fork() == 0:
    os.close(1)
    sys.stdin.read()  # Outlives the parent, as a worker of a data loader may.
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_a_lock_ends_with_its_process_though_a_forked_child_lives_on(folder: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(60) == -signal.SIGKILL
        files.FolderLock(str(folder)).release()


def test_a_temporary_file_is_new_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "urandom", bytes)
    fd, temporary = files.create_temporary(str(folder / "name"))
    with pytest.raises(FileExistsError):
        files.create_temporary(str(folder / "name"))
    os.close(fd)
    os.unlink(temporary)
