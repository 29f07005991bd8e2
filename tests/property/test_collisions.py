"""No two ids ever share a row, whatever ids they are.

Rows of one float hold a number that tells the id's place in the batch (24 bits are exact in
float32), so a row that was shared or mixed up shows. The adversary knows the hash (it is a
bijection, inverted in formulas.py) but not the store's secret multiplier.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from checks import WIDE
from formulas import fids_of_hashes, hash_fids

import monolith_kv as mkv

pytestmark = pytest.mark.timeout(1_200)

COUNT = 10_000_000 if WIDE else 1_000_000
BATCH = 262_144


def of_one_shard() -> np.ndarray:
    """Ids whose hashes share their upper 24 bits, and with them shard and index segment."""
    hashes = np.arange(COUNT, dtype=np.uint64) * np.uint64(0x9E3779B1) & np.uint64(2**40 - 1)
    return fids_of_hashes(hashes | np.uint64(0xABCDEF << 40))


def of_one_tag() -> np.ndarray:
    """Ids whose hashes share their lower 32 bits, and with them the tag and half of a bucket."""
    return fids_of_hashes(np.arange(COUNT, dtype=np.uint64) << np.uint64(32) | np.uint64(77))


def of_equal_halves() -> np.ndarray:
    """Ids whose hashes do not change when their halves are swapped: both buckets are one."""
    halves = np.random.default_rng(6).permutation(2**32 // 256)[:COUNT].astype(np.uint64)
    halves *= np.uint64(251)
    return fids_of_hashes(halves << np.uint64(32) | halves)


def at_both_ends() -> np.ndarray:
    """0 and 2**64 - 1 and their neighbours, counting up and down."""
    up = np.arange(COUNT // 2, dtype=np.uint64)
    return np.concatenate([up, ~up])


STREAMS: dict[str, Callable[[], np.ndarray]] = {
    "random": lambda: np.random.default_rng(5).integers(0, 2**64, COUNT, np.uint64),
    "sequential": lambda: np.arange(1, COUNT + 1, dtype=np.uint64) << np.uint64(20),
    "both_ends": at_both_ends,
    "one_shard": of_one_shard,
    "one_tag": of_one_tag,
    "equal_halves": of_equal_halves,
}


def batches(ids: np.ndarray) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, len(ids), BATCH))


@pytest.mark.parametrize("stream", sorted(STREAMS))
def test_each_id_keeps_its_own_row(folder: Path, stream: str) -> None:
    ids = STREAMS[stream]()
    assert len(np.unique(ids)) == len(ids)
    values = np.arange(1, len(ids) + 1, dtype=np.float32)[:, None]
    with mkv.open(folder / "s", durability="none", delta_interval=None) as store:
        table = store.create_table("t", 1, optimizer=mkv.SGD(), initializer=mkv.Zeros())
        for part in batches(ids):
            table.upsert(ids[part], values[part])
        assert len(table) == len(ids)
        for part in batches(ids):
            np.testing.assert_array_equal(table.lookup(ids[part]), values[part])
        # Every other one goes; neighbours in the index must not notice.
        removed = sum(table.remove(ids[part][::2]) for part in batches(ids))
        assert removed == sum(len(ids[part][::2]) for part in batches(ids))
        found = np.empty(BATCH, bool)
        for part in batches(ids):
            here = found[: len(ids[part])]
            rows = table.lookup(ids[part], found=here)
            assert not here[::2].any()
            assert here[1::2].all()
            np.testing.assert_array_equal(rows[1::2], values[part][1::2])


def test_ids_never_inserted_are_never_found(folder: Path) -> None:
    ids = STREAMS["random"]()
    # Same upper or lower half of the hash as an id that is there, and not there itself.
    hashes = hash_fids(ids[:BATCH])
    strangers = np.concatenate(
        [
            fids_of_hashes(hashes ^ np.uint64(1 << bit))
            for bit in (0, 1, 15, 16, 31, 32, 47, 48, 60, 61, 63)
        ]
    )
    strangers = np.setdiff1d(strangers, ids)
    with mkv.open(folder / "s", durability="none", delta_interval=None) as store:
        table = store.create_table("t", 1, optimizer=mkv.SGD(), initializer=mkv.Constant(1.0))
        for part in batches(ids):
            table.pull(ids[part])
        assert not table.contains(strangers).any()
        assert not table.lookup(strangers).any()
