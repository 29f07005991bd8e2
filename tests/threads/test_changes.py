"""Pushes and upserts in steps around the log, with a helper: as if they were made in one."""

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from checks import WIDE

import monolith_kv as mkv
from monolith_kv import calls
from monolith_kv._table import Barrier, Helper, PreparedChange, TableCore
from monolith_kv.storage import files
from monolith_kv.storage.log_file import LogWriter

DIM = 8
LARGE = 6_000  # Ids: a helper takes part.
SMALL = 100
ROUNDS = 300 if WIDE else 40
ADAGRAD = (DIM, 1, (0.1, 0.1, 0.0), 1, 2.0, 0.0, 5)


def a_core(barrier: Barrier | None = None) -> TableCore:
    return TableCore(barrier or Barrier(), [ADAGRAD], 1)


def some_ids(rng: np.random.Generator, count: int) -> Any:
    """Some of them several times."""
    return rng.integers(0, 2 * count, count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def some_rows(rng: np.random.Generator, count: int) -> Any:
    return rng.normal(0, 1, (count, DIM)).astype(np.float32)


def rows_of(core: TableCore, ids: Any) -> Any:
    out, state = np.empty((len(ids), DIM), np.float32), np.empty((len(ids), DIM), np.float32)
    core.lookup(ids, out)
    core.state(ids, state)
    return np.hstack([out, state])


@pytest.mark.parametrize("count", [0, 1, SMALL, LARGE])
def test_changes_in_steps_are_those_made_in_one(count: int) -> None:
    rng, helper = np.random.default_rng(count), Helper()
    one, stepped = a_core(), a_core()
    for number in range(ROUNDS):
        ids, values, is_upsert = some_ids(rng, count), some_rows(rng, count), number % 3 == 0
        (one.upsert if is_upsert else one.push)(ids, values, float(number))
        with PreparedChange(stepped, ids, values, is_upsert, helper) as change:
            change.settle()
            assert not change.is_started
            change.start(float(number))
        everything = np.arange(2 * count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        assert np.array_equal(rows_of(one, everything), rows_of(stepped, everything))
    assert one.digest() == stepped.digest()
    assert one.rows == stepped.rows
    assert stepped.check() == []


@pytest.mark.parametrize("is_upsert", [False, True])
def test_of_bad_numbers_nothing_is_made_and_the_helper_is_free_again(is_upsert: bool) -> None:
    rng, helper, core = np.random.default_rng(0), Helper(), a_core()
    ids, values = some_ids(rng, LARGE), some_rows(rng, LARGE)
    core.upsert(ids, values, 1.0)
    before = core.digest()
    for place in (0, LARGE - 1):
        bad = values.copy()
        bad[place, DIM - 1] = np.nan
        change = PreparedChange(core, ids, bad, is_upsert, helper)
        for step in (change.settle, change.start):
            with pytest.raises(ValueError, match="must be finite"):
                step(*([] if step == change.settle else [2.0]))
        change.finish()
        assert not change.is_started
        assert core.digest() == before
    with PreparedChange(core, ids, values, False, helper) as change:
        change.start(3.0)
    assert core.digest() != before


def test_what_was_not_started_is_dropped() -> None:
    rng, helper, core = np.random.default_rng(0), Helper(), a_core()
    ids, values = some_ids(rng, LARGE), some_rows(rng, LARGE)
    core.upsert(ids, values, 1.0)
    before = core.digest()
    for end in (lambda change: change.finish(), lambda change: change.settle(), lambda change: 0):
        change = PreparedChange(core, ids, values, False, helper)
        end(change)
        del change
    assert core.digest() == before
    with core_held(core, helper, ids, values):
        pass


def core_held(core: TableCore, helper: Helper, ids: Any, values: Any) -> PreparedChange:
    change = PreparedChange(core, ids, values, False, helper)
    change.start(2.0)
    return change


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_instant_waits_until_a_change_of_another_thread_is_whole(size: int) -> None:
    barrier = Barrier()
    core, helper = a_core(barrier), Helper()
    ids = np.arange(size, dtype=np.uint64)
    core.upsert(ids, np.zeros((size, DIM), np.float32), 1.0)
    seen = []

    def look() -> None:
        with barrier:
            seen.append(rows_of(core, ids)[:, 0])

    with core_held(core, helper, ids, np.ones((size, DIM), np.float32)):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(30)
    assert (seen[0] < 0).all()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_instant_of_the_same_thread_finishes_the_change_it_interrupts(size: int) -> None:
    barrier = Barrier()
    core, helper = a_core(barrier), Helper()
    ids = np.arange(size, dtype=np.uint64)
    core.upsert(ids, np.zeros((size, DIM), np.float32), 1.0)
    with core_held(core, helper, ids, np.ones((size, DIM), np.float32)) as change:
        with barrier:
            first = rows_of(core, ids)
            assert (first[:, 0] < 0).all()
        change.finish()
    assert np.array_equal(rows_of(core, ids), first)


def test_a_helper_makes_a_change_while_the_caller_does_something_else() -> None:
    core, helper = a_core(), Helper()
    ids = np.arange(LARGE, dtype=np.uint64)
    core.upsert(ids, np.zeros((LARGE, DIM), np.float32), 1.0)
    with core_held(core, helper, ids, np.ones((LARGE, DIM), np.float32)):
        end = time.monotonic() + 30
        while not (rows_of(core, ids)[:, 0] < 0).all():
            assert time.monotonic() < end, "the caller would have to do all of it"
    assert core.check() == []


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_all_ids_of_an_upsert_have_rows_once_it_is_started(size: int) -> None:
    core, helper = a_core(), Helper()
    ids, rows = np.arange(size, dtype=np.uint64), np.ones((size, DIM), np.float32)
    with PreparedChange(core, ids, rows, True, helper) as change:
        change.settle()
        assert core.rows == 0
        change.start(1.0)
        assert core.rows == size  # So that nothing is left that could fail.


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_was_promised_to_a_change_is_given_back(size: int) -> None:
    rng, helper, core = np.random.default_rng(0), Helper(), a_core()
    ids, values = some_ids(rng, size), some_rows(rng, size)
    for is_upsert in (True, False, True):
        with PreparedChange(core, ids, values, is_upsert, helper) as change:
            change.start(1.0)
            assert core.promised <= size
        assert core.promised == 0
        (core.upsert if is_upsert else core.push)(ids, values, 2.0)
        assert core.promised == 0


def test_of_threads_that_share_a_helper_one_has_it() -> None:
    helper, failures = Helper(), []

    def work(seed: int) -> None:
        rng, one, stepped = np.random.default_rng(seed), a_core(), a_core()
        ids = some_ids(rng, LARGE)
        for core in (one, stepped):
            core.upsert(ids, np.zeros((LARGE, DIM), np.float32), 1.0)
        for number in range(ROUNDS):
            values = some_rows(rng, LARGE)
            one.push(ids, values, float(number))
            with PreparedChange(stepped, ids, values, False, helper) as change:
                change.start(float(number))
        if not np.array_equal(rows_of(one, ids), rows_of(stepped, ids)):
            failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive()
    assert failures == []


@pytest.mark.timeout(60)
def test_a_forked_child_lets_go_of_a_helper_that_it_has_not(store_dir: Path) -> None:
    rng = np.random.default_rng(0)
    ids, values = some_ids(rng, LARGE), some_rows(rng, LARGE)
    store = mkv.open(store_dir, durability="batch", delta_interval=None)
    table = store.create_table("t", DIM, optimizer=mkv.Adagrad(0.1))
    table.upsert(ids, values)
    child = os.fork()
    if child == 0:
        try:
            store.close()
            store._state.helper = None
            gc.collect()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    table.push(ids, values)
    store.close()


# --- in a store, where a signal comes in between -------------------------------------------


def crashed(store: mkv.Store, table: str) -> Any:
    """What a reader finds that replays the log as after a crash."""
    with mkv.open(store.path, mode="r") as reader:
        return reader.digest(table)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("durability", ["batch", "sync"])
def test_an_interrupt_leaves_a_change_in_log_and_memory_or_in_neither(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, size: int
) -> None:
    rng = np.random.default_rng(0)
    ids, values = some_ids(rng, size), some_rows(rng, size)

    class Interrupted(PreparedChange):
        at = ""

        def settle(self) -> None:
            if self.at == "settle":
                raise KeyboardInterrupt
            super().settle()

        def start(self, now: float) -> None:
            if self.at == "before":
                raise KeyboardInterrupt
            super().start(now)
            if self.at == "behind":
                raise KeyboardInterrupt

    def interrupted(log: LogWriter) -> None:
        if Interrupted.at == "flush":
            raise KeyboardInterrupt

    with mkv.open(store_dir, durability=durability, delta_interval=None) as store:
        table = store.create_table("t", DIM, optimizer=mkv.Adagrad(0.1))
        table.upsert(ids, values)
        monkeypatch.setattr(calls, "PreparedChange", Interrupted)
        monkeypatch.setattr(LogWriter, "flush_alone", interrupted)
        made: dict[str, bool] = {}
        for at in ("settle", "before", "behind", "flush"):
            for call in (table.push, table.upsert):
                before = store.digest("t")
                Interrupted.at = at
                is_over = at != "flush" or durability == "sync"
                if is_over:
                    with pytest.raises(KeyboardInterrupt):
                        call(ids, values)
                else:
                    call(ids, values)
                Interrupted.at = ""
                made[at] = made.get(at, False) or store.digest("t") != before
                assert crashed(store, "t") == store.digest("t")
                table.push(ids, values)  # And it goes on.
                assert crashed(store, "t") == store.digest("t")
    assert made == {"settle": False, "before": False, "behind": True, "flush": True}


HANDLERS: dict[str, Callable[[mkv.Store, Any, Any], Any]] = {
    "seal": lambda store, ids, values: store.seal(),
    "snapshot": lambda store, ids, values: store.snapshot(),
    "compact": lambda store, ids, values: store.compact(),
    "push": lambda store, ids, values: store.table("t").push(ids[::-1].copy(), values),
    "remove": lambda store, ids, values: store.table("t").remove(ids[: len(ids) // 2]),
    "drop_table": lambda store, ids, values: store.drop_table("other"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("at", ["settle", "before", "flush"])
@pytest.mark.parametrize("inner", HANDLERS)
def test_a_signal_whose_handler_uses_the_store_finds_the_change_made_or_is_refused(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch, inner: str, at: str, size: int
) -> None:
    rng = np.random.default_rng(0)
    ids, values = some_ids(rng, size), some_rows(rng, size)
    store = mkv.open(store_dir, durability="sync", delta_interval=None)
    store.create_table("other", DIM)
    table = store.create_table("t", DIM, optimizer=mkv.Adagrad(0.1), ttl=10**6)
    table.upsert(ids, values)
    refused: list[mkv.Error] = []
    places = iter([at])

    def handle(place: str) -> None:
        if place != at or next(places, None) is None:
            return
        try:
            HANDLERS[inner](store, ids, values)
        except mkv.Error as error:
            refused.append(error)

    class Handled(PreparedChange):
        def settle(self) -> None:
            super().settle()
            handle("settle")

        def start(self, now: float) -> None:
            handle("before")
            super().start(now)

    flush_alone = LogWriter.flush_alone

    def handled(log: LogWriter) -> None:
        handle("flush")
        flush_alone(log)

    with monkeypatch.context() as patch:
        patch.setattr(calls, "PreparedChange", Handled)
        patch.setattr(LogWriter, "flush_alone", handled)
        table.push(ids, values)
    assert next(places, None) is None
    assert len(refused) == (at != "flush")
    assert all("handler of a signal" in str(error) for error in refused)
    assert crashed(store, "t") == store.digest("t")
    table.push(ids, values)
    assert crashed(store, "t") == store.digest("t")
    expected = store.digest("t")
    store.close()
    with mkv.open(store_dir) as again:
        assert again.digest("t") == expected


# --- in a store, beside others -------------------------------------------------------------


def test_a_pull_of_another_thread_waits_for_memory_not_for_the_disk(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    ids, values = some_ids(rng, LARGE), some_rows(rng, LARGE)
    is_over, flushes = threading.Event(), []

    def slow(fd: int) -> None:
        flushes.append(fd)
        time.sleep(0.3)

    with mkv.open(store_dir, durability="sync", delta_interval=None) as store:
        table = store.create_table("t", DIM, optimizer=mkv.Adagrad(0.1))
        table.upsert(ids, values)
        monkeypatch.setattr(files, "sync_file", slow)

        def push() -> None:
            while not is_over.is_set():
                table.push(ids, values)

        pusher = threading.Thread(target=push)
        pusher.start()
        waited = []
        for _ in range(8):
            begun = time.monotonic()
            table.pull(ids[:9])
            waited.append(time.monotonic() - begun)
            time.sleep(0.05)
        is_over.set()
        pusher.join(30)
    assert len(flushes) > 1
    # The first pull may meet a flush: nothing told of it.
    assert sorted(waited)[-2] < 0.2


def test_a_caller_is_alone_again_long_after_another_one(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    ids, values = some_ids(rng, LARGE), some_rows(rng, LARGE)
    alone: list[int] = []
    flush_alone = LogWriter.flush_alone

    def noted(log: LogWriter) -> None:
        alone.append(threading.get_ident())
        flush_alone(log)

    with mkv.open(store_dir, durability="sync", delta_interval=None) as store:
        table = store.create_table("t", DIM, optimizer=mkv.Adagrad(0.1))
        table.upsert(ids, values)
        monkeypatch.setattr(LogWriter, "flush_alone", noted)
        for _ in range(2):
            table.pull(ids)
            table.push(ids, values)
        assert len(alone) == 2
        puller = threading.Thread(target=table.pull, args=(ids[:9],))
        puller.start()
        puller.join()
        for _ in range(3):
            table.push(ids, values)
        assert len(alone) == 2
        store._state.company_at -= calls.COMPANY_S
        table.push(ids, values)
        assert len(alone) == 3


def test_numbers_that_are_none_never_reach_the_log(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    written: list[int] = []
    write_all = files.write_all

    def noted(fd: int, buffers: Any) -> int:
        written.append(fd)
        return write_all(fd, buffers)

    with mkv.open(store_dir, durability="sync", delta_interval=None) as store:
        table = store.create_table("t", DIM, optimizer=mkv.Adagrad(0.1))
        table.upsert(some_ids(rng, SMALL), some_rows(rng, SMALL))
        monkeypatch.setattr(files, "write_all", noted)
        for size in (SMALL, LARGE):
            bad = some_rows(rng, size)
            bad[-1, -1] = np.inf
            for call in (table.push, table.upsert):
                with pytest.raises(ValueError, match="must be finite"):
                    call(some_ids(rng, size), bad)
        assert written == []
        table.push(some_ids(rng, SMALL), some_rows(rng, SMALL))
        assert written


def test_no_thread_is_left_of_a_store_that_was_closed(store_dir: Path) -> None:
    rng = np.random.default_rng(0)
    ids, values = some_ids(rng, LARGE), some_rows(rng, LARGE)
    store = mkv.open(store_dir, durability="batch", delta_interval=None)
    table = store.create_table("t", DIM, optimizer=mkv.Adagrad(0.1))
    before = threads_of_process()
    table.upsert(ids, values)
    assert threads_of_process() == before + 1
    store.close()
    assert threads_of_process() == before


def threads_of_process() -> int:
    return psutil.Process().num_threads()
