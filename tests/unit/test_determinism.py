"""The same calls give the same bytes, whatever the store, the run and the number of threads."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model import ManualClock

import monolith_kv as mkv

STEPS, BATCH, IDS = 40, 2_000, 5_000
OPTIMIZERS = ["SGD", "Momentum", "Adagrad", "RowWiseAdagrad", "RMSProp", "Adam", "Ftrl"]


def work(table: mkv.Table, worker: int, workers: int) -> None:
    """Pulls, pushes with duplicates, upserts and removals of the ids that are this worker's."""
    random = np.random.default_rng(4)
    for step in range(STEPS):
        ids = random.zipf(1.2, BATCH).astype(np.uint64) % np.uint64(IDS)
        gradients = random.normal(size=(BATCH, table.dim)).astype(np.float32)
        mine = ids % np.uint64(workers) == worker
        table.pull(ids[mine])
        table.push(ids[mine], gradients[mine])
        if step % 5 == 0:
            table.remove(ids[mine][:7])
            table.upsert(ids[mine][7:14], gradients[mine][7:14])


def run(path: Path, optimizer: str, workers: int, **options: Any) -> mkv.Store:
    store = mkv.open(path, delta_interval=None, clock=ManualClock(), **options)
    table = store.create_table("t", 9, optimizer=getattr(mkv, optimizer)())
    threads = [
        threading.Thread(target=work, args=(table, worker, workers)) for worker in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return store


def everything(store: mkv.Store) -> tuple[Any, ...]:
    table = store.table("t")
    ids = np.sort(np.concatenate([ids for ids, _ in table.scan()]))
    state = {name: values.tobytes() for name, values in table.state(ids).items()}
    return ids.tobytes(), table.lookup(ids).tobytes(), state, store.digest()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_runs_end_with_the_same_bytes(folder: Path, optimizer: str) -> None:
    with run(folder / "a", optimizer, 1) as first, run(folder / "b", optimizer, 1) as second:
        assert everything(first) == everything(second)


@pytest.mark.parametrize("durability", ["interval", "batch"])
def test_one_thread_and_four_end_with_the_same_bytes(folder: Path, durability: str) -> None:
    # One thread that does the four's work one after the other: each id sees the same calls.
    with (
        run(folder / "a", "Adagrad", 4, durability=durability) as threaded,
        mkv.open(folder / "b", delta_interval=None, clock=ManualClock()) as alone,
    ):
        table = alone.create_table("t", 9, optimizer=mkv.Adagrad())
        for worker in range(4):
            work(table, worker, 4)
        assert everything(threaded) == everything(alone)


def test_a_memory_limit_changes_no_bytes(folder: Path) -> None:
    with (
        run(folder / "a", "Adam", 1) as roomy,
        run(folder / "b", "Adam", 1, memory_limit="256KiB") as limited,
    ):
        assert everything(roomy) == everything(limited)


@pytest.mark.parametrize("durability", ["none", "interval", "batch", "sync"])
def test_no_durability_mode_changes_a_byte(folder: Path, durability: str) -> None:
    with (
        run(folder / "a", "Ftrl", 1) as first,
        run(folder / "b", "Ftrl", 1, durability=durability) as second,
    ):
        assert everything(first) == everything(second)


def test_duplicates_in_a_batch_are_summed_before_the_step(folder: Path) -> None:
    random = np.random.default_rng(3)
    gradients = random.integers(-8, 9, (6, 4)).astype(np.float32)
    with mkv.open(folder / "s", delta_interval=None) as store:
        table = store.create_table("t", 4, initializer=mkv.Zeros())
        ids = np.array([1, 2, 1, 1, 2, 3], np.uint64)
        table.pull(ids)
        table.push(ids, gradients)
        once = store.create_table("once", 4, initializer=mkv.Zeros())
        distinct = np.array([1, 2, 3], np.uint64)
        once.pull(distinct)
        sums = np.stack([gradients[ids == fid].sum(axis=0) for fid in distinct])
        once.push(distinct, sums)
        np.testing.assert_array_equal(table.lookup(distinct), once.lookup(distinct))


def test_initial_values_depend_on_names_seed_and_id_alone(folder: Path) -> None:
    ids = np.array([5, 0, 2**64 - 1], np.uint64)
    with (
        mkv.open(folder / "a", delta_interval=None) as first,
        mkv.open(folder / "b", delta_interval=None) as second,
    ):
        values = first.create_table("t", 8).pull(ids)
        other = second.create_table("t", 8)
        backwards = other.pull(ids[::-1].copy())
        np.testing.assert_array_equal(values, backwards[::-1])
        other_name = second.create_table("u", 8).pull(ids)
        other_seed = first.create_table("v", 8, initializer=mkv.Uniform(seed=1)).pull(ids)
        same_seed = first.create_table("w", 8, initializer=mkv.Uniform(seed=0)).pull(ids)
        all_values = np.stack([values, other_name, other_seed, same_seed])
        assert len(np.unique(all_values)) > 0.99 * all_values.size


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_push_that_is_logged_first_gives_the_same_bytes(folder: Path, optimizer: str) -> None:
    with (
        run(folder / "a", optimizer, 1, durability="none") as plain,
        run(folder / "b", optimizer, 1, durability="batch") as logged,
    ):
        assert everything(plain) == everything(logged)
