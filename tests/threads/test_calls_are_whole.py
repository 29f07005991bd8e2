"""A seal or a snapshot falls between calls, however long these are: each is in it wholly or not.

One thread changes all rows of a table with each call, so that calls last long; another seals and
takes snapshots all the time. In what these publish all rows must agree.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monolith_kv as mkv
from monolith_kv._table import Barrier, TableCore

ROWS = 60_000
ROUNDS = 15
IDS = np.arange(ROWS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
ONES = np.ones((ROWS, 1), np.float32)


def push(table: mkv.Table, number: int) -> None:
    table.push(IDS, ONES)


def upsert(table: mkv.Table, number: int) -> None:
    table.upsert(IDS, ONES * np.float32(number))


def come_and_go(table: mkv.Table, number: int) -> None:
    if number % 2:
        table.remove(IDS)
    else:
        table.pull(IDS)


@pytest.mark.parametrize("change", [push, upsert, come_and_go])
@pytest.mark.parametrize("durability", ["none", "batch"])
def test_what_is_published_never_cuts_a_call(
    folder: Path, change: Callable[[mkv.Table, int], None], durability: Any
) -> None:
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            change(table, number)

    with (
        mkv.open(folder / "store", durability=durability, delta_interval=None) as store,
        mkv.open(folder / "replica", mode="replica", delta_interval=None) as replica,
    ):
        table = store.create_table("t", 1, optimizer=mkv.SGD(1.0), initializer=mkv.Zeros())
        table.pull(IDS)
        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(ROUNDS):
                delta = store.seal()
                assert delta is None or replica.apply(delta)
                assert_rows_agree(replica.table("t"))
            made = store.snapshot(folder / "elsewhere")
        finally:
            stop.set()
            worker.join()
    with mkv.restore(made.path, folder / "restored", delta_interval=None) as restored:
        assert_rows_agree(restored.table("t"))


def assert_rows_agree(table: mkv.Table) -> None:
    found = np.empty(ROWS, np.bool_)
    rows = table.lookup(IDS, found=found)
    assert found.all() or not found.any()
    assert (rows == rows[0]).all()


def test_a_snapshot_has_the_gate_and_the_rows_of_one_instant(folder: Path) -> None:
    """One thread pushes to all rows and counts many ids; snapshots are taken all the time.

    In each all rows agree, their digest is that which its end states (restore compares them), and
    as many sightings more let in all ids that were counted, or none.
    """
    threshold, pulls = 120, 100
    seen = IDS[:9_000] + np.uint64(1)
    stop = threading.Event()
    paths = []

    def work() -> None:
        for _ in range(pulls):
            gated.pull(seen)
            table.push(IDS, ONES)
            if stop.is_set():
                return

    with mkv.open(folder / "store", durability="none", delta_interval=None) as store:
        table = store.create_table("t", 1, optimizer=mkv.SGD(1.0), initializer=mkv.Zeros())
        gate = mkv.FrequencyGate(threshold, capacity=len(seen), error=1e-6, window="1h")
        gated = store.create_table("g", 1, optimizer=mkv.SGD(1.0), admission=gate)
        table.pull(IDS)
        worker = threading.Thread(target=work)
        worker.start()
        try:
            for number in range(ROUNDS):
                paths.append(store.snapshot(folder / f"{number}").path)
        finally:
            stop.set()
            worker.join()
    counted = set()
    for number, path in enumerate(paths):
        with mkv.restore(path, folder / f"restored-{number}", delta_interval=None) as restored:
            assert_rows_agree(restored.table("t"))
            gated, left = restored.table("g"), threshold
            while not gated.contains(seen).any():
                gated.pull(seen)
                left -= 1
            assert gated.contains(seen).all()
            counted.add(left)
    assert len(counted) > 1, "no call fell between two snapshots: nothing was tried"


CHANGES: dict[str, Callable[[TableCore], object]] = {
    "pull": lambda core: core.pull(IDS[:9], np.empty((9, 1), np.float32), 0.0, True),
    "insert": lambda core: core.insert(IDS[:9], 0.0),
    "push": lambda core: core.push(IDS[:9], ONES[:9], 0.0),
    "upsert": lambda core: core.upsert(IDS[:9], ONES[:9], 0.0),
    "remove": lambda core: core.remove(IDS[:9]),
    "expire": lambda core: core.expire(IDS[:9], 0.0),
    "apply": lambda core: core.apply(np.empty(0, np.uint8), IDS[:9]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_waits_for_the_barrier(change: Callable[[TableCore], object]) -> None:
    # Calls and flips go through the shards in one order, which by itself hardly ever lets a flip
    # overtake a call: only this shows that the barrier is there.
    barrier = Barrier()
    core = TableCore(barrier, [(1, 0, (1.0,), 0, 0.0, 0.0, 0)], 1)
    worker = threading.Thread(target=change, args=(core,))
    with barrier:
        worker.start()
        worker.join(timeout=0.1)
        assert worker.is_alive()
    worker.join(timeout=60)
    assert not worker.is_alive()
