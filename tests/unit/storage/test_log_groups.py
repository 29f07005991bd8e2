"""Flushes that threads share: who waits for whom, and what happens beside the caller."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from samples import UUID

import monolith_kv as mkv
from monolith_kv.storage import files, log_file
from monolith_kv.storage.format import FileIdentity, FileType, RecordKind
from monolith_kv.storage.log_file import BESIDE_BYTES, GROUP_CALLS, LogWriter

THREADS = 8
LARGE = bytes(BESIDE_BYTES)


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
    with log.coming():
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


def test_a_flush_goes_on_beside_the_caller_who_then_waits_for_it(
    log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    threads = []

    def slow(fd: int) -> None:
        threads.append(threading.current_thread())
        begun.set()
        assert may_end.wait(30)

    monkeypatch.setattr(files, "sync_file", slow)
    monkeypatch.setattr(log_file, "BEGIN_S", 30.0)
    end = log.append(RecordKind.REMOVE, LARGE)
    log.begin_sync()
    assert log._flushing, "whoever works on now may keep the processor from it"
    assert begun.wait(30)
    assert log.durable < end
    may_end.set()
    log.sync(end)
    assert log.durable == end
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


def test_a_flush_that_cannot_begin_beside_the_caller_is_not_waited_for_long(
    log: LogWriter, flushes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogWriter, "_work_beside", lambda self: None)
    log.append(RecordKind.REMOVE, LARGE)
    log.begin_sync()
    log.sync()
    assert flushes == [threading.current_thread().name]


def test_a_flush_that_fails_beside_the_caller_gives_the_log_up(
    log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def broken(fd: int) -> None:
        failed.set()
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(files, "sync_file", broken)
    end = log.append(RecordKind.REMOVE, LARGE)
    log.begin_sync()
    assert failed.wait(30)
    with pytest.raises(mkv.Error, match="given up after .*broken"):
        log.sync(end)


@pytest.mark.parametrize("ended", ["closed", "flushed"])
def test_a_log_that_was_ended_meanwhile_is_not_flushed_beside(
    log: LogWriter, flushes: list[str], ended: str
) -> None:
    log.append(RecordKind.REMOVE, LARGE)
    if ended == "closed":
        log.close(clean=False)
    else:
        log.sync()
    before = len(flushes)
    with log._turn:
        log._flush_begun()
    assert len(flushes) == before


def test_one_thread_flushes_beside_all_calls_and_ends_with_the_log(
    log: LogWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    threads = []

    def note(fd: int) -> None:
        threads.append(threading.current_thread())
        done.set()

    monkeypatch.setattr(files, "sync_file", note)
    for _ in range(3):
        done.clear()
        end = log.append(RecordKind.REMOVE, LARGE)
        log.begin_sync()
        assert done.wait(30)
        log.sync(end)
    log.close(clean=False)
    assert len(set(threads)) == 1
    assert not threads[0].is_alive()


def test_small_calls_and_those_in_company_begin_no_thread(
    log: LogWriter, flushes: list[str]
) -> None:
    log.append(RecordKind.REMOVE, b"small")
    log.begin_sync()
    log.append(RecordKind.REMOVE, LARGE)
    with log.coming(), log.coming():
        log.begin_sync()
    assert flushes == []
    log.sync()  # Of two calls: the next one will not be alone, either.
    log.append(RecordKind.REMOVE, LARGE)
    log.begin_sync()
    assert len(flushes) == 1
    assert not [t for t in threading.enumerate() if t.name == "monolith-kv-flush"]


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
    with log.coming():
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


def test_a_thread_that_cannot_be_begun_costs_no_call(
    log: LogWriter, flushes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    end = log.append(RecordKind.REMOVE, LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        log.begin_sync()
    log.sync(end)
    assert len(flushes) == 1
