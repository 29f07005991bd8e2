"""Rows that are prefetched come back as they are by then, whatever calls do while they are read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monolith_kv as mkv
from monolith_kv.budget import promote_ahead

DIM = 64
IDS = np.arange(20_000, dtype=np.uint64)
COLD = IDS[:200]


@pytest.fixture
def store(store_dir: Path) -> Iterator[mkv.Store]:
    """A store most of whose rows are cold, those that are prefetched among them."""
    with mkv.open(store_dir, delta_interval=None, memory_limit=4 << 20) as store:
        table = store.create_table("item", DIM, optimizer=mkv.SGD(lr=1.0))
        for start in range(0, len(IDS), 1000):
            ids = IDS[start : start + 1000]
            table.upsert(ids, np.repeat(ids.astype(np.float32)[:, None], DIM, axis=1))
        send_out(store)
        yield store


def core(store: mkv.Store) -> Any:
    return store._state.tables["item"].core


def prefetch(store: mkv.Store, monkeypatch: pytest.MonkeyPatch, between: Callable[[], Any]) -> None:
    """Prefetch; `between` happens when the records are read and their rows not yet back."""
    overflow = store._state.overflow
    read, is_first = overflow.read, True

    def read_slowly(*arguments: Any) -> Any:
        nonlocal is_first
        found = read(*arguments)
        if is_first:
            is_first = False
            between()
        return found

    monkeypatch.setattr(overflow, "read", read_slowly)
    promote_ahead(store._state, store._state.tables["item"], COLD)
    monkeypatch.undo()
    assert store.verify() == []
    assert core(store).check() == []


def send_out(store: mkv.Store) -> None:
    """Pull other rows, more than memory holds, until all that are prefetched have left it."""
    for start in [*range(1000, len(IDS), 1000)] * 4:
        store.table("item").pull(IDS[start : start + 1000])
    assert len(core(store).cold(COLD)) == len(COLD)


def test_rows_come_back_and_calls_go_on_while_they_are_read(store, monkeypatch):
    def between() -> None:
        assert store._state.mutex.acquire(blocking=False)
        store._state.mutex.release()

    prefetch(store, monkeypatch, between)
    assert len(core(store).cold(COLD)) == 0
    assert np.array_equal(store.table("item").lookup(IDS)[:, 0], IDS.astype(np.float32))


def test_a_row_that_is_pushed_meanwhile_keeps_its_step(store, monkeypatch):
    table = store.table("item")
    step = np.full((10, DIM), -1.0, np.float32)
    prefetch(store, monkeypatch, lambda: table.push(COLD[:10], step))
    assert len(core(store).cold(COLD)) == 0
    expected = IDS.astype(np.float32)
    expected[:10] += 1.0
    assert np.array_equal(table.lookup(IDS)[:, 0], expected)


def test_a_row_that_came_back_changed_and_left_again_keeps_its_step(store, monkeypatch):
    table = store.table("item")
    # No file is dropped: what tells is where the rows lie.
    monkeypatch.setattr(store._state.overflow, "_empty", lambda *_, **__: None)

    def between() -> None:
        table.push(COLD, np.full((len(COLD), DIM), -1.0, np.float32))
        send_out(store)

    prefetch(store, monkeypatch, between)
    assert len(core(store).cold(COLD)) == len(COLD)  # Where they lie now nobody has read.
    assert np.array_equal(table.lookup(COLD)[:, 0], COLD.astype(np.float32) + 1.0)


def test_a_row_that_is_removed_meanwhile_does_not_come_back(store, monkeypatch):
    table = store.table("item")
    prefetch(store, monkeypatch, lambda: table.remove(COLD[:10]))
    assert not table.contains(COLD[:10]).any()
    assert len(table) == len(IDS) - 10


def test_nothing_comes_back_once_a_file_was_dropped(store, monkeypatch):
    # Another file may have its number by now, and another row its place.
    def between() -> None:
        store._state.overflow.dropped_files += 1

    prefetch(store, monkeypatch, between)
    assert len(core(store).cold(COLD)) == len(COLD)
    assert np.array_equal(store.table("item").lookup(IDS)[:, 0], IDS.astype(np.float32))


def test_a_table_that_is_dropped_or_a_store_that_is_closed_meanwhile_is_left_alone(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, end in (("a", lambda s: s.drop_table("item")), ("b", lambda s: s.close())):
        store = mkv.open(store_dir / name, delta_interval=None, memory_limit=4 << 20)
        table = store.create_table("item", DIM, optimizer=mkv.SGD(lr=1.0))
        for start in range(0, len(IDS), 1000):
            table.upsert(IDS[start : start + 1000], np.ones((1000, DIM), np.float32))
        state, entry = store._state, store._state.tables["item"]
        read = state.overflow.read

        def read_slowly(*arguments: Any, read=read, end=end, store=store) -> Any:
            found = read(*arguments)
            end(store)
            return found

        monkeypatch.setattr(state.overflow, "read", read_slowly)
        promoted = entry.core.counters()["promoted"]
        promote_ahead(state, entry, COLD)
        assert entry.core.counters()["promoted"] == promoted
        store.close()
