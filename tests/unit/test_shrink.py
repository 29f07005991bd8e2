"""Giving memory back moves rows out of sparse slabs: all of a row comes along."""

import sys
from pathlib import Path

import numpy as np
import pytest

from monolith_kv._table import Barrier, TableCore

ROWS, DIM = 60_000, 64
ADAGRAD = (DIM, 2, (0.5, 0.1, 0.0), 2, -1.0, 1.0, 9)


def shrink(core: TableCore) -> int:
    cursor, freed = 0, 0
    while cursor != -1:
        step, cursor = core.shrink(cursor)
        freed += step
    return freed


def test_rows_that_are_moved_keep_embedding_state_and_time() -> None:
    rng = np.random.default_rng(5)
    core = TableCore(Barrier(), [ADAGRAD], 1)
    ids = rng.integers(0, 2**64, ROWS, dtype=np.uint64)
    core.insert(ids, 1_000.0)
    core.push(ids, rng.standard_normal((ROWS, DIM)).astype(np.float32), 2_000.0)
    stay = np.sort(ids[rng.random(ROWS) < 0.1])
    core.remove(np.setdiff1d(ids, stay))
    before, full = core.pack(stay)[0].copy(), core.memory()["rows"]

    freed = shrink(core)

    np.testing.assert_array_equal(core.pack(stay)[0], before)
    assert core.memory()["rows"] < full / 2
    assert freed > full / 2
    assert core.check() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how memory is mapped")
def test_memory_that_was_given_back_is_not_taken_again_by_the_kernel() -> None:
    def never_huge() -> int:
        """Maps that the kernel makes no huge pages of, whatever part of them is in use."""
        lines = Path("/proc/self/smaps").read_text().splitlines()
        return sum(" nh" in line for line in lines if line.startswith("VmFlags"))

    core = TableCore(Barrier(), [ADAGRAD], 1)
    ids = np.arange(ROWS, dtype=np.uint64)
    core.insert(ids, 1_000.0)
    before = never_huge()
    core.remove(ids[np.arange(ROWS) % 3 > 0])
    assert shrink(core) > 0
    assert never_huge() > before
