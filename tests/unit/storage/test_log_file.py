"""Logs: shared flushes, failures, and which damage is a torn tail."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import samples
from samples import UUID

import monolith_kv as mkv
from monolith_kv.storage import files
from monolith_kv.storage.format import (
    HEADER_BYTES,
    RECORD_BYTES_MAX,
    FileIdentity,
    FileType,
    RecordKind,
)
from monolith_kv.storage.log_file import LogWriter
from monolith_kv.storage.log_reader import SECTOR_BYTES, LogReader, Torn

IDENTITY = FileIdentity(UUID, 2, 7)
PAYLOAD = b"\x55" * 100


def begin(folder: Path) -> LogWriter:
    return LogWriter(str(folder / "log"), FileType.CALLS, IDENTITY)


def append(log: LogWriter, payload: bytes = PAYLOAD) -> int:
    return log.append(RecordKind.REMOVE, payload)


def read(folder: Path, **options: Any) -> tuple[list[bytes], Torn | None]:
    with LogReader(str(folder / "log"), FileType.CALLS, **options) as log:
        return [bytes(record.payload) for record in log], log.torn


def damage(folder: Path, offset: int, data: bytes = b"\xaa") -> None:
    with (folder / "log").open("r+b") as file:
        file.seek(offset)
        file.write(data)


# --- writing -------------------------------------------------------------------------------


def test_a_new_log_is_durable_with_its_header_and_refuses_a_taken_name(folder: Path) -> None:
    log = begin(folder)
    assert (folder / "log").stat().st_size == HEADER_BYTES == log.durable
    with pytest.raises(FileExistsError):
        begin(folder)
    assert os.listdir(folder) == ["log"]
    log.close()


def test_an_appended_record_is_in_the_system_before_append_returns(folder: Path) -> None:
    log = begin(folder)
    assert append(log) == (folder / "log").stat().st_size == log.end
    assert read(folder) == ([PAYLOAD], None)
    log.close()


class SlowDisk:
    """Flushes wait until they are let go; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushes = 0
        self.arrived = threading.Semaphore(0)
        self.released = threading.Semaphore(0)
        monkeypatch.setattr(files, "sync_file", self.sync)

    def sync(self, fd: int) -> None:
        self.flushes += 1
        self.arrived.release()
        assert self.released.acquire(timeout=30)


def start(count: int, work: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_threads_that_sync_at_once_share_one_flush(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(folder)
    disk = SlowDisk(monkeypatch)
    first = append(log)
    leader = start(1, lambda: log.sync(first))
    disk.arrived.acquire(timeout=30)
    ends: list[int] = []
    # Appended while the first flush is under way: it does not cover them, one more does for all.
    for _ in range(20):
        ends.append(append(log))
    followers = [t for end in ends for t in start(1, lambda end=end: log.sync(end))]
    assert log.durable < first
    disk.released.release()
    disk.arrived.acquire(timeout=30)
    assert log.durable == first
    disk.released.release()
    for thread in leader + followers:
        thread.join(30)
        assert not thread.is_alive()
    assert disk.flushes == 2
    assert log.durable == ends[-1]


def test_what_is_durable_already_is_not_flushed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(folder)
    end = append(log)
    log.sync()
    monkeypatch.setattr(files, "sync_file", lambda fd: pytest.fail("flushed again"))
    log.sync(end)
    log.sync()
    assert log.durable == end


def test_a_failed_flush_gives_the_log_up_for_good_and_is_never_retried(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(folder)
    kept = append(log)
    log.sync()
    flushes = []

    def fail(fd: int) -> None:
        flushes.append(fd)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(files, "sync_file", fail)
    append(log)
    for call in (log.sync, lambda: append(log), log.sync, log.close):
        with pytest.raises(mkv.Error, match="was given up after .*broken"):
            call()
    assert len(flushes) == 1
    assert log.is_failed
    assert log.durable == kept
    log.close()


def test_all_who_wait_for_a_flush_that_fails_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(folder)
    disk = SlowDisk(monkeypatch)
    append(log)
    told: list[bool] = []

    def sync() -> None:
        try:
            log.sync()
        except mkv.Error:
            told.append(True)

    real = disk.sync

    def fail(fd: int) -> None:
        real(fd)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(files, "sync_file", fail)
    threads = start(5, sync)
    disk.arrived.acquire(timeout=30)
    disk.released.release()
    for thread in threads:
        thread.join(30)
    assert told == [True] * 5
    assert disk.flushes == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_is_cut_back_and_the_next_one_succeeds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    log = begin(folder)
    end = append(log)
    real = files.write_all

    def half(fd: int, buffers: Any) -> int:
        real(fd, [b"half a record"])
        raise OSError(code, "broken")

    monkeypatch.setattr(files, "write_all", half)
    with pytest.raises(mkv.StoreFullError if code == errno.ENOSPC else OSError):
        append(log)
    assert (folder / "log").stat().st_size == end == log.end
    monkeypatch.setattr(files, "write_all", real)
    append(log, b"later")
    assert read(folder) == ([PAYLOAD, b"later"], None)
    log.close()


def test_a_large_record_that_fails_halfway_is_cut_back_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(folder)
    end = append(log)
    real, calls = files.write_all, []

    def second_fails(fd: int, buffers: Any) -> int:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, buffers)

    monkeypatch.setattr(files, "write_all", second_fails)
    with pytest.raises(mkv.StoreFullError):
        append(log, bytes(2 * RECORD_BYTES_MAX))
    assert (folder / "log").stat().st_size == end
    append(log, b"later")
    assert read(folder) == ([PAYLOAD, b"later"], None)
    log.close()


def test_a_log_that_cannot_be_cut_back_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = begin(folder)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(files, "write_all", fail)
    monkeypatch.setattr(files, "truncate_file", fail)
    with pytest.raises(OSError, match="broken"):
        append(log)
    monkeypatch.undo()
    with pytest.raises(mkv.Error, match="given up"):
        append(log)
    log.close(clean=False)


def test_a_forked_child_neither_appends_nor_flushes_nor_ends(folder: Path) -> None:
    log = begin(folder)
    append(log)
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (lambda: append(log), log.sync):
            try:
                call()
            except mkv.ForkedError:
                refused += 1
        log.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    append(log, b"parent")
    log.close()
    assert read(folder, must_be_closed=True) == ([PAYLOAD, b"parent"], None)


def test_a_closed_log_refuses_calls_and_closes_again(folder: Path) -> None:
    log = begin(folder)
    log.close()
    log.close()
    with pytest.raises(mkv.ClosedError):
        append(log)


def test_many_threads_append_without_a_gap(folder: Path) -> None:
    log = begin(folder)
    lock, numbers = threading.Lock(), iter(range(400))

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            log.sync(append(log, number.to_bytes(4, "little") * 50))

    for thread in start(8, work):
        thread.join(60)
    log.close()
    payloads, torn = read(folder, must_be_closed=True)
    assert torn is None
    assert sorted(int.from_bytes(p[:4], "little") for p in payloads) == list(range(400))


# --- torn tail or rot ----------------------------------------------------------------------


def test_a_garbled_last_record_is_a_torn_tail(folder: Path) -> None:
    log = begin(folder)
    first, end = append(log), append(log)
    log.close(clean=False)
    damage(folder, end - 20)
    assert read(folder) == ([PAYLOAD], (first, end - first, 1))


def test_a_garbled_record_before_a_good_one_is_rot(folder: Path) -> None:
    log = begin(folder)
    first = append(log)
    append(log)
    append(log)
    log.close(clean=False)
    damage(folder, first + 60)
    with pytest.raises(mkv.CorruptionError, match="a good record follows") as caught:
        read(folder)
    assert caught.value.offset == first


def test_a_wrong_length_does_not_hide_the_good_records_behind_it(folder: Path) -> None:
    log = begin(folder)
    first = append(log)
    append(log)
    append(log)
    log.close(clean=False)
    damage(folder, first + 8, (10_000).to_bytes(8, "little"))
    with pytest.raises(mkv.CorruptionError):
        read(folder)


def test_good_records_behind_rot_are_told_from_it_quickly(folder: Path) -> None:
    log = begin(folder)
    for _ in range(5000):
        append(log)
    log.close(clean=False)
    damage(folder, HEADER_BYTES, bytes(SECTOR_BYTES * 2))
    assert read(folder) == ([], (HEADER_BYTES, log.end - HEADER_BYTES, 5000 - 7))


def test_a_good_record_is_found_behind_a_long_garbled_one(folder: Path) -> None:
    log = begin(folder)
    start = log.end
    append(log, b"\x33" * (RECORD_BYTES_MAX - 8))
    append(log)
    log.close(clean=False)
    damage(folder, start)
    with pytest.raises(mkv.CorruptionError) as caught:
        read(folder)
    assert caught.value.offset == start


def test_damage_below_what_is_known_durable_is_rot_even_at_a_hole(folder: Path) -> None:
    log = begin(folder)
    first = append(log, b"\x11" * 4096)
    log.sync()
    append(log)  # States that the first one was durable.
    log.close(clean=False)
    damage(folder, HEADER_BYTES, bytes(first - HEADER_BYTES))
    with pytest.raises(mkv.CorruptionError) as caught:
        read(folder)
    assert caught.value.offset == HEADER_BYTES


def test_sectors_that_a_power_cut_left_unwritten_are_a_torn_tail(folder: Path) -> None:
    # The third record reached the disk, the second one did not: legal where nothing was flushed.
    log = begin(folder)
    ends = [append(log, b"\x11" * (4 * SECTOR_BYTES)) for _ in range(3)]
    log.close(clean=False)
    hole = -(-ends[0] // SECTOR_BYTES) * SECTOR_BYTES
    damage(folder, hole, bytes(SECTOR_BYTES))
    payloads, torn = read(folder)
    assert len(payloads) == 1
    assert torn == (ends[0], ends[2] - ends[0], 2)


def test_a_sector_that_a_power_cut_left_at_an_earlier_record_is_a_torn_tail(folder: Path) -> None:
    # Four records in two sectors: of the first one an early version reached the disk, of the
    # second one the last.
    log = begin(folder)
    ends = [append(log, b"\x11" * 200) for _ in range(4)]
    log.close(clean=False)
    assert ends[0] < SECTOR_BYTES < ends[1] < ends[2]
    damage(folder, ends[0], bytes(SECTOR_BYTES - ends[0]))
    payloads, torn = read(folder)
    assert len(payloads) == 1
    assert torn == (ends[0], ends[3] - ends[0], 3)


def test_less_than_a_sector_of_zeros_is_rot(folder: Path) -> None:
    log = begin(folder)
    ends = [append(log, b"\x11" * (4 * SECTOR_BYTES)) for _ in range(3)]
    log.close(clean=False)
    hole = -(-ends[0] // SECTOR_BYTES) * SECTOR_BYTES
    damage(folder, hole, bytes(SECTOR_BYTES - 1))
    with pytest.raises(mkv.CorruptionError):
        read(folder)


def test_a_log_that_was_closed_is_never_cut(folder: Path) -> None:
    log = begin(folder)
    first = append(log, b"\x11" * (4 * SECTOR_BYTES))
    log.close()
    # Its END record states that all before it is durable: not even a hole is a torn tail.
    damage(folder, HEADER_BYTES, bytes(first - HEADER_BYTES))
    with pytest.raises(mkv.CorruptionError, match="a good record follows"):
        read(folder)


def test_a_log_known_to_be_closed_is_refused_without_its_end(folder: Path) -> None:
    log = begin(folder)
    first = append(log)
    log.close()
    for size in (first + 1, first):
        os.truncate(folder / "log", size)
        with pytest.raises(mkv.CorruptionError, match="was closed cleanly") as caught:
            read(folder, must_be_closed=True)
        assert caught.value.offset == first


def test_bytes_behind_the_end_are_refused(folder: Path) -> None:
    log = begin(folder)
    append(log)
    log.close()
    with (folder / "log").open("ab") as file:
        file.write(b"more")
    with pytest.raises(mkv.CorruptionError, match="behind the end"):
        read(folder)


def test_a_large_record_without_its_last_part_is_torn_as_a_whole(folder: Path) -> None:
    log = begin(folder)
    first = append(log)
    end = append(log, b"\x77" * (2 * RECORD_BYTES_MAX))
    log.close(clean=False)
    parts = [part.offset for part in samples.parts((folder / "log").read_bytes())]
    for size in (parts[2], parts[2] + 1000, end - 1):
        os.truncate(folder / "log", size)
        assert read(folder) == ([PAYLOAD], (first, size - first, 1)), size


def test_a_torn_tail_that_was_cut_reads_clean(folder: Path) -> None:
    log = begin(folder)
    first, end = append(log), append(log)
    log.close(clean=False)
    os.truncate(folder / "log", end - 1)
    files.cut_tail(str(folder / "log"), first)
    assert read(folder) == ([PAYLOAD], None)


def test_a_reader_beside_the_writer_sees_what_was_there(folder: Path) -> None:
    log = begin(folder)
    append(log)
    reader = LogReader(str(folder / "log"), FileType.CALLS)
    append(log, b"later")
    assert [bytes(record.payload) for record in reader] == [PAYLOAD]
    assert not reader.is_closed
    reader.close()
    log.close()
    with LogReader(str(folder / "log"), FileType.CALLS) as again:
        assert len(list(again)) == 2
        assert again.is_closed
        assert again.meta == {"records": 2}


def test_a_record_that_is_taken_back_is_in_no_file_and_no_chain(folder: Path) -> None:
    log = begin(folder)
    append(log)
    offset = append(log, b"\x66" * 50)
    log.sync()
    log.take_back(offset)
    assert log.end == log.durable == (folder / "log").stat().st_size
    append(log, b"\x77" * 50)
    log.sync(offset + 1_000)  # Of a record that is gone: nothing to wait for.
    assert read(folder) == ([PAYLOAD, b"\x77" * 50], None)
    with pytest.raises(mkv.Error, match="ends at"):
        log.take_back(offset - 8)
    log.close()
