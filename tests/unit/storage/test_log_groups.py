"""Flushes that threads share, and those of a caller who is alone: who waits for whom."""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from samples import UUID

import monolith_kv as mkv
from monolith_kv.storage import files, log_file
from monolith_kv.storage.format import FileIdentity, FileType, RecordKind
from monolith_kv.storage.log_file import ALONE_BYTES, GROUP_CALLS, PIECE_BYTES, LogWriter
from monolith_kv.storage.log_reader import LogReader

THREADS = 8
LARGE = bytes(ALONE_BYTES)


@pytest.fixture
def log(folder: Path) -> Iterator[LogWriter]:
    log = LogWriter(str(folder / "log"), FileType.CALLS, FileIdentity(UUID, 2, 7))
    yield log
    log.close(clean=False)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flushes made, as the names of their threads."""
    made: list[str] = []
    monkeypatch.setattr(files, "sync_file", lambda fd: made.append(threading.current_thread().name))
    return made


@contextlib.contextmanager
def company(log: LogWriter) -> Iterator[None]:
    """Another thread that is on its way to append."""
    is_there, may_go = threading.Event(), threading.Event()

    def come() -> None:
        with log.coming():
            is_there.set()
            may_go.wait(30)

    thread = threading.Thread(target=come)
    thread.start()
    assert is_there.wait(30)
    yield
    may_go.set()
    thread.join(30)


def test_a_flush_waits_for_callers_on_their_way_until_it_is_worth_it(
    log: LogWriter, flushes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "GROUP_GAP_S", 30.0)
    all_coming = threading.Barrier(THREADS)

    def call() -> None:
        with log.coming():
            all_coming.wait(30)
            end = log.append(RecordKind.REMOVE, b"x")
        log.sync(end)
        assert log.durable >= end

    threads = [threading.Thread(target=call) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert log.durable == log.end
    assert 1 <= len(flushes) <= -(-THREADS // GROUP_CALLS)


def test_a_caller_who_is_held_up_elsewhere_is_not_waited_for(
    log: LogWriter, flushes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "GROUP_GAP_S", 0.001)
    end = log.append(RecordKind.REMOVE, b"x")
    with company(log):
        log.sync(end)
    assert len(flushes) == 1


def test_a_caller_alone_waits_for_nobody(
    log: LogWriter, flushes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "GROUP_GAP_S", None)  # It would wait for ever.
    with log.coming():
        end = log.append(RecordKind.REMOVE, b"x")
    log.sync(end)
    assert len(flushes) == 1


def test_a_caller_alone_flushes_before_it_has_to_wait_for_it(
    log: LogWriter, flushes: list[str]
) -> None:
    end = log.append(RecordKind.REMOVE, LARGE)
    log.flush_alone()
    assert log.durable == end
    log.sync(end)
    assert flushes == [threading.current_thread().name]


def test_of_a_flush_alone_that_fails_the_next_sync_tells(
    log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(files, "sync_file", broken)
    end = log.append(RecordKind.REMOVE, LARGE)
    log.flush_alone()
    assert log.is_failed
    with pytest.raises(mkv.Error, match="given up after .*broken"):
        log.sync(end)


def test_small_calls_and_those_in_company_are_not_flushed_alone(
    log: LogWriter, flushes: list[str]
) -> None:
    log.append(RecordKind.REMOVE, b"small")
    log.flush_alone()
    log.append(RecordKind.REMOVE, LARGE)
    with log.coming(), company(log):
        log.flush_alone()
    assert flushes == []
    log.sync()  # Of two calls: the next one will not be alone, either.
    log.append(RecordKind.REMOVE, LARGE)
    log.flush_alone()
    assert len(flushes) == 1


def test_a_flush_under_way_is_not_begun_again(
    log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    made = []

    def slow(fd: int) -> None:
        made.append(fd)
        begun.set()
        assert may_end.wait(30)

    monkeypatch.setattr(files, "sync_file", slow)
    log.append(RecordKind.REMOVE, LARGE)
    flusher = threading.Thread(target=log.sync)
    flusher.start()
    assert begun.wait(30)
    log.append(RecordKind.REMOVE, LARGE)
    log.flush_alone()
    assert len(made) == 1
    may_end.set()
    flusher.join(30)
    assert not flusher.is_alive()


@pytest.mark.parametrize("is_flushed_soon", [False, True])
def test_the_disk_begins_with_all_but_the_last_piece_of_a_call_that_is_flushed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_flushed_soon: bool
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(files, "begin_flush", lambda fd, *part: begun.append(part))
    data = np.random.default_rng(0).bytes(2 * PIECE_BYTES + 5)
    log = LogWriter(
        str(folder / "log"),
        FileType.CALLS,
        FileIdentity(UUID, 2, 7),
        is_flushed_soon=is_flushed_soon,
    )
    log.append(RecordKind.REMOVE, b"before")
    start = log.end
    end = log.append(RecordKind.REMOVE, data)
    log.close()
    first = -(-(end - start) // 2)  # Of pieces as equal as can be.
    assert begun == ([(start, first)] if is_flushed_soon else [])
    with LogReader(log.path, FileType.CALLS) as reader:
        assert [bytes(record.payload) for record in reader] == [b"before", data]


def test_nothing_is_written_before_a_call_is_settled_nor_if_it_fails_at_that(
    log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = log.end
    seen = []

    def settle() -> None:
        seen.append(os.path.getsize(log.path))
        raise ValueError("not to be made")

    with pytest.raises(ValueError, match="not to be made"):
        log.append(RecordKind.REMOVE, LARGE, settle=settle)
    assert seen == [before]
    assert (log.end, os.path.getsize(log.path)) == (before, before)
    cuts: list[int] = []
    monkeypatch.setattr(files, "truncate_file", lambda fd, size: cuts.append(size))
    log.append(RecordKind.REMOVE, b"x", settle=lambda: seen.append(log.end))
    assert (seen, cuts) == ([before, before], [])


def test_pushes_of_threads_at_once_are_all_there_after_a_crash(store_dir: Path) -> None:
    ids = np.arange(THREADS * 2000, dtype=np.uint64)
    with mkv.open(store_dir, durability="batch", delta_interval=None) as store:
        store.create_table("t", 64, optimizer=mkv.SGD(1.0)).pull(ids)
    store = mkv.open(store_dir, durability="sync", delta_interval=None)
    table = store.table("t")
    ones = np.ones((2000, 64), np.float32)

    def push(number: int) -> None:
        for _ in range(3):
            table.push(ids[number * 2000 : (number + 1) * 2000], ones)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = table.lookup(ids)
    with mkv.open(store_dir, mode="r") as reader:
        assert np.array_equal(reader.table("t").lookup(ids), expected)
    store.close()


def test_who_comes_and_goes_without_an_append_holds_a_flush_up_once(
    log: LogWriter, flushes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "GROUP_GAP_S", 0.05)
    is_over = threading.Event()
    is_there = threading.Barrier(3)

    def come_and_go() -> None:
        with log.coming():
            is_there.wait(30)
        while not is_over.is_set():
            with log.coming():
                pass

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in threads:
        thread.start()
    is_there.wait(30)
    end = log.append(RecordKind.REMOVE, b"x")
    pusher = threading.Thread(target=log.sync, args=(end,))
    pusher.start()
    pusher.join(20)
    is_over.set()
    for thread in threads:
        thread.join(30)
    assert not pusher.is_alive()
    assert flushes


def test_who_holds_others_up_waits_for_nobody(
    log: LogWriter, flushes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "GROUP_GAP_S", None)  # It would wait for ever.
    end = log.append(RecordKind.REMOVE, b"x")
    with company(log):
        log.sync(end, is_patient=False)
    assert len(flushes) == 1


def test_a_pull_that_appends_nothing_holds_no_flush_up(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.arange(10, dtype=np.uint64)
    with mkv.open(store_dir, durability="sync", delta_interval=None) as store:
        table = store.create_table("t", 2, optimizer=mkv.SGD(1.0))
        table.pull(ids)
        log = store._state.log
        assert log is not None
        seen = []
        monkeypatch.setattr(log._log, "coming", lambda: seen.append(1))
        table.pull(ids)
    assert seen == []


def test_a_cut_is_flushed_before_anything_is_written_in_its_place(
    log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    write, sync, cut = files.write_all, files.sync_file, files.truncate_file
    monkeypatch.setattr(files, "write_all", lambda *a: (steps.append("write"), write(*a))[1])
    monkeypatch.setattr(files, "sync_file", lambda *a: (steps.append("sync"), sync(*a))[1])
    monkeypatch.setattr(files, "truncate_file", lambda *a: (steps.append("cut"), cut(*a))[1])
    log.append(RecordKind.REMOVE, b"kept")
    log.take_back(log.append(RecordKind.REMOVE, b"taken back"))
    log.append(RecordKind.REMOVE, b"in its place")
    assert steps == ["write", "write", "cut", "sync", "write"]
