"""Calls that leave a shard between two steps: nobody who comes in meanwhile undoes their work."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from monolith_kv._table import Barrier, TableCore

DIM = 2


def a_core() -> TableCore:
    return TableCore(Barrier(), [(DIM, 0, (1.0,), 1, 2.0, 0.0, 5)], 1)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Start all calls at the same time; what they return."""
    start = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        start.wait()
        results[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_ids_that_several_pull_at_once_get_one_row() -> None:
    core, rounds, count = a_core(), 40, 4_000
    for number in range(rounds):
        ids = np.arange(number * count, (number + 1) * count, dtype=np.uint64)

        def pull(ids: Any = ids) -> Any:
            out = np.empty((count, DIM), np.float32)
            inserted = core.pull(ids, out, 1.0, True)
            assert (out == 2).all()
            return inserted

        inserted = np.concatenate(at_once(pull, pull, pull))
        assert sorted(inserted) == list(ids)
    assert core.rows == rounds * count
    assert core.check() == []


@pytest.mark.parametrize("kind", ["upsert", "push"])
def test_writers_that_let_readers_in_find_the_room_they_need(kind: str) -> None:
    count = 60_000
    shares = [np.arange(first, 3 * count, 3, dtype=np.uint64) for first in range(3)]
    values = np.ones((count, DIM), np.float32)
    for _ in range(3):
        core = a_core()
        if kind == "push":
            for ids in shares:
                core.upsert(ids, values, 1.0)
            core.seal_flip()
            core.seal_read(core.seal_fids(), np.empty(3 * count * core.record_bytes, np.uint8))
            core.seal_end()
        write = core.upsert if kind == "upsert" else core.push
        is_over = threading.Event()

        def read(core: TableCore = core, is_over: threading.Event = is_over) -> None:
            ids, out = shares[0][:200].copy(), np.empty((200, DIM), np.float32)
            while not is_over.is_set():
                core.lookup(ids, out)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        at_once(*(partial(write, ids, values, 2.0) for ids in shares))
        is_over.set()
        for reader in readers:
            reader.join()
        assert core.touched() == 3 * count
        assert core.memory()["touched"] >= 8 * core.touched()
        assert core.check() == []


def test_sightings_of_pulls_that_let_others_in_keep_their_times() -> None:
    count, times = 6_000, (100.0, 200.0, 300.0)
    ids = np.arange(count, dtype=np.uint64)
    for _ in range(8):
        core, is_over = a_core(), threading.Event()
        core.set_gate((len(times) + 1, {}, 100_000, 0.001, 86400))

        def read(core: TableCore = core, is_over: threading.Event = is_over) -> None:
            out = np.empty((200, DIM), np.float32)
            while not is_over.is_set():
                core.lookup(ids[:200], out)

        def pull(now: float, core: TableCore = core) -> Any:
            return core.pull(ids, np.empty((count, DIM), np.float32), now, True)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        at_once(*(partial(pull, now) for now in times))
        is_over.set()
        for reader in readers:
            reader.join()
        seen: dict[int, list[int]] = {int(now): [] for now in times}
        for now, fids in runs_of(core.sightings(True)):
            seen[now] += fids
        assert {now: sorted(fids) for now, fids in seen.items()} == dict.fromkeys(
            seen, ids.tolist()
        )
        assert core.rows == 0


@pytest.mark.parametrize("kind", ["seal", "snapshot"])
def test_views_that_let_readers_in_are_of_one_instant(kind: str) -> None:
    count, new = 150_000, 100_000
    ids = np.arange(count, dtype=np.uint64)
    for _ in range(4):
        core, is_over = a_core(), threading.Event()
        core.upsert(ids, np.ones((count, DIM), np.float32), 1.0)
        core.seal_flip() if kind == "seal" else core.snapshot_flip()

        def read(core: TableCore = core, is_over: threading.Event = is_over) -> None:
            out = np.empty((200, DIM), np.float32)
            while not is_over.is_set():
                core.lookup(ids[:200], out)

        def write(core: TableCore = core) -> None:
            # New ids move others in the index; of those that are there some change, some go.
            fresh = np.arange(count, count + new, dtype=np.uint64)
            core.upsert(fresh, np.zeros((new, DIM), np.float32), 2.0)
            core.push(ids[::3].copy(), np.ones((len(ids[::3]), DIM), np.float32), 2.0)
            core.remove(ids[1::30].copy())

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        view = seal_of if kind == "seal" else snapshot_of
        records, _ = at_once(partial(view, core), write)
        is_over.set()
        for reader in readers:
            reader.join()
        rows = np.concatenate(records).reshape(-1, core.record_bytes)
        fids, first = rows[:, :8].copy().view(np.uint64), rows[:, 16:20].copy().view(np.float32)
        assert np.array_equal(np.sort(fids.ravel()), ids)
        assert (first == 1).all()
        assert core.check() == []


def seal_of(core: TableCore) -> list[Any]:
    """Read a seal's view, as a store does; every record of it."""
    fids, block = core.seal_fids(), np.empty(10_000 * core.record_bytes, np.uint8)
    found = []
    for start in range(0, len(fids), 10_000):
        found.append(core.seal_read(fids[start : start + 10_000], block)[0].copy())
        found.append(core.saved(True, block).copy())
    while len(records := core.saved(True, block)):
        found.append(records.copy())
    core.seal_end()
    return found


def snapshot_of(core: TableCore) -> list[Any]:
    """Read a snapshot's view, as a store does; every record of it."""
    block, cursor, found = np.empty(10_000 * core.record_bytes, np.uint8), 0, []
    while cursor >= 0:
        records, _, cursor = core.snapshot_read(cursor, block)
        found.append(records.copy())
        found.append(core.saved(False, block).copy())
    return found + core.snapshot_end()


def test_a_view_is_not_read_into_too_little_room() -> None:
    core, ids = a_core(), np.arange(3, dtype=np.uint64)
    core.upsert(ids, np.ones((3, DIM), np.float32), 1.0)
    core.seal_flip()
    with pytest.raises(ValueError, match=r"are no room for 3 records"):
        core.seal_read(ids, np.empty(3 * core.record_bytes - 1, np.uint8))
    assert len(np.concatenate(seal_of(core))) == 3 * core.record_bytes
    core.snapshot_flip()
    with pytest.raises(ValueError, match=r"are no room for a record"):
        core.snapshot_read(0, np.empty(core.record_bytes - 1, np.uint8))
    assert len(np.concatenate(snapshot_of(core))) == 3 * core.record_bytes


def runs_of(sightings: bytes) -> Iterator[tuple[int, list[int]]]:
    """Return the time and the ids of each run, of all shards."""
    words = np.frombuffer(sightings, "<u8").tolist()
    at = 0
    while at < len(words):
        end = at + 1 + words[at] // 8
        at += 1
        while at < end:
            now, many = words[at : at + 2]
            yield now, words[at + 2 : at + 2 + many]
            at += 2 + many
