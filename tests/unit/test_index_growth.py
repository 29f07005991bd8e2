"""The index grows late and in steps: segments fill to 0.9 first, and none is ever large."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from formulas import fids_of_hashes

from monolith_kv._table import Barrier, TableCore
from monolith_kv._testing import IndexDoor

CELLS, BUCKET_BYTES = 5, 64
SHARDS = 8
ROWS = 60_000  # of one shard: several segments, each split more than once
SEGMENT_ROWS_MAX = 3_700
LOAD_BEFORE_GROWTH = 0.9


def ids_of_one_shard(count: int) -> np.ndarray:
    """Ids whose hashes begin with 101 and are random behind that."""
    hashes = np.random.default_rng(3).integers(0, 2**61, count, dtype=np.uint64)
    return fids_of_hashes(hashes | np.uint64(5 << 61))


def grown() -> Iterator[tuple[int, int, int]]:
    """(rows, index bytes before, index bytes after) of each growth while one shard fills."""
    core = TableCore(Barrier(), [(1, 0, (1.0,), 0, 0.0, 0.0, 0)], 1)
    row = np.ones((1, 1), np.float32)
    size = core.memory()["index"]
    for rows, fid in enumerate(ids_of_one_shard(ROWS)):
        core.upsert(np.array([fid]), row, 0.0)
        now = core.memory()["index"]
        if now != size:
            yield rows, size, now
        size = now
    assert core.check() == []


def test_a_segment_is_nine_tenths_full_before_it_grows() -> None:
    empty = TableCore(Barrier(), [(1, 0, (1.0,), 0, 0.0, 0.0, 0)], 1).memory()["index"]
    others = empty // SHARDS * (SHARDS - 1)
    alone = itertools.takewhile(lambda step: step[0] <= SEGMENT_ROWS_MAX, grown())
    loads = [
        rows / ((before - others) // BUCKET_BYTES * CELLS)
        for rows, before, _ in alone
        if rows > 300  # In a handful of buckets a fid may find no place earlier.
    ]
    assert len(loads) > 10
    assert min(loads) >= LOAD_BEFORE_GROWTH


def test_no_growth_rebuilds_more_than_one_segment() -> None:
    # A split makes two segments of half the rows each, at a fill of 0.8: what one step adds is
    # bounded by the size of a segment, however large the table.
    largest = SEGMENT_ROWS_MAX * BUCKET_BYTES // CELLS
    steps = [after - before for _, before, after in grown()]
    assert len(steps) > 20
    assert max(steps) < largest // 2


def test_the_index_gives_memory_back_when_most_rows_are_gone() -> None:
    core = TableCore(Barrier(), [(1, 0, (1.0,), 0, 0.0, 0.0, 0)], 1)
    ids = ids_of_one_shard(ROWS)
    core.upsert(ids, np.ones((ROWS, 1), np.float32), 0.0)
    full = core.memory()["index"]
    core.remove(ids[ROWS // 10 :])
    cursor = 0
    while cursor != -1:
        _, cursor = core.shrink(cursor)
    assert core.memory()["index"] < full / 5
    assert core.check() == []


def test_a_segment_tells_that_ids_which_stay_have_moved() -> None:
    index, count = IndexDoor(), 4_400
    hashes = np.random.default_rng(5).integers(0, 2**61, count, dtype=np.uint64)
    ids = fids_of_hashes(hashes).tolist()
    places, starts = hashes.tolist(), set()
    moved = 0
    for fid, place in zip(ids, places, strict=True):
        moved += has_moved(index, place, partial(index.insert, fid))
        starts.add(index.segment(place)[0])
    assert moved > 500
    assert len(starts) == 2  # It was split once.
    for fid, place in zip(ids[300:], places[300:], strict=True):
        assert not has_moved(index, place, partial(index.erase, fid), gone=fid)
    assert all(has_moved(index, start, partial(index.shrink, start)) for start in starts)


def has_moved(
    index: IndexDoor, place: int, change: Callable[[], None], gone: int | None = None
) -> bool:
    """Make a change; whether others than the one that is gone have moved, which is to be told."""
    start, before, cells = index.segment(place)
    change()
    _, after, now = index.segment(start)
    found = any(now.get(fid) != cell for fid, cell in cells.items() if fid != gone)
    assert after > before if found else after >= before
    return found
